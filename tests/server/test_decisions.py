"""Decisions about one item, from facts alone: nothing here has a database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from registry.api.catalog import MetadataChange, VersionMetadataChange
from registry.api.transfer import CommitItem
from registry.digest import Digest
from registry.errors import Conflict, RegistryError, TooLarge
from registry.evaluation.gates import ANY_ALIAS, Evidence
from registry.evaluation.verdicts import Check, Verdict
from registry.findings import Finding
from registry.names import AdapterName, Ref
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.database.models import DESCRIPTION, EXPIRES, NEVER, TAG, BaseRow, VersionRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.promotion import approvals, deletion, describe, move_decisions, withdraw
from registry.server.promotion.aliases import PastMove
from registry.server.promotion.approvals import ApprovalFacts, NewApproval
from registry.server.promotion.describe import Description, DescriptionFacts
from registry.server.promotion.move_decisions import AliasState, Move, MoveFacts
from registry.server.promotion.withdraw import StateChange
from registry.server.push import commit_decisions
from registry.server.push.commit_decisions import Commit, CommitFacts, InspectedCommit, VersionFacts
from registry.server.push.inspect import Inspection
from registry.versions.manifest import BaseRef

NAME = AdapterName("acme", "support")
MAY = datetime(2026, 5, 3, tzinfo=UTC)


def actor(*scopes: Scope, name: str = "ci") -> Actor:
    return Actor(name=name, token_id="tok_1", scopes=frozenset(scopes), namespaces=frozenset({"acme"}))


def version(number: int = 2, **columns: Any) -> VersionRow:
    row = {"yanked_at": None, "quarantined_at": None, "deleted_at": None, "purged_at": None, "quarantine": 0, **columns}
    row |= {"adapter_id": 1, "created_by": "token:ci", "measured_at": MAY}
    return VersionRow(id=number, number=number, digest=Digest.of(b"%d" % number), **row)


def code_of(decide: Any, *facts: Any) -> str:
    with pytest.raises(RegistryError) as raised:
        decide(*facts)
    return raised.value.code


OWNER, PROMOTER = actor(Scope.ADMIN), actor(Scope.PROMOTE, name="bo")
FITS = Evidence(verdicts=(Verdict.of(Check.COMPAT, Digest.of(b"2"), "llama", str(Digest.of(b"base")), []),))


def facts(move: dict[str, Any] | None = None, **other: Any) -> MoveFacts:
    request = {"name": NAME, "alias": "canary", "to": 2, **(move or {})}
    return MoveFacts(**{"move": Move(**request), "version": version(), "gate": ANY_ALIAS, "evidence": FITS, **other})


AT_1 = AliasState(3, 1, 1, MAY, "token:bo", "nightly")
AT_2 = AliasState(4, 2, 2, MAY, "token:bo", "nightly")
PAST = [
    PastMove(1, "canary", 1, None, 1, is_rollback=False),
    PastMove(1, "canary", 2, 1, 2, is_rollback=False),
]


@pytest.mark.parametrize(
    ("of_move", "expected"),
    [
        (facts(), (2, True, 0)),
        (facts(before=AT_1), (2, True, 3)),
        (facts({"expected_generation": 3}, before=AT_1), (2, True, 3)),
        (facts({"expected_generation": 0}, before=AliasState(7)), (2, True, 7)),  # deleted: new to the client
        (facts(before=AT_2), (2, False, 4)),
        (facts({"to": None, "is_rollback": True}, before=AT_2, past=PAST, earlier={1: version(1)}), (1, True, 4)),
        (facts({"to": 2, "is_rollback": True}, before=AT_1, past=PAST, evidence=Evidence()), (2, True, 3)),
    ],
)  # fmt: skip
def test_an_alias_moves(of_move: MoveFacts, expected: tuple[int, bool, int]) -> None:
    decision = move_decisions.decide(PROMOTER, of_move)
    assert (decision.version.number, decision.moves, decision.before.generation) == expected


@pytest.mark.parametrize(
    ("of_move", "code"),
    [
        (facts(is_repeated=True), "REQUEST_INVALID"),
        (facts({"expected_generation": 2}, before=AT_1), "ALIAS_MOVED"),
        (facts({"expected_generation": 0}, before=AT_1), "ALIAS_MOVED"),
        (facts(evidence=Evidence()), "GATE_CLOSED"),
        (facts(evidence=FITS.model_copy(update={"weights_pending": True})), "TRY_LATER"),
        (facts(version=version(yanked_at=MAY, yank_reason="wrong")), "YANKED"),
        (facts(version=version(quarantined_at=MAY, quarantine_reason="leak")), "QUARANTINED"),
        (facts({"is_rollback": True}), "ALIAS_UNKNOWN"),
        (facts({"to": None, "is_rollback": True}, before=AT_1, past=PAST[:1]), "VERSION_UNKNOWN"),
        (facts({"to": 2, "is_rollback": True}, before=AT_1, past=PAST[:1], evidence=Evidence()), "GATE_CLOSED"),
    ],
)
def test_an_alias_does_not_move(of_move: MoveFacts, code: str) -> None:
    assert code_of(move_decisions.decide, PROMOTER, of_move) == code


def test_a_broken_gate_is_marked_with_what_was_missing() -> None:
    broken = facts({"break_glass": True, "reason": "urgent"}, evidence=Evidence())
    assert move_decisions.decide(OWNER, broken).evidence == [
        {"check": "break_glass", "missing": ["gate.compat_absent"]}
    ]


@pytest.mark.parametrize(
    ("move", "code"),
    [({"alias": "main"}, "GATE_CLOSED"), ({"break_glass": True, "reason": "urgent"}, "DENIED"), ({}, "")],
)
def test_who_may_ask_for_a_move(move: dict[str, Any], code: str) -> None:
    request = facts(move).move
    if code:
        assert code_of(move_decisions.check_request, PROMOTER, request) == code
    else:
        assert move_decisions.check_request(PROMOTER, request) is request


@pytest.mark.parametrize(
    ("is_new", "of_identity", "of_all", "code"),
    [
        (True, approvals.ALIASES_LIMIT, approvals.APPROVALS_LIMIT, ""),
        (True, approvals.ALIASES_LIMIT + 1, 1, "QUOTA_EXCEEDED"),
        (True, 1, approvals.APPROVALS_LIMIT + 1, "QUOTA_EXCEEDED"),
        (False, approvals.ALIASES_LIMIT + 1, approvals.APPROVALS_LIMIT + 1, ""),  # it is there already
    ],
)
def test_approvals_have_limits(*, is_new: bool, of_identity: int, of_all: int, code: str) -> None:
    approval = ApprovalFacts(NewApproval(Ref(NAME, 2), "prod"), version(), is_new, of_identity, of_all)
    if code:
        assert code_of(approvals.decide, approval) == code
    else:
        assert approvals.decide(approval) is approval


def described(change: MetadataChange, of_version: VersionRow | None = None) -> DescriptionFacts:
    return DescriptionFacts(Description(NAME, None, change), 1, of_version)


def test_a_change_of_metadata_keeps_what_it_does_not_name() -> None:
    before = {(TAG, "team"): "nlp", (TAG, "stage"): "old", (DESCRIPTION, ""): "first"}
    change = MetadataChange(tags={"stage": None, "owner": "bo"}, description="second")
    decision = describe.decide(OWNER, described(change), before)
    assert decision.after == {(TAG, "team"): "nlp", (TAG, "owner"): "bo", (DESCRIPTION, ""): "second"}
    assert decision.detail == {"tags": {"owner": "bo"}, "description": "second", "removed": ["tag stage"]}
    assert describe.decide(OWNER, described(change), decision.after).detail == {}


def test_only_owners_renew_the_expiry_of_a_restored_version() -> None:
    pusher, change = actor(Scope.PUSH), VersionMetadataChange(expires_at="2027-01-01T00:00:00+00:00")
    assert describe.decide(pusher, described(change, version()), {}).detail
    assert code_of(describe.decide, pusher, described(change, version()), {(EXPIRES, ""): NEVER}) == "DENIED"
    in_quarantine = described(change, version(quarantined_at=MAY, quarantine_reason="leak"))
    assert code_of(describe.decide, OWNER, in_quarantine, {}) == "QUARANTINED"


def test_a_version_is_what_it_was_after_the_end_of_its_withdrawal() -> None:
    row = version(yanked_at=MAY, yank_reason="wrong")
    assert withdraw.decide(NAME, row, "yank", "again") is None
    changes: list[Callable[[], StateChange | None]] = [
        lambda: withdraw.decide(NAME, row, "quarantine", "leak"),
        lambda: deletion.decide_deletion(OWNER, row, "unused"),
        lambda: deletion.decide_restore(NAME, row, "needed"),
        lambda: withdraw.decide(NAME, row, "unquarantine", "false alarm"),
    ]
    for decide in changes:
        change = decide()
        assert change is not None
        row.sqlmodel_update(dict(change.values))
    assert (row.yanked_at, row.quarantined_at, row.deleted_at, row.quarantine) == (MAY, None, None, 4)


def test_force_passes_over_all_but_aliases_and_the_last_version() -> None:
    needs = [Finding.of("error", code, "x", "x") for code in ("version.on_node", deletion.ALIAS_POINTS)]
    deletion.require_unneeded(NAME, version(), needs[:1], force=True)
    assert code_of(lambda: deletion.require_unneeded(NAME, version(), needs[:1], force=False)) == "VERSION_IN_USE"
    assert code_of(lambda: deletion.require_unneeded(NAME, version(), needs, force=True)) == "VERSION_IN_USE"


def base() -> BaseRow:
    row: dict[str, Any] = {"name": "llama", "fingerprint": FINGERPRINT}
    return BaseRow(**row)


def commit_of(manifest: Any) -> Commit:
    push: dict[str, Any] = {"id": "psh_1"}
    return Commit(CommitItem(push_id="psh_1"), PushRow(**push), NAME, "", manifest)


def committed(**facts: Any) -> VersionFacts:
    """An inspected push of a version that does not exist."""
    commit = commit_of(SimpleNamespace(digest=Digest.of(b"2")))
    findings = [Finding.of("error", "compat.shape", "x", "does not fit")] if facts.pop("is_unfit", False) else []
    inspection = None if facts.pop("is_lost", False) else Inspection("LORA", 8, {}, tuple(findings))
    inspected = InspectedCommit(commit, base(), inspection, error_without_version=LOST)
    return VersionFacts(
        **{"inspected": inspected, "existing": None, "is_candidate": True, "is_repeated": False, **facts}
    )


FINGERPRINT = Digest.of(b"base")
LOST = Conflict("UPLOAD_INCOMPLETE", "the bytes are gone")
FULL = TooLarge("QUOTA_EXCEEDED", "the namespace is full")
DELETED: dict[str, Any] = {"deleted_at": MAY, "deleted_by": "bo", "delete_reason": ""}


@pytest.mark.parametrize(
    ("of_push", "creates"),
    [
        (committed(), True),
        (committed(is_unfit=True), True),  # stored with a failing verdict
        (committed(existing=version(), is_candidate=False), False),
        (committed(existing=version(), is_candidate=False, is_lost=True), False),  # a racing commit was faster
        (committed(is_candidate=False, is_repeated=True), False),
    ],
)
def test_a_push_creates_its_version_once(of_push: VersionFacts, *, creates: bool) -> None:
    assert commit_decisions.creates_version(of_push) is creates


@pytest.mark.parametrize(
    ("of_push", "code"),
    [
        (committed(is_unfit=True, is_strict=True), "INCOMPATIBLE"),
        (committed(quota_error=FULL), "QUOTA_EXCEEDED"),
        (committed(is_candidate=False, is_lost=True), "UPLOAD_INCOMPLETE"),
        (committed(is_candidate=False, existing=version(**DELETED)), "VERSION_TOMBSTONED"),
    ],
)
def test_a_push_gets_an_error_instead(of_push: VersionFacts, code: str) -> None:
    assert code_of(commit_decisions.creates_version, of_push) == code


def test_bytes_that_may_not_be_read_any_more_must_be_sent() -> None:
    digest, llama = Digest.of(b"weights"), base()
    file = SimpleNamespace(path="adapter_model.safetensors", digest=digest, size_bytes=7)
    commit = commit_of(SimpleNamespace(files=[file], base=BaseRef(name="llama", fingerprint=FINGERPRINT)))
    taken_over = {digest: PushBlobRow(push_id="psh_1", digest=digest, size_bytes=7, is_stored=False)}
    of_push = CommitFacts(commit, taken_over, {"llama": llama}, stores_unregistered=False, readable={digest})
    assert commit_decisions.accept(of_push) is llama
    assert code_of(commit_decisions.accept, replace(of_push, readable=set())) == "UPLOAD_INCOMPLETE"
    assert code_of(commit_decisions.accept, replace(of_push, bases={})) == "BASE_UNKNOWN"
