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
    """Name of the serving node, such as `gpu-7`."""
    engine: str
    """Name of the engine on its node, such as `vllm-8000`."""
    served_name: str
    """Model name under which clients of the engine request it. It belongs to this version."""
    number: int | None
    """Number of the version that the node has; null if the registry does not know it."""
    state: str
    """`loading`, `serving`, `downloaded`, `draining`, `refused` or `failed`."""
    reported_at: datetime
    """When the node last reported."""


class DeleteResult(Response):
    """What was deleted, or would be. Its name stays reserved."""

    name: str
    """What was deleted: an adapter or a version. The name stays reserved."""
    versions: int = 0
    """Number of versions that were deleted, or restored."""
    served_on: list[ServedOn] = []
    """Live nodes that still have it."""
    needs: list[Finding] = []
    """What needs it. Only a forced deletion passes over that."""


class MetadataChange(Request):
    """Changes of a description, tags and links. Absent fields and keys stay as they are; null removes a tag or link."""

    description: str | None = Field(default=None, max_length=DESCRIPTION_LIMIT)
    """New free text; null or absent: unchanged."""
    tags: dict[MetadataKey, TagValue | None] = Field(default={}, max_length=TAGS_LIMIT)
    """Key → new value; null removes the tag. Absent keys stay."""
    links: dict[MetadataKey, LinkUrl | None] = Field(default={}, max_length=TAGS_LIMIT)
    """Label → new address (http or https, without a user); null removes the link. Absent labels stay."""

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
    """When garbage collection deletes the version, unless something needs it then; empty: never."""

    @model_validator(mode="after")
    def _check_expiry(self) -> Self:
        check_field("expires_at", _check_moment, self.expires_at or "")
        return self


class VersionView(Response):
    """One version.

    `annotations` are sealed in the manifest; `description`, `tags` and `links` can change and are not in the digest.
    """

    name: str
    """Adapter, as `namespace/name`."""
    number: int
    """Number of the version in its adapter, from 1."""
    digest: Digest
    """Digest of the version's manifest, which names the version."""
    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    base_fingerprint: Digest
    """Digest of the architecture of the base: tensor names, shapes, and what changes the computation."""
    files: list[Descriptor]
    """Files of the version, sorted by path."""
    parents: list[Edge]
    """Versions that this one was made from, as its manifest declares."""
    facts: dict[str, Any]
    """What the server read from configuration and header: method, rank, modules, training claims, engine facts."""
    verdicts: list[Verdict]
    """The newest verdict of each check."""
    aliases: list[str]
    """Aliases that point at this version."""
    size_bytes: int
    """Bytes of all files together."""
    message: str
    """Free text about the version, as a commit message."""
    created_at: datetime
    """When it was created."""
    created_by: str
    """Identity whose token created it."""
    yanked_at: datetime | None = None
    """When it was yanked: aliases no longer lead to it, and it can still be read by number or digest. Null if it is
    not."""
    yank_reason: str = ""
    """Why it was yanked."""
    quarantined_at: datetime | None = None
    """When it was quarantined: its bytes are withheld from everyone who may not promote. Null if it is not."""
    quarantine_reason: str = ""
    """Why it was quarantined."""
    deleted_at: datetime | None = None
    """When it was deleted. Null if it was not."""
    deleted_by: str = ""
    """Identity whose token deleted it."""
    delete_reason: str = ""
    """Why it was deleted."""
    purged_at: datetime | None = None
    """When the files of a deleted version were erased. Until then the deletion can be undone."""
    damaged: list[str] = []
    """Paths of files whose stored bytes are wrong or lost."""
    signed_by: list[str] = []
    """Whose signatures it has. `adapter verify` verifies them."""
    served_on: list[ServedOn] = []
    """Live nodes that still have it; only in responses that withdraw it."""
    provenance: Provenance | None = None
    """What the pusher declares the version was made from; null if nothing."""
    annotations: dict[str, str] = {}
    """Key → value, sealed in the manifest: part of the digest, so they never change."""
    description: str = ""
    """Free text, which can be changed later and is not part of the digest."""
    tags: dict[str, str] = {}
    """Key → value, for search. Can be changed later; not part of the digest."""
    links: dict[str, str] = {}
    """Label → web address (http or https), for people. Can be changed later."""
    expires_at: datetime | None = None
    """When garbage collection deletes the version, unless something needs it then; null for never."""
    served_name: str = ""
    """Model name under which agents load this version, unless two adapters on a node read the same in it."""


class VersionPage(ItemPage[VersionView]):
    """The versions of one adapter, newest first."""

    items: list[VersionView]
    """Versions of the adapter, newest first."""

    total: int | None = None
    """How many items all pages have together, if `count` was requested."""


class AdapterView(Response):
    """An adapter and a summary of its newest version that is available, where `main` points.

    `description`, `tags` and `links` are those of the adapter.
    """

    name: str
    """Adapter, as `namespace/name`."""
    versions: int
    """Number of versions, deleted ones included."""
    newest: int
    """Number of the newest available version, where `main` points."""
    digest: Digest
    """Digest of the newest available version."""
    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    method: str
    """PEFT method, such as `lora` or `ia3`."""
    rank: int | None
    """Largest rank of a module; null for methods without one."""
    size_bytes: int
    """Bytes of all files of the newest available version."""
    aliases: dict[str, int]
    """Alias → number of the version that it points at."""
    verdicts: dict[str, str]
    """Check → outcome; for engines, `engine:PROFILE` → outcome."""
    updated_at: datetime
    """When a version was last pushed."""
    description: str = ""
    """Free text about the adapter, which can be changed later."""
    tags: dict[str, str] = {}
    """Key → value, for search. Can be changed later; not part of the digest."""
    links: dict[str, str] = {}
    """Label → web address (http or https), for people. Can be changed later."""


class AdapterPage(ItemPage[AdapterView]):
    """A page of adapters that match a search."""

    items: list[AdapterView]
    """Adapters by name, each with its newest available version."""

    total: int | None = None
    """How many adapters all pages have together, if `count` was requested. Null if the server would have to look at
    more than 10,000."""


class FileLink(Response):
    """A file and where its bytes are."""

    path: str
    """Path of the file in the version, with `/` between folders."""
    media_type: str
    """Media type, which follows from the path."""
    digest: Digest
    """SHA-256 that the bytes must have: verify it."""
    size_bytes: int
    """Length of the file in bytes."""
    url: str = Field(repr=False)
    """Address. Relative: on the registry, send the token. Absolute: signed by the store, send no token."""


class Resolved(Response):
    """A version, its manifest and its files: everything that a serving system needs."""

    name: str
    """Adapter, as `namespace/name`."""
    selector: str
    """What the version was requested by: alias, number or digest."""
    number: int
    """Number of the version in its adapter, from 1."""
    digest: Digest
    """Digest of the version's manifest, which names the version."""
    manifest: Manifest
    """What the version consists of. Its canonical JSON is hashed, and that digest names the version."""
    files: list[FileLink]
    """Every file and where its bytes are."""
    verdicts: dict[str, str]
    """Check → outcome; for engines, `engine:PROFILE` → outcome."""
    yanked: bool = False
    """Whether the version is yanked. It can still be pulled by number or digest."""
    generation: int | None = None
    """How often the alias has moved, if `selector` is one; null otherwise."""
    served_name: str = ""
    """Model name under which agents load this version, unless two adapters on a node read the same in it."""

    @property
    def failed_checks(self) -> list[str]:
        """The checks that say fail. Engines that cannot serve it are not among them: it may be fine elsewhere."""
        return [check for check, outcome in self.verdicts.items() if outcome == "fail" and ":" not in check]
