"""Xet: access tokens, and the part of its storage API that uploads need, below a URL of its own for each token.

    GET  …/xet-write-token/{revision}        an access token, with the URL of a session
    GET  …/v1/chunks/default/{hash}          404: the server says nothing about chunks, so no one learns who has them
    POST …/v1/xorbs/default/{hash}           store a xorb
    POST …/v1/shards                         make files of the xorbs

What clients try first and this registry does not have (`/v1/xorb-grants`, `/v2/shards`) is a 404, after which they use
these routes. They show only the status of an error; the log line of the request has its code.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask

from registry.digest import Digest
from registry.errors import Invalid, NotFound, Unauthenticated
from registry.hub.operations import Body
from registry.hub.shapes import Json
from registry.hub.xet import hashes
from registry.hub.xet.shards import SHARD_LIMIT_BYTES
from registry.hub.xet.xorbs import XORB_BODY_LIMIT_BYTES
from registry.roles import Scope
from registry.server.access import sign_in
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.http.dependencies import EngineDep, Puller, Pusher, RequireScopeInThread
from registry.server.http.problems import problem_response
from registry.server.http.request_actor import count_request, current_actor, read_secret, record_failure
from registry.server.http.routing import run_in_store_thread, run_in_turn
from registry.server.http.services import services_of
from registry.server.hub import commits, refusals
from registry.server.hub.xet import access_tokens, files, sessions, xorbs
from registry.server.hub.xet.sessions import XetSession
from registry.server.routes.hub import protocol
from registry.server.routes.hub.bodies import with_body
from registry.server.routes.hub.protocol import HubRoute
from registry.server.routes.hub.writing import MODEL
from registry.server.storage import reclaim
from registry.token_secret import sha256_of

router = APIRouter(route_class=HubRoute, include_in_schema=False)
SESSION = MODEL + "/xet/{session}"


class RequireXetToken(RequireScopeInThread):
    """Accepts an access token of the repository in the path, or the secret of the client's token."""

    def _sign_in(self, request: Request) -> Actor:
        token = read_secret(request) or ""
        if not token.startswith(access_tokens.PREFIX):
            return current_actor(request)
        services = services_of(request)
        secret = access_tokens.find_secret(services.link_signer, protocol.adapter_of(request), token)
        if secret is None:
            record_failure(request, token)
            raise Unauthenticated("UNAUTHORIZED", "this Xet token is not one of this repository")
        sha256, has_expired = secret
        if has_expired and not getattr(request.state, "xet_token_accepted", False):
            raise Unauthenticated("UNAUTHORIZED", "this Xet token has expired", next_step="request another one")
        request.state.xet_token_accepted = True  # a body may take longer than the token lives
        if not sha256 and services.trusted is not None:
            actor: Actor = services.trusted
        else:
            with db.session(services.engine, write=False) as session:
                actor = sign_in.authenticate_hash(session, sha256, services.actor_cache)
        request.state.actor = actor  # the audit log names it if the request is denied
        count_request(request, actor.token_id)
        return actor


XetPusher = Annotated[Actor, Depends(RequireXetToken(Scope.PUSH))]


@router.get(MODEL + "/xet-write-token/{revision:path}")
def create_write_token(request: Request, actor: Pusher, engine: EngineDep) -> Response:
    """An access token for uploads to this repository, and the URL of a new session."""
    name = protocol.adapter_of(request)
    commits.require_target(engine, actor, name)
    secret = read_secret(request)
    signer = services_of(request).link_signer
    token, until = access_tokens.issue(signer, name, sha256_of(secret) if secret else "", actor.expires_at)
    url = f"{protocol.base_url(request)}/api/models/{name}/xet/{sessions.new_word()}"
    headers = {
        "X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(until),
        "Cache-Control": "no-store",
    }  # fmt: skip
    return JSONResponse({"casUrl": url, "accessToken": token, "exp": until}, headers=headers)


@router.get(MODEL + "/xet-read-token/{revision:path}")
def refuse_read_token(_actor: Puller) -> Response:
    """Refuse: files are downloaded whole."""
    refusals.refuse(
        "this registry sends whole files, from its store, and no parts of them by Xet",
        "download the file by its path; a client that asks for a Xet token was told so by another server",
    )


@router.get(SESSION + "/v1/chunks/default/{chunk}")
async def find_chunk(request: Request, _actor: XetPusher) -> Response:
    """404, whatever is stored: the client then uploads the chunk. This is an answer and no denial to be recorded."""
    return problem_response(request, NotFound("BLOB_UNKNOWN", "this registry does not say which chunks it has"))


def _session_of(request: Request, actor: Actor, word: str) -> XetSession:
    if not sessions.is_word(word):
        raise Invalid("REQUEST_INVALID", "the URL names no upload session of this registry")
    services = services_of(request)
    return XetSession(services.engine, services.blobs, services.settings, actor, protocol.adapter_of(request), word)


@router.post(SESSION + "/v1/xorbs/default/{xorb}")
async def receive_xorb(request: Request, actor: XetPusher, engine: EngineDep, session: str, xorb: str) -> Json:
    """Store a xorb."""
    if not hashes.is_text(xorb):
        raise Invalid("REQUEST_INVALID", f"xorb: {xorb[:80]!r} is not 64 lower-case hex digits")
    await run_in_turn(request, commits.require_target, engine, actor, protocol.adapter_of(request))

    def store(actor: Actor, body: Body) -> bool:
        return xorbs.store(_session_of(request, actor, session), xorb, body)

    return {"was_inserted": await with_body(request, RequireXetToken(Scope.PUSH), XORB_BODY_LIMIT_BYTES, store)}


@router.post(SESSION + "/v1/shards")
async def receive_shard(request: Request, actor: XetPusher, engine: EngineDep, session: str) -> Response:
    """Make files of the session's xorbs."""
    await run_in_turn(request, commits.require_target, engine, actor, protocol.adapter_of(request))

    def make(actor: Actor, body: Body) -> set[Digest]:
        return files.make(_session_of(request, actor, session), body)

    ended = await with_body(request, RequireXetToken(Scope.PUSH), SHARD_LIMIT_BYTES, make)
    after = BackgroundTask(run_in_store_thread, reclaim.delete_unneeded, engine, services_of(request).blobs, ended)
    return JSONResponse({"result": 1}, background=after)
