"""Many pushes and pulls with one request: each item has its own outcome, and the database gets a few statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest

from registry.api.access import NamespaceSet
from registry.api.transfer import CommitItem, PullPlan, PushItem, PushPlan, PushResult
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Invalid, RegistryError, TooLarge
from registry.server.database.models import AdapterRow, EventRow, VersionRow
from registry.server.database.models.pushes import PushRow
from registry.server.push import background, commit
from registry.versions.manifest import BaseRef
from tests import samples
from tests.harness import Harness, rows, upload

Result = TypeVar("Result")
PLAN_STATEMENTS = 15
COMMIT_STATEMENTS = 35
PULL_STATEMENTS = 5


def items_of(harness: Harness, adapters: dict[str, samples.Files]) -> list[PushItem]:
    return [PushItem(name=name, manifest=harness.manifest(files)) for name, files in adapters.items()]


def planned(harness: Harness, adapters: dict[str, samples.Files], by: Registry | None = None) -> list[PushPlan]:
    """Plan and upload; every item must have a plan."""
    registry = by or harness.admin
    plans = of_type(PushPlan, registry.plan_pushes(items_of(harness, adapters)))
    for plan, files in zip(plans, adapters.values(), strict=True):
        upload(registry, plan, files)
    return plans


def of_type(kind: type[Result], outcomes: Sequence[object]) -> list[Result]:
    assert all(isinstance(outcome, kind) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, kind)]


def codes(outcomes: Sequence[object]) -> list[str]:
    """The code of each error, and an empty text for each result."""
    return [outcome.code if isinstance(outcome, RegistryError) else "" for outcome in outcomes]


def new_adapters(harness: Harness, count: int, prefix: str = "acme/a") -> dict[str, samples.Files]:
    return {f"{prefix}{number}": harness.files() for number in range(count)}


def test_any_number_of_pushes_and_pulls_costs_the_same_statements(
    filled_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "run_pending", lambda *_: None)
    filled_harness.push("acme/first")
    counts = []
    for number, count in enumerate((2, 12)):
        adapters = new_adapters(filled_harness, count, f"acme/g{number}-")
        with filled_harness.statements() as plan_statements:
            plans = of_type(PushPlan, filled_harness.admin.plan_pushes(items_of(filled_harness, adapters)))
        for plan, files in zip(plans, adapters.values(), strict=True):
            upload(filled_harness.admin, plan, files)
        with filled_harness.statements() as commit_statements:
            commits = [CommitItem(push_id=plan.push_id) for plan in plans]
            versions = of_type(PushResult, filled_harness.admin.commit_pushes(commits))
        assert [result.version.name for result in versions] == list(adapters)
        with filled_harness.statements() as pull_statements:
            of_type(PullPlan, filled_harness.admin.plan_pulls([f"{name}@1" for name in adapters])[0])
        counts.append((len(plan_statements), len(commit_statements), len(pull_statements)))
    assert counts[0] == counts[1]
    plan_count, commit_count, pull_count = counts[0]
    assert plan_count <= PLAN_STATEMENTS
    assert commit_count <= COMMIT_STATEMENTS
    assert pull_count <= PULL_STATEMENTS


def test_one_bad_adapter_does_not_undo_the_others(filled_harness: Harness) -> None:
    ci = filled_harness.client(filled_harness.issue("push", namespaces=["acme"])[1])
    files = {
        "acme/good": filled_harness.files(),
        "globex/other": filled_harness.files(),
        "not a name": filled_harness.files(),
    }
    items = items_of(filled_harness, files)
    fingerprint = filled_harness.manifest(filled_harness.files()).base.fingerprint
    unknown = items[0].manifest.with_base(BaseRef(name="nobody/knows", fingerprint=fingerprint))
    outcomes = ci.plan_pushes([*items, PushItem(name="acme/baseless", manifest=unknown)])
    assert codes(outcomes) == ["", "ADAPTER_UNKNOWN", "NAME_INVALID", "BASE_UNKNOWN"]

    bent = filled_harness.files()
    bent[samples.WEIGHTS] = b"\0" * len(bent[samples.WEIGHTS])
    plans = planned(
        filled_harness, {"acme/good": files["acme/good"], "acme/bent": bent, "acme/late": filled_harness.files()}, ci
    )
    missing = of_type(PushPlan, ci.plan_pushes(items_of(filled_harness, {"acme/missing": filled_harness.files()})))
    ids = [*(plan.push_id for plan in plans), missing[0].push_id, "psh_of_nobody"]
    committed = ci.commit_pushes([CommitItem(push_id=push_id) for push_id in ids])
    assert codes(committed) == ["", "TENSORS_INVALID", "", "UPLOAD_INCOMPLETE", "PUSH_UNKNOWN"]
    with filled_harness.session() as session:
        assert sorted(row.name for row in rows(session, AdapterRow)) == ["good", "late"]
        states = {row.name: row.state for row in rows(session, PushRow)}
    assert states == {"good": "committed", "late": "committed", "bent": "expired", "missing": "open"}


@pytest.mark.security
def test_the_manifests_of_one_commit_are_limited(filled_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit names pushes of many plans: of 100 manifests of a megabyte each, only the lengths are read."""
    adapters = new_adapters(filled_harness, 3)
    adapters["acme/a0"]["LICENSE"] = b"The longest manifest has a file more."
    plans = planned(filled_harness, adapters)
    items = [CommitItem(push_id=plan.push_id) for plan in plans]
    with filled_harness.session() as session:
        lengths = [len(session.get_one(PushRow, item.push_id).manifest) for item in items]
    monkeypatch.setattr(commit, "MANIFESTS_LIMIT", sum(lengths) - 1)
    refusal = f"have {sum(lengths)} characters, over the limit of {sum(lengths) - 1}"
    with filled_harness.statements() as sent, pytest.raises(TooLarge, match=refusal):
        filled_harness.admin.commit_pushes(items)
    assert [statement for statement in sent if "SELECT push.id, coalesce(nullif(push.manifest" in statement] == []
    other = filled_harness.client(filled_harness.issue("push", namespaces=["acme"])[1])
    assert codes(other.commit_pushes(items)) == ["PUSH_UNKNOWN"] * 3  # else the sizes of their pushes would be told
    monkeypatch.setattr(commit, "MANIFESTS_LIMIT", sum(lengths[:2]))
    with filled_harness.statements() as sent:
        results = of_type(PushResult, filled_harness.admin.commit_pushes(items[:2]))
    assert len([statement for statement in sent if "SELECT push.id, coalesce(nullif(push.manifest" in statement]) == 1
    assert [result.created for result in results] == [True, True]


def test_an_atomic_commit_creates_all_versions_or_none(filled_harness: Harness) -> None:
    adapters = new_adapters(filled_harness, 3)
    plans = planned(filled_harness, adapters)
    items = [CommitItem(push_id=plan.push_id) for plan in plans]
    refused = filled_harness.admin.commit_pushes([*items, CommitItem(push_id="psh_of_nobody")], atomic=True)
    assert codes(refused) == ["COMMIT_INCOMPLETE"] * 3 + ["PUSH_UNKNOWN"]
    details = {outcome.detail for outcome in refused[:3] if isinstance(outcome, RegistryError)}
    assert details == {"nothing was changed, because item 3 has an error"}
    closed = [*items[:2], CommitItem(push_id=items[2].push_id, alias="prod")]
    refused = filled_harness.admin.commit_pushes(closed, atomic=True)
    assert codes(refused) == ["COMMIT_INCOMPLETE"] * 2 + ["GATE_CLOSED"]
    with filled_harness.session() as session:
        assert rows(session, VersionRow) == []
        assert rows(session, AdapterRow) == []
    versions = of_type(PushResult, filled_harness.admin.commit_pushes(items, atomic=True))
    assert [(result.version.number, result.created) for result in versions] == [(1, True)] * 3
    repeated = of_type(PushResult, filled_harness.admin.commit_pushes(items, atomic=True))
    assert [result.created for result in repeated] == [False] * 3


def test_a_refused_alias_does_not_undo_the_version(filled_harness: Harness) -> None:
    plans = planned(filled_harness, new_adapters(filled_harness, 2))
    first, second = of_type(
        PushResult,
        filled_harness.admin.commit_pushes(
            [CommitItem(push_id=plans[0].push_id, alias="prod"), CommitItem(push_id=plans[1].push_id, alias="canary")]
        ),
    )
    assert "prod" in first.alias_refused
    assert (first.version.aliases, second.version.aliases) == (["main"], ["canary", "main"])
    assert not second.alias_refused


def test_equal_items_are_one_push_and_versions_of_one_adapter_are_numbered_in_order(filled_harness: Harness) -> None:
    files = [filled_harness.files() for _ in range(3)]
    items = [PushItem(name="acme/support", manifest=filled_harness.manifest(content)) for content in (*files, files[0])]
    plans = of_type(PushPlan, filled_harness.admin.plan_pushes(items))
    assert [plan.push_id for plan in plans[:1]] == [plans[3].push_id]
    for plan, content in zip(plans[:3], files, strict=True):
        upload(filled_harness.admin, plan, content)
    commits = [CommitItem(push_id=plan.push_id) for plan in plans[:3]]
    with pytest.raises(Invalid, match="named twice"):
        filled_harness.admin.commit_pushes([*commits, commits[0]])
    versions = of_type(PushResult, filled_harness.admin.commit_pushes(commits))
    assert [result.version.number for result in versions] == [1, 2, 3]
    assert filled_harness.admin.resolve("acme/support").digest == plans[2].digest
    moves = filled_harness.admin.history("acme/support", alias="main").moves
    assert [(move.generation, move.number) for move in moves] == [(3, 3), (2, 2), (1, 1)]
    with filled_harness.session() as session:
        events = [row.object for row in rows(session, EventRow) if row.action == "version.push"]
    assert events == [f"acme/support@{number}" for number in (1, 2, 3)]


def test_the_last_version_of_a_group_has_the_alias_that_several_ask_for(filled_harness: Harness) -> None:
    contents = sorted(
        (filled_harness.files() for _ in range(4)),
        key=lambda files: filled_harness.manifest(files).digest,
        reverse=True,
    )
    items = [PushItem(name="acme/support", manifest=filled_harness.manifest(files)) for files in contents]
    plans = of_type(PushPlan, filled_harness.admin.plan_pushes(items))
    for plan, files in zip(plans, contents, strict=True):
        upload(filled_harness.admin, plan, files)
    commits = [CommitItem(push_id=plan.push_id, alias="canary") for plan in plans]
    versions = of_type(PushResult, filled_harness.admin.commit_pushes(commits))
    assert [result.version.aliases for result in versions] == [[], [], [], ["canary", "main"]]
    assert filled_harness.admin.alias("acme/support", "canary").number == 4
    moves = filled_harness.admin.history("acme/support", alias="canary").moves
    assert [(move.generation, move.number) for move in moves] == [(4, 4), (3, 3), (2, 2), (1, 1)]


@pytest.mark.security
def test_names_that_look_alike_in_one_group_are_one_name(filled_harness: Harness) -> None:
    adapters = {
        "acme/helper": filled_harness.files(),
        "acme/he1per": filled_harness.files(),
        "acme/other": filled_harness.files(),
    }
    plans = planned(filled_harness, adapters)
    outcomes = filled_harness.admin.commit_pushes([CommitItem(push_id=plan.push_id) for plan in plans])
    assert codes(outcomes) == ["NAME_TAKEN", "", ""], "names are reserved in their order"
    with filled_harness.session() as session:
        assert sorted(row.name for row in rows(session, AdapterRow)) == ["he1per", "other"]


def test_pushes_of_one_group_count_each_other_in_a_quota(filled_harness: Harness) -> None:
    filled_harness.push("acme/first")
    filled_harness.admin.change_namespace("acme", NamespaceSet(quota_versions=3))
    groups = [new_adapters(filled_harness, 2, name) for name in ("acme/a", "acme/b")]
    groups[1]["globex/free"] = filled_harness.files()
    plans = [plan for group in groups for plan in planned(filled_harness, group)]
    outcomes = filled_harness.admin.commit_pushes([CommitItem(push_id=plan.push_id) for plan in plans])
    assert codes(outcomes) == ["", "", "QUOTA_EXCEEDED", "QUOTA_EXCEEDED", ""]
    filled_harness.admin.change_namespace("acme", NamespaceSet(quota_versions=4))
    more = {**groups[0], **new_adapters(filled_harness, 2, "acme/c"), "globex/free": filled_harness.files()}
    outcome = filled_harness.admin.plan_pushes(items_of(filled_harness, more))
    assert codes(outcome) == ["", "", "", "QUOTA_EXCEEDED", ""], "what exists does not count"
    assert "3 of 4 versions are used, pushes before it add 1, and" in str(outcome[3])
    filled_harness.admin.change_namespace("globex", NamespaceSet(pushes_per_hour=4))
    limited = filled_harness.admin.plan_pushes(items_of(filled_harness, new_adapters(filled_harness, 3, "globex/b")))
    assert codes(limited) == ["", "", "RATE_LIMITED"]


def test_a_repeated_push_does_not_count_against_the_limit_of_an_hour(filled_harness: Harness) -> None:
    filled_harness.push("globex/first")
    filled_harness.admin.change_namespace("globex", NamespaceSet(pushes_per_hour=5))
    pushed = new_adapters(filled_harness, 3, "globex/a")
    plans = planned(filled_harness, pushed)
    assert codes(filled_harness.admin.commit_pushes([CommitItem(push_id=plan.push_id) for plan in plans])) == [""] * 3
    for _ in range(2):
        again = planned(filled_harness, pushed)
        repeated = filled_harness.admin.commit_pushes([CommitItem(push_id=plan.push_id) for plan in again])
        assert [result.created for result in of_type(PushResult, repeated)] == [False] * 3
    more = {**pushed, **new_adapters(filled_harness, 2, "globex/b")}
    assert codes(filled_harness.admin.plan_pushes(items_of(filled_harness, more))) == ["", "", "", "", "RATE_LIMITED"]


@pytest.mark.security
def test_a_pull_tells_nothing_of_what_the_actor_may_not_see(filled_harness: Harness) -> None:
    files = filled_harness.files()
    filled_harness.push("acme/support", files)
    digest = filled_harness.push("globex/secret", files).version.digest
    reader = filled_harness.client(filled_harness.issue("pull", namespaces=["acme"])[1])
    refs = ["acme/support", "globex/secret@1", f"globex/nothing@{digest}", "acme/support:prod", "acme/support@2", "x"]
    outcomes, small = reader.plan_pulls(refs[:5])
    expected = ["", "ADAPTER_UNKNOWN", "ADAPTER_UNKNOWN", "ALIAS_UNKNOWN", "VERSION_UNKNOWN"]
    assert codes(outcomes) == expected
    hidden = filled_harness.client(filled_harness.issue("pull", namespaces=["other"])[1]).plan_pulls(refs[:2])
    assert codes(hidden[0]) == ["ADAPTER_UNKNOWN"] * 2
    assert hidden[1] == {}
    assert set(small) == {Digest.of(data) for path, data in files.items() if path != samples.WEIGHTS}
