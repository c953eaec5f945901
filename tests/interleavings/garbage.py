"""Garbage collection without a grace period, interleaved with pushes, expired pushes, deletions and readers.

The functions are those that the routes call, on a real database. After each interleaving nothing runs, and then every
acknowledged version has its rows and its bytes, and every stored blob has a row.
"""

from __future__ import annotations

import gc as reference_cycles
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, delete, event
from sqlmodel import col, select

from registry.api.maintenance import GcRequest
from registry.api.transfer import BulkPushRequest, CommitItem, PushItem, PushPlan
from registry.digest import Digest
from registry.errors import NotFound, RegistryError
from registry.names import AdapterName
from registry.server import failpoints
from registry.server.actors import TRUSTED
from registry.server.catalog import refs, versions
from registry.server.database import db, dialects, tables
from registry.server.database.models import BlobRow, VersionFileRow, VersionRow
from registry.server.database.models.pushes import PushRow
from registry.server.evaluation import weights
from registry.server.maintenance import gc
from registry.server.outcomes import only
from registry.server.promotion import adapter_deletion, deletion
from registry.server.promotion.retention import plan as retention
from registry.server.push import commit, plan, receive
from registry.server.serving import reports
from registry.server.storage.blobs import Stat, digest_of, key_of
from tests import samples
from tests.harness import Harness
from tests.interleavings.scheduler import Scheduler
from tests.memory_blobs import MemoryBlobs

SERIES = 250
"""Interleavings before the registry is emptied: what they leave behind would make later ones slower."""
SKIPPED: dict[tuple[object, str], Any] = {
    (gc, "delete_batch"): {"pushes_deleted": 0},
    (reports, "delete_silent"): None,
    (retention, "apply_rules"): ([], None),
    (deletion, "purge_expired"): 0,
    (refs, "write_missing"): 0,
    (weights, "measure_newest"): False,
    (weights, "has_unmeasured"): False,
}
"""What these registries have nothing for, or what touches no blob: a third of the statements."""
RETRIES = 50
"""How often a client tries a step again that asks for it, before the test calls that a loss."""
RETRIED = ("TRY_LATER", "PUSH_UNKNOWN", "UPLOAD_INCOMPLETE", "BLOB_UNKNOWN")
ADAPTERS_LIMIT = 6
PREPARED = {"base", "token"}
"""Tables with rows that every interleaving needs."""
Step = Callable[[], None]


class PausingBlobs(MemoryBlobs):
    """A store in memory that lets the scheduler switch before and after each operation."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler
        self.shards: set[str] = set()
        """The prefixes below which a blob of this test can be."""

    def stat(self, key: str) -> Stat | None:
        self._scheduler.pause("stat")
        return super().stat(key)

    def read(self, key: str, start: int, length: int) -> bytes:
        self._scheduler.pause("read")
        return super().read(key, start, length)

    def delete(self, key: str) -> None:
        self._scheduler.pause("delete")
        super().delete(key)
        self._scheduler.pause("deleted")

    def insert(self, key: str, data: bytes) -> None:
        self._scheduler.pause("insert")
        super().insert(key, data)
        self._scheduler.pause("inserted")

    def list(self, prefix: str) -> Iterator[Stat]:
        """Of the 256 shards of final keys most are always empty: a switch there is the same as one a step later."""
        if prefix.startswith("blobs/sha256/") and prefix not in self.shards:
            return iter(())
        self._scheduler.pause("list")
        return super().list(prefix)

    def clear(self) -> None:
        """Forget every key."""
        self._blobs.clear()

    def stored(self) -> dict[str, bytes]:
        """Every key with its bytes."""
        return {key: data for key, (data, _) in self._blobs.items()}


class Garbage:
    """One registry, a few files that all adapters share, and what was acknowledged so far."""

    def __init__(self, harness: Harness, scheduler: Scheduler, blobs: PausingBlobs) -> None:
        self.harness, self.scheduler, self.blobs = harness, scheduler, blobs
        self.acknowledged: dict[str, dict[str, bytes]] = {}
        self.deleted = 0
        self._number = 0
        weights = [harness.files(samples.llama()) for _ in range(3)]
        self._contents = [{**files, "README.md": b"%d" % n} for files in weights for n in range(2)]
        digests = [digest for files in self._contents for digest in self._digests(files)]
        blobs.shards = {key_of(digest).rpartition("/")[0] + "/" for digest in digests}

    def _digests(self, files: dict[str, bytes]) -> set[Digest]:
        """The blobs of a version: its files and its manifest."""
        return {self.harness.manifest(files).digest, *(Digest.of(data) for data in files.values())}

    # ------------------------------------------------------------ actions
    def choose(self, seed: int) -> list[tuple[str, Step]]:
        """Two to four actions, one of them a collection.

        Often an adapter was just deleted and its files are pushed again: then nothing references a blob that is there,
        which is when a collection could be wrong.
        """
        choices = random.Random(seed)
        files = choices.choice(self._contents)
        if self.acknowledged and choices.random() < 0.7:
            name = choices.choice(sorted(self.acknowledged))
            files = self.acknowledged.pop(name)
            self._delete(name)
        kinds = ["collect", *choices.choices(["push", "push", "abandon", "delete", "collect", "read"], k=3)]
        kinds = kinds[: choices.randint(2, 4)]
        readable = sorted(self.acknowledged)
        actions: list[tuple[str, Step]] = []
        for number, kind in enumerate(kinds):
            if kind == "delete" and readable:
                name = readable.pop(choices.randrange(len(readable)))
                self.acknowledged.pop(name)
                step = self._action(self._delete, name)
            elif kind == "abandon":
                step = self._action(self._abandon, self._new_name(), files)
            elif kind == "read" and readable:
                step = self._action(self._read, choices.choice(readable))
                readable = []  # what is read in this interleaving is not deleted in it
            elif kind != "collect" and len(self.acknowledged) < ADAPTERS_LIMIT:
                step = self._action(self._push, self._new_name(), files)
            else:
                step = self._collect
            actions.append((f"{kind} {number}", step))
        return actions

    @staticmethod
    def _action(function: Callable[..., None], *arguments: Any) -> Step:
        return lambda: function(*arguments)

    def _new_name(self) -> str:
        self._number += 1
        return f"acme/a{self._number}"

    def _push(self, name: str, files: dict[str, bytes]) -> None:
        for _ in range(RETRIES):
            try:
                planned = self._send(name, files)
                with db.session(self.harness.engine, write=False) as session:
                    item = CommitItem(push_id=planned.push_id)
                    only(commit.commit_pushes(session, TRUSTED, [item], blobs=self.blobs))
                self.acknowledged[name] = files
                commit.clean_up(self.harness.engine, [planned.push_id], blobs=self.blobs)
                return
            except RegistryError as error:
                if error.code not in RETRIED:
                    raise
                self.scheduler.wait()
        raise AssertionError(f"the push of {name} was refused {RETRIES} times")

    def _send(self, name: str, files: dict[str, bytes]) -> PushPlan:
        item = PushItem(name=name, manifest=self.harness.manifest(files))
        request = BulkPushRequest(items=(item,))
        with db.session(self.harness.engine, write=False) as session:
            planned = only(
                plan.plan_pushes(session, TRUSTED, request, blobs=self.blobs, settings=self.harness.settings)
            )
        by_digest = {Digest.of(data): data for data in files.values()}
        for upload in planned.uploads:
            with db.session(self.harness.engine, write=False) as session:
                is_needed = commit.find_upload(session, TRUSTED.token_id, planned.push_id, upload.digest)
            if is_needed:
                data, engine = by_digest[upload.digest], self.harness.engine
                receive.receive(engine, self.blobs, planned.push_id, upload.digest, [data], len(data))
        return planned

    def _abandon(self, name: str, files: dict[str, bytes]) -> None:
        for _ in range(RETRIES):
            try:
                planned = self._send(name, files)
                break
            except RegistryError as error:
                if error.code not in RETRIED:
                    raise
                self.scheduler.wait()
        with db.session(self.harness.engine) as session:
            row = session.get_one(PushRow, planned.push_id)
            row.expires_at = db.now() - timedelta(seconds=1)
            session.add(row)

    def _delete(self, name: str) -> None:
        with db.session(self.harness.engine) as session:
            adapter_deletion.delete_adapter(session, TRUSTED, AdapterName.parse(name))
        deletion.purge_expired(self.harness.engine, timedelta(0))
        self.deleted += 1

    def _read(self, name: str) -> None:
        files = self.acknowledged[name]
        with db.session(self.harness.engine, write=False) as session:
            versions.find_adapter(session, TRUSTED, AdapterName.parse(name))
        for data in files.values():
            stored = b"".join(self.blobs.open(key_of(Digest.of(data))))
            assert stored == data, f"{name}: a blob has other bytes"

    def _collect(self) -> None:
        cursor = ""
        while True:
            try:
                report = gc.collect_garbage(
                    self.harness.engine,
                    self.blobs,
                    self.harness.settings,
                    TRUSTED,
                    GcRequest(grace_seconds=0, cursor=cursor),
                )
            except RegistryError as error:
                if error.code != "TRY_LATER":
                    raise
                return  # another one is running
            cursor = report.next_cursor
            if not cursor:
                return

    def empty(self) -> None:
        """Forget all but the base: no interleaving is slower than the first, and a seed is repeated by its series."""
        with self.harness.engine.begin() as connection:
            for table in reversed(tables.metadata.sorted_tables):
                if table.name not in PREPARED:
                    connection.execute(delete(table))
        self.blobs.clear()
        self.acknowledged, self.deleted = {}, 0

    # ------------------------------------------------------------ what must hold
    def check(self) -> None:
        """Every acknowledged version has its rows and bytes, and every stored blob has a row."""
        stored = self.blobs.stored()
        with db.session(self.harness.engine, write=False) as session:
            rows = {row.digest: row for row in session.exec(select(BlobRow)).all()}
            files = session.exec(select(VersionFileRow.digest)).all()
            manifests = session.exec(select(VersionRow.digest).where(col(VersionRow.deleted_at).is_(None))).all()
        assert len(manifests) == len(self.acknowledged), "a version is missing, or a deleted one is back"
        acknowledged = {digest for version in self.acknowledged.values() for digest in self._digests(version)}
        for digest in acknowledged.union(files, manifests):
            assert rows[digest].state == "live", f"a blob of a version is {rows[digest].state}"
            assert Digest.of(stored[key_of(Digest(digest))]) == digest, "a blob of a version has other bytes"
        assert all(key.rpartition("/")[0] + "/" in self.blobs.shards for key in stored if key.startswith("blobs/"))
        unknown = {key for key in stored if key.startswith("blobs/") and str(digest_of(key)) not in rows}
        assert unknown == set(), "bytes without a row"

    def check_clean(self) -> None:
        """After two collections nothing is left that no version refers to."""
        self._collect()
        self._collect()
        self.check()
        with db.session(self.harness.engine, write=False) as session:
            states = {row.state for row in session.exec(select(BlobRow)).all()}
        assert states <= {"live"}, f"blobs are left {states}"
        assert [key for key in self.blobs.stored() if key.startswith("staging/")] == []


@contextmanager
def scheduled_registry(database_url: str) -> Iterator[Garbage]:
    """A registry whose transactions, failpoints and blob operations are points where the scheduler may switch."""
    scheduler = Scheduler()
    blobs = PausingBlobs(scheduler)
    with Harness(database_url, blobs=blobs) as harness, pytest.MonkeyPatch.context() as patch:
        harness.add_base()
        patch.setattr(failpoints, "reach", scheduler.pause)
        for (module, function), value in SKIPPED.items():
            patch.setattr(module, function, lambda *_, value=value, **__: value)
        if harness.engine.dialect.name == "sqlite":  # no run ends in a power cut
            event.listen(harness.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
            harness.engine.dispose()
        patch.setattr("registry.server.database.engine.PING_AFTER_SECONDS", math.inf)  # nothing cuts a connection
        event.listen(harness.engine, "checkout", lambda *_: scheduler.pause("checkout"))
        event.listen(harness.engine, "begin", lambda connection: _begin(scheduler, connection))
        event.listen(
            harness.engine, "checkin", lambda driver_connection, _: scheduler.end_transaction(driver_connection)
        )
        yield Garbage(harness, scheduler, blobs)


def _begin(scheduler: Scheduler, connection: Connection) -> None:
    if connection.get_execution_options().get(dialects.TRANSACTION) != dialects.NO_TRANSACTION:
        scheduler.begin_transaction(connection.connection.dbapi_connection)


def explore(database_url: str, count: int, first_seed: int = 0) -> tuple[int, int]:
    """Run this many interleavings, each series in an empty registry; return how many were different, and all steps."""
    different: set[int] = set()
    steps = 0
    last = first_seed + count
    with scheduled_registry(database_url) as garbage, _few_searches_for_cycles():
        for first in range(first_seed, last, SERIES):
            for seed in range(first, min(first + SERIES, last)):
                steps += _run(garbage, seed, first)
                different.add(hash(tuple(garbage.scheduler.trace)))
            assert garbage.deleted or count < SERIES, "nothing was deleted"
            garbage.empty()
    return len(different), steps


@contextmanager
def _few_searches_for_cycles() -> Iterator[None]:
    """Python searches all modules for unreachable cycles again and again, which takes a sixth of each run."""
    thresholds = reference_cycles.get_threshold()
    reference_cycles.freeze()
    reference_cycles.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        reference_cycles.set_threshold(*thresholds)
        reference_cycles.unfreeze()


def _run(garbage: Garbage, seed: int, first: int) -> int:
    try:
        garbage.scheduler.run(seed, garbage.choose(seed))
        garbage.check()
        if seed % 20 == 19:
            garbage.check_clean()
    except (AssertionError, NotFound, KeyError, RegistryError) as error:
        trace = " ".join(f"{task}:{point}" for task, point in garbage.scheduler.trace)
        raise AssertionError(f"seed {seed} (first {first}): {error!r}\n{trace}") from error
    return len(garbage.scheduler.trace)
