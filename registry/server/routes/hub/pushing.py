"""What Hub clients ask while they push: answered with 501 and what to do instead.

Invariants
- Nothing is stored, and no answer leads a client to a half-done push.

Example
    POST /api/models/acme/support/commit/main      501
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from registry.errors import Refused
from registry.server.routes.deps import Pusher
from registry.server.routes.hub.dialect import HubRoute
from registry.server.routes.hub.repositories import MODEL

router = APIRouter(route_class=HubRoute, include_in_schema=False)


@router.api_route("/api/repos/{what}", methods=["POST", "DELETE"])
@router.post("/api/validate-yaml")
@router.post("/{namespace}/{name}/info/lfs/objects/batch")
@router.api_route(MODEL + "/{what}", methods=["PUT", "POST", "DELETE"])
@router.api_route(MODEL + "/{what}/{rest:path}", methods=["PUT", "POST", "DELETE"])
@router.get(MODEL + "/auth-check/write")
@router.get(MODEL + "/xet-write-token/{rest:path}")
def push(_actor: Pusher) -> Response:
    raise Refused(
        "HUB_PUSH_UNSUPPORTED",
        "this registry answers the Hub's dialect for pulling only",
        next_step="push with `adapter push FOLDER NAME`",
    )
