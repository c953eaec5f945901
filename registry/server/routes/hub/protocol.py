"""The protocol of the Hub API: paths, errors in headers, what clients do differently, and the relay to another Hub.

- Each segment of a path is decoded once, after the path is split. Paths of the registry's own API never match.
- Clients read errors from X-Error-Code and X-Error-Message. The body is a problem document with the field `error`.
- The relay (REGISTRY_HUB_UPSTREAM) serves only repositories in namespaces that this registry never had, only to
  actors that have signed in, and never to another relay. Names are checked decoded, and `.` and `..` are not relayed.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.routing import Match
from starlette.types import Scope

from registry.api import PREFIX
from registry.errors import Invalid, NotFound, Refused, RegistryError, Unauthenticated
from registry.names import AdapterName
from registry.server.database import db
from registry.server.http.problems import header_text
from registry.server.http.routing import Handler, SingleThreadRoute, run_in_relay_thread, stream_in_threads
from registry.server.hub import repositories
from registry.server.hub.upstream import REDIRECTS, VIA, Upstream, UpstreamResponse

COMMIT_HEADER = "X-Repo-Commit"
_UNENCODED_REFERENCE = re.compile(r"(/(?:commits|paths-info|raw|resolve|revision|tree)/)refs/(heads|tags)/(?=[^/])")
_ERROR_CODES = {
    "ADAPTER_UNKNOWN": "RepoNotFound",
    "ALIAS_UNKNOWN": "RevisionNotFound",
    "VERSION_UNKNOWN": "RevisionNotFound",
    "BLOB_UNKNOWN": "EntryNotFound",
}
_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - clients compare this text
_NO_TOKEN = "this request has no token: set HF_TOKEN, or run `hf auth login`"  # noqa: S105
_NO_RELAY = (
    "this registry has only adapters and does not relay other repositories (REGISTRY_HUB_UPSTREAM is not set): "
    "load base models from a local folder"
)
_FILE = re.compile(r"/(?:[^/]+/){1,2}(?:resolve|raw)/")
_DOTS = frozenset({".", ".."})  # with them the upstream may read a path as that of another repository
# Another server's bytes under the name of this one: browsers must not execute them.
_SAFE_HEADERS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}  # fmt: skip


class HubRoute(SingleThreadRoute):
    """The class of all routes of the Hub API. `relays`: whether it serves another Hub's repositories, too."""

    relays = True

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the normalized path, unless it belongs to the REST API."""
        if scope["type"] != "http" or scope["path"].startswith(f"{PREFIX}/"):
            return Match.NONE, {}
        match, child = super().matches({**scope, "path": normalize_path(scope)})
        params = child.get("path_params", {})
        return match, {**child, "path_params": {key: unquote(str(value)) for key, value in params.items()}}

    async def _respond(self, handle: Handler, request: Request) -> Response:
        """Handle a request, or relay it if the repository is not here."""
        try:
            return await super()._respond(handle, request)
        except NotFound as error:
            if self.relays and error.code == "ADAPTER_UNKNOWN" and request.app.state.upstream is not None:
                response = await run_in_relay_thread(relay, request, request.app.state.upstream)
                if response is not None:
                    return response
            raise

    def error_headers(self, request: Request, error: RegistryError) -> dict[str, str]:
        """Return the error as headers that Hub clients read."""
        message = error.detail + (f"; {error.next_step}" if error.next_step else "")
        if error.code == "ADAPTER_UNKNOWN" and request.app.state.upstream is None:
            message += f"; {_NO_RELAY}"
        code = _ERROR_CODES.get(error.code, "")
        if isinstance(error, Unauthenticated):
            message = _BAD_TOKEN if "authorization" in request.headers else _NO_TOKEN
            if message is _NO_TOKEN and "name" in request.path_params:
                code = "RepoNotFound"
        headers = {"X-Error-Message": header_text(message)} | ({"X-Error-Code": code} if code else {})
        commit = getattr(request.state, "commit", "")
        return headers | ({COMMIT_HEADER: commit} if commit else {})


class PushRoute(HubRoute):
    """The class of the routes that clients push by."""

    relays = False


def adapter_of(request: Request) -> AdapterName:
    """Return the adapter in the path, which Git LFS writes with `.git` at its end."""
    name = request.path_params["name"].removesuffix(".git")
    return repositories.parse_name(request.path_params["namespace"], name)


def base_url(request: Request) -> str:
    """Return the URL of this server for clients: from the settings, else as this client reached it."""
    return str(request.app.state.settings.public_url or request.base_url).rstrip("/")


def is_legacy(request: Request) -> bool:
    """Whether it is huggingface_hub 0.x, which needs the redirect at HEAD: hf_transfer sends its token on redirects."""
    return "hf_hub/0." in request.headers.get("user-agent", "")


def reads_metadata_only(request: Request) -> bool:
    """Whether a GET stands for HEAD: the client wants the id of the file, which the store does not know."""
    return request.headers.get("range") == "bytes=0-0"


def sends_token_on_redirect(request: Request) -> bool:
    """Whether it is the Rust client, which sends its token wherever it is redirected to."""
    return "hf-hub/" in request.headers.get("user-agent", "")


def normalize_path(scope: Scope) -> str:
    """Return the path with the characters inside each segment encoded in one way.

    `refs%2Fheads%2Fprod` is one segment. So is `refs/heads/prod` where a revision is expected, because not every client
    encodes it.
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        return str(scope["path"])
    path = "/".join(quote(unquote(part), safe=":@+,=") for part in raw.decode("latin-1").split("/"))
    return _UNENCODED_REFERENCE.sub(r"\1refs%2F\2%2F", path, count=1)


def relay(request: Request, upstream: Upstream) -> Response | None:
    """Return the upstream's response, or None for a request that is not relayed."""
    params = request.path_params
    body: bytes | None = request.state.body if request.method == "POST" else None
    if VIA in request.headers.get("via", "") or "name" not in params:
        return None
    path = normalize_path(request.scope)
    if not _DOTS.isdisjoint(re.split(r"[/\\]", unquote(path))):
        return None
    with db.session(request.app.state.engine, write=False) as session:
        if not repositories.is_relayed(session, params.get("namespace", ""), params["name"]):
            return None
    target = path + (f"?{request.url.query}" if request.url.query else "")
    headers = {name: request.headers[name] for name in ("range", "content-type") if name in request.headers}
    if any(ord(letter) < 0x21 or ord(letter) > 0x7E for letter in target):
        raise Invalid("REQUEST_INVALID", "the query holds a space or a character outside ASCII")
    with upstream.turn():
        response = upstream.ask(request.method, target, headers, body)
        response.status = _status(response)
        if _FILE.match(request.url.path):
            return _file_response(request, response)
        headers = {name: value for name, value in response.headers.items() if name.startswith("X-")}
        return JSONResponse(response.json(), response.status, headers)


def _status(response: UpstreamResponse) -> int:
    """Translate 401: the upstream is asked without a token, and the client has signed in here."""
    if response.status != 401:
        return response.status
    return 403 if response.headers.get("X-Error-Code") == "GatedRepo" else 404


def _file_response(request: Request, response: UpstreamResponse) -> Response:
    headers: dict[str, Any] = {**response.headers, **_SAFE_HEADERS}
    if response.status in REDIRECTS:
        response.stream.close()
        if sends_token_on_redirect(request):
            raise Refused(
                "HUB_RELAY_REFUSED", "this client would send its token to the host that the upstream Hub redirects to",
                next_step="fetch this file with another Hub client, or load it from a folder",
            )  # fmt: skip
        if request.method == "GET" or is_legacy(request) or "X-Linked-Size" not in headers:
            headers.pop("Content-Length", None)
            return Response(status_code=302, headers={**headers, "Location": response.location})
        headers |= {"ETag": headers.get("X-Linked-ETag", ""), "Content-Length": headers["X-Linked-Size"]}
        return Response(status_code=200, headers=headers)
    if request.method == "HEAD":
        response.stream.close()
        return Response(status_code=response.status, headers=headers)
    body = stream_in_threads(run_in_relay_thread, response.chunks(), response.stream.close)
    return StreamingResponse(body, response.status, headers)
