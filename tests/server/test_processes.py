"""Server processes that share a port: start, restart, signals, and a real server on PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, event

from cli.main import main
from tests import services
from tests.cli.runner import served
from tests.import_table import ROOT

PROGRAM = """
import os, signal, sys
from cli.server.processes import run_processes
def work(number, ready):
    signal.signal(signal.SIGHUP, lambda *_: os.write(1, b"hup\\n"))  # at once: print may write the line's end apart
    if sys.argv[1] == "broken": sys.exit(5)
    ready()
    os.write(1, b"start %d %d\\n" % (number, os.getpid()))
    while True: signal.pause()
sys.exit(run_processes(2, work))
"""


@contextmanager
def supervised(mode: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> list[str]:
    return process.stdout.readline().split() if process.stdout is not None else []


def test_a_process_that_dies_is_started_again_and_signals_reach_all() -> None:
    with supervised("ready") as process:
        started = [line(process), line(process)]
        assert [words[:2] for words in started] == [["start", "0"], ["start", "1"]]
        os.kill(int(started[0][2]), signal.SIGKILL)
        assert line(process)[:2] == ["start", "2"]
        process.send_signal(signal.SIGHUP)
        assert [line(process), line(process)] == [["hup"], ["hup"]]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0


def test_a_process_that_never_was_ready_ends_all_with_its_exit_code() -> None:
    with supervised("broken") as process:
        assert process.wait(timeout=120) == 5


def test_two_processes_serve_one_port_of_a_real_server(tmp_path: Path, postgres_server: str) -> None:
    with (
        services.fresh_database(postgres_server) as url,
        served(tmp_path, "--workers", "2", REGISTRY_DATABASE_URL=url) as (process, printed),
    ):
        response = httpx.get(f"{printed['url']}/api/v1/whoami", headers={"Authorization": f"Bearer {printed['token']}"})
        assert response.json()["actor"] == "token:admin"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0


@pytest.mark.parametrize("table", ["token", "audit_checkpoint"])
def test_a_database_that_stops_during_the_start_is_named_with_the_drivers_reason(
    tmp_path: Path, postgres_server: str, table: str
) -> None:
    """As PostgreSQL ends sessions when it shuts down: here each one that is about to read this table."""

    def end_session(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if f"FROM {table}" in statement:
            with psycopg.connect(url.replace("+psycopg", "")) as other:
                session = connection.connection.dbapi_connection.info.backend_pid
                other.execute("SELECT pg_terminate_backend(%s)", [session])

    with services.fresh_database(postgres_server) as url:
        event.listen(Engine, "before_cursor_execute", end_session)
        try:
            words = ["serve", "--port", "0", "--data", str(tmp_path)]
            ran = CliRunner().invoke(main, words, env={"REGISTRY_DATABASE_URL": url})
        finally:
            event.remove(Engine, "before_cursor_execute", end_session)
    assert ran.exit_code == 75, ran.output
    assert "terminating connection due to administrator command" in ran.stderr
    assert "check REGISTRY_DATABASE_URL" in ran.stderr


def test_sqlite_serves_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "serve", "--workers", "2", "--port", "0", "--data", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ran.returncode, "SQLite serves one process" in ran.stderr) == (2, True)
