"""Tables of the content: bases; adapters, versions, lineage, verdicts; aliases; blobs."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import CreatedColumns, SetColumns, UtcTime


class BaseRow(CreatedColumns, table=True):
    """A base model. `parents`: the versions that were fused into it; `recorded_at`: when the bucket got it.

    `aliases`: other names of the same model, such as its name on the Hugging Face Hub. `library_modules`: what
    `library`, with its version, builds of it on a worker; the bucket does not have them. A base that is not
    registered is a row with the fingerprint `registry.bases.UNREGISTERED`: only its name counts.
    """

    __tablename__ = "base"
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    fingerprint: str = Field(index=True)
    spec: dict[str, Any] = Field(sa_type=JSON)
    source: str = ""
    recorded_at: datetime | None = Field(default=None, sa_type=UtcTime)
    parents: list[dict[str, Any]] | None = Field(default=None, sa_type=JSON)
    aliases: list[str] | None = Field(default=None, sa_type=JSON)
    library: str | None = None
    library_modules: dict[str, Any] | None = Field(default=None, sa_type=JSON)


class BaseIdentityRow(SQLModel, table=True):
    """The identity of a base's weights. A client that read all of them sets it once; it never changes."""

    __tablename__ = "base_identity"
    base_id: int = Field(foreign_key="base.id", primary_key=True)
    exact: str = Field(index=True)
    identity: str = Field(sa_type=Text)
    made_at: datetime = Field(sa_type=UtcTime)
    made_by: str


class BaseSimilarityRow(SQLModel, table=True):
    """How similar two bases are, one row per direction. Written when an identity is added."""

    __tablename__ = "base_similarity"
    base_id: int = Field(foreign_key="base.id", primary_key=True)
    other_id: int = Field(foreign_key="base.id", primary_key=True)
    similarity: dict[str, Any] = Field(sa_type=JSON)


class BaseEdgeRow(SQLModel, table=True):
    """Base → version that was fused into it, by manifest digest: the same as `base.parents`, as a graph."""

    __tablename__ = "base_edge"
    base_id: int = Field(foreign_key="base.id", primary_key=True)
    parent_digest: str = Field(primary_key=True, index=True)
    relation: str = Field(primary_key=True)


ADAPTER_PATH = "(adapter.namespace || '/' || adapter.name)"
"""What PostgreSQL indexes in the order of bytes for `prefix`; only the migration has the index (see `TEXT_VECTOR`)."""


class AdapterRow(CreatedColumns, table=True):
    """An adapter. `newest_number` counts its versions and never decreases."""

    __tablename__ = "adapter"
    __table_args__ = (UniqueConstraint("namespace", "name"), Index("ix_adapter_created_by", "created_by"))
    id: int | None = Field(default=None, primary_key=True)
    namespace: str
    name: str
    newest_number: int = 0
    updated_at: datetime = Field(sa_type=UtcTime, index=True)


class VersionRow(CreatedColumns, table=True):
    """A version. `recorded_at` is when its ref was written to the bucket; empty means that it still must be.

    `measured_at` is when the numbers of its weights were read (`weights`); empty means that they still must be.
    `created_by` is who pushed it.
    `quarantine` grows with each quarantine and deletion, and when one or a yank ends; `quarantined_at` is empty outside
    one. A deleted version (`deleted_at`) is withheld as in quarantine; once `purged_at` is set, its files are gone and
    the row is a tombstone: number and digest are never used again.
    `main` passes over a version with `skipped_by_main`, which failed a check when it was pushed, while it has another.
    """

    __tablename__ = "version"
    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),
        UniqueConstraint("adapter_id", "digest"),
        Index("ix_version_base_id_adapter_id", "base_id", "adapter_id", "deleted_at"),
        Index("ix_version_method_adapter_id", "method", "adapter_id"),
        Index("ix_version_rank_adapter_id", "rank", "adapter_id"),
    )
    id: int | None = Field(default=None, primary_key=True)
    adapter_id: int = Field(foreign_key="adapter.id")
    number: int
    digest: str = Field(index=True)
    manifest: str = Field(sa_type=Text)
    base_id: int = Field(foreign_key="base.id")
    size_bytes: int = Field(sa_type=BigInteger)
    method: str = ""
    rank: int | None = None
    facts: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    message: str = Field(default="", sa_type=Text)
    yanked_at: datetime | None = Field(default=None, sa_type=UtcTime)
    yank_reason: str = Field(default="", sa_type=Text)
    recorded_at: datetime | None = Field(default=None, sa_type=UtcTime, index=True)
    measured_at: datetime | None = Field(default=None, sa_type=UtcTime, index=True)
    quarantine: int = 0
    quarantined_at: datetime | None = Field(default=None, sa_type=UtcTime)
    quarantine_reason: str = Field(default="", sa_type=Text)
    deleted_at: datetime | None = Field(default=None, sa_type=UtcTime, index=True)
    deleted_by: str = ""
    delete_reason: str = Field(default="", sa_type=Text)
    purged_at: datetime | None = Field(default=None, sa_type=UtcTime)
    skipped_by_main: bool = False


class VersionFileRow(SQLModel, table=True):
    """A file of a version. `git_sha1`: the git blob id of its bytes, once a Hub client asked for it."""

    __tablename__ = "version_file"
    __table_args__ = (Index("ix_version_file_digest_version_id", "digest", "version_id"),)
    version_id: int = Field(foreign_key="version.id", primary_key=True)
    path: str = Field(primary_key=True)
    digest: str
    size_bytes: int = Field(sa_type=BigInteger)
    media_type: str
    git_sha1: str | None = None


class EdgeRow(SQLModel, table=True):
    """Child → parent by the parent's manifest digest. The parent may not exist here, or not yet."""

    __tablename__ = "edge"
    child_id: int = Field(foreign_key="version.id", primary_key=True)
    parent_digest: str = Field(primary_key=True, index=True)
    relation: str = Field(primary_key=True)
    parent_name: str = ""


class VersionInputRow(SQLModel, table=True):
    """A data set, run or commit that a version declares, or a data set that its README claims (see `relation`)."""

    __tablename__ = "version_input"
    version_id: int = Field(foreign_key="version.id", primary_key=True)
    position: int = Field(primary_key=True)
    relation: str
    node: str
    name: str
    uri: str = Field(index=True)
    digest: str | None = Field(default=None, index=True)


FACT = "fact:"
"""Prefix of the attributes that are facts of a version's content: `fact:target:q_proj`, `fact:format:peft`."""


class VersionAttributeRow(SQLModel, table=True):
    """A searchable annotation of a version's manifest, or one of its facts (`FACT`)."""

    __tablename__ = "version_attribute"
    __table_args__ = (Index("ix_version_attribute_key_value", "key", "value", "version_id"),)
    version_id: int = Field(foreign_key="version.id", primary_key=True)
    key: str = Field(primary_key=True)
    value: str


DESCRIPTION, TAG, LINK, EXPIRES = "description", "tag", "link", "expires"
"""The kinds of metadata. A description and an expiry have the empty key; only versions expire."""
NEVER = "never"
"""The expiry of a version that was restored after its deletion. It sorts after every moment."""
_IS_TAG = text("kind = 'tag'")
_IS_EXPIRY = text("kind = 'expires'")


class AdapterMetadataRow(SetColumns, table=True):
    """A description, a tag or a link of an adapter. It can change, and the audit log keeps every change."""

    __tablename__ = "adapter_metadata"
    __table_args__ = (Index("ix_adapter_metadata_tag", "key", "value", "adapter_id", sqlite_where=_IS_TAG),)
    adapter_id: int = Field(foreign_key="adapter.id", primary_key=True)
    kind: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    value: str = Field(sa_type=Text)


class VersionMetadataRow(SetColumns, table=True):
    """The same of a version. It is not part of the version's digest."""

    __tablename__ = "version_metadata"
    __table_args__ = (
        Index("ix_version_metadata_tag", "key", "value", "version_id", sqlite_where=_IS_TAG),
        Index("ix_version_metadata_expiry", "value", sqlite_where=_IS_EXPIRY),
    )
    version_id: int = Field(foreign_key="version.id", primary_key=True)
    kind: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    value: str = Field(sa_type=Text)


TEXT_INDEX = "adapter_text_index"
"""The FTS5 table over `adapter_text` on SQLite. Triggers keep it; no row class is its own."""
TEXT_VECTOR = "array_to_tsvector(array_remove(string_to_array(name_words || tag_words || card_words, ' '), ''))"
"""What PostgreSQL indexes of `adapter_text`; the migration has the index, as Alembic cannot compare expressions."""


class AdapterTextRow(SQLModel, table=True):
    """The words by which an adapter is found (`text_index.py`), each after a space.

    `version_id`: the version whose metadata and card they are of; empty if these still must be read.
    """

    __tablename__ = "adapter_text"
    adapter_id: int = Field(foreign_key="adapter.id", primary_key=True)
    version_id: int | None = Field(default=None, index=True)
    name_words: str = Field(sa_type=Text)
    tag_words: str = Field(sa_type=Text)
    card_words: str = Field(sa_type=Text)


class VerdictRow(SQLModel, table=True):
    """A verdict. Rows are only appended: the newest one of (version, check, profile, by_owner) counts. One of an owner
    that no longer counts loses its `report` and its `findings`.

    `judged_by`: whose token reported it (`reported_by` over REST); empty for a check of the server. `by_owner`: it is
    the verdict of the version's own namespace and not of the registry.
    """

    __tablename__ = "verdict"
    __table_args__ = (
        Index("ix_verdict_version_check", "version_id", "check", "profile"),
        Index("ix_verdict_outcome", "check", "profile", "outcome", "version_id"),
    )
    id: int | None = Field(default=None, primary_key=True)
    version_id: int = Field(foreign_key="version.id")
    check: str
    profile: str = ""
    base_id: int = Field(foreign_key="base.id", index=True)
    base_fingerprint: str
    outcome: str
    findings: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)
    summary: str = Field(default="", sa_type=Text)
    report: str | None = Field(default=None, index=True)
    made_by: dict[str, str] = Field(default_factory=dict, sa_type=JSON)
    made_at: datetime = Field(sa_type=UtcTime)
    job_id: str = ""
    judged_by: str = ""
    by_owner: bool = False


class BlobRow(SQLModel, table=True):
    """A blob under its final key. The row is created before the bytes and deleted after them (see `BlobState`).

    `marked_at`: when it became dead. `checked_at`: when its bytes were last read and hashed.
    """

    __tablename__ = "blob"
    digest: str = Field(primary_key=True)
    size_bytes: int = Field(sa_type=BigInteger)
    state: str = Field(default="live", index=True)
    created_at: datetime = Field(sa_type=UtcTime)
    checked_at: datetime | None = Field(default=None, sa_type=UtcTime)
    marked_at: datetime | None = Field(default=None, sa_type=UtcTime)


class AliasRow(SQLModel, table=True):
    """Where an alias points now. `generation` grows by one with each move and is never reused."""

    __tablename__ = "alias"
    __table_args__ = (Index("ix_alias_alias_adapter_id", "alias", "adapter_id"),)
    adapter_id: int = Field(foreign_key="adapter.id", primary_key=True)
    alias: str = Field(primary_key=True)
    version_id: int = Field(foreign_key="version.id", index=True)
    generation: int
    moved_at: datetime = Field(sa_type=UtcTime)
    moved_by: str
    reason: str = Field(default="", sa_type=Text)


class AliasMoveRow(SQLModel, table=True):
    """The history of an alias: one row per generation, never deleted, so a look at the past is one query."""

    __tablename__ = "alias_move"
    adapter_id: int = Field(foreign_key="adapter.id", primary_key=True)
    alias: str = Field(primary_key=True)
    generation: int = Field(primary_key=True)
    from_version_id: int | None = Field(default=None, foreign_key="version.id", index=True)
    to_version_id: int | None = Field(default=None, foreign_key="version.id", index=True)
    at: datetime = Field(sa_type=UtcTime, index=True)
    actor: str
    token_id: str = ""
    reason: str = Field(default="", sa_type=Text)
    evidence: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)
    group_id: str = Field(default="", index=True)
