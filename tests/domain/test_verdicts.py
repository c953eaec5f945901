"""How findings add up, and what a gate still asks for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from registry.digest import Digest
from registry.verdicts import (
    FINDINGS_LIMIT,
    Check,
    Finding,
    Gate,
    Outcome,
    Severity,
    Verdict,
    add_up,
    gate_of,
    summarise,
)

SUBJECT = Digest.of(b"version")
BASE = str(Digest.of(b"base"))


def finding(severity: Severity, sentence: str = "a sentence") -> Finding:
    return Finding(code="fit.shape", severity=severity, place="x", sentence=sentence)


def verdict(check: Check, *severities: Severity) -> Verdict:
    return Verdict.of(check, SUBJECT, "llama", BASE, [finding(s) for s in severities])


@pytest.mark.parametrize(
    ("severities", "outcome"),
    [
        ([], Outcome.PASS),
        (["info"], Outcome.PASS),
        (["info", "warning"], Outcome.WARN),
        (["warning", "unknown"], Outcome.UNKNOWN),
        (["unknown", "error", "info"], Outcome.FAIL),
    ],
)
def test_findings_add_up_by_the_worst(severities: list[Severity], outcome: Outcome) -> None:
    assert add_up([finding(s) for s in severities]) is outcome


def test_a_summary_is_the_worst_finding_and_how_many_more() -> None:
    found = [finding("info"), finding("warning", "w"), finding("error", "e")]
    assert summarise(found) == "e (and 1 more findings)"
    assert summarise([finding("info")]) == ""


def test_a_verdict_keeps_the_worst_findings_within_the_limit() -> None:
    many = [finding("warning")] * FINDINGS_LIMIT + [finding("error")]
    made = Verdict.of(Check.FITS, SUBJECT, "llama", BASE, many)
    assert (made.outcome, len(made.findings), made.findings[0].severity) == (Outcome.FAIL, FINDINGS_LIMIT, "error")


def test_a_verdict_survives_json() -> None:
    made = verdict(Check.ACTS, "warning")
    assert Verdict.model_validate_json(made.model_dump_json()) == made


def test_an_open_gate_is_missing_nothing() -> None:
    prod = gate_of("prod")
    assert prod.open_for([verdict(Check.FITS), verdict(Check.ACTS, "warning")])
    assert gate_of("main").open_for([])


def test_a_gate_answers_with_what_is_missing() -> None:
    missing = gate_of("prod").missing([verdict(Check.FITS)])
    assert [f.code for f in missing] == ["gate.acts_absent"]
    assert "adapter validate" in missing[0].sentence


@pytest.mark.parametrize("severity", ["error", "unknown"])
def test_no_gate_takes_fail_or_unknown_for_a_yes(severity: Severity) -> None:
    gate = Gate(requires=(Check.FITS,))
    missing = gate.missing([verdict(Check.FITS, severity)])
    assert [f.code for f in missing] == [f"gate.fits_{'fail' if severity == 'error' else 'unknown'}"]


def test_numbers_that_are_none_shut_every_gate_that_asks_for_anything() -> None:
    fits, broken = verdict(Check.FITS), verdict(Check.VALUES, "error")
    assert [f.code for f in gate_of("canary").missing([fits, broken])] == ["gate.values_fail"]
    assert gate_of("canary").open_for([fits, verdict(Check.VALUES, "warning")])
    assert gate_of("canary").open_for([fits])  # large weights are measured some seconds after their push
    assert gate_of("main").open_for([fits, broken])  # a name for the newest push, not a channel
    assert [f.code for f in Gate(requires=(Check.VALUES,)).missing([fits])] == ["gate.values_absent"]


def test_the_newest_verdict_of_a_check_decides() -> None:
    gate = Gate(requires=(Check.FITS,))
    assert gate.open_for([verdict(Check.FITS, "error"), verdict(Check.FITS)])
    assert not gate.open_for([verdict(Check.FITS), verdict(Check.FITS, "error")])


def test_an_alias_without_a_gate_of_its_own_asks_that_the_adapter_fits() -> None:
    assert not gate_of("canary").open_for([])
    assert gate_of("canary").open_for([verdict(Check.FITS)])


def test_values_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        finding("info").place = "y"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Finding.model_validate({"code": "a.b", "severity": "info", "place": "", "sentence": "", "extra": 1})
