"""Server processes that share a port: start, restart, signals, and a real server on PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, event

from cli.main import main
from tests import processes, services
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
        headers = {"Authorization": f"Bearer {printed['token']}"}
        for _ in range(10):  # each on a connection of its own, which either process may accept
            response = httpx.get(f"{printed['url']}/api/v1/whoami", headers=headers)
            assert response.json()["actor"] == "token:admin"
        metrics = httpx.get(f"{printed['url']}/api/v1/metrics", headers=headers).text
        assert 'registry_request_seconds_count{method="GET",route="/api/v1/whoami"} 10.0' in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0


@pytest.mark.security
def test_one_of_two_first_servers_that_make_a_key_at_once_is_refused(tmp_path: Path, postgres_server: str) -> None:
    """Both make one, each in its own data folder, before either records it: until then the test locks the table."""
    folders = [tmp_path / "a", tmp_path / "b"]
    command = [sys.executable, "-m", "cli.main", "serve", "--port", "0", "--data", "."]
    with services.fresh_database(postgres_server) as url, ExitStack() as stack:
        env = os.environ | {"REGISTRY_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
        assert CliRunner().invoke(main, ["migrate"], env=env).exit_code == 0
        pool = stack.enter_context(ThreadPoolExecutor(2))
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute("LOCK TABLE audit_checkpoint IN SHARE MODE")
            ends = {}
            for folder in folders:
                folder.mkdir()
                server = stack.enter_context(processes.running(command, folder, stop=signal.SIGTERM, env=env))
                ends[pool.submit(server.wait)] = folder / "server.log"
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'audit_checkpoint'::regclass"
            processes.wait_until(lambda: connection.execute(waiting).fetchone() == (2,), server, folder)
            assert all((folder / "audit.key").exists() for folder in folders)
        done, running = wait(ends, timeout=120, return_when=FIRST_COMPLETED)
        refusals = {future.result(): ends[future].read_text() for future in done}
        assert list(refusals) == [2]
        assert "REGISTRY_AUDIT_KEY: none of its keys signed the latest checkpoint" in refusals[2]
        assert "give every server of this registry the key file that it was started with" in refusals[2]
        (winner,) = running
        while not winner.done() and "The registry listens at" not in ends[winner].read_text():
            wait(running, timeout=0.02)
        assert not winner.done(), ends[winner].read_text()


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
