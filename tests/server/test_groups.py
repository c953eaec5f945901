"""Aliases move, versions are approved and metadata changes in groups: an outcome for each item, a few statements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from registry.api import GROUP_LIMIT
from registry.api.aliases import ApproveItem, DescribeItem, MovedAlias, MoveItem
from registry.client.aliases import Groups
from registry.client.registry import Registry
from registry.errors import Invalid, RegistryError
from registry.evaluation.gates import Gate
from registry.server.database.models import AliasMoveRow, EventRow
from tests.access.tenants import send
from tests.harness import Harness, rows

NAMES = [f"acme/cust-{number}" for number in range(12)]
MOVE_STATEMENTS, ROLLBACK_STATEMENTS, APPROVE_STATEMENTS, DESCRIBE_STATEMENTS = 18, 13, 11, 17


@pytest.fixture
def fleet(harness: Harness) -> Harness:
    """Twelve adapters with two versions each."""
    harness.add_base()
    for _ in range(2):
        for name in NAMES:
            harness.push(name)
    return harness


def moves(version: str = "2", alias: str = "canary", names: Sequence[str] = NAMES, **how: Any) -> list[MoveItem]:
    return [MoveItem(name=name, alias=alias, version=version, **how) for name in names]


def codes(outcomes: Sequence[Any]) -> list[str]:
    return [outcome.code if isinstance(outcome, RegistryError) else "" for outcome in outcomes]


def counted(harness: Harness) -> tuple[int, int]:
    with harness.session() as session:
        return len(rows(session, AliasMoveRow)), len(rows(session, EventRow))


def test_any_number_of_items_costs_the_same_statements(fleet: Harness) -> None:
    admin, groups = fleet.admin, Groups(fleet.admin)
    gate = Gate(approvals=1, soak_in="canary", soak_seconds=3600, engines=("vllm==0.33.0",), signed_by=("key:x",))
    admin.set_gate("acme", "staging", gate)
    glass: dict[str, Any] = {"alias": "staging", "break_glass": True, "reason": "all evidence is read all the same"}
    groups.move_aliases(moves("1", **glass))

    def describe(names: Sequence[str], value: str) -> list[Any]:
        items = [DescribeItem(subject=name, tags={"team": value}) for name in names]
        return groups.change_metadata([*items, *(i.model_copy(update={"subject": f"{i.subject}@2"}) for i in items)])

    acts: dict[str, tuple[int, Callable[[Sequence[str]], list[Any]]]] = {
        "move": (MOVE_STATEMENTS, lambda names: groups.move_aliases(moves(names=names, **glass))),
        "rollback": (
            ROLLBACK_STATEMENTS,
            lambda names: groups.move_aliases(moves("", "staging", names, rollback=True)),
        ),
        "approve": (
            APPROVE_STATEMENTS + (fleet.engine.dialect.name == "postgresql"),  # where it locks what it counts
            lambda names: groups.approve_versions([ApproveItem(ref=f"{name}@2", alias="prod") for name in names]),
        ),
        "describe": (DESCRIBE_STATEMENTS, lambda names: describe(names, "nlp")),
    }
    for act, (limit, run) in acts.items():
        counts = []
        for names in (NAMES[:2], NAMES[2:]):
            with fleet.statements() as statements:
                outcomes = run(names)
            assert codes(outcomes) == [""] * len(outcomes)
            counts.append(len(statements))
            assert [statement for statement in statements if "version.manifest," in statement] == []  # a megabyte each
        assert counts[0] == counts[1] == limit, act


def test_each_item_has_its_own_outcome_and_one_event(fleet: Harness) -> None:
    admin, groups = fleet.admin, Groups(fleet.admin)
    admin.yank(f"{NAMES[1]}@2", "wrong")
    before = counted(fleet)
    items = [
        *moves(names=NAMES[:2], reason="nightly"),
        MoveItem(name="acme/nothing", alias="canary", version="1"),
        MoveItem(name=NAMES[2], alias="main", version="1"),
        MoveItem(name=NAMES[3], alias="prod", version="1"),
        MoveItem(name=NAMES[4], alias="canary", version="1", generation=7),
        MoveItem(name=NAMES[5], alias="canary", rollback=True),
        *moves(names=NAMES[6:8]),
    ]
    outcomes = groups.move_aliases(items)
    assert codes(outcomes) == [
        "", "YANKED", "ADAPTER_UNKNOWN", "GATE_CLOSED", "GATE_CLOSED", "ALIAS_MOVED", "ALIAS_UNKNOWN", "", "",
    ]  # fmt: skip
    first = outcomes[0]
    assert isinstance(first, MovedAlias)
    assert (first.name, first.from_number, first.number, first.generation, first.moved) == (NAMES[0], None, 2, 1, True)
    assert admin.history(NAMES[0]).moves[0].reason == "nightly"
    assert counted(fleet) == (before[0] + 3, before[1] + 3)
    again = groups.move_aliases(moves(names=NAMES[:1]))[0]
    assert isinstance(again, MovedAlias)
    assert (again.moved, again.from_number) == (False, 2)
    assert counted(fleet) == (before[0] + 3, before[1] + 3), "it was there already"


def test_all_or_nothing_and_a_dry_run_change_nothing(fleet: Harness) -> None:
    admin, groups = fleet.admin, Groups(fleet.admin)
    before = counted(fleet)
    with_one_bad = [*moves(names=NAMES[:2]), MoveItem(name="acme/nothing", alias="canary", version="1")]
    assert codes(groups.move_aliases(with_one_bad, atomic=True)) == ["COMMIT_INCOMPLETE"] * 2 + ["ADAPTER_UNKNOWN"]
    assert codes(groups.move_aliases(with_one_bad, dry_run=True)) == ["", "", "ADAPTER_UNKNOWN"]
    refs = [f"{NAMES[0]}@2", f"{NAMES[1]}@9"]
    approvals = [ApproveItem(ref=ref, alias="prod") for ref in refs]
    assert codes(groups.approve_versions(approvals, atomic=True)) == ["COMMIT_INCOMPLETE", "VERSION_UNKNOWN"]
    (planned, _) = groups.approve_versions(approvals, dry_run=True)
    assert not isinstance(planned, RegistryError)
    assert planned.created
    described = [DescribeItem(subject=ref, tags={"team": "nlp"}) for ref in refs]
    assert codes(groups.change_metadata(described, atomic=True)) == ["COMMIT_INCOMPLETE", "VERSION_UNKNOWN"]
    (planned_tags, _) = groups.change_metadata(described, dry_run=True)
    assert not isinstance(planned_tags, RegistryError)
    assert (planned_tags.changed, planned_tags.tags) == (True, {"team": "nlp"})
    tagged = [DescribeItem(subject=refs[0], tags={"team": "nlp"})]
    moved, changed = groups.change_together(with_one_bad, tagged)
    assert (codes(moved)[-2:], codes(changed)) == (["COMMIT_INCOMPLETE", "ADAPTER_UNKNOWN"], ["COMMIT_INCOMPLETE"])
    moved, changed = groups.change_together(moves(), described)
    assert codes(moved) == ["COMMIT_INCOMPLETE"] * len(NAMES)
    assert codes(changed) == ["COMMIT_INCOMPLETE", "VERSION_UNKNOWN"]
    assert counted(fleet) == before
    assert admin.version(refs[0]).tags == {}
    moved, changed = groups.change_together(moves(), tagged)
    assert {*codes(moved), *codes(changed)} == {""}
    assert admin.version(refs[0]).tags == {"team": "nlp"}


@pytest.mark.security
def test_each_item_needs_the_right_to_its_own_adapter(fleet: Harness) -> None:
    fleet.push("other/own")
    promoter: Registry = fleet.actor("promote", namespaces=["acme"])
    names = ["other/own", NAMES[0]]
    assert codes(Groups(promoter).move_aliases(moves("1", names=names))) == ["ADAPTER_UNKNOWN", ""]
    approvals = [ApproveItem(ref=f"{name}@1", alias="prod") for name in names]
    assert codes(Groups(promoter).approve_versions(approvals)) == ["ADAPTER_UNKNOWN", ""]
    pusher = fleet.actor("push", namespaces=["acme"])
    described = [DescribeItem(subject=name, tags={"team": "x"}) for name in names]
    assert codes(Groups(pusher).change_metadata(described)) == ["ADAPTER_UNKNOWN", ""]
    glass = [MoveItem(name=NAMES[0], alias="prod", version="1", break_glass=True, reason="urgent")]
    assert codes(Groups(promoter).move_aliases(glass)) == ["DENIED"]
    assert codes(Groups(fleet.admin).move_aliases(glass)) == [""]
    assert fleet.admin.history(NAMES[0], alias="prod").moves[0].broke_glass


def test_an_item_that_cannot_be_read_does_not_end_the_others(fleet: Harness) -> None:
    name = NAMES[0]
    groups: dict[str, list[dict[str, Any]]] = {
        "moves": [{"name": "no name", "alias": "a"}, {"name": name, "alias": "a", "version": f"{NAMES[1]}@1"}],
        "approvals": [{"ref": "no name", "alias": "a"}, {"ref": f"{name}@x y", "alias": "a"}],
        "metadata": [{"subject": "no name"}, {"subject": f"{name}:", "tags": {"team": "x"}}],
    }
    good: dict[str, dict[str, Any]] = {
        "moves": {"name": name, "alias": "a", "version": "1"},
        "approvals": {"ref": f"{name}@1", "alias": "a"},
    }
    good |= {"metadata": {"subject": name, "tags": {"team": "x"}}}
    for group, bad in groups.items():
        for atomic in (True, False):
            document = {"items": [*bad, good[group]], "atomic": atomic}
            response = send(fleet, "POST", f"/api/v1/{group}", fleet.secret, json=document)
            assert response.status_code == 200, response.text
            outcomes = response.json()["items"]
            assert all(outcome["problem"]["status"] in (400, 422) for outcome in outcomes[:2])
            assert (outcomes[2]["problem"] or {}).get("code") == ("COMMIT_INCOMPLETE" if atomic else None)


def test_limits_and_repeated_items_are_refused(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    items = [{"name": "acme/support", "alias": "canary", "version": "1"}] * (GROUP_LIMIT + 1)
    response = send(harness, "POST", "/api/v1/moves", harness.secret, json={"items": items})
    assert (response.status_code, response.json()["code"]) == (400, "REQUEST_INVALID")
    too_many = moves("1", names=["acme/support"] * (GROUP_LIMIT + 1))
    with pytest.raises(Invalid, match=f"over the limit of {GROUP_LIMIT}"):
        Groups(harness.admin).move_aliases(too_many, atomic=True)
    twice = Groups(harness.admin).move_aliases(moves("1", names=["acme/support"] * 2))
    assert codes(twice) == ["", "REQUEST_INVALID"]


def test_a_repeated_request_moves_once(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    body = {"items": [{"name": "acme/support", "alias": "canary", "version": "1"}]}
    responses = [
        send(harness, "POST", "/api/v1/moves", harness.secret, json=body, headers={"Idempotency-Key": "one"})
        for _ in range(2)
    ]
    assert responses[0].json() == responses[1].json()
    assert responses[0].json()["items"][0]["result"]["moved"] is True
