"""`HubRoute`: how routes of the Hub API match encoded paths, report errors in headers, and use the relay.

- Each segment of a path is decoded once, after the path is split.
- Paths below the prefix of the registry's own API never match.
- Clients read errors from X-Error-Code and X-Error-Message. The body is a problem document with the field `error`.
"""

from __future__ import annotations

from urllib.parse import unquote

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.routing import Match
from starlette.types import Scope

from registry.api import PREFIX
from registry.errors import NotFound, RegistryError, Unauthenticated
from registry.server.http.routing import Handler, SingleThreadRoute
from registry.server.routes.hub import clients
from registry.server.routes.hub.relay import relay

_ERROR_CODES = {
    "ADAPTER_UNKNOWN": "RepoNotFound",
    "ALIAS_UNKNOWN": "RevisionNotFound",
    "VERSION_UNKNOWN": "RevisionNotFound",
    "BLOB_UNKNOWN": "EntryNotFound",
}
_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - clients compare this text
_NO_RELAY = (
    "this registry has only adapters and does not relay other repositories (REGISTRY_HUB_UPSTREAM is not set): "
    "load base models from a local folder"
)


class HubRoute(SingleThreadRoute):
    """The class of all routes of the Hub API."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["path"].startswith(f"{PREFIX}/"):
            return Match.NONE, {}
        match, child = super().matches({**scope, "path": clients.normalize_path(scope)})
        params = child.get("path_params", {})
        return match, {**child, "path_params": {key: unquote(str(value)) for key, value in params.items()}}

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_or_relay(request: Request) -> Response:
            try:
                return await handle(request)
            except NotFound as error:
                if error.code == "ADAPTER_UNKNOWN" and request.app.state.upstream is not None:
                    response = await run_in_threadpool(relay, request, request.app.state.upstream)
                    if response is not None:
                        return response
                raise

        return handle_or_relay

    def error_headers(self, request: Request, error: RegistryError) -> dict[str, str]:
        message = error.detail + (f"; {error.next_step}" if error.next_step else "")
        if error.code == "ADAPTER_UNKNOWN" and request.app.state.upstream is None:
            message += f"; {_NO_RELAY}"
        code = _ERROR_CODES.get(error.code, "")
        if isinstance(error, Unauthenticated):
            if "authorization" in request.headers:
                message = _BAD_TOKEN
            elif "name" in request.path_params:
                code = "RepoNotFound"
        ascii_message = "".join(letter if " " <= letter <= "~" else "?" for letter in message)[:1000]
        headers = {"X-Error-Message": ascii_message} | ({"X-Error-Code": code} if code else {})
        commit = getattr(request.state, "commit", "")
        return headers | ({clients.COMMIT_HEADER: commit} if commit else {})
