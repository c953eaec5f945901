"""The tables of version 0.1.0, the index of words, and the triggers that count usage

Rule of this folder: see script.py.mako. This step starts from an empty database, so it locks nothing in use. Until the
tag v0.1.0 a change of a table changes this step.

- Triggers count what each namespace holds and how many adapters each base has, whatever writes versions (ADR 40).
  `shard` is the adapter's id modulo 8: pushes of different adapters rarely wait for each other's rows. On SQLite a step
  that copies `version` or `adapter` loses the triggers and has to create them again.
- On PostgreSQL indexes for beginnings of names are in the order of bytes, whatever the collation; on SQLite the index
  of a unique name has that order.

Revision: 0001
Follows: nothing
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
_COUNTED = "adapter_id, base_id, size_bytes, deleted_at, purged_at"
_NAMESPACE_COLUMNS = "namespace, shard, size_bytes, versions"
_BASE_COLUMNS = "base_id, namespace, shard, adapters"


def upgrade() -> None:
    _content()
    _access()
    _audit()
    _namespaces()
    _sign_in()
    _owner_rules()
    _pushes()
    _hub()
    _jobs()
    _serving()
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in (
        (*_sqlite_text_index(), *_sqlite_triggers()) if is_sqlite else (*_POSTGRES_INDEXES, *_postgres_triggers())
    ):
        op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE adapter_text_index")
    for table in reversed(TABLES):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        for name in ("version_insert", "version_update", "version_delete", "adapter_move"):
            op.execute(f"DROP FUNCTION usage_{name}()")


TABLES = (
    "base",
    "base_identity",
    "base_similarity",
    "base_edge",
    "adapter",
    "version",
    "version_file",
    "edge",
    "version_input",
    "version_attribute",
    "adapter_metadata",
    "version_metadata",
    "adapter_text",
    "verdict",
    "blob",
    "alias",
    "alias_move",
    "token",
    "namespace_role",
    "access_state",
    "idempotency",
    "event",
    "audit_checkpoint",
    "audit_tile",
    "namespace",
    "taken_name",
    "namespace_usage",
    "base_usage",
    "publisher",
    "used_assertion",
    "page_session",
    "owner_rule",
    "approval",
    "attestation",
    "webhook",
    "webhook_delivery",
    "push",
    "push_blob",
    "version_norms",
    "draft",
    "draft_file",
    "xorb",
    "job",
    "job_step",
    "process_lock",
    "campaign",
    "campaign_job",
    "base_thresholds",
    "fleet_node",
    "fleet_slot",
    "fleet_blob",
)
"""In the order in which they are created."""


def _where(condition: str) -> dict[str, Any]:
    return {"postgresql_where": sa.text(condition), "sqlite_where": sa.text(condition)}


# ------------------------------------------------------------------ tables
def _content() -> None:
    op.create_table(
        "base",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("recorded_at", TIME, nullable=True),
        sa.Column("parents", sa.JSON(), nullable=True),
        sa.Column("aliases", sa.JSON(), nullable=True),
        sa.Column("library", sa.String(), nullable=True),
        sa.Column("library_modules", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_base"),
        sa.UniqueConstraint("name", name="uq_base_name"),
    )
    op.create_index("ix_base_fingerprint", "base", ["fingerprint"])
    op.create_table(
        "base_identity",
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("exact", sa.String(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("made_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_base_identity_base_id"),
        sa.PrimaryKeyConstraint("base_id", name="pk_base_identity"),
    )
    op.create_index("ix_base_identity_exact", "base_identity", ["exact"])
    op.create_table(
        "base_similarity",
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("other_id", sa.Integer(), nullable=False),
        sa.Column("similarity", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_base_similarity_base_id"),
        sa.ForeignKeyConstraint(["other_id"], ["base.id"], name="fk_base_similarity_other_id"),
        sa.PrimaryKeyConstraint("base_id", "other_id", name="pk_base_similarity"),
    )
    op.create_table(
        "base_edge",
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("parent_digest", sa.String(), nullable=False),
        sa.Column("relation", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_base_edge_base_id"),
        sa.PrimaryKeyConstraint("base_id", "parent_digest", "relation", name="pk_base_edge"),
    )
    op.create_index("ix_base_edge_parent_digest", "base_edge", ["parent_digest"])
    op.create_table(
        "adapter",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("newest_number", sa.Integer(), nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_adapter"),
        sa.UniqueConstraint("namespace", "name", name="uq_adapter_namespace_name"),
    )
    op.create_index("ix_adapter_created_by", "adapter", ["created_by"])
    op.create_index("ix_adapter_updated_at", "adapter", ["updated_at"])
    op.create_table(
        "version",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("yanked_at", TIME, nullable=True),
        sa.Column("yank_reason", sa.Text(), nullable=False),
        sa.Column("recorded_at", TIME, nullable=True),
        sa.Column("measured_at", TIME, nullable=True),
        sa.Column("quarantine", sa.Integer(), nullable=False),
        sa.Column("quarantined_at", TIME, nullable=True),
        sa.Column("quarantine_reason", sa.Text(), nullable=False),
        sa.Column("deleted_at", TIME, nullable=True),
        sa.Column("deleted_by", sa.String(), nullable=False),
        sa.Column("delete_reason", sa.Text(), nullable=False),
        sa.Column("purged_at", TIME, nullable=True),
        sa.Column("skipped_by_main", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_version_adapter_id"),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_version_base_id"),
        sa.PrimaryKeyConstraint("id", name="pk_version"),
        sa.UniqueConstraint("adapter_id", "digest", name="uq_version_adapter_id_digest"),
        sa.UniqueConstraint("adapter_id", "number", name="uq_version_adapter_id_number"),
    )
    op.create_index("ix_version_base_id_adapter_id", "version", ["base_id", "adapter_id", "deleted_at"])
    op.create_index("ix_version_deleted_at", "version", ["deleted_at"])
    op.create_index("ix_version_digest", "version", ["digest"])
    op.create_index("ix_version_measured_at", "version", ["measured_at"])
    op.create_index("ix_version_method_adapter_id", "version", ["method", "adapter_id"])
    op.create_index("ix_version_rank_adapter_id", "version", ["rank", "adapter_id"])
    op.create_index("ix_version_recorded_at", "version", ["recorded_at"])
    op.create_table(
        "version_file",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("git_sha1", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_version_file_version_id"),
        sa.PrimaryKeyConstraint("version_id", "path", name="pk_version_file"),
    )
    op.create_index("ix_version_file_digest_version_id", "version_file", ["digest", "version_id"])
    op.create_table(
        "edge",
        sa.Column("child_id", sa.Integer(), nullable=False),
        sa.Column("parent_digest", sa.String(), nullable=False),
        sa.Column("relation", sa.String(), nullable=False),
        sa.Column("parent_name", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["child_id"], ["version.id"], name="fk_edge_child_id"),
        sa.PrimaryKeyConstraint("child_id", "parent_digest", "relation", name="pk_edge"),
    )
    op.create_index("ix_edge_parent_digest", "edge", ["parent_digest"])
    op.create_table(
        "version_input",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("relation", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("uri", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_version_input_version_id"),
        sa.PrimaryKeyConstraint("version_id", "position", name="pk_version_input"),
    )
    op.create_index("ix_version_input_digest", "version_input", ["digest"])
    op.create_index("ix_version_input_uri", "version_input", ["uri"])
    op.create_table(
        "version_attribute",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_version_attribute_version_id"),
        sa.PrimaryKeyConstraint("version_id", "key", name="pk_version_attribute"),
    )
    op.create_index("ix_version_attribute_key_value", "version_attribute", ["key", "value", "version_id"])
    op.create_table(
        "adapter_metadata",
        sa.Column("set_at", TIME, nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_adapter_metadata_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", "kind", "key", name="pk_adapter_metadata"),
    )
    op.create_index(
        "ix_adapter_metadata_tag", "adapter_metadata", ["key", "value", "adapter_id"], **_where("kind = 'tag'")
    )
    op.create_table(
        "version_metadata",
        sa.Column("set_at", TIME, nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_version_metadata_version_id"),
        sa.PrimaryKeyConstraint("version_id", "kind", "key", name="pk_version_metadata"),
    )
    op.create_index("ix_version_metadata_expiry", "version_metadata", ["value"], **_where("kind = 'expires'"))
    op.create_index(
        "ix_version_metadata_tag", "version_metadata", ["key", "value", "version_id"], **_where("kind = 'tag'")
    )
    op.create_table(
        "adapter_text",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("name_words", sa.Text(), nullable=False),
        sa.Column("tag_words", sa.Text(), nullable=False),
        sa.Column("card_words", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_adapter_text_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", name="pk_adapter_text"),
    )
    op.create_index("ix_adapter_text_version_id", "adapter_text", ["version_id"])
    op.create_table(
        "verdict",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("check", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("base_fingerprint", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("report", sa.String(), nullable=True),
        sa.Column("made_by", sa.JSON(), nullable=False),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("judged_by", sa.String(), nullable=False),
        sa.Column("by_owner", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_verdict_base_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_verdict_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_verdict"),
    )
    op.create_index("ix_verdict_base_id", "verdict", ["base_id"])
    op.create_index("ix_verdict_outcome", "verdict", ["check", "profile", "outcome", "version_id"])
    op.create_index("ix_verdict_report", "verdict", ["report"])
    op.create_index("ix_verdict_version_check", "verdict", ["version_id", "check", "profile"])
    op.create_table(
        "blob",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("checked_at", TIME, nullable=True),
        sa.Column("marked_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("digest", name="pk_blob"),
    )
    op.create_index("ix_blob_state", "blob", ["state"])
    op.create_table(
        "alias",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("moved_at", TIME, nullable=False),
        sa.Column("moved_by", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_alias_adapter_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_alias_version_id"),
        sa.PrimaryKeyConstraint("adapter_id", "alias", name="pk_alias"),
    )
    op.create_index("ix_alias_alias_adapter_id", "alias", ["alias", "adapter_id"])
    op.create_index("ix_alias_version_id", "alias", ["version_id"])
    op.create_table(
        "alias_move",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("from_version_id", sa.Integer(), nullable=True),
        sa.Column("to_version_id", sa.Integer(), nullable=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("group_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_alias_move_adapter_id"),
        sa.ForeignKeyConstraint(["from_version_id"], ["version.id"], name="fk_alias_move_from_version_id"),
        sa.ForeignKeyConstraint(["to_version_id"], ["version.id"], name="fk_alias_move_to_version_id"),
        sa.PrimaryKeyConstraint("adapter_id", "alias", "generation", name="pk_alias_move"),
    )
    op.create_index("ix_alias_move_at", "alias_move", ["at"])
    op.create_index("ix_alias_move_from_version_id", "alias_move", ["from_version_id"])
    op.create_index("ix_alias_move_group_id", "alias_move", ["group_id"])
    op.create_index("ix_alias_move_to_version_id", "alias_move", ["to_version_id"])


def _access() -> None:
    op.create_table(
        "token",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("namespaces", sa.JSON(), nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("adapters", sa.JSON(), nullable=False),
        sa.Column("aliases", sa.JSON(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("previous_sha256", sa.String(), nullable=True),
        sa.Column("previous_until", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_token"),
        sa.UniqueConstraint("secret_sha256", name="uq_token_secret_sha256"),
    )
    op.create_index("ix_token_previous_sha256", "token", ["previous_sha256"])
    op.create_table(
        "namespace_role",
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("aliases", sa.JSON(), nullable=False),
        sa.Column("granted_at", TIME, nullable=False),
        sa.Column("granted_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "subject", "role", name="pk_namespace_role"),
    )
    op.create_index("ix_namespace_role_subject", "namespace_role", ["subject"])
    op.create_table(
        "access_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_state"),
    )
    op.create_table(
        "idempotency",
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("request_sha256", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("token_id", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])


def _audit() -> None:
    op.create_table(
        "event",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name="pk_event"),
    )
    op.create_index("ix_event_at", "event", ["at"])
    op.create_index("ix_event_namespace_position", "event", ["namespace", "position"])
    op.create_index("ix_event_object", "event", ["object"], postgresql_ops={"object": "text_pattern_ops"})
    op.create_index("ix_event_unnumbered", "event", ["seq"], **_where("position IS NULL"))
    op.create_index("uq_event_position", "event", ["position"], unique=True)
    op.create_table(
        "audit_checkpoint",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("size", name="pk_audit_checkpoint"),
    )
    op.create_table(
        "audit_tile",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.Column("stored_width", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("level", "index", name="pk_audit_tile"),
    )
    op.create_index("ix_audit_tile_stored_width", "audit_tile", ["stored_width"])


def _namespaces() -> None:
    op.create_table(
        "namespace",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("quota_bytes", sa.BigInteger(), nullable=True),
        sa.Column("quota_versions", sa.Integer(), nullable=True),
        sa.Column("pushes_per_hour", sa.Integer(), nullable=True),
        sa.Column("strict", sa.Boolean(), nullable=False),
        sa.Column("unregistered_bases", sa.Boolean(), nullable=False),
        sa.Column("main_skips_failing", sa.Boolean(), nullable=False),
        sa.Column("rehearsal", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_namespace"),
    )
    op.create_table(
        "taken_name",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("skeleton", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("owner", "skeleton", name="pk_taken_name"),
    )
    op.create_table(
        "namespace_usage",
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("versions", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "shard", name="pk_namespace_usage"),
    )
    op.create_table(
        "base_usage",
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("adapters", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_base_usage_base_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("base_id", "namespace", "shard", name="pk_base_usage"),
    )


def _sign_in() -> None:
    op.create_table(
        "publisher",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("claims", sa.JSON(), nullable=False),
        sa.Column("aliases", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_publisher"),
    )
    op.create_index("ix_publisher_issuer", "publisher", ["issuer"])
    op.create_index("ix_publisher_namespace", "publisher", ["namespace"])
    op.create_table(
        "used_assertion",
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("jti", sa.String(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("issuer", "jti", name="pk_used_assertion"),
    )
    op.create_index("ix_used_assertion_expires_at", "used_assertion", ["expires_at"])
    op.create_table(
        "page_session",
        sa.Column("id_sha256", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("owns_token", sa.Boolean(), nullable=False),
        sa.Column("confirmed_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id_sha256", name="pk_page_session"),
    )
    op.create_index("ix_page_session_expires_at", "page_session", ["expires_at"])


def _owner_rules() -> None:
    op.create_table(
        "owner_rule",
        sa.Column("set_at", TIME, nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=True),
        sa.Column("namespace", sa.String(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("rule", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name="fk_owner_rule_adapter_id"),
        sa.PrimaryKeyConstraint("id", name="pk_owner_rule"),
        sa.UniqueConstraint("adapter_id", "kind", "alias", name="uq_owner_rule_adapter_id_kind_alias"),
        sa.UniqueConstraint("namespace", "kind", "alias", name="uq_owner_rule_namespace_kind_alias"),
    )
    op.create_table(
        "approval",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_approval_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_approval"),
        sa.UniqueConstraint("version_id", "alias", "identity", name="uq_approval_version_id_alias_identity"),
    )
    op.create_table(
        "attestation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("made_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_attestation_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_attestation"),
        sa.UniqueConstraint("position", name="uq_attestation_position"),
    )
    op.create_index("ix_attestation_digest", "attestation", ["digest"])
    op.create_index("ix_attestation_identity", "attestation", ["identity"])
    op.create_index("ix_attestation_version_id", "attestation", ["version_id"])
    op.create_table(
        "webhook",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("actions", sa.JSON(), nullable=False),
        sa.Column("after", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook"),
    )
    op.create_index("ix_webhook_namespace", "webhook", ["namespace"])
    op.create_table(
        "webhook_delivery",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("webhook_id", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("next_at", TIME, nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhook.id"], name="fk_webhook_delivery_webhook_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_delivery"),
        sa.UniqueConstraint("webhook_id", "position", name="uq_webhook_delivery_webhook_id_position"),
    )
    op.create_index("ix_webhook_delivery_due", "webhook_delivery", ["state", "next_at"])


def _pushes() -> None:
    op.create_table(
        "push",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("manifest_digest", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_push"),
    )
    op.create_index("ix_push_expires_at", "push", ["expires_at"])
    op.create_index("ix_push_manifest_digest", "push", ["manifest_digest"])
    op.create_index("ix_push_open", "push", ["namespace"], **_where("state = 'open'"))
    op.create_table(
        "push_blob",
        sa.Column("push_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("is_requested", sa.Boolean(), nullable=False),
        sa.Column("is_stored", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["push_id"], ["push.id"], name="fk_push_blob_push_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("push_id", "digest", name="pk_push_blob"),
    )
    op.create_index("ix_push_blob_digest", "push_blob", ["digest"])
    op.create_table(
        "version_norms",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("norms", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_version_norms_version_id"),
        sa.PrimaryKeyConstraint("version_id", name="pk_version_norms"),
    )


def _hub() -> None:
    op.create_table(
        "draft",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("branch", sa.String(), nullable=False),
        sa.Column("push_id", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["push_id"], ["push.id"], name="fk_draft_push_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_draft"),
        sa.UniqueConstraint("namespace", "name", "owner", "branch", name="uq_draft_namespace_name_owner_branch"),
    )
    op.create_index("ix_draft_push_id", "draft", ["push_id"])
    op.create_table(
        "draft_file",
        sa.Column("draft_id", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("git_sha1", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["draft_id"], ["draft.id"], name="fk_draft_file_draft_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("draft_id", "path", name="pk_draft_file"),
    )
    op.create_table(
        "xorb",
        sa.Column("push_id", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("chunk_ends", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["push_id"], ["push.id"], name="fk_xorb_push_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("push_id", "hash", name="pk_xorb"),
    )


def _jobs() -> None:
    op.create_table(
        "job",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("subject_digest", sa.String(), nullable=True),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("automatic", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("attempts_limit", sa.Integer(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("progress", sa.String(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("report", sa.String(), nullable=True),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("lease_token", sa.String(), nullable=False),
        sa.Column("lease_expires_at", TIME, nullable=True),
        sa.Column("run_after", TIME, nullable=False),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_job_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
    )
    op.create_index("ix_job_base", "job", ["base"])
    op.create_index("ix_job_claim", "job", ["state", "kind", "run_after", "priority"])
    op.create_index("ix_job_created_at_id", "job", ["created_at", "id"])
    op.create_index("ix_job_lease_expires_at", "job", ["lease_expires_at"])
    op.create_index("ix_job_namespace_started_at", "job", ["namespace", "started_at"])
    op.create_index("ix_job_report", "job", ["report"])
    op.create_index("ix_job_subject", "job", ["subject"], postgresql_ops={"subject": "text_pattern_ops"})
    op.create_index("ix_job_version_id", "job", ["version_id"])
    op.create_table(
        "job_step",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_job_step_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_job_step"),
    )
    op.create_index("ix_job_step_job_id", "job_step", ["job_id"])
    op.create_table(
        "process_lock",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_process_lock"),
    )
    op.create_table(
        "campaign",
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("base_fingerprint", sa.String(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_campaign"),
    )
    op.create_index("ix_campaign_base", "campaign", ["base"])
    op.create_table(
        "campaign_job",
        sa.Column("campaign_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("before", sa.String(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name="fk_campaign_job_campaign_id"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_campaign_job_job_id"),
        sa.PrimaryKeyConstraint("campaign_id", "job_id", name="pk_campaign_job"),
    )
    op.create_index("ix_campaign_job_job_id", "campaign_job", ["job_id"])
    op.create_table(
        "base_thresholds",
        sa.Column("set_at", TIME, nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("base_id", sa.Integer(), nullable=False),
        sa.Column("thresholds", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["base.id"], name="fk_base_thresholds_base_id"),
        sa.PrimaryKeyConstraint("base_id", name="pk_base_thresholds"),
    )


def _serving() -> None:
    op.create_table(
        "fleet_node",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("reporter", sa.String(), nullable=False),
        sa.Column("reporter_name", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("on_demand", sa.Boolean(), nullable=False),
        sa.Column("reach", sa.JSON(), nullable=True),
        sa.Column("report_digest", sa.String(), nullable=False),
        sa.Column("reported_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fleet_node"),
        sa.UniqueConstraint("reporter", "node", "engine", name="uq_fleet_node_reporter_node_engine"),
    )
    op.create_index("ix_fleet_node_expires_at", "fleet_node", ["expires_at"])
    op.create_table(
        "fleet_slot",
        sa.Column("node_id", sa.Integer(), nullable=False),
        sa.Column("served_name", sa.String(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["fleet_node.id"], name="fk_fleet_slot_node_id"),
        sa.PrimaryKeyConstraint("node_id", "served_name", name="pk_fleet_slot"),
    )
    op.create_index("ix_fleet_slot_digest", "fleet_slot", ["digest"])
    op.create_index("ix_fleet_slot_namespace", "fleet_slot", ["namespace"])
    op.create_table(
        "fleet_blob",
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("version", "digest", name="pk_fleet_blob"),
    )
    op.create_index("ix_fleet_blob_digest", "fleet_blob", ["digest"])


# ------------------------------------------------------------------ the index of words
_POSTGRES_INDEXES = (
    "CREATE INDEX ix_adapter_text_words ON adapter_text USING gin ("
    "(array_to_tsvector(array_remove(string_to_array(name_words || tag_words || card_words, ' '), ''))))",
    "CREATE INDEX ix_adapter_path ON adapter ((namespace || '/' || name) text_pattern_ops)",
)


def _sqlite_text_index() -> list[str]:
    """The index without a copy of the texts, and the triggers that keep it."""
    columns = "name_words, tag_words, card_words"
    insert = (
        f"INSERT INTO adapter_text_index (rowid, {columns}) "
        "VALUES (new.adapter_id, new.name_words, new.tag_words, new.card_words);"
    )
    delete = (
        f"INSERT INTO adapter_text_index (adapter_text_index, rowid, {columns}) "
        "VALUES ('delete', old.adapter_id, old.name_words, old.tag_words, old.card_words);"
    )
    return [
        f"CREATE VIRTUAL TABLE adapter_text_index USING fts5({columns}, content='adapter_text', "
        "content_rowid='adapter_id', tokenize='ascii', detail='none', columnsize=0, prefix='2 3')",
        f"CREATE TRIGGER adapter_text_insert AFTER INSERT ON adapter_text BEGIN {insert} END",
        f"CREATE TRIGGER adapter_text_delete AFTER DELETE ON adapter_text BEGIN {delete} END",
        f"CREATE TRIGGER adapter_text_update AFTER UPDATE OF {columns} ON adapter_text BEGIN {delete} {insert} END",
    ]


# ------------------------------------------------------------------ statements of both databases
def _add_to_namespaces(rows: str) -> str:
    return (
        f"INSERT INTO namespace_usage ({_NAMESPACE_COLUMNS}) {rows} ON CONFLICT (namespace, shard) DO UPDATE SET "
        "size_bytes = namespace_usage.size_bytes + excluded.size_bytes, "
        "versions = namespace_usage.versions + excluded.versions;"
    )


def _add_to_bases(rows: str) -> str:
    return (
        f"INSERT INTO base_usage ({_BASE_COLUMNS}) {rows} ON CONFLICT (base_id, namespace, shard) DO UPDATE SET "
        "adapters = base_usage.adapters + excluded.adapters;"
    )


def _delete_zeros(namespace_keys: str, base_keys: str) -> str:
    return (
        f"DELETE FROM namespace_usage WHERE versions <= 0 AND (namespace, shard) IN ({namespace_keys});\n"
        f"DELETE FROM base_usage WHERE adapters <= 0 AND (base_id, namespace, shard) IN ({base_keys});"
    )


def _move(adapter: str) -> str:
    """The statements after an adapter moved from the namespace `old.namespace` to `new.namespace`."""
    own = f"FROM version WHERE adapter_id = {adapter}"
    moves = "(SELECT old.namespace AS namespace, -1 AS sign UNION ALL SELECT new.namespace, 1) AS moves"
    return "\n".join((
        _add_to_namespaces(
            f"SELECT namespace, {adapter} % 8, sign * size_bytes, sign * versions FROM {moves}, "
            f"(SELECT coalesce(sum(size_bytes), 0) AS size_bytes, count(*) AS versions {own} AND purged_at IS NULL) "
            "AS own WHERE versions > 0 ORDER BY namespace"
        ),
        _add_to_bases(
            f"SELECT base_id, namespace, {adapter} % 8, sign FROM {moves}, "
            f"(SELECT DISTINCT base_id {own} AND deleted_at IS NULL) AS own WHERE true ORDER BY base_id, namespace"
        ),
        _delete_zeros(
            f"SELECT old.namespace, {adapter} % 8",
            f"SELECT base_id, old.namespace, {adapter} % 8 {own}",
        ),
    ))  # fmt: skip


# ------------------------------------------------------------------ SQLite: a trigger for each row
def _sqlite_triggers() -> tuple[str, ...]:
    changed = " OR ".join(f"old.{column} IS NOT new.{column}" for column in _COUNTED.split(", "))
    add, remove = _count_row("new", 1), _count_row("old", -1)
    owner = "FROM adapter WHERE id = old.adapter_id"
    delete = _delete_zeros(f"SELECT namespace, id % 8 {owner}", f"SELECT old.base_id, namespace, id % 8 {owner}")
    return (
        f"CREATE TRIGGER usage_version_insert AFTER INSERT ON version BEGIN {add} END",
        f"CREATE TRIGGER usage_version_update AFTER UPDATE OF {_COUNTED} ON version WHEN {changed} "
        f"BEGIN {remove} {add} {delete} END",
        f"CREATE TRIGGER usage_version_delete AFTER DELETE ON version BEGIN {remove} {delete} END",
        "CREATE TRIGGER usage_adapter_move AFTER UPDATE OF namespace ON adapter WHEN old.namespace <> new.namespace "
        f"BEGIN {_move('new.id')} END",
    )


def _count_row(row: str, sign: int) -> str:
    """Add or subtract one version; of its base, unless another version of its adapter counts there."""
    adapter = f"FROM adapter WHERE adapter.id = {row}.adapter_id"
    others = (
        f"SELECT 1 FROM version WHERE base_id = {row}.base_id AND adapter_id = {row}.adapter_id "
        f"AND deleted_at IS NULL AND id <> {row}.id"
    )
    return "\n".join((
        _add_to_namespaces(
            f"SELECT namespace, id % 8, {sign} * {row}.size_bytes, {sign} {adapter} AND {row}.purged_at IS NULL"
        ),
        _add_to_bases(
            f"SELECT {row}.base_id, namespace, id % 8, {sign} {adapter} AND {row}.deleted_at IS NULL "
            f"AND NOT EXISTS ({others})"
        ),
    ))  # fmt: skip


# ------------------------------------------------------------------ PostgreSQL: a trigger for each statement
_ROWS = {
    "insert": ("new_rows WHERE false", "new_rows WHERE true"),
    "update": ("old_rows WHERE true", "new_rows WHERE true"),
    "delete": ("old_rows WHERE true", "old_rows WHERE false"),
}
"""Operation → the rows of before and after."""


def _postgres_triggers() -> list[str]:
    statements = []
    for operation, (before, after) in _ROWS.items():
        name = f"usage_version_{operation}"
        tables = [f"{age.upper()} TABLE AS {age}_rows" for age in ("old", "new") if f"{age}_rows" in before + after]
        statements.append(_function(name, _count_rows(operation, before, after)))
        statements.append(
            f"CREATE TRIGGER {name} AFTER {operation.upper()} ON version REFERENCING {' '.join(tables)} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
        )
    lock = "PERFORM 1 FROM version WHERE adapter_id = new.id ORDER BY id FOR UPDATE;"  # their bases may change
    statements.append(_function("usage_adapter_move", f"{lock}\n{_move('new.id')}"))
    statements.append(
        "CREATE TRIGGER usage_adapter_move AFTER UPDATE OF namespace ON adapter FOR EACH ROW "
        "WHEN (old.namespace <> new.namespace) EXECUTE FUNCTION usage_adapter_move()"
    )
    return statements


def _function(name: str, body: str) -> str:
    """A trigger's function. A session keeps its plans, so none may be that for a table which was small then."""
    settings = " ".join(f"SET enable_{scan} = off" for scan in ("seqscan", "hashjoin", "mergejoin"))
    return (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql {settings} AS $$ BEGIN\n{body}\nRETURN NULL; END $$"
    )


def _count_rows(operation: str, before: str, after: str) -> str:
    """Add the difference. Rows are locked in one order, so that no two transactions wait for each other.

    The row of the namespace is locked even if nothing is added to it: another transaction that changes versions of the
    same adapter comes before, and is seen by the next statement, or waits.
    """
    changes = (
        f"SELECT adapter_id, size_bytes, -1 AS sign FROM {before} AND purged_at IS NULL "
        f"UNION ALL SELECT adapter_id, size_bytes, 1 FROM {after} AND purged_at IS NULL"
    )
    pairs = (
        "SELECT adapter_id, base_id, bool_or(is_old) AS is_old FROM ("
        f"SELECT adapter_id, base_id, true AS is_old FROM {before} AND deleted_at IS NULL "
        f"UNION ALL SELECT adapter_id, base_id, false FROM {after} AND deleted_at IS NULL) AS changed "
        "GROUP BY adapter_id, base_id"
    )
    # No plan may read all versions: EXISTS could be hashed, and `deleted_at` has an index of its own.
    live = (
        "SELECT 1 FROM version WHERE base_id = pair.base_id AND adapter_id = pair.adapter_id "
        "AND (deleted_at IS NULL) IS TRUE"
    )
    counted_now = f"(({live} LIMIT 1) IS NOT NULL)"
    counted_before = f"(is_old OR ({live} AND id NOT IN (SELECT id FROM {after}) LIMIT 1) IS NOT NULL)"
    statements = [
        _add_to_namespaces(
            f"SELECT namespace, id % 8, sum(sign * size_bytes), sum(sign) FROM ({changes}) AS change "
            "JOIN adapter ON id = adapter_id GROUP BY namespace, id % 8 ORDER BY namespace, id % 8"
        ),
        _add_to_bases(
            f"SELECT base_id, namespace, id % 8, sum(sign) FROM (SELECT adapter_id, base_id, "
            f"{counted_now}::int - {counted_before}::int AS sign FROM ({pairs}) AS pair) AS change "
            "JOIN adapter ON id = adapter_id WHERE sign <> 0 GROUP BY base_id, namespace, id % 8 "
            "ORDER BY base_id, namespace, id % 8"
        ),
    ]
    if operation == "update":
        statements.insert(
            0,
            f"IF NOT EXISTS (SELECT id, {_COUNTED} FROM old_rows EXCEPT SELECT id, {_COUNTED} FROM new_rows) "
            "THEN RETURN NULL; END IF;",
        )
    if operation != "insert":
        owners = "FROM old_rows JOIN adapter ON adapter.id = adapter_id"
        statements.append(
            _delete_zeros(
                f"SELECT namespace, adapter.id % 8 {owners}", f"SELECT base_id, namespace, adapter.id % 8 {owners}"
            )
        )
    return "\n".join(statements)
