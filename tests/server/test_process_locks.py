"""Locks between servers on PostgreSQL: one holder, and none that is frozen stops the others or writes afterwards."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from registry.errors import Unavailable
from registry.server.audit import sequencer
from registry.server.database import db, locks
from registry.server.maintenance import gc
from registry.server.storage import reclaim
from registry.server.storage.blobs import BlobStore, key_of
from tests import samples
from tests.harness import Harness
from tests.import_table import ROOT
from tests.maintenance import collect, findings, orphan, states

pytestmark = pytest.mark.security

LIMIT_SECONDS = 60
HOLDER = """
import sys
from registry.errors import Unavailable
from registry.server.database import db, engine as engines, locks
from registry.server.settings import Settings

def wait(word):
    print(word, flush=True)
    sys.stdin.readline()

locks.LOCK_SECONDS, locks.RENEW_SECONDS = int(sys.argv[3]), 0.2
engines.SESSION_SETTINGS["idle_in_transaction_session_timeout"] = "500"
engine = engines.open_database(Settings(database_url=sys.argv[1]))
with locks.acquire(engine, "audit") as lock:
    try:
        if sys.argv[2] == "between transactions":
            wait("holding")
        with db.session(engine) as session:
            lock.guard(session)
            if sys.argv[2] == "in a transaction":
                wait("holding")
        print("wrote", flush=True)
    except Unavailable as e:
        print(e.code, flush=True)
"""


@pytest.fixture
def database_kind() -> str:
    return "postgres"


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url) as harness:
        harness.add_base()
        yield harness


@pytest.fixture
def engine(harness: Harness) -> Engine:
    return harness.engine


@contextlib.contextmanager
def hold(url: str, moment: str, *, lease_seconds: int) -> Iterator[subprocess.Popen[str]]:
    """Run a process that has the lock, until it reads a line."""
    command = [sys.executable, "-c", HOLDER, url, moment, str(lease_seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def number_all_events(harness: Harness) -> None:
    """Run the sequencer as a server does: again whenever another process has its lock."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(Unavailable):
            sequencer.run_sequencer(harness.engine, harness.blobs, lambda: harness.app.state.audit_log.keys)
            with harness.session() as session:
                assert not sequencer.has_pending(session)
            return
        time.sleep(0.1)
    raise AssertionError("the frozen process still stops the sequencer")


@pytest.mark.parametrize("moment", ["between transactions", "in a transaction"])
def test_a_frozen_process_stops_no_other_and_writes_nothing_when_it_wakes_up(harness: Harness, moment: str) -> None:
    url = harness.engine.url.render_as_string(hide_password=False)
    with hold(url, moment, lease_seconds=1) as holder:
        assert read(holder) == "holding"
        holder.send_signal(signal.SIGSTOP)
        harness.push("acme/support")
        number_all_events(harness)
        holder.send_signal(signal.SIGCONT)
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert read(holder) in ("TRY_LATER", "DATABASE_UNAVAILABLE")


def test_a_killed_process_of_this_machine_has_lost_its_lock_at_once(harness: Harness) -> None:
    url = harness.engine.url.render_as_string(hide_password=False)
    with hold(url, "in a transaction", lease_seconds=1000) as holder:
        assert read(holder) == "holding"
        with pytest.raises(Unavailable, match="another audit is running"), locks.acquire(harness.engine, "audit"):
            pass
        holder.kill()
        holder.wait()
        with locks.acquire(harness.engine, "audit"):
            pass


def test_a_lock_is_renewed_while_it_is_held_and_has_a_higher_number_next_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock_row() -> tuple[int, object]:
        with engine.connect() as connection:
            row = connection.execute(text("SELECT number, expires_at FROM process_lock WHERE name = 'gc'")).one()
            return row[0], row[1]

    monkeypatch.setattr(locks, "RENEW_SECONDS", 0.01)
    with locks.acquire(engine, "gc") as lock:
        number, expires_at = lock_row()
        deadline = time.monotonic() + LIMIT_SECONDS
        while lock_row()[1] == expires_at:
            assert time.monotonic() < deadline
        with pytest.raises(Unavailable, match="another gc is running"), locks.acquire(engine, "gc"):
            pass
        lock.check()
        with db.session(engine) as session:
            lock.guard(session)
    with locks.acquire(engine, "gc"):
        assert lock_row()[0] == number + 1


def test_bytes_deleted_by_a_collector_that_lost_its_lock_are_known_to_be_missing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It freezes before it deletes the bytes; another one takes over, and the same bytes are pushed again."""
    files = harness.files()
    weights = orphan(harness, files[samples.WEIGHTS])
    delete = type(harness.blobs).delete

    def freeze_and_delete(blobs: BlobStore, key: str) -> None:
        if key == key_of(weights):
            monkeypatch.setattr(type(harness.blobs), "delete", delete)
            with harness.engine.begin() as connection:
                connection.execute(text("UPDATE process_lock SET expires_at = clock_timestamp()"))
            assert collect(harness).blobs_deleted == 1
            assert harness.push("acme/support", files).created
        delete(blobs, key)

    monkeypatch.setattr(type(harness.blobs), "delete", freeze_and_delete)
    with locks.acquire(harness.engine, reclaim.LOCK) as lock:
        no = timedelta(0)
        run = gc.GcRun(harness.engine, harness.blobs, lock, no, no, no, no, no, dry_run=False)
        with pytest.raises(Unavailable, match="took over"):
            gc.collect_blobs(run)
    assert states(harness)[weights] == "corrupt"
    assert not harness.push("acme/support", files).created
    assert set(states(harness).values()) == {"live"}
    assert findings(harness) == []
