"""Routes of upkeep: garbage collection, checking, re-indexing. Each does some seconds of work and hands out a cursor.

Invariants
- Only for administrators of all namespaces. None of them holds a transaction for the length of the request.

Example
    POST /api/v1/gc {"dry_run": true}      200
"""

from __future__ import annotations

from fastapi import APIRouter

from registry.server import fsck, gc, reindex
from registry.server.routes.deps import Admin, BlobsDep, EngineDep, SettingsDep
from registry.wire.upkeep import FsckPage, FsckRequest, GcReport, GcRequest, ReindexPage, ReindexRequest

router = APIRouter(tags=["upkeep"])


@router.post("/gc")
def collect(actor: Admin, engine: EngineDep, blobs: BlobsDep, settings: SettingsDep, request: GcRequest) -> GcReport:
    actor.demand_everywhere("admin")
    return gc.run(engine, blobs, settings, request)


@router.post("/fsck")
def check(actor: Admin, engine: EngineDep, blobs: BlobsDep, settings: SettingsDep, request: FsckRequest) -> FsckPage:
    actor.demand_everywhere("admin")
    return fsck.run(engine, blobs, settings, request)


@router.post("/reindex")
def index_again(actor: Admin, engine: EngineDep, blobs: BlobsDep, request: ReindexRequest) -> ReindexPage:
    actor.demand_everywhere("admin")
    return reindex.run(engine, blobs, actor, request)
