"""REST schema of the server's health."""

from __future__ import annotations

from pydantic import Field

from registry.api import Answer


class Health(Answer):
    """The state of the server. Only requests with a token are told what is behind it."""

    status: str = Field(description="`ok` or `unavailable`.")
    reason: str = ""
    version: str = ""
    database: str = ""
    blobs: str = ""
    schema_revision: str = ""
    capabilities: dict[str, bool] = {}
