"""Gates that somebody has set, approvals, the broken glass, and quarantine."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from registry.api.transfer import PushRequest
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.errors import Denied, Invalid, NotFound, Refused, RegistryError
from registry.evaluation.gates import Gate
from registry.evaluation.verdicts import Check
from registry.server.database import db
from registry.server.database.models import AliasMoveRow, EventRow
from registry.server.promotion import approvals
from tests import samples
from tests.bulk import plan_push
from tests.harness import Harness, rows

NAME = "acme/support"
ENGINE = "vllm==0.33.0"


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    """Two versions, both pushed by the token `ci`."""
    harness.add_base()
    ci = harness.actor("push", namespaces=["acme"], name="ci")
    harness.push(NAME, by=ci)
    harness.push(NAME, by=ci)
    return harness


def promoter(harness: Harness, name: str) -> Registry:
    return harness.actor("promote", namespaces=["acme"], name=name)


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(RegistryError) as caught:
        act()
    return caught.value.code


def missing(registry: Registry, alias: str = "prod", version: str = "1") -> list[str]:
    with pytest.raises(Refused) as caught:
        registry.promote(NAME, alias, version, generation=0)
    assert caught.value.code == "GATE_CLOSED"
    return [reason.code for reason in caught.value.findings]


def test_the_next_step_is_about_the_check_that_failed(harness: Harness) -> None:
    """Its smoke test is missing, too, and would not help."""
    harness.add_base()
    files = harness.files()
    tensors = samples.tensors_of(files[samples.WEIGHTS])
    name, (dtype, shape, _) = next(iter(tensors.items()))
    tensors[name] = (dtype, shape, samples.constant(dtype, shape, math.nan))
    harness.push(NAME, files | {samples.WEIGHTS: samples.safetensors(tensors)})
    closed = harness.admin.check_gate(f"{NAME}@1", "prod")
    assert [finding.code for finding in closed.missing] == ["gate.smoke_absent", "gate.weights_fail"]
    assert closed.next_step == f"look at `adapter show {NAME}@1`"


def test_a_namespace_sets_a_gate_and_an_adapter_its_own(filled_harness: Harness) -> None:
    assert filled_harness.admin.gate(NAME, "prod").gate == Gate(requires=(Check.COMPAT, Check.SMOKE))
    filled_harness.admin.set_gate("acme", "prod", Gate(approvals=1))
    shown, closed = filled_harness.admin.gate(NAME, "prod"), filled_harness.admin.check_gate(f"{NAME}@1", "prod")
    assert (closed.open, closed.next_step) == (False, f"run `adapter approve {NAME}@1 prod`")
    assert (shown.set_on, shown.gate.approvals, shown.set_by) == ("acme", 1, "token:admin")
    filled_harness.admin.set_gate(NAME, "prod", Gate(requires=(Check.COMPAT,)))
    assert filled_harness.admin.gate(NAME, "prod").set_on == NAME
    assert [view.alias for view in filled_harness.admin.gates(NAME).items] == ["prod"]
    assert filled_harness.admin.check_gate(f"{NAME}@1", "prod").open
    assert filled_harness.admin.promote(NAME, "prod", "1", generation=0).generation == 1
    assert filled_harness.admin.delete_gate(NAME, "prod").set_on == "acme"
    for _ in range(2):
        assert filled_harness.admin.delete_gate("acme", "prod").set_on == ""
    with filled_harness.session() as session:
        events = [(row.action, row.object) for row in rows(session, EventRow) if row.action.startswith("gate.")]
    objects = ["acme:prod", f"{NAME}:prod", f"{NAME}:prod", "acme:prod"]
    assert events == list(zip(["gate.set"] * 2 + ["gate.delete"] * 2, objects, strict=True))


def test_only_owners_set_gates_and_main_has_none(filled_harness: Harness) -> None:
    bob = promoter(filled_harness, "bob")
    outsider = filled_harness.actor("admin", namespaces=["globex"])
    for location in ("acme", NAME):
        with pytest.raises(Denied):
            bob.set_gate(location, "prod", Gate())
        with pytest.raises(NotFound):
            outsider.set_gate(location, "prod", Gate())
        with pytest.raises(NotFound):
            outsider.gate(location, "prod")
    assert code_of(lambda: filled_harness.admin.set_gate("acme", "main", Gate(approvals=1))) == "GATE_CLOSED"
    assert (
        code_of(lambda: filled_harness.admin.set_gate("acme", "prod", Gate(engines=("what is this",))))
        == "REQUEST_INVALID"
    )


@pytest.mark.security
def test_two_person_prevents_approving_and_promoting_alone(filled_harness: Harness) -> None:
    filled_harness.admin.set_gate("acme", "prod", Gate(approvals=1, two_person=True))
    bob, eve = promoter(filled_harness, "bob"), promoter(filled_harness, "eve")
    for approve in (lambda: None, lambda: bob.approve(f"{NAME}@1", "prod")):
        approve()
        with pytest.raises(Refused) as closed:
            bob.promote(NAME, "prod", "1", generation=0)
        step = f"ask someone else who may promote to run `adapter approve {NAME}@1 prod`"
        assert (closed.value.code, closed.value.next_step) == ("GATE_CLOSED", step)
    assert missing(bob) == ["gate.approvals_missing"]
    assert eve.promote(NAME, "prod", "1", generation=0).number == 1


@pytest.mark.security
def test_an_identity_approves_a_version_for_a_limited_number_of_aliases(
    filled_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approvals, "ALIASES_LIMIT", 2)
    bob, eve = promoter(filled_harness, "bob"), promoter(filled_harness, "eve")
    for alias in ("one", "two", "two"):
        bob.approve(f"{NAME}@1", alias)
    assert code_of(lambda: bob.approve(f"{NAME}@1", "three")) == "QUOTA_EXCEEDED"
    bob.approve(f"{NAME}@2", "three")
    eve.approve(f"{NAME}@1", "three")
    assert [(a.identity, a.alias) for a in eve.approvals(f"{NAME}@1").items] == [
        ("token:bob", "one"), ("token:bob", "two"), ("token:eve", "three")
    ]  # fmt: skip


@pytest.mark.security
def test_a_version_has_a_limited_number_of_approvals(filled_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reader of the list gets all: one owner could approve by any number of tokens."""
    monkeypatch.setattr(approvals, "APPROVALS_LIMIT", 2)
    bob, eve = promoter(filled_harness, "bob"), promoter(filled_harness, "eve")
    bob.approve(f"{NAME}@1", "one")
    eve.approve(f"{NAME}@1", "one")
    assert code_of(lambda: eve.approve(f"{NAME}@1", "two")) == "QUOTA_EXCEEDED"
    eve.approve(f"{NAME}@1", "one")  # it is there
    eve.approve(f"{NAME}@2", "two")
    assert len(bob.approvals(f"{NAME}@1").items) == 2


@pytest.mark.security
def test_the_gate_of_a_namespace_counts_for_an_adapter_that_moves_into_it(filled_harness: Harness) -> None:
    admin = filled_harness.admin
    admin.set_gate(NAME, "prod", Gate())
    admin.set_gate(NAME, "canary", Gate(approvals=1))
    admin.create_namespace("globex")
    admin.set_gate("globex", "prod", Gate(approvals=2))
    admin.rename(NAME, "globex/moved")
    assert (admin.gate("globex/moved", "prod").set_on, admin.gate("globex/moved", "prod").gate.approvals) == (
        "globex",
        2,
    )
    assert admin.gate("globex/moved", "canary").gate.approvals == 1
    [event] = Audit(admin).events(action=["gate.delete"])
    assert (event.object, event.detail["alias"]) == ("globex/moved:prod", "prod")


def test_approvals_open_a_gate_and_are_kept_with_the_move(filled_harness: Harness) -> None:
    filled_harness.admin.set_gate("acme", "prod", Gate(approvals=2))
    bob, eve = promoter(filled_harness, "bob"), promoter(filled_harness, "eve")
    ci = filled_harness.actor("push", "promote", namespaces=["acme"], name="ci")
    assert ci.approve(f"{NAME}@1", "prod").counts is False, "whoever pushed it"
    assert bob.approve(f"{NAME}@1", "prod", "looks good").counts
    bob.approve(f"{NAME}@1", "prod")
    eve.approve(f"{NAME}@1", "canary")
    eve.approve(f"{NAME}@2", "prod")
    assert missing(bob) == ["gate.approvals_missing"]
    eve.approve(f"{NAME}@1", "prod")
    bob.promote(NAME, "prod", "1", generation=0)
    move = filled_harness.admin.history(NAME, alias="prod").moves[0]
    assert {e["by"] for e in move.evidence if e["check"] == "approval"} == {"token:bob", "token:eve"}
    filled_harness.admin.set_gate("acme", "prod", Gate(approvals=1, approvers=("token:eve",)))
    listed = {a.identity: a.counts for a in bob.approvals(f"{NAME}@1").items if a.alias == "prod"}
    assert listed == {"token:ci": False, "token:bob": False, "token:eve": True}, "bob is not asked any more"
    assert bob.approve(f"{NAME}@1", "prod").counts is False
    assert (move.actor, bool(move.token_id), move.broke_glass) == ("token:bob", True, [])
    with pytest.raises(Denied):
        filled_harness.actor("push", namespaces=["acme"]).approve(f"{NAME}@1", "prod")


def test_a_gate_on_an_engine_and_on_soak_time_in_another_alias(filled_harness: Harness) -> None:
    gate = Gate(engines=(ENGINE,), soak_in="canary", soak_seconds=60)
    filled_harness.admin.set_gate(NAME, "prod", gate)
    assert missing(filled_harness.admin) == ["gate.soak_short"]
    filled_harness.admin.promote(NAME, "canary", "1", generation=0)
    with filled_harness.session(write=True) as session:
        [move] = [row for row in rows(session, AliasMoveRow) if row.alias == "canary"]
        move.at = db.now() - timedelta(seconds=61)
        session.add(move)
    filled_harness.admin.promote(NAME, "prod", "1", generation=0)
    checks = {e["check"] for e in filled_harness.admin.history(NAME, alias="prod").moves[0].evidence}
    assert checks == {"engine", "soak"}


def test_break_glass_needs_an_owner_and_a_reason_and_is_marked_in_history(filled_harness: Harness) -> None:
    filled_harness.admin.set_gate("acme", "prod", Gate(approvals=2, golden=True))

    def smash(by: Registry, reason: str = "the site is down") -> object:
        return by.promote(NAME, "prod", "1", generation=0, reason=reason, break_glass=True)

    with pytest.raises(Denied):
        smash(promoter(filled_harness, "bob"))
    with pytest.raises(Invalid):
        smash(filled_harness.admin, " ")
    smash(filled_harness.admin)
    [move] = filled_harness.admin.history(NAME, alias="prod").moves
    assert move.broke_glass == ["gate.smoke_absent", "gate.golden_absent", "gate.approvals_missing"]
    assert "golden" not in [item["check"] for item in move.evidence], "what was not there is no evidence"
    with filled_harness.session() as session:
        [event] = [
            row for row in rows(session, EventRow) if row.object == f"{NAME}:prod" and row.action == "alias.move"
        ]
    assert event.detail["break_glass"] == move.broke_glass
    filled_harness.admin.yank(f"{NAME}@2", "leaks")
    with pytest.raises(Refused):
        filled_harness.admin.promote(NAME, "prod", "2", generation=1, reason="still down", break_glass=True)


# ------------------------------------------------------------------ quarantine
def test_only_promoters_read_a_quarantined_version_by_its_digest(
    filled_harness: Harness,
) -> None:
    reader, bob = filled_harness.actor("pull", namespaces=["acme"], name="reader"), promoter(filled_harness, "bob")
    digest = filled_harness.admin.version(f"{NAME}@1").digest
    filled_harness.admin.promote(NAME, "canary", "1", generation=0)
    file = f"/adapters/{NAME}/versions/{{}}/files/adapter_config.json"
    view = bob.quarantine(f"{NAME}@1", "poisoned")
    assert (view.quarantine_reason, bob.quarantine(f"{NAME}@1", "again").quarantine_reason) == ("poisoned",) * 2
    for selector in ("canary", "1", digest):
        assert code_of(partial(reader.connection.send, "GET", f"/resolve/{NAME}/{selector}")) == "QUARANTINED"
        assert code_of(partial(reader.connection.send, "GET", file.format(selector))) == "QUARANTINED"
    assert code_of(lambda: bob.connection.send("GET", f"/resolve/{NAME}/1")) == "QUARANTINED"
    assert bob.connection.send("GET", f"/resolve/{NAME}/{digest}").status == 200
    assert bob.connection.send("GET", file.format(digest)).status == 200
    assert reader.version(f"{NAME}@1").quarantined_at is not None, "that it is withdrawn is seen"
    assert filled_harness.admin.desired_state("tiny-llama", "canary").adapters == []


def test_a_push_of_the_same_files_under_another_name_does_not_bypass_a_quarantine(filled_harness: Harness) -> None:
    """Whoever sees a version's manifest knows what its files hash to; their bytes must come from the pusher then."""
    ci = filled_harness.actor("push", namespaces=["acme"], name="ci")
    request = PushRequest(manifest=filled_harness.admin.resolve(f"{NAME}@1").manifest)
    assert plan_push(ci, "acme/copy", request).uploads == []
    filled_harness.admin.quarantine(f"{NAME}@1", "poisoned")
    both = {file.digest for version in ("1", "2") for file in filled_harness.admin.version(f"{NAME}@{version}").files}
    uploads = plan_push(ci, "acme/around", request).uploads
    assert {upload.digest for upload in uploads} == both - {
        f.digest for f in filled_harness.admin.version(f"{NAME}@2").files
    }
    filled_harness.admin.unquarantine(f"{NAME}@1", "a false alarm")
    assert plan_push(ci, "acme/later", request).uploads == []


def test_a_quarantined_version_cannot_change_until_the_quarantine_ends(filled_harness: Harness) -> None:
    filled_harness.admin.promote(NAME, "canary", "1", generation=0)
    filled_harness.admin.promote(NAME, "canary", "2", generation=1)
    filled_harness.admin.quarantine(f"{NAME}@1", "reported")
    for act in (
        lambda: filled_harness.admin.promote(NAME, "beta", "1", generation=0),
        lambda: filled_harness.admin.promote(NAME, "beta", "1", generation=0, reason="x", break_glass=True),
        lambda: filled_harness.admin.yank(f"{NAME}@1", "x"),
        lambda: filled_harness.admin.approve(f"{NAME}@1", "prod"),
        lambda: filled_harness.admin.rollback(NAME, "canary", to="1"),
    ):
        assert code_of(act) == "QUARANTINED"
    assert code_of(lambda: filled_harness.admin.rollback(NAME, "canary")) == "VERSION_UNKNOWN"
    with pytest.raises(Denied):
        promoter(filled_harness, "bob").unquarantine(f"{NAME}@1", "fine")
    assert filled_harness.admin.unquarantine(f"{NAME}@1", "looked at").quarantined_at is None
    assert filled_harness.admin.rollback(NAME, "canary").number == 1
    assert filled_harness.admin.resolve(f"{NAME}:canary").number == 1
    with filled_harness.session() as session:
        actions = [row.action for row in rows(session, EventRow) if row.object == f"{NAME}@1" and "." in row.action]
    assert actions.count("version.quarantine") == actions.count("version.unquarantine") == 1
