"""REST schemas of the catalog: adapters, versions, files, bases."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from registry.api import Answer, ItemPage, PrintableText, Request
from registry.bases import BaseSpec, Similarity
from registry.digest import Digest
from registry.evaluation.verdicts import Verdict
from registry.manifest import TAG_VALUE_LIMIT, Descriptor, Edge, Manifest
from registry.provenance import URI_LIMIT, Provenance

DESCRIPTION_LIMIT = 2000
TAGS_LIMIT = 64
"""Tags of one adapter or version, and as many links."""


def _check_link(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or " " in url:
        raise ValueError("a link is a URL that begins with https:// or http://, without a user")
    return url


MetadataKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LinkUrl = Annotated[PrintableText, Field(max_length=URI_LIMIT), AfterValidator(_check_link)]


class ServedOn(Answer):
    """A node with a live lease that has a version."""

    node: str
    engine: str
    served_name: str
    number: int | None
    state: str
    reported_at: datetime


class DeleteResult(Answer):
    """What was deleted. Its name stays reserved."""

    name: str
    versions: int = 0
    served_on: list[ServedOn] = []


class MetadataChange(Request):
    """Changes of a description, tags and links. Absent fields and keys stay as they are; null removes a tag or link."""

    description: PrintableText | None = Field(default=None, max_length=DESCRIPTION_LIMIT)
    tags: dict[MetadataKey, Annotated[PrintableText, Field(max_length=TAG_VALUE_LIMIT)] | None] = Field(
        default={}, max_length=TAGS_LIMIT
    )
    links: dict[MetadataKey, LinkUrl | None] = Field(default={}, max_length=TAGS_LIMIT)


class VersionView(Answer):
    """One version.

    `annotations` are sealed in the manifest; `description`, `tags` and `links` can change and are not in the digest.
    """

    name: str
    number: int
    digest: Digest
    base: str
    base_fingerprint: Digest
    files: list[Descriptor]
    parents: list[Edge]
    facts: dict[str, Any]
    verdicts: list[Verdict]
    aliases: list[str]
    size_bytes: int
    message: str
    created_at: datetime
    created_by: str
    yanked_at: datetime | None = None
    yank_reason: str = ""
    quarantined_at: datetime | None = None
    quarantine_reason: str = ""
    deleted_at: datetime | None = None
    deleted_by: str = ""
    delete_reason: str = ""
    purged_at: datetime | None = None
    damaged: list[str] = []
    served_on: list[ServedOn] = []
    provenance: Provenance | None = None
    annotations: dict[str, str] = {}
    description: str = ""
    tags: dict[str, str] = {}
    links: dict[str, str] = {}


class VersionPage(ItemPage[VersionView]):
    """The versions of one adapter, newest first."""


class AdapterView(Answer):
    """An adapter and a summary of its newest version that is available, where `main` points.

    `description`, `tags` and `links` are those of the adapter.
    """

    name: str
    versions: int
    newest: int
    digest: Digest
    base: str
    method: str
    rank: int | None
    size_bytes: int
    aliases: dict[str, int]
    verdicts: dict[str, str]
    updated_at: datetime
    description: str = ""
    tags: dict[str, str] = {}
    links: dict[str, str] = {}


class AdapterPage(ItemPage[AdapterView]):
    """A page of adapters that match a search."""


class FileLink(Answer):
    """A file and where its bytes are."""

    path: str
    media_type: str
    digest: Digest
    size_bytes: int
    url: str


class Resolved(Answer):
    """A version, its manifest and its files: everything that a serving system needs."""

    name: str
    selector: str
    number: int
    digest: Digest
    manifest: Manifest
    files: list[FileLink]
    verdicts: dict[str, str]
    yanked: bool = False
    generation: int | None = None


class BaseView(Answer):
    """A base. A list leaves out `relatives` and `thresholds`."""

    name: str
    fingerprint: Digest
    spec: BaseSpec
    source: str
    adapters: int = 0
    created_at: datetime
    created_by: str
    relatives: list[Similarity] = []
    parents: list[Edge] = []
    aliases: list[str] = []
    thresholds: dict[str, float] = {}


class BasePage(ItemPage[BaseView]):
    """A page of bases, by name."""
