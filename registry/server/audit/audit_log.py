"""`AuditLog`: the audit log of one application: its keys, its pending events, its latest checkpoint, and its thread.

A single server, one of several replicas and an embedded registry all call the same `step`; the database lock decides
which process does the work.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import anyio
from anyio import CapacityLimiter, to_thread
from sqlalchemy import Engine
from sqlmodel import Session

from registry import tlog
from registry.api import CHECKPOINT_HEADER, KeyReplacement, LogKeys
from registry.api.audit import EventProof
from registry.errors import Invalid, NotFound, Unavailable
from registry.server import audit
from registry.server.audit import sequencer, tree
from registry.server.audit.event_batch import EventBatch
from registry.server.audit.keys import Keys, load_keys
from registry.server.database import db
from registry.server.database.models import AuditCheckpointRow, EventRow
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.tlog import notes

STEP_SECONDS = 1.0
STEP_LIMIT_SECONDS = 10.0
CATCH_UP_SECONDS = 1.0
LOOK_SECONDS = 0.01
IDLE_STEP_SECONDS = 30.0
"""Step this often even if nothing was committed: another process may have stopped in the middle of its step."""
_LOG = logging.getLogger("registry.server.audit")


class LatestCheckpoint(NamedTuple):
    """The latest checkpoint: how many events it covers, and its signed note. Empty before the first one."""

    size: int = 0
    note: str = ""


class AuditLog:
    """Thread-safe. One per application."""

    def __init__(self, settings: Settings, engine: Engine, blobs: BlobStore) -> None:
        self._settings, self._engine, self._blobs = settings, engine, blobs
        self._keys: Keys | None = None
        self._keys_lock, self._step_lock = threading.Lock(), threading.Lock()
        self._steps_begun = self._steps_done = 0
        self.batch = EventBatch()
        self.latest = LatestCheckpoint()
        self.after_step: list[Callable[[int], object]] = []
        """Each is called after a step, with the size of the latest checkpoint."""
        self.is_running = False
        """Whether a thread of this process executes `run`."""
        self.closing = threading.Event()
        """Set when the server stops, so that requests that wait for events return."""

    @property
    def keys(self) -> Keys:
        """The keys, read once. Only an empty log gets a new key file.

        `Invalid` (SETTING_INVALID) if the file is malformed, or absent while the log has events.
        """
        with self._keys_lock:
            if self._keys is None:
                self._keys = load_keys(self._settings, may_create=self._latest_row() is None)
            return self._keys

    def check_keys(self) -> None:
        """Check at the start that the keys are those of this log. `Invalid` (SETTING_INVALID)."""
        with db.session(self._engine, write=False) as session:
            sequencer.require_same_log(session, self.keys)

    def reload_keys(self) -> None:
        """Read the key file again, after a rotation. The former keys stay if it is not of this log: `Invalid`."""
        keys = load_keys(self._settings, may_create=False)
        with db.session(self._engine, write=False) as session:
            sequencer.require_same_log(session, keys)
        with self._keys_lock:
            self._keys = keys

    def _latest_row(self) -> AuditCheckpointRow | None:
        with db.session(self._engine, write=False) as session:
            return sequencer.latest_checkpoint(session)

    def step(self) -> None:
        """Write the batch, number and sign new events, and read the latest checkpoint.

        One thread of a process does this at a time. Others wait for it, for at most `STEP_LIMIT_SECONDS`.
        """
        if not self._step_lock.acquire(timeout=STEP_LIMIT_SECONDS):
            return
        self._steps_begun += 1
        try:
            self.batch.flush(self._engine)
            with contextlib.suppress(Unavailable):  # another process is doing it
                sequencer.run_sequencer(self._engine, self._blobs, lambda: self.keys)
            self.read_latest()
            for callback in self.after_step:
                with contextlib.suppress(Unavailable):
                    callback(self.latest.size)
        finally:
            self._steps_done = self._steps_begun
            self._step_lock.release()

    async def catch_up(self) -> None:
        """Number what was committed before this call, for at most `CATCH_UP_SECONDS`. A reader holds no thread for it.

        One thread does the step for all who wait; who waits longer reads what is numbered by then.
        """
        goal, until = self._steps_begun + 1, time.monotonic() + CATCH_UP_SECONDS
        while self._steps_done < goal and (seconds := until - time.monotonic()) > 0:
            if self._step_lock.locked():
                await anyio.sleep(LOOK_SECONDS)
            else:
                with anyio.move_on_after(seconds):  # the thread goes on with its step
                    await to_thread.run_sync(self.step, abandon_on_cancel=True, limiter=CapacityLimiter(1))

    def flush(self) -> None:
        """Write the batch before this application ends. It is lost if it cannot be written now."""
        with contextlib.suppress(Unavailable):
            self.batch.flush(self._engine)

    def run(self, stamp: Callable[[], object | None] = lambda: None) -> None:
        """Call `step` every second until `closing` is set. Failures are logged.

        `stamp` returns equal values while nothing is committed, or None if that is unknown (`Freshness.stamp`). While
        it stays equal and the batch is empty, steps are rare, because each one takes milliseconds from requests.
        """
        self.is_running = True
        last_stamp, stepped_at = None, float("-inf")
        while not self.closing.wait(STEP_SECONDS):
            try:
                new_stamp = stamp()
                idle = new_stamp is not None and new_stamp == last_stamp and not self.batch.is_pending
                if idle and time.monotonic() - stepped_at < IDLE_STEP_SECONDS:
                    continue
                last_stamp, stepped_at = None, time.monotonic()
                self.step()
                last_stamp = new_stamp
            except Exception as e:  # the thread must not end: the log would stop without notice
                _LOG.error("the audit log does not advance: %s", e)
        self.flush()

    def read_latest(self) -> LatestCheckpoint:
        """Read the latest checkpoint from the database and remember it."""
        row = self._latest_row()
        if row is not None and row.size >= self.latest.size:
            self.latest = LatestCheckpoint(row.size, row.note)
        return self.latest

    @property
    def checkpoint_header(self) -> dict[str, str]:
        """The response header with the latest checkpoint; empty before the first one."""
        note = self.latest.note
        return {CHECKPOINT_HEADER: base64.b64encode(note.encode()).decode()} if note else {}

    def describe_keys(self) -> LogKeys:
        """Return the name of the log and its public keys. `Unavailable` if they are not those of this log."""
        try:
            self.check_keys()
        except Invalid as e:
            raise Unavailable("TRY_LATER", f"this server cannot prove its log: {e.detail}") from e
        keys = self.keys
        with db.session(self._engine, write=False) as session:
            replacements = [
                KeyReplacement(key=key, reason=audit.to_view(row).detail["reason"], at=row.at, seq=row.position)
                for key, row in sequencer.read_replacements(session)
                if row.position is not None
            ]
        return LogKeys(
            origin=keys.signer.name,
            keys=[verifier.text for verifier in keys.verifiers],
            successions=keys.successions,
            replacements=replacements,
        )


def prove_event(session: Session, row: EventRow) -> EventProof:
    """Return the proof that the latest checkpoint covers this event. `NotFound` if it does not yet."""
    checkpoint = sequencer.latest_checkpoint(session)
    if checkpoint is None or row.position is None or row.position > checkpoint.size:
        raise NotFound("EVENT_UNKNOWN", "this event is not in a checkpoint yet", next_step="try again in a few seconds")
    index = row.position - 1
    hashes = tlog.inclusion(index, checkpoint.size, tree.TreeNodes(session))
    entry = sequencer.entry_of(row, row.position).decode()
    return EventProof(seq=row.position, entry=entry, proof=notes.proof_text(index, hashes, checkpoint.note))
