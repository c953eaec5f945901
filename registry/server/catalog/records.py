"""`VersionRecord`, `BaseRecord`, `TombstoneRecord`: what must be known to make the rows of these things anew.

Invariants
- A record holds facts that never change, and whether a version is withdrawn; nothing that a row can be derived of.
- A tombstone says that a name ended and when, and not what had it, nor who ended it: the audit log tells that.
- Its bytes are named by their SHA-256, like every blob.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from registry.bases import BaseSpec
from registry.bases.identity import Identity
from registry.digest import Digest
from registry.errors import Invalid
from registry.manifest import Edge, Manifest


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[2] = 2
    created_at: datetime
    created_by: str

    @model_validator(mode="before")
    @classmethod
    def _convert_version_1(cls, data: Any) -> Any:
        """A record never changes, because its key names its bytes. Version 1 had other field names."""
        if not isinstance(data, dict) or data.get("schema_version") != 1:
            return data
        former = {"quantisation": "quantization", "scheme": "format"}
        for field in ("facts", "identity", "spec"):
            if isinstance(value := data.get(field), dict):
                data[field] = {former.get(name, name): item for name, item in value.items()}
        return data | {"schema_version": 2}

    def to_bytes(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False).encode()

    @property
    def digest(self) -> Digest:
        return Digest.of(self.to_bytes())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """`Invalid` (MANIFEST_INVALID) for bytes that are no record of this kind."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as e:
            raise Invalid("MANIFEST_INVALID", f"record: {e.errors()[0]['msg']}") from e


class BaseRecord(Record):
    """A base: what `adapter base add` found, who added it and when; and which weights it has, once that is known."""

    spec: BaseSpec
    source: str
    identity: Identity | None = None
    parents: tuple[Edge, ...] = ()

    @property
    def edges(self) -> list[dict[str, Any]] | None:
        """The parents as the row holds them: what was fused into the base, None for one that nobody fused."""
        return [edge.model_dump(mode="json") for edge in self.parents] or None


class VersionRecord(Record):
    """A version: its place, its manifest, what the push said and what was seen in its bytes."""

    namespace: str
    name: str
    number: int
    manifest: Manifest
    method: str
    rank: int | None
    facts: dict[str, Any]
    message: str
    yanked_at: datetime | None
    yank_reason: str
    pushed_by: str = ""
    quarantine: int = 0
    quarantined_at: datetime | None = None
    quarantine_reason: str = ""


class TombstoneRecord(Record):
    """A name that is never given again: of an adapter in its namespace, or of a namespace (`owner` is empty then)."""

    owner: str
    name: str
