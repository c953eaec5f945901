"""`AuditLog`: the audit log of one application: its keys, its pending events, its latest checkpoint, and its thread.

A single server, one of several replicas and an embedded registry all call the same `step`; the database lock decides
which process does the work.
"""

import base64
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread
from sqlalchemy import Engine
from sqlmodel import Session

from registry import tlog
from registry.api import CHECKPOINT_HEADER
from registry.api.audit import EventProof, KeyReplacement, LogKeys
from registry.errors import Invalid, NotFound, Unavailable
from registry.events import EventType
from registry.server import audit
from registry.server.actors import Actor
from registry.server.audit import sequencer, tree
from registry.server.audit.keys import Keys, load_keys
from registry.server.database import db
from registry.server.database.models import AuditCheckpointRow, EventRow
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.tlog import notes
from registry.token_secret import mask_secrets

ENTRIES_LIMIT = 1000
READS_LIMIT = 10_000
READS_PER_TENANT = 2_500
"""Entries of a batch: about denied requests, and about reads of bytes, which have space of their own: all together, and
those of one tenant."""
PAGE_READ_SECONDS = 600
"""Someone who sees the same version on pages within this time is recorded once."""
PATHS_LIMIT = 50
"""How many paths of denied requests a batch records per token. Beyond that it records their routes."""
DENIAL_ACTIONS = {
    "Unauthenticated": EventType.ACCESS_UNKNOWN,
    "Denied": EventType.ACCESS_DENIED,
    "NotFound": EventType.ACCESS_NOT_FOUND,
}
"""Class of an error → the action of its event."""

ANONYMOUS = Actor("anonymous", "", frozenset(), frozenset())
"""The actor of requests without a valid token."""


@dataclass
class _Entry:
    actor: Actor
    request_id: str
    count: int = 0


class EventBatch:
    """Denials and reads of private bytes, which become events outside the request's transaction. Thread-safe.

    Equal ones become one event with a count, and a batch has a bounded size, so that a flood of requests becomes few
    rows. Denials beyond it are only counted; a read beyond it is refused. One who reads much leaves space to others.
    A batch that cannot be written is kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str, EventType, str, str], _Entry] = {}
        self._overflow = 0
        self._numbers: Counter[str] = Counter()
        """How many entries count for each part of a limit."""
        self._page_reads: dict[tuple[str, str, str], float] = {}
        """Who saw a version on a page → since when that is recorded."""
        self._paths: dict[str, set[tuple[str, str]]] = {}
        """Token id → the paths that were recorded for it, and why they were denied."""

    @property
    def is_pending(self) -> bool:
        """Whether anything was added that is not written yet."""
        return bool(self._entries or self._overflow)

    def add(self, actor: Actor, event_type: EventType, object: str, *, request_id: str = "", reason: str = "") -> bool:
        """Count an event. False if the batch has no space for it: then only its number is recorded."""
        key = (actor.token_id, actor.identity, event_type, object[:300], reason[:300])
        limits = _limits_of(actor, event_type)
        with self._lock:
            if key not in self._entries:
                if any(self._numbers[part] >= limit for part, limit in limits.items()):
                    self._overflow += 1
                    return False
                self._numbers.update(limits.keys())
            self._entries.setdefault(key, _Entry(actor, request_id)).count += 1
            return True

    def add_page_read(self, actor: Actor, object: str, *, request_id: str) -> bool:
        """Count a page with files of a version: one event for all that someone sees of it in a while."""
        key, now = (actor.token_id, actor.identity, object), time.monotonic()
        seen_at = self._page_reads.get(key)
        if seen_at is not None and now - seen_at < PAGE_READ_SECONDS:
            return True
        is_recorded = self.add(actor, EventType.PAGE_READ, object, request_id=request_id)
        if is_recorded:
            if len(self._page_reads) >= READS_LIMIT:
                self._page_reads.clear()
            self._page_reads[key] = now
        return is_recorded

    def add_denial(self, scope: Mapping[str, Any], error_class: str, *, about: str = "", reason: str = "") -> None:
        """Count a denied request, given its ASGI scope, the class of the error, which item was denied, and why.

        For a request without a token only the route is recorded, so that guessed paths do not fill the log.
        """
        state, route = scope.get("state", {}), scope.get("route")
        actor: Actor | None = state.get("actor")
        if actor is None and error_class == "NotFound":
            return
        route_path = str(getattr(route, "path", "an unknown route"))
        path = mask_secrets(f"{scope['path'] if actor is not None else route_path} {about}".strip())
        actor = actor or ANONYMOUS
        object, reason = f"{scope['method']} {path}", mask_secrets(reason)
        with self._lock:
            paths = self._paths.setdefault(actor.token_id, set())
            if (object, reason) not in paths and len(paths) >= PATHS_LIMIT:
                object, reason = f"{scope['method']} {route_path}", ""
            paths.add((object, reason))
        request_id = str(state.get("request_id", ""))
        self.add(actor, DENIAL_ACTIONS[error_class], object, request_id=request_id, reason=reason)

    def flush(self, engine: Engine) -> int:
        """Write the batch and return the number of events."""
        with self._lock:
            entries, overflow = self._entries, self._overflow
            self._entries, self._numbers, self._overflow, self._paths = {}, Counter(), 0, {}
        if not entries and not overflow:
            return 0
        try:
            with db.session(engine) as session:
                for (_, _, event_type, object, reason), entry in entries.items():
                    detail = {"count": entry.count} | ({"reason": reason} if reason else {})
                    audit.append(session, entry.actor, event_type, object, detail, entry.request_id, namespace="")
                if overflow:
                    audit.append(session, ANONYMOUS, EventType.AUDIT_OVERFLOW, "", {"count": overflow})
        except BaseException:
            with self._lock:
                for key, entry in entries.items():
                    self._entries.setdefault(key, _Entry(entry.actor, entry.request_id)).count += entry.count
                self._numbers = Counter(
                    part for key, entry in self._entries.items() for part in _limits_of(entry.actor, key[2])
                )
                self._overflow += overflow
            raise
        return len(entries) + bool(overflow)


def _limits_of(actor: Actor, event_type: EventType) -> dict[str, int]:
    """What a new entry counts for → how many entries that may have in a batch."""
    if event_type not in (EventType.BYTES_READ, EventType.PAGE_READ):
        return {"denials": ENTRIES_LIMIT}
    return {"reads": READS_LIMIT, actor.tenant: READS_PER_TENANT}


STEP_SECONDS = 1.0
STEP_LIMIT_SECONDS = 10.0
CATCH_UP_SECONDS = 1.0
LOOK_SECONDS = 0.01
IDLE_STEP_SECONDS = 30.0
"""Step this often even if nothing was committed: another process may have stopped in the middle of its step."""
_LOG = logging.getLogger("registry.server.audit")


@dataclass(frozen=True, slots=True)
class LatestCheckpoint:
    """The latest checkpoint: how many events it covers, and its signed note. Empty before the first one."""

    size: int = 0
    note: str = ""


class _Turn:
    """Work that one thread of a process does at a time, for all who wait for it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._lock = work, threading.Lock()
        self._begun = self._done = 0

    def take(self) -> None:
        """Do the work once. While another thread does it, wait for at most `STEP_LIMIT_SECONDS`, then leave it."""
        if not self._lock.acquire(timeout=STEP_LIMIT_SECONDS):
            return
        self._begun += 1
        try:
            self._work()
        finally:
            self._done = self._begun
            self._lock.release()

    async def wait(self) -> None:
        """Wait for work that begins from now on, for at most `CATCH_UP_SECONDS`. Who waits holds no thread."""
        goal, until = self._begun + 1, time.monotonic() + CATCH_UP_SECONDS
        while self._done < goal and (seconds := until - time.monotonic()) > 0:
            if self._lock.locked():
                await anyio.sleep(LOOK_SECONDS)
            else:
                with anyio.move_on_after(seconds):  # the thread goes on with its work
                    await to_thread.run_sync(self.take, abandon_on_cancel=True, limiter=CapacityLimiter(1))


class AuditLog:
    """Thread-safe. One per application."""

    def __init__(self, settings: Settings, engine: Engine, blobs: BlobStore) -> None:
        self._settings, self._engine, self._blobs = settings, engine, blobs
        self._keys: Keys | None = None
        self._keys_lock = threading.Lock()
        self._numbering, self._following = _Turn(self._number), _Turn(self._follow)
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

    def claim(self) -> None:
        """At the start of a server: make its keys those of a log without any, or check them as `check_keys` does."""
        keys = self.keys
        with db.session(self._engine) as session:
            sequencer.record_first_key(session, keys)
        self.check_keys()

    def check_keys(self) -> None:
        """Check that the keys are those of this log. `Invalid` (SETTING_INVALID)."""
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
        """Write the batch, number and sign new events, read the latest checkpoint, and do what follows a step."""
        self._numbering.take()
        self._following.take()

    def _number(self) -> None:
        self.batch.flush(self._engine)
        with contextlib.suppress(Unavailable):  # another process is doing it
            sequencer.run_sequencer(self._engine, self._blobs, lambda: self.keys)
        self.read_latest()

    def _follow(self) -> None:
        for callback in self.after_step:
            with contextlib.suppress(Unavailable):
                callback(self.latest.size)

    async def catch_up(self, *, attested: bool = False) -> None:
        """Number what was committed before this call, and attest it, each for at most `CATCH_UP_SECONDS`.

        Where a thread executes `run`, it attests later unless `attested` is asked for: readers of events need no
        attestation, and there may be hours of them to make.
        """
        await self._numbering.wait()
        if attested or not self.is_running:
            await self._following.wait()

    def flush(self) -> None:
        """Write the batch before this application ends. It is lost if it cannot be written now."""
        with contextlib.suppress(Unavailable):
            self.batch.flush(self._engine)

    def run(self, stamp: Callable[[], object | None] = lambda: None) -> None:
        """Call `step` every second until `closing` is set. Failures are logged, repeated ones once.

        `stamp` returns equal values while nothing is committed, or None if that is unknown (`Freshness.stamp`). While
        it stays equal and the batch is empty, steps are rare, because each one takes milliseconds from requests.
        """
        self.is_running = True
        last_stamp, stepped_at = None, float("-inf")
        failure = ""
        while not self.closing.wait(STEP_SECONDS):
            try:
                new_stamp = stamp()
                idle = new_stamp is not None and new_stamp == last_stamp and not self.batch.is_pending
                if idle and time.monotonic() - stepped_at < IDLE_STEP_SECONDS:
                    continue
                last_stamp, stepped_at = None, time.monotonic()
                self.step()
                last_stamp, failure = new_stamp, ""
            except Exception as e:  # the thread must not end: the log would stop without notice
                if str(e) != failure:
                    _LOG.error("the audit log does not advance: %s", e)
                failure = str(e)
        self.flush()

    def read_latest(self) -> LatestCheckpoint:
        """Read the latest checkpoint from the database and remember it."""
        row = self._latest_row()
        if row is not None and row.size >= self.latest.size:
            self.latest = LatestCheckpoint(row.size, row.note)
        return self.latest

    def stored_note(self) -> str:
        """The note of the checkpoint that is stored. Before the first one, a step is made and waited for."""
        if not self.read_latest().size:
            self.step()
        return self.latest.note

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
