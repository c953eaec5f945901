"""What clients of the Hub do differently from each other and from other HTTP clients."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from fastapi import Request
from starlette.types import Scope

COMMIT_HEADER = "X-Repo-Commit"
_UNENCODED_REFERENCE = re.compile(r"(/(?:commits|paths-info|raw|resolve|revision|tree)/)refs/(heads|tags)/(?=[^/])")


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
