"""Routes of attestations: what is signed about a version, and a signature that somebody brings.

Invariants
- A signature that does not verify against the version's own files is refused and leaves nothing.
"""

from __future__ import annotations

from fastapi import Response

from registry.api.audit import AttestationList, AttestationView, SignRequest
from registry.server.database import db
from registry.server.http import routing
from registry.server.http.dependencies import (
    BlobsDep,
    KeyedSessionDep,
    NameDep,
    Puller,
    Pusher,
    ReadSessionDep,
    SelectorDep,
    SettingsDep,
)
from registry.server.promotion import attestations
from registry.server.routes.adapters import VERSION
from registry.server.routes.audit import LogDep
from registry.server.routes.openapi import declarations

router = routing.create_router("attestations")


@router.get(VERSION + "/attestations")
def list_attestations(
    session: ReadSessionDep, actor: Puller, name: NameDep, selector: SelectorDep, blobs: BlobsDep, log: LogDep
) -> AttestationList:
    """List the attestations of a version."""
    db.commit_early(session)  # it has begun to read who asks, and would not see what is signed now
    log.step()
    return attestations.list_attestations(session, actor, name, selector, blobs)


@router.post(VERSION + "/attestations", status_code=201, responses=declarations.existing(AttestationView))
def sign_version(
    session: KeyedSessionDep,
    actor: Pusher,
    name: NameDep,
    selector: SelectorDep,
    request: SignRequest,
    blobs: BlobsDep,
    settings: SettingsDep,
    response: Response,
) -> AttestationView:
    """Store a signature of a version. 201 for a new one, 200 for one that exists already."""
    view, new = attestations.add_signature(
        session, actor, name, selector, request, blobs, trusted_roots=settings.trusted_roots
    )
    response.status_code = 201 if new else 200
    return view
