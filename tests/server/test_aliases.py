"""How aliases move: under compare-and-swap, through a gate, with a history that is kept for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from functools import partial

import httpx
import pytest

from registry.client.registry import Registry
from registry.errors import Conflict, Denied, Invalid, NotFound, Refused, RegistryError
from registry.evaluation.gates import Gate
from registry.findings import Finding
from registry.server.database.models import AliasMoveRow, AliasRow, EventRow, VerdictRow
from tests.harness import URL, Harness, rows
from tests.maintenance import findings

NAME = "acme/support"
NO_EFFECT = Finding(code="smoke.no_effect", severity="error", location="logits", message="the answers do not change")


@pytest.fixture
def stocked(harness: Harness) -> Harness:
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


def test_main_follows_the_newest_version_and_moves_only_by_push(stocked: Harness) -> None:
    main = stocked.admin.alias(NAME, "main")
    assert (main.number, main.generation) == (3, 3)
    error = refused(stocked, lambda: promote(stocked.admin, 1, 3, alias="main"))
    assert (type(error), error.code) == (Refused, "GATE_CLOSED")


def test_a_promotion_needs_the_generation_and_gives_the_next_one(stocked: Harness) -> None:
    assert promote(stocked.admin, 1, 0, reason="first") == 1
    assert promote(stocked.admin, 2, 1) == 2
    view = stocked.admin.alias(NAME, "prod")
    assert (view.number, view.generation, view.moved_by) == (2, 2, "admin")
    error = refused(stocked, lambda: promote(stocked.admin, 1, 1))
    assert (type(error), error.code) == (Conflict, "ALIAS_MOVED")
    assert "generation 2" in error.detail
    assert refused(stocked, lambda: promote(stocked.admin, 1, 0)).code == "ALIAS_MOVED"


def test_promoting_the_same_version_again_changes_nothing(stocked: Harness) -> None:
    assert promote(stocked.admin, 1, 0, reason="first") == 1
    before = counted(stocked)
    assert promote(stocked.admin, 1, 1, reason="again") == 1
    stocked.admin.set_gate("acme", "prod", Gate(approvals=1))
    assert promote(stocked.admin, 1, 1) == 1, "a gate that closed since does not matter: nothing moves"
    assert stocked.admin.alias(NAME, "prod").reason == "first"
    assert counted(stocked)[:2] == before[:2]
    assert refused(stocked, lambda: promote(stocked.admin, 1, 0)).code == "ALIAS_MOVED"


def test_without_if_match_the_answer_is_428_and_with_an_old_one_412(stocked: Harness) -> None:
    path = f"/api/v1/adapters/{NAME}/aliases/prod"
    signed_in = {"Authorization": f"Bearer {stocked.secret}"}
    client = httpx.Client(transport=stocked.transport, base_url=URL, headers=signed_in)
    body = {"version": "1"}
    missing = client.put(path, json=body)
    assert (missing.status_code, missing.json()["code"]) == (428, "PRECONDITION_REQUIRED")
    assert client.put(path, json=body, headers={"If-Match": '"0"'}).headers["etag"] == '"1"'
    stale = client.put(path, json=body, headers={"If-Match": '"0"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "ALIAS_MOVED")
    assert client.put(path, json=body, headers={"If-Match": "latest"}).status_code == 400
    assert client.get(path).headers["etag"] == '"1"'


def test_a_gate_stays_closed_without_a_verdict_and_says_what_is_missing(stocked: Harness) -> None:
    error = refused(stocked, lambda: promote(stocked.admin, 3, 0))
    assert (type(error), error.code) == (Refused, "GATE_CLOSED")
    assert [reason.code for reason in error.findings] == ["gate.smoke_absent"]
    assert "adapter smoke-test acme/support@3" in error.next_step


def test_a_failing_verdict_closes_the_gate_until_a_later_one_passes(stocked: Harness) -> None:
    stocked.validate(f"{NAME}@3", [NO_EFFECT])
    error = refused(stocked, lambda: promote(stocked.admin, 3, 0))
    assert [reason.code for reason in error.findings] == ["gate.smoke_fail"]
    assert NO_EFFECT.message in error.findings[0].message
    assert promote(stocked.admin, 3, 0, alias="canary") == 1, "an alias without its own gate asks for 'compat' only"


def test_the_evidence_of_a_gate_is_stored_with_the_move(stocked: Harness) -> None:
    promote(stocked.admin, 1, 0)
    move = stocked.admin.history(NAME, alias="prod").moves[0]
    assert {(item["check"], item["outcome"]) for item in move.evidence} == {("compat", "pass"), ("smoke", "pass")}


def test_one_of_many_racing_promotions_wins(stocked: Harness) -> None:
    promote(stocked.admin, 1, 0)
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        try:
            promote(stocked.admin, number, 1)
            outcomes.append("moved")
        except Conflict as conflict:
            outcomes.append(conflict.code)

    threads = [threading.Thread(target=race, args=(2,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["ALIAS_MOVED"] * 7 + ["moved"]
    with stocked.session() as session:
        generations = [row.generation for row in rows(session, AliasMoveRow) if row.alias == "prod"]
    assert sorted(generations) == [1, 2]


def test_one_of_many_racing_first_promotions_wins(stocked: Harness) -> None:
    start = threading.Barrier(6)
    outcomes: list[str] = []

    def race() -> None:
        start.wait()
        try:
            promote(stocked.admin, 1, 0, alias="canary")
            outcomes.append("moved")
        except Conflict as conflict:
            outcomes.append(conflict.code)

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["ALIAS_MOVED"] * 5 + ["moved"]


def test_rolling_back_twice_goes_back_two_versions(stocked: Harness) -> None:
    stocked.validate(f"{NAME}@3")
    for generation, number in enumerate((1, 2, 3)):
        promote(stocked.admin, number, generation)
    assert stocked.admin.rollback(NAME, "prod", reason="it is night").number == 2
    assert stocked.admin.rollback(NAME, "prod").number == 1
    with pytest.raises(NotFound):
        stocked.admin.rollback(NAME, "prod")
    promote(stocked.admin, 3, 5)
    assert stocked.admin.rollback(NAME, "prod").number == 1, "back to what it held before this promotion"


def test_a_rollback_to_an_earlier_version_needs_no_new_evidence(stocked: Harness) -> None:
    promote(stocked.admin, 1, 0)
    promote(stocked.admin, 2, 1)
    submitted = stocked.push(NAME, stocked.files())
    with stocked.session(write=True) as session:
        for row in rows(session, VerdictRow):
            row.outcome = "fail"
            session.add(row)
    assert stocked.admin.rollback(NAME, "prod", to="1").number == 1
    error = refused(stocked, lambda: stocked.admin.rollback(NAME, "prod", to=str(submitted.version.number)))
    assert error.code == "GATE_CLOSED", "what it never held goes through the gate"


def test_a_rollback_never_leads_to_a_yanked_version(stocked: Harness) -> None:
    stocked.validate(f"{NAME}@3")
    for generation, number in enumerate((1, 2, 3)):
        promote(stocked.admin, number, generation)
    stocked.admin.yank(f"{NAME}@2", "leaks")
    assert refused(stocked, lambda: stocked.admin.rollback(NAME, "prod", to="2")).code == "YANKED"
    assert stocked.admin.rollback(NAME, "prod").number == 1


def test_a_yanked_version_is_refused_by_alias_and_answered_by_digest(stocked: Harness) -> None:
    promote(stocked.admin, 2, 0)
    digest = stocked.admin.yank(f"{NAME}@2", "leaks").digest
    error = refused(stocked, lambda: stocked.admin.resolve(f"{NAME}:prod"))
    assert (type(error), error.code) == (Refused, "YANKED")
    assert "leaks" in error.detail
    assert stocked.admin.resolve(f"{NAME}@{digest}").yanked
    assert refused(stocked, lambda: promote(stocked.admin, 2, 1)).code == "YANKED"
    again = stocked.admin.yank(f"{NAME}@2", "another reason")
    assert again.yank_reason == "leaks"


def test_the_history_answers_where_aliases_pointed_at_a_time(stocked: Harness) -> None:
    before = datetime.now(UTC)
    promote(stocked.admin, 1, 0, reason="first")
    promote(stocked.admin, 2, 1, reason="second")
    stocked.admin.rollback(NAME, "prod", reason="third")
    moves = stocked.admin.history(NAME, alias="prod").moves
    assert [(m.generation, m.number, m.from_number, m.reason) for m in moves] == [
        (3, 1, 2, "third"),
        (2, 2, 1, "second"),
        (1, 1, None, "first"),
    ]
    for move in moves:
        held = stocked.admin.history(NAME, alias="prod", at=move.at).moves
        assert [h.generation for h in held] == [move.generation]
    earlier = moves[1].at - timedelta(microseconds=1)
    assert [h.generation for h in stocked.admin.history(NAME, alias="prod", at=earlier).moves] == [1]
    assert stocked.admin.history(NAME, alias="prod", at=before).moves == []
    assert {m.alias for m in stocked.admin.history(NAME, at=moves[0].at).moves} == {"main", "prod"}


def test_a_time_without_a_zone_or_out_of_range_is_refused(stocked: Harness) -> None:
    ends = [datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), datetime.min.replace(tzinfo=timezone.max)]
    for at in (datetime(2026, 5, 3, 14, 5), *ends):
        with pytest.raises(Invalid):
            stocked.admin.history(NAME, at=at)


def test_times_of_an_alias_grow_even_when_the_clock_is_set_back(
    stocked: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(stocked.admin, 1, 0)
    past = datetime.now(UTC) - timedelta(days=1)
    monkeypatch.setattr("registry.server.database.db.now", lambda: past)
    promote(stocked.admin, 2, 1)
    monkeypatch.undo()
    later, earlier = stocked.admin.history(NAME, alias="prod").moves
    assert later.at > earlier.at
    assert findings(stocked, deep=False) == [], "and a check takes the clock for no forger"


def test_moving_an_alias_needs_the_scope_promote(stocked: Harness) -> None:
    pusher = stocked.actor("push", namespaces=["acme"])
    outsider = stocked.actor("promote", namespaces=["globex"])
    with pytest.raises(Denied):
        promote(pusher, 1, 0)
    for act in (
        lambda: promote(outsider, 1, 0),
        lambda: outsider.rollback(NAME, "prod"),
        lambda: outsider.yank(f"{NAME}@1", "no"),
        lambda: outsider.history(NAME),
        lambda: outsider.aliases(NAME),
    ):
        assert refused(stocked, act).code == "ADAPTER_UNKNOWN"


def test_an_alias_cannot_look_like_a_version_or_break_the_grammar(stocked: Harness) -> None:
    for alias in ("3", "v3", "sha256-x", "Prod", "pröd", "a..b", "con"):
        error = refused(stocked, partial(promote, stocked.admin, 1, 0, alias=alias))
        assert error.code in ("NAME_INVALID", "ROUTE_UNKNOWN"), alias
    assert promote(stocked.admin, 1, 0, alias="latest3") == 1


def test_a_version_of_another_adapter_cannot_be_promoted_here(stocked: Harness) -> None:
    stocked.push("acme/other")
    assert refused(stocked, lambda: promote(stocked.admin, "acme/other@1", 0)).code == "REQUEST_INVALID"
    assert refused(stocked, lambda: promote(stocked.admin, 99, 0)).code == "VERSION_UNKNOWN"
