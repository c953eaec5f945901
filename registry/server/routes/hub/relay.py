"""The relay: answers for a repository of another Hub, if one is configured (REGISTRY_HUB_UPSTREAM).

- Only repositories in namespaces that this registry does not have are relayed, only for actors that have signed in, and
  never for another relay.
- A client that sends its token on redirects gets an error instead of a redirect.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from registry.errors import Invalid, Refused
from registry.server.database import db
from registry.server.hub import repositories
from registry.server.hub.upstream import REDIRECTS, VIA, Reply, Upstream
from registry.server.routes.hub import clients

_FILE = re.compile(r"/(?:[^/]+/){1,2}(?:resolve|raw)/")
# Another server's bytes under the name of this one: browsers must not execute them.
_SAFE_HEADERS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}  # fmt: skip


def relay(request: Request, upstream: Upstream) -> Response | None:
    """Return the upstream's answer, or None for a request that is not relayed."""
    params = request.path_params
    is_post = request.method == "POST"
    if VIA in request.headers.get("via", "") or "name" not in params:
        return None
    if is_post and "paths-info" not in request.url.path:
        return None
    if "namespace" in params:
        with db.session(request.app.state.engine, write=False) as session:
            if repositories.has_namespace(session, params["namespace"]):
                return None
    target = clients.normalize_path(request.scope) + (f"?{request.url.query}" if request.url.query else "")
    headers = {name: request.headers[name] for name in ("range", "content-type") if name in request.headers}
    if any(ord(letter) < 0x21 or ord(letter) > 0x7E for letter in target):
        raise Invalid("REQUEST_INVALID", "the query holds a space or a character outside ASCII")
    with upstream.turn():
        reply = upstream.ask(request.method, target, headers, request.state.body if is_post else None)
        reply.status = _status(reply)
        if _FILE.match(request.url.path):
            return _file_response(request, reply)
        headers = {name: value for name, value in reply.headers.items() if name.startswith("X-")}
        return JSONResponse(reply.json(), reply.status, headers)


def _status(reply: Reply) -> int:
    """Translate 401: the upstream is asked without a token, and the client has signed in here."""
    if reply.status != 401:
        return reply.status
    return 403 if reply.headers.get("X-Error-Code") == "GatedRepo" else 404


def _file_response(request: Request, reply: Reply) -> Response:
    headers: dict[str, Any] = {**reply.headers, **_SAFE_HEADERS}
    if reply.status in REDIRECTS:
        reply.answer.close()
        if clients.sends_token_on_redirect(request):
            raise Refused(
                "HUB_RELAY_REFUSED", "this client would send its token to the host that the upstream Hub redirects to",
                next_step="fetch this file with another Hub client, or load it from a folder",
            )  # fmt: skip
        if request.method == "GET" or clients.is_legacy(request) or "X-Linked-Size" not in headers:
            headers.pop("Content-Length", None)
            return Response(status_code=302, headers={**headers, "Location": reply.location})
        headers |= {"ETag": headers.get("X-Linked-ETag", ""), "Content-Length": headers["X-Linked-Size"]}
        return Response(status_code=200, headers=headers)
    if request.method == "HEAD":
        reply.answer.close()
        return Response(status_code=reply.status, headers=headers)
    return StreamingResponse(reply.chunks(), reply.status, headers)
