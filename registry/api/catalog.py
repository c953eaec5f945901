"""REST schemas of the catalog: adapters, versions, files."""

from datetime import UTC, datetime
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from registry.api import check_field, check_printable
from registry.api.models import ItemPage, Request, Response
from registry.digest import Digest
from registry.evaluation.verdicts import Verdict
from registry.findings import Finding
from registry.validation import pattern
from registry.versions.manifest import TAG_VALUE_LIMIT, Descriptor, Edge, Manifest
from registry.versions.provenance import URI_LIMIT, Provenance

DESCRIPTION_LIMIT = 2000
TAGS_LIMIT = 64
"""Tags of one adapter or version, and as many links."""


def _check_link(url: str) -> None:
    check_printable(url)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or " " in url:
        raise ValueError("a link is a URL that begins with https:// or http://, without a user")


def _check_moment(text: str) -> None:
    if not text:
        return
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    try:
        moment.astimezone(UTC)
    except OverflowError as e:
        raise ValueError("this moment in UTC is not in the years 1 to 9999") from e


_KEY_RULE = "a key has 1 to 63 letters, digits and . _ / -, and begins with a letter or digit"
MetadataKey = Annotated[str, Field(pattern=pattern(r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$", _KEY_RULE))]
TagValue = Annotated[str, Field(max_length=TAG_VALUE_LIMIT)]
LinkUrl = Annotated[str, Field(max_length=URI_LIMIT)]


class ServedOn(Response):
    """A node with a live lease that has a version."""

    node: str
    engine: str
    served_name: str
    number: int | None
    state: str
    reported_at: datetime


class DeleteResult(Response):
    """What was deleted, or would be. Its name stays reserved."""

    name: str
    versions: int = 0
    served_on: list[ServedOn] = []
    needs: list[Finding] = []


class MetadataChange(Request):
    """Changes of a description, tags and links. Absent fields and keys stay as they are; null removes a tag or link."""

    description: str | None = Field(default=None, max_length=DESCRIPTION_LIMIT)
    tags: dict[MetadataKey, TagValue | None] = Field(default={}, max_length=TAGS_LIMIT)
    links: dict[MetadataKey, LinkUrl | None] = Field(default={}, max_length=TAGS_LIMIT)

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        check_field("description", check_printable, self.description or "")
        for key, tag in self.tags.items():
            check_field(f"tags.{key}", check_printable, tag or "")
        for key, url in self.links.items():
            if url is not None:
                check_field(f"links.{key}", _check_link, url)
        return self


class VersionMetadataChange(MetadataChange):
    """The same of a version, and when it expires: for owners and its pusher.

    `expires_at` is a moment with a time zone (ISO 8601), or the empty text, which removes the expiry.
    """

    expires_at: str | None = Field(default=None, max_length=40)

    @model_validator(mode="after")
    def _check_expiry(self) -> Self:
        check_field("expires_at", _check_moment, self.expires_at or "")
        return self


class VersionView(Response):
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
    expires_at: datetime | None = None


class VersionPage(ItemPage[VersionView]):
    """The versions of one adapter, newest first."""

    total: int | None = None


class AdapterView(Response):
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

    total: int | None = None


class FileLink(Response):
    """A file and where its bytes are."""

    path: str
    media_type: str
    digest: Digest
    size_bytes: int
    url: str = Field(repr=False)


class Resolved(Response):
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
