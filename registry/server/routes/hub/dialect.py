"""`HubRoute`: what each route of the Hub's dialect does around its work: raw paths, errors in headers, the relay.

Invariants
- A segment of the path is decoded once, after the split: `refs%2Fheads%2Fprod` is one segment. So is `refs/heads/prod`
  after a word that a revision follows, because not every client encodes it.
- Nothing below our own API's prefix is ever taken for a repository.
- Clients tell errors by X-Error-Code and X-Error-Message; the body is the problem of every other route, plus `error`.
- The relay is asked only for what this registry does not hold, in a namespace that it does not hold either, only for
  somebody who has signed in, and never for another relay.
- A client that takes its token along is not redirected by the relay either: it gets a no.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.routing import Match
from starlette.types import Scope

from registry.api import PREFIX
from registry.errors import Invalid, NotFound, Refused, RegistryError, Unauthenticated
from registry.server.database import db
from registry.server.hub import repositories
from registry.server.hub.upstream import REDIRECTS, VIA, Reply, Upstream
from registry.server.routes.idempotent import Handler, OnceRoute

COMMIT = "X-Repo-Commit"
_PLAIN_REFERENCE = re.compile(r"(/(?:commits|paths-info|raw|resolve|revision|tree)/)refs/(heads|tags)/(?=[^/])")
_CODES = {
    "ADAPTER_UNKNOWN": "RepoNotFound",
    "ALIAS_UNKNOWN": "RevisionNotFound",
    "VERSION_UNKNOWN": "RevisionNotFound",
    "BLOB_UNKNOWN": "EntryNotFound",
}
_FILE = re.compile(r"/(?:[^/]+/){1,2}(?:resolve|raw)/")
_HARMLESS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}  # fmt: skip
"""Another's bytes, answered under our name: browsers must run none of them."""
_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105  # the very words that clients look for
_NO_RELAY = (
    "this registry holds adapters and relays no other repository (REGISTRY_HUB_UPSTREAM is not set): "
    "load base models from a local folder"
)


class HubRoute(OnceRoute):
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["path"].startswith(f"{PREFIX}/"):
            return Match.NONE, {}
        match, child = super().matches({**scope, "path": _one_by_one(scope)})
        words = child.get("path_params", {})
        return match, {**child, "path_params": {key: unquote(str(word)) for key, word in words.items()}}

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def relayed(request: Request) -> Response:
            try:
                return await handle(request)
            except NotFound as absent:
                if absent.code == "ADAPTER_UNKNOWN" and request.app.state.upstream is not None:
                    found = await run_in_threadpool(_relay, request, request.app.state.upstream)
                    if found is not None:
                        return found
                raise

        return relayed


def _one_by_one(scope: Scope) -> str:
    """The path with what was encoded inside a segment still encoded there, in one way."""
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        return str(scope["path"])
    path = "/".join(quote(unquote(part), safe=":@+,=") for part in raw.decode("latin-1").split("/"))
    return _PLAIN_REFERENCE.sub(r"\1refs%2F\2%2F", path, count=1)


def error_headers(request: Request, error: RegistryError) -> dict[str, str]:
    """What the dialect says of an error beside its status; empty for a route of our own API."""
    if not isinstance(request.scope.get("route"), HubRoute):
        return {}
    said = error.detail + (f"; {error.next_step}" if error.next_step else "")
    if error.code == "ADAPTER_UNKNOWN" and request.app.state.upstream is None:
        said += f"; {_NO_RELAY}"
    code = _CODES.get(error.code, "")
    if isinstance(error, Unauthenticated):
        if "authorization" in request.headers:
            said = _BAD_TOKEN
        elif "name" in request.path_params:
            code = "RepoNotFound"
    shown = "".join(letter if " " <= letter <= "~" else "?" for letter in said)[:1000]
    headers = {"X-Error-Message": shown} | ({"X-Error-Code": code} if code else {})
    commit = getattr(request.state, "commit", "")
    return headers | ({COMMIT: commit} if commit else {})


def base_url(request: Request) -> str:
    """Where clients reach this server: as the settings say, else as this very client did."""
    return str(request.app.state.settings.public_url or request.base_url).rstrip("/")


def is_of_old(request: Request) -> bool:
    """huggingface_hub 0.x: what it may be sent to is decided at HEAD, because hf_transfer takes its token along."""
    return "hf_hub/0." in request.headers.get("user-agent", "")


def only_looks(request: Request) -> bool:
    """A GET that stands for HEAD: its client wants the identity of the file, which the store does not know."""
    return request.headers.get("range") == "bytes=0-0"


def takes_token_along(request: Request) -> bool:
    """The Rust client sends its token wherever it is redirected to: it gets its bytes from here."""
    return "hf-hub/" in request.headers.get("user-agent", "")


# ------------------------------------------------------------------ the relay
def _relay(request: Request, upstream: Upstream) -> Response | None:
    """The upstream's answer; None for what is not relayed."""
    words = request.path_params
    posted = request.method == "POST"
    if VIA in request.headers.get("via", "") or "name" not in words:
        return None
    if posted and "paths-info" not in request.url.path:
        return None
    if "namespace" in words:
        with db.session(request.app.state.engine, write=False) as session:
            if repositories.has_namespace(session, words["namespace"]):
                return None
    target = _one_by_one(request.scope) + (f"?{request.url.query}" if request.url.query else "")
    sent = {name: request.headers[name] for name in ("range", "content-type") if name in request.headers}
    if any(ord(letter) < 0x21 or ord(letter) > 0x7E for letter in target):
        raise Invalid("REQUEST_INVALID", "the query holds a space or a character outside ASCII")
    with upstream.turn():
        reply = upstream.ask(request.method, target, sent, request.state.body if posted else None)
        reply.status = _status(reply)
        if _FILE.match(request.url.path):
            return _file(request, reply)
        headers = {name: value for name, value in reply.headers.items() if name.startswith("X-")}
        return JSONResponse(reply.json(), reply.status, headers)


def _status(reply: Reply) -> int:
    """The upstream was asked without a token; whom it tells is signed in here."""
    if reply.status != 401:
        return reply.status
    return 403 if reply.headers.get("X-Error-Code") == "GatedRepo" else 404


def _file(request: Request, reply: Reply) -> Response:
    headers: dict[str, Any] = {**reply.headers, **_HARMLESS}
    if reply.status in REDIRECTS:
        reply.answer.close()
        if takes_token_along(request):
            raise Refused(
                "HUB_RELAY_REFUSED", "this client would take its token along to where the upstream Hub leads",
                next_step="fetch this file with another Hub client, or load it from a folder",
            )  # fmt: skip
        if request.method == "GET" or is_of_old(request) or "X-Linked-Size" not in headers:
            headers.pop("Content-Length", None)
            return Response(status_code=302, headers={**headers, "Location": reply.location})
        headers |= {"ETag": headers.get("X-Linked-ETag", ""), "Content-Length": headers["X-Linked-Size"]}
        return Response(status_code=200, headers=headers)
    if request.method == "HEAD":
        reply.answer.close()
        return Response(status_code=reply.status, headers=headers)
    return StreamingResponse(reply.chunks(), reply.status, headers)
