"""How aliases move: under compare-and-swap, through a gate, with a history that is kept for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import httpx
import pytest

from registry.client.registry import Registry
from registry.errors import Conflict, Invalid, NotFound, Refused, RegistryError
from registry.evaluation.gates import Gate
from registry.findings import Finding
from registry.server.database.models import AliasMoveRow, AliasRow, EventRow, VerdictRow
from tests.harness import URL, Harness, rows

NAME = "acme/support"
NO_EFFECT = Finding(code="smoke.no_effect", severity="error", location="logits", message="the answers do not change")


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    """Three versions; the first two have been validated."""
    harness.add_base()
    for number in (1, 2, 3):
        harness.push(NAME)
        if number < 3:
            harness.validate(f"{NAME}@{number}")
    return harness


def promote(registry: Registry, version: int | str, generation: int, alias: str = "prod", reason: str = "") -> int:
    return registry.promote(NAME, alias, str(version), generation=generation, reason=reason).generation


def refused(harness: Harness, act: Callable[[], object]) -> RegistryError:
    """The error, after checking that nothing was written."""
    before = counted(harness)
    with pytest.raises(RegistryError) as caught:
        act()
    assert counted(harness) == before
    return caught.value


def counted(harness: Harness) -> tuple[int, int, int]:
    with harness.session() as session:
        return len(rows(session, AliasRow)), len(rows(session, AliasMoveRow)), len(rows(session, EventRow))


def test_main_follows_the_newest_version_and_moves_only_by_push(filled_harness: Harness) -> None:
    main = filled_harness.admin.alias(NAME, "main")
    assert (main.number, main.generation) == (3, 3)
    error = refused(filled_harness, lambda: promote(filled_harness.admin, 1, 3, alias="main"))
    assert (type(error), error.code) == (Refused, "GATE_CLOSED")


def test_a_promotion_needs_the_generation_and_gives_the_next_one(filled_harness: Harness) -> None:
    assert promote(filled_harness.admin, 1, 0, reason="first") == 1
    assert promote(filled_harness.admin, 2, 1) == 2
    view = filled_harness.admin.alias(NAME, "prod")
    assert (view.number, view.generation, view.moved_by) == (2, 2, "token:admin")
    error = refused(filled_harness, lambda: promote(filled_harness.admin, 1, 1))
    assert (type(error), error.code) == (Conflict, "ALIAS_MOVED")
    assert "generation 2" in error.detail
    assert refused(filled_harness, lambda: promote(filled_harness.admin, 1, 0)).code == "ALIAS_MOVED"


def test_promoting_the_same_version_again_changes_nothing(filled_harness: Harness) -> None:
    assert promote(filled_harness.admin, 1, 0, reason="first") == 1
    before = counted(filled_harness)
    assert promote(filled_harness.admin, 1, 1, reason="again") == 1
    filled_harness.admin.set_gate("acme", "prod", Gate(approvals=1))
    assert promote(filled_harness.admin, 1, 1) == 1, "a gate that closed since does not matter: nothing moves"
    assert filled_harness.admin.alias(NAME, "prod").reason == "first"
    assert counted(filled_harness)[:2] == before[:2]
    assert refused(filled_harness, lambda: promote(filled_harness.admin, 1, 0)).code == "ALIAS_MOVED"


def test_without_if_match_the_response_is_428_and_with_an_old_one_412(filled_harness: Harness) -> None:
    path = f"/api/v1/adapters/{NAME}/aliases/prod"
    signed_in = {"Authorization": f"Bearer {filled_harness.secret}"}
    client = httpx.Client(transport=filled_harness.transport, base_url=URL, headers=signed_in)
    body = {"version": "1"}
    missing = client.put(path, json=body)
    assert (missing.status_code, missing.json()["code"]) == (428, "PRECONDITION_REQUIRED")
    assert client.put(path, json=body, headers={"If-Match": '"0"'}).headers["etag"] == '"1"'
    stale = client.put(path, json=body, headers={"If-Match": '"0"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "ALIAS_MOVED")
    assert client.put(path, json=body, headers={"If-Match": "latest"}).status_code == 400
    assert client.get(path).headers["etag"] == '"1"'


def test_a_gate_stays_closed_without_a_verdict_and_says_what_is_missing(filled_harness: Harness) -> None:
    error = refused(filled_harness, lambda: promote(filled_harness.admin, 3, 0))
    assert (type(error), error.code) == (Refused, "GATE_CLOSED")
    assert [reason.code for reason in error.findings] == ["gate.smoke_absent"]
    assert "adapter smoke-test acme/support@3" in error.next_step


def test_a_failing_verdict_closes_the_gate_until_a_later_one_passes(filled_harness: Harness) -> None:
    filled_harness.validate(f"{NAME}@3", [NO_EFFECT])
    error = refused(filled_harness, lambda: promote(filled_harness.admin, 3, 0))
    assert [reason.code for reason in error.findings] == ["gate.smoke_fail"]
    assert NO_EFFECT.message in error.findings[0].message
    assert promote(filled_harness.admin, 3, 0, alias="canary") == 1, (
        "an alias without its own gate asks for 'compat' only"
    )


def test_the_evidence_of_a_gate_is_stored_with_the_move(filled_harness: Harness) -> None:
    promote(filled_harness.admin, 1, 0)
    move = filled_harness.admin.history(NAME, alias="prod").moves[0]
    assert {(item["check"], item["outcome"]) for item in move.evidence} == {("compat", "pass"), ("smoke", "pass")}


def test_one_of_many_racing_promotions_wins(filled_harness: Harness) -> None:
    promote(filled_harness.admin, 1, 0)
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        try:
            promote(filled_harness.admin, number, 1)
            outcomes.append("moved")
        except Conflict as conflict:
            outcomes.append(conflict.code)

    threads = [threading.Thread(target=race, args=(2,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["ALIAS_MOVED"] * 7 + ["moved"]
    with filled_harness.session() as session:
        generations = [row.generation for row in rows(session, AliasMoveRow) if row.alias == "prod"]
    assert sorted(generations) == [1, 2]


def test_rolling_back_twice_goes_back_two_versions(filled_harness: Harness) -> None:
    filled_harness.validate(f"{NAME}@3")
    for generation, number in enumerate((1, 2, 3)):
        promote(filled_harness.admin, number, generation)
    assert filled_harness.admin.rollback(NAME, "prod", reason="it is night").number == 2
    assert filled_harness.admin.rollback(NAME, "prod").number == 1
    with pytest.raises(NotFound):
        filled_harness.admin.rollback(NAME, "prod")
    promote(filled_harness.admin, 3, 5)
    assert filled_harness.admin.rollback(NAME, "prod").number == 1, "back to what it held before this promotion"


def test_a_rollback_to_an_earlier_version_needs_no_new_evidence(filled_harness: Harness) -> None:
    promote(filled_harness.admin, 1, 0)
    promote(filled_harness.admin, 2, 1)
    submitted = filled_harness.push(NAME, filled_harness.files())
    with filled_harness.session(write=True) as session:
        for row in rows(session, VerdictRow):
            row.outcome = "fail"
            session.add(row)
    assert filled_harness.admin.rollback(NAME, "prod", to="1").number == 1
    error = refused(
        filled_harness, lambda: filled_harness.admin.rollback(NAME, "prod", to=str(submitted.version.number))
    )
    assert error.code == "GATE_CLOSED", "what it never held goes through the gate"


def test_a_rollback_never_leads_to_a_yanked_version(filled_harness: Harness) -> None:
    filled_harness.validate(f"{NAME}@3")
    for generation, number in enumerate((1, 2, 3)):
        promote(filled_harness.admin, number, generation)
    filled_harness.admin.yank(f"{NAME}@2", "leaks")
    assert refused(filled_harness, lambda: filled_harness.admin.rollback(NAME, "prod", to="2")).code == "YANKED"
    assert filled_harness.admin.rollback(NAME, "prod").number == 1


def test_a_yanked_version_is_refused_by_alias_and_returned_by_digest(filled_harness: Harness) -> None:
    promote(filled_harness.admin, 2, 0)
    digest = filled_harness.admin.yank(f"{NAME}@2", "leaks").digest
    error = refused(filled_harness, lambda: filled_harness.admin.resolve(f"{NAME}:prod"))
    assert (type(error), error.code) == (Refused, "YANKED")
    assert "leaks" in error.detail
    assert filled_harness.admin.resolve(f"{NAME}@{digest}").yanked
    assert refused(filled_harness, lambda: promote(filled_harness.admin, 2, 1)).code == "YANKED"
    again = filled_harness.admin.yank(f"{NAME}@2", "another reason")
    assert again.yank_reason == "leaks"


def test_the_history_responds_where_aliases_pointed_at_a_time(filled_harness: Harness) -> None:
    before = datetime.now(UTC)
    promote(filled_harness.admin, 1, 0, reason="first")
    promote(filled_harness.admin, 2, 1, reason="second")
    filled_harness.admin.rollback(NAME, "prod", reason="third")
    moves = filled_harness.admin.history(NAME, alias="prod").moves
    assert [(m.generation, m.number, m.from_number, m.reason) for m in moves] == [
        (3, 1, 2, "third"),
        (2, 2, 1, "second"),
        (1, 1, None, "first"),
    ]
    for move in moves:
        current = filled_harness.admin.history(NAME, alias="prod", at=move.at).moves
        assert [h.generation for h in current] == [move.generation]
    earlier = moves[1].at - timedelta(microseconds=1)
    assert [h.generation for h in filled_harness.admin.history(NAME, alias="prod", at=earlier).moves] == [1]
    assert filled_harness.admin.history(NAME, alias="prod", at=before).moves == []
    assert {m.alias for m in filled_harness.admin.history(NAME, at=moves[0].at).moves} == {"main", "prod"}


def test_a_time_without_a_zone_or_out_of_range_is_refused(filled_harness: Harness) -> None:
    ends = [datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), datetime.min.replace(tzinfo=timezone.max)]
    for at in (datetime(2026, 5, 3, 14, 5), *ends):
        with pytest.raises(Invalid):
            filled_harness.admin.history(NAME, at=at)


def test_a_version_of_another_adapter_cannot_be_promoted_here(filled_harness: Harness) -> None:
    filled_harness.push("acme/other")
    assert refused(filled_harness, lambda: promote(filled_harness.admin, "acme/other@1", 0)).code == "REQUEST_INVALID"
    assert refused(filled_harness, lambda: promote(filled_harness.admin, 99, 0)).code == "VERSION_UNKNOWN"
