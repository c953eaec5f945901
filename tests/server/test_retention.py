"""Retention: which versions a rule and an expiry delete, and what keeps a version."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlmodel import Session, select

from registry.api.access import NamespaceSet
from registry.api.catalog import MetadataChange, VersionMetadataChange
from registry.api.jobs import ClaimRequest, JobSubmit
from registry.durations import expiry
from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.evaluation.gates import Gate
from registry.jobs import Kind, State
from registry.server.database.models import AdapterRow, VersionRow
from registry.server.promotion.retention import needs
from registry.server.promotion.retention.plan import apply_rules
from registry.versions.manifest import Edge, Relation
from registry.versions.retention import RetentionRule
from tests.harness import Harness
from tests.maintenance import collect

NAME = "acme/support"
KEEP_TWO = RetentionRule(keep_newest=2)


@pytest.fixture
def acme(harness: Harness) -> Harness:
    harness.add_base()
    return harness


def push_chain(harness: Harness, count: int, name: str = NAME, **how: Any) -> list[str]:
    """Push checkpoints, each with the one before as its parent; their digests."""
    digests: list[str] = []
    for _ in range(count):
        parents = [continued(digests[-1])] if digests else []
        digests.append(harness.push(name, parents=parents, **how).version.digest)
    return digests


def continued(digest: Any, relation: Relation = Relation.CONTINUED) -> Edge:
    return Edge(relation=relation, digest=digest, name="parent")


def reasons(harness: Harness, rule: RetentionRule | None = None, name: str = NAME) -> dict[int, str]:
    items = harness.admin.retention_plan(name, rule).items
    return {item.number: ("- " if item.deletes else "+ ") + item.reason for item in items}


def kept(harness: Harness, name: str = NAME) -> list[int]:
    return sorted(version.number for version in harness.admin.versions(name).items)


def set_age(harness: Harness, numbers: Sequence[int], age: timedelta) -> None:
    with harness.session(write=True) as session:
        for version in session.exec(select(VersionRow)):
            if version.number in numbers:
                session.add(version.sqlmodel_update({"created_at": datetime.now(UTC) - age}))


# ------------------------------------------------------------------ rules
def test_a_rule_deletes_all_but_the_newest_and_what_aliases_need_and_gc_says_so(acme: Harness) -> None:
    push_chain(acme, 7)
    acme.admin.promote(NAME, "canary", "1", generation=0)
    acme.admin.promote(NAME, "canary", "3", generation=1)
    acme.admin.set_retention(NAME, KEEP_TWO)
    plan = reasons(acme)
    rule = "- retention rule: keep the newest 2"
    assert plan == {
        7: "+ is among the newest 2", 6: "+ is among the newest 2", 5: rule, 4: rule,
        3: "+ is where alias 'canary' points", 2: rule, 1: "+ is where a rollback of alias 'canary' returns",
    }  # fmt: skip
    assert collect(acme, dry_run=True).retired == [f"{NAME}@{number}" for number in (5, 4, 2)]
    assert kept(acme) == [1, 2, 3, 4, 5, 6, 7]
    assert collect(acme).versions_retired == 3
    assert kept(acme) == [1, 3, 6, 7]
    assert collect(acme).versions_retired == 0
    deleted = acme.admin.versions(NAME, include_deleted=True).items[3]
    assert (deleted.number, deleted.deleted_by, deleted.delete_reason) == (4, "registry", rule.removeprefix("- "))
    assert [edge.name for edge in acme.admin.version(f"{NAME}@6").parents] == ["parent"]


def test_what_a_second_rollback_returns_to_stays(acme: Harness) -> None:
    push_chain(acme, 6)
    for generation, number in enumerate((1, 2, 3)):
        acme.admin.promote(NAME, "canary", str(number), generation=generation)
    acme.admin.rollback(NAME, "canary")
    acme.admin.set_retention(NAME, KEEP_TWO)
    collect(acme)
    assert kept(acme) == [1, 2, 5, 6]
    assert acme.admin.rollback(NAME, "canary").number == 1


def test_an_age_keeps_what_is_younger_and_both_together_keep_more(acme: Harness) -> None:
    push_chain(acme, 4)
    set_age(acme, [1, 2, 3], timedelta(days=8))
    week = RetentionRule(keep_seconds=7 * 86400)
    assert [number for number, reason in reasons(acme, week).items() if reason[0] == "-"] == [3, 2, 1]
    both = RetentionRule(keep_newest=3, keep_seconds=7 * 86400)
    assert reasons(acme, both)[1] == "- retention rule: keep the newest 3, and what is younger than 7 days"
    assert reasons(acme, both)[2] == "+ is among the newest 3"
    assert reasons(acme) == dict.fromkeys([4, 3, 2, 1], "+ no rule is set")


def test_the_rule_of_an_adapter_counts_instead_of_its_namespaces(acme: Harness) -> None:
    push_chain(acme, 3)
    push_chain(acme, 3, "acme/other")
    acme.admin.set_retention("acme", RetentionRule(keep_newest=1))
    acme.admin.set_retention(NAME, KEEP_TWO)
    assert (acme.admin.retention(NAME).set_on, acme.admin.retention("acme/other").set_on) == (NAME, "acme")
    collect(acme)
    assert (kept(acme), kept(acme, "acme/other")) == ([2, 3], [3])
    assert acme.admin.delete_retention(NAME).set_on == "acme"
    assert acme.admin.delete_retention("acme").rule is None
    assert acme.admin.retention("acme/other").rule is None


def test_a_rule_moves_with_the_adapter_and_ends_with_it(acme: Harness) -> None:
    push_chain(acme, 2)
    acme.admin.set_retention(NAME, KEEP_TWO)
    acme.admin.rename(NAME, "acme/renamed")
    assert acme.admin.retention("acme/renamed").rule == KEEP_TWO
    acme.admin.delete_adapter("acme/renamed")


@pytest.mark.parametrize("rule", [{}, {"keep_newest": 0}, {"keep_seconds": -1}, {"keep_newest": 10**7}, {"keep": 1}])
def test_a_rule_that_keeps_nothing_or_is_out_of_range_is_refused(acme: Harness, rule: dict[str, int]) -> None:
    push_chain(acme, 1)
    path = f"/adapters/{NAME}/retention"
    with pytest.raises(Invalid, match="rule"):
        acme.admin.connection.send("PUT", path, json={"rule": rule})


# ------------------------------------------------------------------ what keeps a version
def test_what_others_need_of_a_version_keeps_it(acme: Harness) -> None:
    digests = push_chain(acme, 6)
    acme.admin.set_gate(NAME, "prod", Gate(approvals=1))
    acme.actor("promote", "pull", name="bob").approve(f"{NAME}@1", "prod")
    acme.push("acme/child", parents=[continued(digests[1])])
    acme.actor("push", "pull", name="bob").describe(f"{NAME}@3", MetadataChange(tags={"good": ""}))
    acme.admin.describe(f"{NAME}@4", MetadataChange(tags={"mine": ""}))
    acme.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=f"{NAME}@5"))
    plan = reasons(acme, RetentionRule(keep_newest=1))
    assert plan == {
        6: "+ is among the newest 1", 5: "+ is needed by a job", 4: "- retention rule: keep the newest 1",
        3: "+ was tagged by someone other than its pusher", 2: "+ is what another adapter was made from",
        1: "+ is approved for alias 'prod'",
    }  # fmt: skip


def test_every_source_of_a_merge_that_waits_stays(acme: Harness) -> None:
    for name in (NAME, "acme/second"):
        for _ in range(2):
            acme.push(name)
    recipe = {"operation": "combine", "sources": [f"{NAME}@1", "acme/second@1"], "weights": [1.0, 1.0]}
    job = acme.admin.submit(JobSubmit(kind=Kind.MERGE, payload={**recipe, "method": "linear", "into": "acme/sum"}))
    for name in (NAME, "acme/second"):
        assert reasons(acme, RetentionRule(keep_newest=1), name)[1] == "+ is needed by a job"
    assert acme.admin.claim(ClaimRequest(worker="w", kinds=[Kind.MERGE])) is not None
    for name in (NAME, "acme/second"):
        with pytest.raises(Conflict, match=f"the running job {job.id} uses it"):
            acme.admin.delete_version(f"{name}@1")
    acme.give_back([job.id])
    acme.admin.cancel(job.id)
    assert reasons(acme, RetentionRule(keep_newest=1), "acme/second")[1].startswith("- retention rule")


@pytest.mark.security
def test_a_quarantined_version_stays(acme: Harness) -> None:
    """It may be evidence. Neither a rule nor its pusher's expiry removes it."""
    push_chain(acme, 3)
    acme.admin.describe(f"{NAME}@1", VersionMetadataChange(expires_at=expiry(-2)))
    acme.admin.quarantine(f"{NAME}@1", "leaks secrets")
    acme.admin.set_retention(NAME, RetentionRule(keep_newest=1))
    assert reasons(acme)[1] == "+ is quarantined, and may be evidence"
    assert collect(acme).versions_retired == 1
    acme.admin.unquarantine(f"{NAME}@1", "a false alarm")
    assert collect(acme).versions_retired == 1


@pytest.mark.security
def test_a_descendant_that_the_owner_may_not_see_changes_nothing(acme: Harness) -> None:
    digests = push_chain(acme, 2)
    acme.admin.create_namespace("globex", owner="user:eve")
    acme.push("globex/secret", parents=[continued(digests[0])])
    rule = RetentionRule(keep_newest=1)
    assert reasons(acme, rule)[1] == "- retention rule: keep the newest 1"
    acme.admin.change_namespace("globex", NamespaceSet(public=True))
    assert reasons(acme, rule)[1] == "+ is what another adapter was made from"


@pytest.mark.security
def test_only_owners_set_a_rule_and_see_the_plan(acme: Harness) -> None:
    push_chain(acme, 1)
    for scopes in (["pull"], ["push", "pull", "promote"]):
        actor = acme.actor(*scopes)
        assert actor.retention(NAME).rule is None
        for refused in (
            partial(actor.set_retention, NAME, KEEP_TWO),
            partial(actor.delete_retention, "acme"),
            partial(actor.retention_plan, NAME),
        ):
            with pytest.raises(Denied):
                refused()
    with pytest.raises(NotFound):
        acme.actor("admin", namespaces=["globex"]).retention_plan(NAME)


# ------------------------------------------------------------------ expiry and restoring
def test_an_expired_version_goes_unless_something_needs_it(acme: Harness) -> None:
    push_chain(acme, 4)
    past = VersionMetadataChange(expires_at=expiry(-2))
    for number in (1, 2, 4):
        acme.admin.describe(f"{NAME}@{number}", past)
    later = datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert acme.admin.describe(f"{NAME}@3", VersionMetadataChange(expires_at=later.isoformat())).expires_at == later
    acme.admin.describe(f"{NAME}@2", VersionMetadataChange(expires_at=""))
    plan = reasons(acme, RetentionRule(keep_newest=1))
    assert plan[4] == "+ is where alias 'main' points"
    assert plan[3] == "+ expires at 2099-01-02T03:04:05+00:00"
    assert plan[2] == "- retention rule: keep the newest 1"
    assert plan[1].startswith("- expired at 20")
    assert collect(acme).versions_retired == 1
    assert kept(acme) == [2, 3, 4]


@pytest.mark.security
def test_only_owners_and_its_pusher_say_when_a_version_expires(acme: Harness) -> None:
    pusher, other = acme.actor("push", "pull", name="ann"), acme.actor("push", "pull", name="bob")
    acme.push(NAME, by=pusher)
    soon = VersionMetadataChange(expires_at=expiry(0))
    with pytest.raises(Denied):
        other.describe(f"{NAME}@1", soon)
    other.describe(f"{NAME}@1", VersionMetadataChange(description="seen"))
    assert pusher.describe(f"{NAME}@1", soon).expires_at is not None


@pytest.mark.security
def test_a_pusher_does_not_end_the_exemption_of_a_version_that_an_owner_restored(acme: Harness) -> None:
    pusher = acme.actor("push", "pull", name="ann")
    acme.push(NAME, by=pusher)
    acme.push(NAME, by=pusher)
    acme.admin.delete_version(f"{NAME}@1")
    acme.admin.undelete_version(f"{NAME}@1", "still needed")
    for moment in ("", expiry(0)):
        with pytest.raises(Denied):
            pusher.describe(f"{NAME}@1", VersionMetadataChange(expires_at=moment))
    pusher.describe(f"{NAME}@1", VersionMetadataChange(description="seen"))
    assert acme.admin.describe(f"{NAME}@1", VersionMetadataChange(expires_at="")).expires_at is None
    assert reasons(acme, KEEP_TWO)[1] == "+ is among the newest 2"


def test_a_restored_version_is_exempt_from_its_rule(acme: Harness) -> None:
    push_chain(acme, 4)
    acme.admin.set_retention(NAME, KEEP_TWO)
    collect(acme)
    assert acme.admin.undelete_version(f"{NAME}@1", "still needed").expires_at is None
    assert collect(acme).versions_retired == 0
    assert kept(acme) == [1, 3, 4]
    assert reasons(acme)[1] == "+ was restored after its deletion"


def test_a_plan_is_read_page_by_page_and_collection_continues_where_it_stopped(
    acme: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_chain(acme, 3)
    push_chain(acme, 3, "acme/other")
    find_needs, counts = needs.find_needs, list[int]()

    def find_and_count(session: Session, adapter: AdapterRow, version_ids: Sequence[int]) -> dict[int, str]:
        counts.append(len(version_ids))
        return find_needs(session, adapter, version_ids)

    monkeypatch.setattr(needs, "find_needs", find_and_count)
    first = acme.admin.connection.send("GET", f"/adapters/{NAME}/retention/plan", query={"limit": 2}).json()
    assert ([item["number"] for item in first["items"]], first["next_cursor"]) == ([3, 2], "2")
    rest = acme.admin.retention_plan(NAME, cursor="2")
    assert ([item.number for item in rest.items], rest.next_cursor) == ([1], "")
    assert counts == [2, 1], "a page reads its own versions"
    acme.admin.set_retention("acme", RetentionRule(keep_newest=1))
    monkeypatch.setattr("registry.server.promotion.retention.plan.ADAPTERS", 1)
    monkeypatch.setattr("registry.server.promotion.retention.plan.BATCH", 1)
    times = iter([False, False, False, True])
    assert apply_rules(acme.engine, 0, is_over=lambda: next(times), dry_run=False) == ([f"{NAME}@2"], 0), "within one"
    assert collect(acme).versions_retired == 3
    assert set(counts[2:]) == {1}


# ------------------------------------------------------------------ smoke tests of a burst
def test_of_a_burst_only_the_newest_checkpoint_is_tested(acme: Harness) -> None:
    push_chain(acme, 4)
    jobs = {job.subject: job for job in acme.admin.jobs(ref=NAME).items}
    assert [jobs[f"{NAME}@{number}"].state for number in (1, 2, 3, 4)] == [*3 * [State.SUPERSEDED], State.QUEUED]
    assert jobs[f"{NAME}@2"].error == "superseded: @3 continues this version"
    assert acme.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=f"{NAME}@2")).state is State.QUEUED
    acme.validate(f"{NAME}@2")
    acme.validate(f"{NAME}@4")


def test_a_test_that_someone_asked_for_or_whose_version_has_an_alias_stays(acme: Harness) -> None:
    first = acme.push(NAME).version
    acme.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=f"{NAME}@1"))
    second = acme.push(NAME, parents=[continued(first.digest)], alias="canary").version
    acme.push(NAME, parents=[continued(second.digest)])
    unrelated = acme.push(NAME).version
    acme.push("acme/other", parents=[continued(unrelated.digest)])
    acme.push(NAME, parents=[continued(unrelated.digest, Relation.MERGED)])
    assert {job.state for job in acme.admin.jobs().items} == {State.QUEUED}
