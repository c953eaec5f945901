"""The page of the server's state: its version, database, blob store and audit log."""

from __future__ import annotations

from fastapi import Request, Response

from registry import __version__
from registry.api.maintenance import Health
from registry.server.database import schema
from registry.server.http.dependencies import AuditLogDep, BlobsHandleDep, EngineDep
from registry.server.pages.rendering import create_router, render
from registry.server.pages.visitors import SignedInDep

router = create_router()


@router.get("/status")
def show_status(
    request: Request, _visitor: SignedInDep, engine: EngineDep, blobs: BlobsHandleDep, log: AuditLogDep
) -> Response:
    """Show what `/api/v1/health` describes, and how far the audit log is signed."""
    health = Health(
        status="ok", version=__version__, database=engine.dialect.name, blobs=blobs.kind,
        schema_revision=schema.revision_of(engine), capabilities=blobs.describe(),
    )  # fmt: skip
    return render(
        request, "status.html", title="Status", health=health, log_size=log.latest.size, log=log.describe_keys()
    )
