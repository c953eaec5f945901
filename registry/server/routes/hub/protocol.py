"""The protocol of the Hub API: paths, errors in headers, and what clients do differently.

- Each segment of a path is decoded once, after the path is split. Paths of the registry's own API never match.
- Clients read errors from X-Error-Code and X-Error-Message. The body is a problem document with the field `error`.
"""

from __future__ import annotations

import contextlib
import re
from urllib.parse import quote, unquote

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from starlette.routing import Match
from starlette.types import Scope

from registry.api import PREFIX
from registry.errors import RENAMED_TO, RegistryError, Unauthenticated, printable
from registry.names import AdapterName
from registry.server.http import request_body
from registry.server.http.problems import header_text
from registry.server.http.request_body import BODY_LIMIT_BYTES
from registry.server.http.routing import SingleThreadRoute
from registry.server.http.services import services_of
from registry.server.hub import repositories

COMMIT_HEADER = "X-Repo-Commit"
WARNING_LIMIT = 1000
_UNENCODED_REFERENCE = re.compile(r"(/(?:commits|paths-info|raw|resolve|revision|tree)/)refs/(heads|tags)/(?=[^/])")
_ERROR_CODES = {
    "ADAPTER_UNKNOWN": "RepoNotFound",
    "ADAPTER_DELETED": "RepoNotFound",
    "ALIAS_UNKNOWN": "RevisionNotFound",
    "VERSION_UNKNOWN": "RevisionNotFound",
    "BLOB_UNKNOWN": "EntryNotFound",
}
_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - clients compare this text
_NO_TOKEN = "this request has no token: set HF_TOKEN, or run `hf auth login`"  # noqa: S105
_ONLY_ADAPTERS = "this registry has only adapters: load base models from a local folder, or from the Hub"


class HubRoute(SingleThreadRoute):
    """The class of all routes of the Hub API."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the normalized path, unless it belongs to the REST API."""
        if scope["type"] != "http" or scope["path"].startswith(f"{PREFIX}/"):
            return Match.NONE, {}
        match, child = super().matches({**scope, "path": normalize_path(scope)})
        params = child.get("path_params", {})
        return match, {**child, "path_params": {key: unquote(str(value)) for key, value in params.items()}}

    def read_body_of(self, request: Request) -> contextlib.AbstractAsyncContextManager[Request]:
        """Read more of a body that comes with a token, where none is needed."""
        if self.needs_no_token and "authorization" in request.headers:
            return request_body.read_body(request, BODY_LIMIT_BYTES, needs_no_token=False, scope=None)
        return super().read_body_of(request)

    def error_response(self, request: Request, error: RegistryError, _status: int) -> Response | None:
        """Lead readers of a renamed adapter to its new name, as the Hub does; clients follow a path without a host."""
        params, to = request.path_params, error.parameters.get(RENAMED_TO)
        path = request.scope["raw_path"].decode("latin-1")
        former = f"/{params.get('namespace')}/{params.get('name')}"
        if to is None or request.method not in ("GET", "HEAD") or former not in path:
            return None
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(path.replace(former, f"/{to}", 1) + query, status_code=307)

    def error_headers(self, request: Request, error: RegistryError) -> dict[str, str]:
        """Return the error as headers that Hub clients read."""
        message = error.detail + (f"; {error.next_step}" if error.next_step else "")
        if error.code == "ADAPTER_UNKNOWN":
            message += f"; {_ONLY_ADAPTERS}"
        code = _ERROR_CODES.get(error.code, "")
        if isinstance(error, Unauthenticated):
            message = _BAD_TOKEN if "authorization" in request.headers else _NO_TOKEN
            if message is _NO_TOKEN and "name" in request.path_params:
                code = "RepoNotFound"
        headers = {"X-Error-Message": header_text(message)} | ({"X-Error-Code": code} if code else {})
        commit = getattr(request.state, "commit", "")
        return headers | ({COMMIT_HEADER: commit} if commit else {})


def adapter_of(request: Request) -> AdapterName:
    """Return the adapter in the path, which Git LFS writes with `.git` at its end."""
    name = request.path_params["name"].removesuffix(".git")
    return repositories.parse_name(request.path_params["namespace"], name)


def add_warning(response: Response, topic: str, text: str) -> None:
    """Add a warning that clients print once for each topic."""
    line = printable(f"{topic.replace(';', ',')}; {text}", WARNING_LIMIT)
    response.headers.append("X-HF-Warning", line.encode("ascii", "replace").decode())


def base_url(request: Request) -> str:
    """Return the URL of this server for clients: from the settings, else as this client reached it."""
    return str(services_of(request).settings.public_url or request.base_url).rstrip("/")


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
