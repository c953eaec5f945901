"""Checking: do rows, bytes, counts, manifests and events still tell the same story?

    adapters   versions, files, aliases and events of each adapter; its records (fsck/adapters.py)
    blobs      rows ↔ keys of the store, in both directions (fsck/keys.py)
    records    what is recorded and the database does not know, and what lost its record; tiles and key of the audit log
    deep       each blob read and hashed; what is wrong is marked, and restored from a second copy (fsck/scrub.py)

Invariants
- A healthy registry under load has no findings: what looks wrong is looked at once more before it is one.
- Nothing is changed but by `deep`, and by that only the state of blobs and the bytes of damaged ones.
- A run is many short requests; the cursor says where it is, so that a check of days survives any restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine

from registry.api.maintenance import FsckPage, FsckRequest
from registry.errors import Invalid
from registry.server.actors import Actor
from registry.server.audit import keys as keys_of_the_log
from registry.server.audit import sequencer, stored_tiles
from registry.server.maintenance.fsck import adapters, keys, scrub
from registry.server.maintenance.fsck.page import Page
from registry.server.maintenance.recovery import missing, rebuild
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.server.storage.open import open_second_copy

SECONDS = 5.0
FINDINGS_LIMIT = 200
"""Findings of one request after which it hands out its cursor, so that an answer stays small."""


def run(engine: Engine, blobs: BlobStore, settings: Settings, actor: Actor, request: FsckRequest) -> FsckPage:
    """One request of a run, from `request.cursor` on. `Invalid` for a cursor that is none of ours."""
    started = time.monotonic()
    page = Page(engine, blobs, actor, settings, open_second_copy(settings), request.deep)
    cursor = request.cursor or "adapters:0"
    while cursor and time.monotonic() - started < SECONDS and len(page.findings) < FINDINGS_LIMIT:
        stage, _, place = cursor.partition(":")
        step = _STAGES.get(stage)
        if step is None:
            raise Invalid("REQUEST_INVALID", "cursor: not one that this server gave")
        following = step(page, place)
        cursor = f"{stage}:{following}" if following else _next_stage(stage, deep=request.deep)
    return FsckPage(
        findings=page.findings,
        checked=page.checked,
        bytes_hashed=page.bytes_hashed,
        share=_share(cursor, deep=request.deep),
        next_cursor=cursor,
    )


def _records(page: Page, _place: str) -> str:
    if rebuild.is_needed(page.engine, page.blobs):
        page.found(
            "record.version_unknown", "records/", "versions or tombstones are recorded that the database does not know"
        )
    for place, _ in missing.others(page.engine, page.blobs):
        page.found("record.missing", place, "has no record beside the blobs: a re-index would not find it")
    for path in stored_tiles.find_lost(page.engine, page.blobs):
        page.found("audit.tile_missing", path, "is not in the store: whoever verifies the log with it cannot")
    _audit_key(page)
    return ""


def _audit_key(page: Page) -> None:
    with page.snapshot() as session:
        newest = sequencer.latest_checkpoint(session)
    try:
        sequencer.require_same_log(newest, keys_of_the_log.load_keys(page.settings))
    except Invalid as e:
        page.found("audit.key_unknown", "the audit log", f"{e.detail}: it does not go on")


_STAGES: dict[str, Callable[[Page, str], str]] = {
    "adapters": adapters.check,
    "blobs": keys.check,
    "records": _records,
    "deep": scrub.check,
}


def _next_stage(stage: str, *, deep: bool) -> str:
    following = {"adapters": "blobs:00", "blobs": "records:", "records": "deep:" if deep else ""}
    return following.get(stage, "")


def _share(cursor: str, *, deep: bool) -> float:
    """How far a run is: by the digest, whose beginnings are spread evenly; the stages before are short."""
    stage, _, place = cursor.partition(":")
    if not stage:
        return 1.0
    begun = {"adapters": 0.0, "blobs": 0.3, "records": 0.9, "deep": 0.1}[stage]
    part = int(place.removeprefix("sha256:")[:2] or "0", 16) / 256 if stage in ("blobs", "deep") else 0.0
    if stage == "deep":
        return begun + 0.9 * part
    return (begun + 0.6 * part) * (0.1 if deep else 1.0)
