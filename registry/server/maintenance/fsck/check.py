"""Check whether rows, bytes, counts, manifests and events agree, in stages:

    adapters   versions, files, aliases and events of each adapter (`adapters`)
    usage      counters of what namespaces hold and of the adapters of bases (`usage`)
    blobs      rows ↔ keys of the store, in both directions (`blobs`)
    refs       versions that only the bucket has; tiles and key of the audit log
    deep       read and hash each blob; mark wrong ones, and restore them from a second copy (`blobs`)

- A healthy registry under load has no findings: what looks wrong is looked at a second time before it becomes one.
- Only `deep` changes anything: the state of blobs, the bytes of damaged ones, and wrong counters.
- A run is many short requests. The cursor says where it is, so a check of days survives any restart.
"""

import time
from collections.abc import Callable

from sqlalchemy import Engine

from registry.api.maintenance import FsckPage, FsckRequest
from registry.errors import Invalid, invalid_cursor
from registry.server.actors import Actor
from registry.server.audit import keys as audit_keys
from registry.server.audit import sequencer, tree
from registry.server.maintenance import reindex
from registry.server.maintenance.fsck import adapters, blobs, usage
from registry.server.maintenance.fsck.run import FsckRun
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.server.storage.open import open_second_copy

SECONDS = 5.0
FINDINGS_LIMIT = 200
"""Findings after which a request returns its cursor, so that a response stays small."""


def check_consistency(
    engine: Engine, store: BlobStore, settings: Settings, actor: Actor, request: FsckRequest
) -> FsckPage:
    """Run one request's share of a check, from `request.cursor` on. `Invalid` for a cursor that this did not return."""
    started = time.monotonic()
    run = FsckRun(engine, store, actor, settings, open_second_copy(settings), request.deep)
    cursor = request.cursor or "adapters:0"
    while cursor and time.monotonic() - started < SECONDS and len(run.findings) < FINDINGS_LIMIT:
        stage, _, position = cursor.partition(":")
        if stage not in _STAGES:
            raise invalid_cursor()
        check, next_stage = _STAGES[stage]
        following = check(run, position)
        cursor = f"{stage}:{following}" if following else next_stage
        if cursor == "deep:" and not request.deep:
            cursor = ""
    return FsckPage(
        findings=run.findings,
        checked=run.checked,
        bytes_hashed=run.bytes_hashed,
        share=_share(cursor, deep=request.deep),
        next_cursor=cursor,
    )


def _check_refs(run: FsckRun, _position: str) -> str:
    if reindex.is_needed(run.engine, run.blobs):
        run.add("ref.version_unknown", "refs/", "there are versions that the database does not have")
    for path in tree.find_lost_copies(run.engine, run.blobs):
        run.add("audit.tile_missing", path, "is missing in the store: the log cannot be verified")
    _check_audit_key(run)
    return ""


def _check_audit_key(run: FsckRun) -> None:
    try:
        with run.snapshot() as session:
            sequencer.require_same_log(session, audit_keys.load_keys(run.settings))
    except Invalid as e:
        run.add("audit.key_unknown", "the audit log", f"{e.detail}: the log cannot grow")


_STAGES: dict[str, tuple[Callable[[FsckRun, str], str], str]] = {
    "adapters": (adapters.check_adapters, "usage:"),
    "usage": (usage.check_usage, "blobs:00"),
    "blobs": (blobs.check_shard, "refs:"),
    "refs": (_check_refs, "deep:"),
    "deep": (blobs.check_bytes, ""),
}
"""What checks from a position on and returns the next one, empty at its end; and the cursor after that."""


def _share(cursor: str, *, deep: bool) -> float:
    """Estimate how much of the run is done. Digests are spread evenly, and the other stages are short."""
    stage, _, position = cursor.partition(":")
    if not stage:
        return 1.0
    start = {"adapters": 0.0, "usage": 0.3, "blobs": 0.3, "refs": 0.9, "deep": 0.1}[stage]
    part = int(position.removeprefix("sha256:")[:2] or "0", 16) / 256 if stage in ("blobs", "deep") else 0.0
    if stage == "deep":
        return start + 0.9 * part
    return (start + 0.6 * part) * (0.1 if deep else 1.0)
