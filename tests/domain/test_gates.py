"""What a gate asks for, and what counts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from registry.digest import Digest
from registry.evaluation.gates import Approval, Evidence, Gate, gate_of
from registry.evaluation.verdicts import Check, Verdict
from registry.findings import Finding, Severity

SUBJECT = Digest.of(b"version")
BASE = str(Digest.of(b"base"))
ENGINE = "vllm==0.33.0"


def verdict(check: Check, *severities: Severity, code: str = "compat.shape", profile: str = "") -> Verdict:
    findings = [Finding(code=code, severity=s, location="x", message="a sentence") for s in severities]
    return Verdict.of(check, SUBJECT, "llama", BASE, findings, profile=profile)


def codes(gate: Gate, *verdicts: Verdict, **more: object) -> list[str]:
    return [f.code for f in gate.missing(Evidence.model_validate({"verdicts": verdicts, **more}))]


def yes(*identities: str) -> tuple[Approval, ...]:
    return tuple(Approval(identity=identity, at=datetime(2026, 5, 3, tzinfo=UTC)) for identity in identities)


def test_an_open_gate_is_missing_nothing() -> None:
    assert codes(gate_of("prod"), verdict(Check.COMPAT), verdict(Check.SMOKE, "warning")) == []
    assert not gate_of("main").missing(Evidence())


def test_a_gate_responds_with_all_that_is_missing() -> None:
    assert codes(gate_of("prod"), verdict(Check.COMPAT)) == ["gate.smoke_absent"]
    assert codes(gate_of("prod")) == ["gate.compat_absent", "gate.smoke_absent"]
    assert "the check 'smoke'" in gate_of("prod").missing(Evidence())[1].message


@pytest.mark.parametrize("severity", ["error", "unknown"])
def test_no_gate_takes_fail_or_unknown_for_a_yes(severity: Severity) -> None:
    outcome = "fail" if severity == "error" else "unknown"
    assert codes(Gate(requires=(Check.COMPAT,)), verdict(Check.COMPAT, severity)) == [f"gate.compat_{outcome}"]


def test_numbers_that_are_none_shut_every_gate_that_asks_for_anything() -> None:
    compat, broken = verdict(Check.COMPAT), verdict(Check.WEIGHTS, "error")
    assert codes(gate_of("canary"), compat, broken) == ["gate.weights_fail"]
    assert codes(Gate(approvals=1), broken, approvals=yes("bob")) == ["gate.weights_fail"]
    assert codes(gate_of("canary"), compat, verdict(Check.WEIGHTS, "warning")) == []
    assert codes(gate_of("canary"), compat) == []  # large weights are measured some seconds after their push
    assert codes(gate_of("main"), compat, broken) == []  # a name for the newest push, not a stage
    assert codes(Gate(requires=(Check.WEIGHTS,)), compat) == ["gate.weights_absent"]


def test_the_newest_verdict_of_a_check_decides() -> None:
    gate, good, bad = Gate(requires=(Check.COMPAT,)), verdict(Check.COMPAT), verdict(Check.COMPAT, "error")
    assert codes(gate, bad, good) == []
    assert codes(gate, good, bad) == ["gate.compat_fail"]


def test_an_alias_without_a_gate_of_its_own_asks_that_the_adapter_fits() -> None:
    assert codes(gate_of("canary")) == ["gate.compat_absent"]


def test_a_gate_names_an_engine_by_its_profile() -> None:
    gate = Gate(engines=(ENGINE,))
    other = verdict(Check.ENGINE, profile="vllm==0.29.0")
    assert codes(gate, engines=[other]) == ["gate.engine_absent"]
    assert codes(gate, engines=[other, verdict(Check.ENGINE, "unknown", profile=ENGINE)]) == ["gate.engine_unknown"]
    assert codes(gate, engines=[verdict(Check.ENGINE, profile=ENGINE)]) == []


def test_golden_samples_must_be_there_and_all_pass() -> None:
    gate, smoke = Gate(golden=True), verdict(Check.SMOKE)
    assert codes(gate, smoke) == ["gate.golden_absent"]
    assert codes(gate, files=["golden.jsonl"]) == ["gate.smoke_absent"]
    missed = verdict(Check.SMOKE, "warning", code="smoke.golden_missed")
    assert codes(gate, missed, files=["golden.jsonl"]) == ["gate.golden_missed"]
    assert codes(gate, smoke, files=["golden.jsonl"]) == []


def test_approvals_count_each_identity_once_and_never_the_pusher() -> None:
    gate = Gate(approvals=2)
    assert codes(gate, approvals=yes("bob", "bob"), pushed_by=["ci"]) == ["gate.approvals_missing"]
    assert codes(gate, approvals=yes("bob", "ci"), pushed_by=["ci"]) == ["gate.approvals_missing"]
    assert codes(gate, approvals=yes("bob", "eve"), pushed_by=["ci"]) == []
    named = Gate(approvals=2, approvers=("bob", "ann", "kim"))
    assert codes(named, approvals=yes("bob", "eve")) == ["gate.approvals_missing"]
    assert codes(named, approvals=yes("bob", "eve", "kim")) == []


def test_time_at_another_alias_and_signatures() -> None:
    soak = Gate(soak_in="canary", soak_seconds=3600)
    assert codes(soak, soak_seconds={"canary": 3599, "beta": 9999}) == ["gate.soak_short"]
    assert codes(soak, soak_seconds={"canary": 3600}) == []
    signed = Gate(signed_by=("key:aa", "key:bb"))
    assert codes(signed, signed_by=["key:cc"]) == ["gate.signature_absent"]
    assert codes(signed, signed_by=["key:bb", "key:cc"]) == []


@pytest.mark.parametrize(
    "gate",
    [
        {"approvals": 3, "approvers": ["a", "b", "b"]},
        {"soak_in": "canary"},
        {"soak_seconds": 5},
        {"requires": ["engine"]},
        {"approvals": -1},
    ],
)
def test_a_gate_that_can_never_open_is_none(gate: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Gate.model_validate(gate)


def test_a_gate_may_ask_for_a_pass_without_warnings() -> None:
    gate = Gate(passes=(Check.COMPAT,))
    assert codes(gate, verdict(Check.COMPAT, "warning")) == ["gate.compat_warn"]
    assert codes(gate) == ["gate.compat_absent"]
    assert codes(gate, verdict(Check.COMPAT)) == []
    with pytest.raises(ValidationError):
        Gate(passes=(Check.ENGINE,))


@pytest.mark.security
def test_two_persons_are_needed_where_the_gate_says_so() -> None:
    gate = Gate(approvals=1, two_person=True)
    assert codes(gate, approvals=yes("bob"), promoted_by="bob") == ["gate.approvals_missing"]
    assert codes(gate, approvals=yes("bob", "eve"), promoted_by="bob") == []
    assert codes(gate, approvals=yes("ci"), pushed_by=["ci"], promoted_by="bob") == ["gate.approvals_missing"]
    assert codes(Gate(approvals=1), approvals=yes("bob"), promoted_by="bob") == []
    with pytest.raises(ValidationError, match="at least one approval"):
        Gate(two_person=True)
