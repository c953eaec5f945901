"""Versions whose base is not registered: refused, or stored until someone registers it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import ColumnElement, Delete, Table
from sqlalchemy import delete as delete_rows
from sqlalchemy import select as plain_select
from sqlmodel import col, select

from registry.api.access import NamespaceSet
from registry.api.bases import BaseAdd
from registry.api.jobs import JobSubmit
from registry.api.maintenance import ReindexRequest
from registry.api.transfer import PushResult
from registry.bases import UNREGISTERED
from registry.client.registry import Registry
from registry.client.transfer import push
from registry.errors import Invalid, NotFound, Refused, RegistryError, TooLarge
from registry.evaluation.gates import Gate
from registry.evaluation.verdicts import Check
from registry.jobs import Kind
from registry.names import AdapterName
from registry.server.catalog import base_rows, refs
from registry.server.database import tables
from registry.server.database.models import AdapterRow, BaseRow, VersionRow
from registry.server.push import background
from tests import maintenance, samples
from tests.base_specs import spec_of
from tests.harness import Harness, rows
from tests.hub.commits import Pusher, warning

HUB_NAME = "meta-llama/Llama-3.1-8B"
NAME = "acme/support"
VLLM = "vllm==0.33.0"
BASE = samples.llama(HUB_NAME)


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    """The namespace `acme` stores adapters of bases that are not registered, and `globex` does not."""
    with Harness(database_url, engines=VLLM) as harness:
        for namespace in ("acme", "globex"):
            harness.admin.create_namespace(namespace, owner=f"owner@{namespace}")
        harness.admin.change_namespace("acme", NamespaceSet(unregistered_bases=True))
        yield harness


def push_folder(harness: Harness, folder: Path, name: str = NAME, *, base: samples.Base = BASE) -> PushResult:
    files = samples.write(harness.files(base), folder)
    return push.push_folder(harness.admin, files, AdapterName.parse(name))


def verdicts(harness: Harness, ref: str = f"{NAME}@1") -> dict[str, str]:
    return {str(verdict.check): str(verdict.outcome) for verdict in harness.admin.version(ref).verdicts}


def base_rows_of(harness: Harness) -> list[str]:
    with harness.session() as session:
        return sorted(row.name for row in rows(session, BaseRow) if row.fingerprint == UNREGISTERED)


def code_of(registry: Registry, base: str) -> str:
    with pytest.raises(NotFound) as caught:
        registry.base(base)
    return caught.value.detail.replace(base, "BASE")


def test_a_push_is_stored_as_unknown_until_its_base_is_registered(harness: Harness, tmp_path: Path) -> None:
    pushed = push_folder(harness, tmp_path)
    [compat] = [verdict for verdict in pushed.version.verdicts if verdict.check is Check.COMPAT]
    [reason] = [finding for finding in compat.findings if finding.severity == "unknown"]
    assert (reason.location, f"adapter base add {HUB_NAME} DIR" in reason.message) == (HUB_NAME, True)
    assert (pushed.version.base, pushed.job_id) == (HUB_NAME, "")
    assert {check: verdicts(harness)[check] for check in ("compat", "engine")} == {
        "compat": "unknown", "engine": "unknown",
    }  # fmt: skip
    assert [item.name for item in harness.admin.adapters(base=HUB_NAME).items] == [NAME]
    with pytest.raises(RegistryError, match="no base"):
        harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=f"{NAME}@1"))
    harness.admin.set_gate(NAME, "prod", Gate(requires=(Check.COMPAT,)))
    with pytest.raises(Refused) as closed:
        harness.admin.promote(NAME, "prod", "1", generation=0)
    assert [finding.code for finding in closed.value.findings] == ["gate.compat_unknown"]
    assert harness.add_base(BASE).adapters == 1
    harness.transport.settle()
    assert {check: verdicts(harness)[check] for check in ("compat", "engine")} == {"compat": "pass", "engine": "pass"}
    harness.admin.promote(NAME, "prod", "1", generation=0)
    assert (base_rows_of(harness), maintenance.findings(harness)) == ([], [])


def test_an_adapter_that_does_not_fit_fails_once_its_base_is_registered(harness: Harness, tmp_path: Path) -> None:
    push_folder(harness, tmp_path, base=samples.llama(HUB_NAME, hidden=128))
    harness.add_base(BASE)
    harness.transport.settle()
    assert verdicts(harness)["compat"] == "fail"


def test_an_alias_gives_the_versions_to_its_base(harness: Harness, tmp_path: Path) -> None:
    digest = push_folder(harness, tmp_path / "first").version.digest
    harness.add_base(samples.llama("llama-8b"))
    harness.transport.settle()
    assert verdicts(harness)["compat"] == "unknown"
    harness.admin.set_base_aliases("llama-8b", [HUB_NAME])
    harness.transport.settle()
    version = harness.admin.version(f"{NAME}@1")
    assert (version.digest, version.base, verdicts(harness)["compat"]) == (digest, "llama-8b", "pass")
    assert (base_rows_of(harness), maintenance.findings(harness)) == ([], [])
    assert push_folder(harness, tmp_path / "second").version.base == "llama-8b"


def test_a_hub_commit_is_stored_and_says_how_to_register_the_base(harness: Harness) -> None:
    pusher = Pusher(harness, harness.issue("push", namespaces=["acme"])[1])
    pusher.create()
    response = pusher.push(harness.files(BASE))
    assert (response.status_code, "compat unknown" in warning(response)) == (200, True), response.text
    assert f"adapter base add {HUB_NAME} DIR" in warning(response)
    assert harness.admin.version(f"{NAME}@1").base == HUB_NAME
    harness.add_base(BASE)
    harness.transport.settle()
    assert verdicts(harness)["compat"] == "pass"
    harness.admin.change_namespace("acme", NamespaceSet(unregistered_bases=False))
    refused = pusher.push(harness.files(samples.llama("org/other")))
    assert (refused.status_code, "`adapter base add org/other DIR`" in refused.headers["x-error-message"]) == (
        404,
        True,
    )


@pytest.mark.security
def test_nothing_says_which_bases_others_have_named(harness: Harness, tmp_path: Path) -> None:
    push_folder(harness, tmp_path / "own")
    other = harness.actor("push", "pull", namespaces=["globex"])
    assert harness.admin.bases().items == []
    assert code_of(other, HUB_NAME) == code_of(other, "meta-llama/never-named")
    errors = []
    for index, name in enumerate((HUB_NAME, "meta-llama/never-named")):
        folder = samples.write(harness.files(samples.llama(name)), tmp_path / str(index))
        with harness.statements() as statements, pytest.raises(NotFound) as caught:
            push.push_folder(other, folder, AdapterName("globex", "support"))
        errors.append((caught.value.detail.replace(name, "BASE"), len(statements)))
    assert errors[0] == errors[1]
    with pytest.raises(Refused, match="is not registered"):
        harness.admin.rename(NAME, "globex/support")
    harness.admin.change_namespace("globex", NamespaceSet(unregistered_bases=True))
    assert push_folder(harness, tmp_path / "shared", "globex/support").version.base == HUB_NAME
    assert base_rows_of(harness) == [HUB_NAME]
    with pytest.raises(NotFound):
        harness.admin.delete_base(HUB_NAME)


@pytest.mark.security
def test_a_namespace_has_a_limit_of_such_bases_and_gc_deletes_unused_ones(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_rows, "UNREGISTERED_LIMIT", 1)
    for folder in ("first", "again"):
        push_folder(harness, tmp_path / folder)
    with pytest.raises(TooLarge, match="which is the limit"):
        push_folder(harness, tmp_path / "other", base=samples.llama("org/other"))
    assert base_rows_of(harness) == [HUB_NAME]
    for claim in ("../evil", "a..b", "/home/trainer/base"):
        with pytest.raises(RegistryError):
            push_folder(harness, tmp_path / claim.replace("/", "-"), base=samples.llama(claim))
    spec = spec_of(samples.llama("org/forged"))
    forged = spec.model_copy(
        update={"fingerprints": spec.fingerprints.model_copy(update={"architecture": UNREGISTERED})}
    )
    with pytest.raises(Invalid, match="means that a base is not registered"):
        harness.admin.add_base(BaseAdd(spec=forged))


def test_a_commit_during_which_the_base_is_registered_is_repeated(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nothing would evaluate the version: the evaluation that follows a new base has not seen it."""
    find_all, calls = base_rows.find_all, []

    def find_before(session: object, names: object) -> object:
        calls.append(names)
        return {} if len(calls) < 3 else find_all(session, names)  # type: ignore[arg-type]

    harness.add_base(BASE)
    monkeypatch.setattr(base_rows, "find_all", find_before)
    folder = samples.write(harness.files(BASE), tmp_path)
    pushed = push.push_folder(harness.admin, folder, AdapterName.parse(NAME), base=HUB_NAME)
    assert (len(calls) > 3, pushed.version.number, verdicts(harness)["compat"]) == (True, 1, "pass")
    assert (base_rows_of(harness), maintenance.findings(harness)) == ([], [])


def delete_with_references(table: Table, which: ColumnElement[bool]) -> Iterator[Delete]:
    """The statements that delete these rows and, before them, all rows of other tables that refer to them."""
    for other in tables.metadata.sorted_tables:
        for key in other.foreign_keys:
            if key.column.table is table:
                yield from delete_with_references(other, key.parent.in_(plain_select(key.column).where(which)))
    yield delete_rows(table).where(which)


def test_reindex_restores_versions_whose_base_is_not_registered(harness: Harness, tmp_path: Path) -> None:
    push_folder(harness, tmp_path)
    with background._scheduler(
        harness.engine
    ).running:  # no other writer of refs, which would remove those of deleted rows
        refs.write_missing(harness.engine, harness.blobs, limit=100)
        with harness.session(write=True) as session:
            table = AdapterRow.__table__  # type: ignore[attr-defined]
            for statement in delete_with_references(table, table.c.id > 0):
                session.connection().execute(statement)
            base_rows.delete_unused(session)
    assert (base_rows_of(harness), harness.admin.reindex(ReindexRequest()).versions) == ([], 1)
    assert (verdicts(harness)["compat"], base_rows_of(harness)) == ("unknown", [HUB_NAME])
    with harness.session() as session:
        assert session.exec(select(col(VersionRow.number))).all() == [1]
