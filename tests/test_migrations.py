"""Migrations: from empty to the tables and back, one head, and no server on a schema that is not its own."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event, inspect, text
from sqlmodel import Session, col, select

from registry.bases import BaseMatch, Similarity
from registry.errors import Conflict, Invalid, Unavailable
from registry.evaluation.gates import Gate
from registry.evaluation.verdicts import Check
from registry.findings import Finding
from registry.server.database import db, models, schema, tables
from registry.server.database import engine as engines
from registry.server.database.engine import open_database
from registry.server.database.models import jobs as job_tables
from registry.server.database.models import namespaces, owner_rules, pushes, serving
from registry.server.settings import Settings
from tests import services, usage

EXPRESSION_INDEXES = {"ix_adapter_text_words", "ix_adapter_path"}
ROOT = Path(__file__).resolve().parent.parent
VERSIONS = sorted((ROOT / "migrations/versions").glob("*.py"))
START = """
import sys
from registry.server.database import db, schema
from registry.server.database.engine import open_database
from registry.server.settings import Settings
print(schema.prepare(open_database(Settings(database_url=sys.argv[1]))))
"""


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = open_database(Settings(database_url=f"sqlite:///{tmp_path}/empty.db"))
        yield engine
        engine.dispose()
        return
    with services.fresh_database(request.getfixturevalue("postgres_server")) as url:
        engine = open_database(Settings(database_url=url))
        yield engine
        engine.dispose()


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        options = {"compare_type": True, "include_object": is_described}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata))


def is_described(_object: object, name: str | None, *_: object) -> bool:
    """Whether models describe it: not indexes of expressions, nor the text index, for which FTS5 has its own tables."""
    return name not in EXPRESSION_INDEXES and not (name or "").startswith(models.TEXT_INDEX)


def test_the_migrations_create_the_tables_of_the_models(empty: Engine) -> None:
    assert schema.migrate(empty) == schema.newest_revision()
    assert differences(empty) == []
    text_index = {index["name"] for index in inspect(empty).get_indexes("adapter_text")} | set(
        inspect(empty).get_table_names()
    )
    assert text_index & {"ix_adapter_text_words", models.TEXT_INDEX}


def test_constraints_have_the_names_of_the_convention(empty: Engine) -> None:
    schema.migrate(empty)
    inspector = inspect(empty)
    for table in tables.metadata.tables.values():
        assert inspector.get_pk_constraint(table.name)["name"] == f"pk_{table.name}"
        for key in inspector.get_foreign_keys(table.name):
            assert key["name"] == f"fk_{table.name}_{'_'.join(key['constrained_columns'])}"
        for unique in inspector.get_unique_constraints(table.name):
            assert unique["name"] == f"uq_{table.name}_{'_'.join(unique['column_names'])}"


def test_a_downgrade_leaves_nothing_and_an_upgrade_works_again(empty: Engine) -> None:
    schema.migrate(empty)
    schema.migrate(empty, "base")
    assert set(inspect(empty).get_table_names()) <= {"alembic_version"}
    assert schema.migrate(empty) == schema.newest_revision()
    assert differences(empty) == []


def test_parents_of_bases_are_in_the_lineage_after_the_migration(empty: Engine) -> None:
    schema.migrate(empty, "0011")
    parents = '[{"relation": "fused", "digest": "sha256:1", "name": "acme/a@1"}]'
    with empty.begin() as connection:
        for name, stored_parents in (("fused", parents), ("plain", None), ("nothing", "null")):
            connection.execute(
                text(
                    "INSERT INTO base (name, fingerprint, spec, source, created_at, created_by, parents) "
                    "VALUES (:name, 'f', '{}', '', :at, 'a', :parents)"
                ),
                {"name": name, "at": datetime.now(UTC), "parents": stored_parents},
            )
    schema.migrate(empty)
    with empty.connect() as connection:
        edges = connection.execute(
            text("SELECT name, parent_digest, relation FROM base_edge JOIN base ON base.id = base_edge.base_id")
        ).all()
    assert [tuple(edge) for edge in edges] == [("fused", "sha256:1", "fused")]


def insert(connection: Connection, table: str, **values: object) -> None:
    texts = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in values.items()}
    columns = ", ".join(f'"{name}"' for name in texts)
    connection.execute(
        text(f"INSERT INTO {table} ({columns}) VALUES ({', '.join(f':{name}' for name in texts)})"), texts
    )


def stored_before_0015(connection: Connection) -> None:
    """A version that was pushed, evaluated and promoted by a server of schema 0014."""
    now = datetime.now(UTC)
    created = {"created_at": now, "created_by": "ann"}
    insert(connection, "base", id=1, name="b", fingerprint="f", spec={"quantisation": "awq"}, source="", **created)
    insert(connection, "adapter", id=1, namespace="acme", name="a", newest_number=1, updated_at=now, **created)
    insert(connection, "version", id=1, adapter_id=1, number=1, digest="d", manifest="{}", base_id=1, size_bytes=1,
           method="LORA", message="", yank_reason="", quarantine_reason="",
           facts={"scheme": "kohya", "problems": ["lora.rank_unannounced"]}, **created)  # fmt: skip
    message = 'it says "code": "fit.shape" and "check": "fits"'
    findings = [{"code": code, "severity": "error", "place": "x", "sentence": message, "expected": "", "found": "9"}
                for code in ("fit.shape", "values.huge", "weights.empty", "acts.drift", "lora.no_modules",
                             "fit.base_quantised_variant", "format.unknown_scheme",
                             "acts.picture_unchanged", "lora.prefix_wrong", "sglang.rank_unannounced")]  # fmt: skip
    for number, check in enumerate(("fits", "values", "loads", "acts"), 1):
        insert(connection, "verdict", id=number, version_id=1, check=check, profile="", base_id=1, base_fingerprint="f",
               outcome="fail", findings=findings if check == "fits" else [], summary=message, made_by={}, made_at=now,
               job_id="")  # fmt: skip
    jobs = (("j1", "convert", "parked"), ("j2", "merge", "done"), ("j3", "validate", "queued"))
    for job_id, kind, state in jobs:
        insert(connection, "job", id=job_id, kind=kind, state=state, namespace="acme", subject="acme/a@1", base="b",
               priority=0, attempt=1, attempts_limit=3, payload={"dequantise": True}, progress="", error="",
               result={"report": {"sentence": message}, "says": message}, worker="", lease_token="", run_after=now,
               **created)  # fmt: skip
    evidence = [{"check": "break_glass", "missing": ["gate.acts_absent"]}, {"check": "fits", "outcome": "pass"},
                {"check": "held", "alias": "canary", "seconds": 9}]  # fmt: skip
    insert(connection, "alias_move", adapter_id=1, alias="prod", generation=1, to_version_id=1, at=now, actor="ann",
           token_id="", reason="", evidence=evidence)  # fmt: skip
    gate = {"requires": ["fits", "acts"], "approvals": 2, "held_in": "canary", "held_seconds": 9}
    insert(connection, "namespace_gate", namespace="acme", alias="prod", gate=gate, set_at=now, set_by="ann")
    insert(connection, "adapter_gate", adapter_id=1, alias="prod", gate=gate, set_at=now, set_by="ann")
    insert(connection, "fleet_box", id=7, reporter="t", reporter_name="ann", box="gpu-1", engine="vllm", base="b",
           alias="prod", profile="", on_demand=False, reach=["acme"], said="x",
           heard_at=now, expires_at=now)  # fmt: skip
    insert(connection, "job_step", job_id="j1", attempt=1, at=now, says="loading")
    insert(connection, "campaign", id="c", base="b", base_fingerprint="f", why={"outdated": True}, **created)
    insert(connection, "version_input", version_id=1, place=0, relation="run", node="n", name="", uri="")
    similarity = {"other": "", "grade": "quantised", "compared": 3, "equal": 0, "changed": ["grade"]}
    insert(connection, "base_likeness", base_id=1, other_id=1, likeness=similarity)
    actions = ["adapter.transfer", "alias.move", "upkeep.collect"]
    insert(connection, "webhook", id="w", namespace="acme", url="u", actions=actions, after=0, **created)
    insert(connection, "base_identity", base_id=1, exact="e", made_at=now, made_by="ann",
           identity='{"quantisation":"awq"}')  # fmt: skip
    insert(connection, "version_tag", version_id=1, key="fact:scheme:kohya", value="")
    insert(connection, "version_values", version_id=1, norms='{"q_proj": [1, 2, 3, 4]}')
    for state in ("held", "leaving", "serving"):
        insert(connection, "fleet_slot", box_id=7, served_name=state, namespace="acme", name="a", number=1, digest="d",
               state=state, reason="", proved=True, since=now)  # fmt: skip


def contents(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, as text."""
    with engine.connect() as connection:
        return {
            name: sorted(
                (tuple(map(repr, row)) for row in connection.execute(text(f'SELECT * FROM "{name}"'))), key=repr
            )
            for name in sorted(inspect(engine).get_table_names())
            if name != "alembic_version"
        }


def test_stored_words_are_migrated_and_back(empty: Engine) -> None:
    schema.migrate(empty, "0014")
    with empty.begin() as connection:
        stored_before_0015(connection)
    before = contents(empty)
    schema.migrate(empty)
    with Session(empty) as session:
        verdicts = session.exec(select(models.VerdictRow).order_by(col(models.VerdictRow.id))).all()
        assert [verdict.check for verdict in verdicts] == ["compat", "weights", "engine", "smoke"]
        codes = [finding["code"] for finding in verdicts[0].findings]
        assert codes == ["compat.shape", "weights.huge", "safetensors.empty", "smoke.drift", "lora.no_modules",
                         "compat.base_quantized_variant", "format.unknown", "smoke.image_unchanged",
                         "lora.prefix_invalid", "sglang.rank_differs_from_config"]  # fmt: skip
        assert verdicts[0].findings[0]["message"] == verdicts[0].summary, "a text that quotes a key stays as it is"
        assert [Finding(**finding).actual for finding in verdicts[0].findings] == ["9"] * len(codes)
        slots = session.exec(select(serving.FleetSlotRow)).all()
        assert {(slot.served_name, slot.state, slot.verified, slot.node_id) for slot in slots} == {
            ("held", "downloaded", True, 7), ("leaving", "draining", True, 7), ("serving", "serving", True, 7)
        }  # fmt: skip
        node = session.get_one(serving.FleetNodeRow, 7)
        assert (node.node, node.report_digest) == ("gpu-1", "x")
        assert [step.message for step in session.exec(select(job_tables.JobStepRow))] == ["loading"]
        assert session.get_one(job_tables.CampaignRow, "c").request == {"outdated": True}
        assert session.get_one(models.VersionInputRow, (1, 0)).relation == "run"
        similarity = Similarity.model_validate(session.get_one(models.BaseSimilarityRow, (1, 1)).similarity)
        assert (similarity.match, similarity.changed) == (BaseMatch.QUANTIZED, ("grade",))
        assert session.get_one(pushes.VersionNormsRow, 1).norms == '{"q_proj": [1, 2, 3, 4]}'
        jobs = session.exec(select(job_tables.JobRow).order_by(job_tables.JobRow.id)).all()
        assert [list(job.result) for job in jobs] == [["report", "message"]] * 3
        assert [(job.kind, job.state, list(job.result["report"])) for job in jobs] == [
            ("convert", "failed", ["message"]), ("merge", "done", ["sentence"]), ("smoke-test", "queued", ["sentence"])
        ]  # fmt: skip
        assert [job.payload for job in jobs] == [{"dequantize": True}] * 3
        assert session.get_one(models.BaseRow, 1).spec == {"quantization": "awq"}
        row = session.exec(select(namespaces.NamespaceUsageRow)).one()
        assert (row.namespace, row.size_bytes, row.versions) == ("acme", 1, 1)
        assert usage.find_differences(empty) == []
        assert session.get_one(models.BaseIdentityRow, 1).identity == '{"quantization":"awq"}'
        assert session.get_one(models.VersionRow, 1).facts == {
            "format": "kohya", "problems": ["lora.rank_differs_from_config"]
        }  # fmt: skip
        assert session.get_one(models.VersionAttributeRow, (1, "fact:format:kohya")).value == ""
        assert session.get_one(owner_rules.WebhookRow, "w").actions == ["adapter.rename", "alias.move", "gc.run"]
        gate = Gate(requires=(Check.COMPAT, Check.SMOKE), approvals=2, soak_in="canary", soak_seconds=9)
        assert Gate.model_validate(session.get_one(owner_rules.NamespaceGateRow, ("acme", "prod")).gate) == gate
        assert Gate.model_validate(session.get_one(owner_rules.AdapterGateRow, (1, "prod")).gate) == gate
        evidence = session.get_one(models.AliasMoveRow, (1, "prod", 1)).evidence
        assert evidence == [
            {"check": "break_glass", "missing": ["gate.acts_absent"]}, {"check": "compat", "outcome": "pass"},
            {"check": "soak", "alias": "canary", "seconds": 9},
        ]  # fmt: skip
    with empty.begin() as connection:
        command.downgrade(schema.alembic_config(connection), "0014")
    assert contents(empty) == before


def test_pushers_and_approvers_say_which_of_them_are_tokens(empty: Engine) -> None:
    """0038. A name that a token and a person share keeps both from approving what one of them has pushed."""
    schema.migrate(empty, "0037")
    now = datetime.now(UTC)
    created = {"created_at": now, "created_by": "x"}
    with empty.begin() as connection:
        for token, subject in (("ci", ""), ("ann", "ann"), ("both", ""), ("her-laptop", "both"), ("token:ci", "")):
            insert(connection, "token", id=f"{token}-id", name=token, secret_sha256=token, scopes=[], namespaces=[],
                   subject=subject, adapters=[], groups=[], **created)  # fmt: skip
        insert(connection, "token", id="t", name="job", secret_sha256="t", scopes=[], namespaces=[], subject="",
               adapters=[], groups=[], created_at=now, created_by="exchange")  # fmt: skip
        insert(connection, "base", id=1, name="b", fingerprint="f", spec={}, source="", **created)
        insert(connection, "adapter", id=1, namespace="acme", name="a", newest_number=5, updated_at=now, **created)
        pushers = [("ci", "ci"), ("ann", "ann"), ("both", None), ("her-laptop", "both"), ("job", "job")]
        for number, (created_by, pushed_by) in enumerate(pushers, 1):
            insert(connection, "version", id=number, adapter_id=1, number=number, digest=f"d{number}", manifest="{}",
                   base_id=1, size_bytes=1, method="LORA", message="", yank_reason="", quarantine_reason="", facts={},
                   created_at=now, created_by=created_by, pushed_by=pushed_by)  # fmt: skip
            insert(connection, "campaign", id=f"c{number}", base="b", base_fingerprint="f", request={}, created_at=now,
                   created_by=created_by)  # fmt: skip
        for token, identity in (("ci", "ci"), ("ann", "ann"), ("both", "both"), ("token:ci", "token:ci")):
            insert(connection, "approval", version_id=1, alias="prod", identity=identity, at=now,
                   token_id=f"{token}-id", comment="")  # fmt: skip
    before = contents(empty)
    schema.migrate(empty, "0038")
    with empty.connect() as connection:
        pushed = connection.execute(text("SELECT created_by, pushed_by FROM version ORDER BY id")).all()
        assert [tuple(row) for row in pushed] == [
            ("ci", "token:ci"), ("ann", "ann"), ("both", "token:both"), ("her-laptop", "both"), ("job", "job")
        ]  # fmt: skip
        campaigns = connection.execute(text("SELECT created_by FROM campaign ORDER BY id")).scalars().all()
        assert campaigns == ["token:ci", "ann", "both", "her-laptop", "job"]
        approvals = connection.execute(text("SELECT identity FROM approval ORDER BY id")).scalars().all()
        assert approvals == ["token:ci", "ann", "token:both", "token:token:ci"]
    with empty.begin() as connection:
        command.downgrade(schema.alembic_config(connection), "0037")
        connection.execute(text("UPDATE version SET pushed_by = NULL WHERE id = 3"))
    assert contents(empty) == before


def test_a_superseded_job_is_cancelled_for_the_code_before_it(empty: Engine) -> None:
    schema.migrate(empty, "0014")
    with empty.begin() as connection:
        stored_before_0015(connection)
    schema.migrate(empty)
    with empty.begin() as connection:
        connection.execute(text("UPDATE job SET state = 'superseded'"))
        command.downgrade(schema.alembic_config(connection), "0027")
        assert set(connection.execute(text("SELECT state FROM job")).scalars()) == {"cancelled"}


def test_a_server_of_the_step_before_0032_still_writes_attributes(empty: Engine) -> None:
    schema.migrate(empty)
    if empty.dialect.name == "sqlite":
        return  # it serves one process
    with empty.begin() as connection:
        connection.execute(text("ALTER TABLE version_attribute DROP CONSTRAINT fk_version_attribute_version_id"))
        connection.execute(text("INSERT INTO version_tag (version_id, key, value) VALUES (1, 'owner', 'ann')"))
        assert connection.execute(text("SELECT key FROM version_attribute")).scalars().all() == ["owner"]
        connection.execute(text("DELETE FROM version_tag WHERE version_id = 1"))
        assert connection.execute(text("SELECT key FROM version_attribute")).scalars().all() == []


def test_migrating_twice_changes_nothing(empty: Engine) -> None:
    assert schema.migrate(empty) == schema.migrate(empty)


def test_a_statement_of_a_migration_may_take_longer_than_one_of_a_request(
    empty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if empty.dialect.name == "sqlite":
        pytest.skip("SQLite statements have no limits")

    def build_large_index(config: Config, _revision: str) -> None:
        config.attributes["connection"].execute(text("SELECT pg_sleep(0.5)"))

    monkeypatch.setattr(engines, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(command, "upgrade", build_large_index)
    assert schema.migrate(empty) == ""
    with pytest.raises(Unavailable), db.session(empty) as session:
        session.connection().execute(text("SELECT pg_sleep(0.5)"))


def test_two_servers_that_start_at_once_initialize_one_schema(empty: Engine) -> None:
    url = empty.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", START, url]
    servers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [server.communicate(timeout=120)[0].strip() for server in servers]
    assert printed == [schema.newest_revision()] * 2
    assert differences(empty) == []


def test_a_server_that_starts_during_the_initialization_serves_the_same_schema(empty: Engine) -> None:
    """Whatever it asked first: the other one is done before it asks the rest."""
    schema.revision_of(empty)
    other = open_database(Settings(database_url=empty.url.render_as_string(hide_password=False)))
    begun: list[str] = []

    @event.listens_for(empty, "after_cursor_execute")
    def _(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "alembic_version" not in statement and "pg_class" not in statement and "sqlite_master" not in statement:
            return
        if not begun:
            begun.append(statement)
            schema.migrate(other)

    assert schema.prepare(empty) == schema.newest_revision()
    assert begun
    assert differences(empty) == []
    other.dispose()


def test_an_old_or_newer_schema_is_rejected_and_unchanged(empty: Engine) -> None:
    schema.prepare(empty)
    for revision, way_out in (("0001", "run `adapter migrate`"), ("9999", "use the newer program")):
        with empty.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})
        with pytest.raises(Conflict) as caught:
            schema.prepare(empty)
        assert (caught.value.code, caught.value.next_step[: len(way_out)]) == ("SCHEMA_OLD", way_out)
        assert schema.revision_of(empty) == revision
    with pytest.raises(Conflict, match="9999"):
        schema.migrate(empty)


def test_a_database_of_another_program_is_rejected(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE somebody_elses (id INTEGER)"))
    with pytest.raises(Conflict):
        schema.prepare(empty)
    assert inspect(empty).get_table_names() == ["somebody_elses"]


def test_a_database_that_stores_no_utf8_is_rejected_with_its_encoding(postgres_server: str) -> None:
    with services.fresh_database(postgres_server, options="ENCODING 'SQL_ASCII'") as url:
        engine = open_database(Settings(database_url=url))
        with pytest.raises(Invalid) as rejected:
            schema.prepare(engine)
        engine.dispose()
    assert str(rejected.value) == "REGISTRY_DATABASE_URL: the encoding of the database is SQL_ASCII, not UTF8"
    assert "ENCODING 'UTF8'" in rejected.value.next_step


def test_there_is_one_head_and_the_revisions_are_numbered() -> None:
    script = ScriptDirectory(str(VERSIONS[0].parent.parent))
    assert len(script.get_heads()) == 1
    assert [path.name[:4] for path in VERSIONS] == [f"{i:04}" for i in range(1, len(VERSIONS) + 1)]


def test_a_migration_imports_nothing_of_ours() -> None:
    for path in VERSIONS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in ("__future__", "alembic", "sqlalchemy", "typing"), path
            elif isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {"sqlalchemy"}, path
