"""`Log`: the audit log as one application has it: its keys, its batch, its newest checkpoint; and what keeps it going.

Invariants
- The newest checkpoint is remembered, so that telling it costs nothing; `step` looks for a newer one.
- A server that runs alone, one of many, and an embedded registry all call the same `step`; who has the turn works.

Example
    >>> log.step()
    >>> log.head().size
    1042
"""

from __future__ import annotations

import base64
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine
from sqlmodel import Session

from registry import tlog
from registry.api.audit import EventProof
from registry.api.checkpoints import CHECKPOINT_HEADER, LogKeys
from registry.errors import Invalid, NotFound, Unavailable
from registry.server.audit import keys, sequencer, tree
from registry.server.audit.batch import Batch
from registry.server.audit.keys import Keys
from registry.server.database import db
from registry.server.database.models import AuditCheckpointRow, EventRow
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.tlog import proofs
from registry.tlog.notes import Checkpoint

Head = tuple[int, str]
"""The size and the note of a checkpoint."""
NO_HEAD: Head = (0, "")
STEP_SECONDS = 1.0
STEP_LIMIT_SECONDS = 10.0
STEP_ANYWAY_SECONDS = 30.0
"""Another process may have had the turn, and ended in the middle."""
_LOG = logging.getLogger("registry.server.audit")


class Log:
    def __init__(self, settings: Settings, engine: Engine, blobs: BlobStore) -> None:
        self._settings, self._engine, self._blobs = settings, engine, blobs
        self._keys: Keys | None = None
        self._lock, self._stepping = threading.Lock(), threading.Lock()
        self.batch = Batch()
        self.newest: Head = NO_HEAD
        self.after_step: list[Callable[[int], object]] = []
        """Each is called after a step, with the size of the newest checkpoint."""
        self.followed = False
        """Whether a thread of this process calls `step` again and again."""
        self.closing = threading.Event()
        """Set when the server ends: whoever waits for events stops waiting."""

    @property
    def keys(self) -> Keys:
        """The keys, read once. `Invalid` (SETTING_INVALID) where the key file is not as it should be."""
        with self._lock:
            if self._keys is None:
                self._keys = keys.load(self._settings)
            return self._keys

    def step(self) -> None:
        """Write what was noted, number what waits, sign, and look what is newest. Another process may be at it.

        One thread of a process at a time; the others wait for what it has done, but not for ever.
        """
        if not self._stepping.acquire(timeout=STEP_LIMIT_SECONDS):
            return
        try:
            self.batch.flush(self._engine)
            with contextlib.suppress(Unavailable):
                sequencer.run(self._engine, self._blobs, lambda: self.keys)
            self.look()
            for callback in self.after_step:
                with contextlib.suppress(Unavailable):
                    callback(self.newest[0])
        finally:
            self._stepping.release()

    def finish(self) -> None:
        """Write what was noted, before this application ends. What cannot be written now is lost."""
        with contextlib.suppress(Unavailable):
            self.batch.flush(self._engine)

    def follow(self, stamp: Callable[[], object | None] = lambda: None) -> None:
        """Call `step` every second until `closing` is set, in a thread of its own; a failure is logged.

        `stamp`: equal while nothing is committed, None where that is not known (`Freshness.stamp`). As long as it is
        equal and nothing was noted there is nothing to do but to look now and then: a step takes the interpreter for
        milliseconds from those who answer.
        """
        self.followed = True
        seen, stepped_at = None, float("-inf")
        while not self.closing.wait(STEP_SECONDS):
            try:
                now = stamp()
                idle = now is not None and now == seen and not self.batch.waits
                if idle and time.monotonic() - stepped_at < STEP_ANYWAY_SECONDS:
                    continue
                seen, stepped_at = None, time.monotonic()
                self.step()
                seen = now
            except Exception as e:  # a thread that ends would leave the log behind without anybody seeing it
                _LOG.error("the audit log does not go on: %s", e)
        self.finish()

    def look(self) -> Head:
        """The newest checkpoint, from the database; it is remembered."""
        with db.session(self._engine, write=False) as session:
            row = sequencer.latest(session)
        if row is not None and row.size >= self.newest[0]:
            self.newest = (row.size, row.note)
        return self.newest

    @property
    def header(self) -> dict[str, str]:
        """The newest checkpoint that this process remembers, as a header; nothing while there is none."""
        note = self.newest[1]
        return {CHECKPOINT_HEADER: base64.b64encode(note.encode()).decode()} if note else {}

    def described(self) -> LogKeys:
        held = self.keys
        return LogKeys(origin=held.signer.name, keys=[verifier.text for verifier in held.verifiers])


def proof(session: Session, row: EventRow) -> EventProof:
    """The proof that the newest checkpoint holds this event. `NotFound` while it is not numbered and signed yet."""
    newest: AuditCheckpointRow | None = sequencer.latest(session)
    if newest is None or row.position is None or row.position > newest.size:
        raise NotFound("EVENT_UNKNOWN", "this event is not in a checkpoint yet", next_step="ask again in some seconds")
    index = row.position - 1
    hashes = tlog.inclusion(index, newest.size, tree.Nodes(session))
    entry = sequencer.entry(row, row.position).decode()
    return EventProof(seq=row.position, entry=entry, proof=proofs.text_of(index, hashes, newest.note))


def checkpoint_of(head: Head) -> Checkpoint:
    """The checkpoint of a note of our own."""
    found = Checkpoint.of_text(head[1].rpartition("\n\n")[0] + "\n")
    if found is None:
        raise Invalid("SETTING_INVALID", "the newest checkpoint of the audit log cannot be read")
    return found
