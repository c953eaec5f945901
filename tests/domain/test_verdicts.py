"""How findings add up."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from registry.digest import Digest
from registry.evaluation.verdicts import (
    FINDINGS_LIMIT,
    FINDINGS_TEXT_LIMIT,
    Check,
    Outcome,
    Verdict,
    add_up,
    summarize,
)
from registry.findings import Finding, Severity

SUBJECT = Digest.of(b"version")
BASE = str(Digest.of(b"base"))


def finding(severity: Severity, message: str = "a sentence") -> Finding:
    return Finding(code="compat.shape", severity=severity, location="x", message=message)


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
    findings = [finding("info"), finding("warning", "w"), finding("error", "e")]
    assert summarize(findings) == "e (and 1 more finding)"
    assert summarize([finding("info")]) == ""


def test_a_verdict_keeps_the_worst_findings_within_the_limit() -> None:
    many = [finding("warning")] * FINDINGS_LIMIT + [finding("error")]
    verdict = Verdict.of(Check.COMPAT, SUBJECT, "llama", BASE, many)
    assert (verdict.outcome, len(verdict.findings), verdict.findings[0].severity) == (
        Outcome.FAIL,
        FINDINGS_LIMIT,
        "error",
    )


@pytest.mark.security
def test_the_findings_of_a_verdict_are_small_together() -> None:
    """A page of versions has the verdicts of 200: long findings made responses of hundreds of megabytes."""
    long = Finding("smoke.no_effect", "x" * 600, "m" * 2000, "error", "e" * 600, "a" * 600)
    verdict = Verdict.of(Check.SMOKE, SUBJECT, "llama", BASE, [finding("warning"), *[long] * 100])
    assert (verdict.outcome, {f.severity for f in verdict.findings}) == (Outcome.FAIL, {"error"})
    size = len(verdict.model_dump_json())
    assert FINDINGS_TEXT_LIMIT - 8000 < size < FINDINGS_TEXT_LIMIT + 8000
    assert verdict.summary.endswith("(and 100 more findings)")


def test_a_verdict_survives_json() -> None:
    smoke_verdict = verdict(Check.SMOKE, "warning")
    assert Verdict.model_validate_json(smoke_verdict.model_dump_json()) == smoke_verdict


def test_values_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(FrozenInstanceError):
        finding("info").location = "y"  # type: ignore[misc]
    stored = verdict(Check.COMPAT, "info").model_dump(mode="json")
    with pytest.raises(ValueError, match="extra"):
        Verdict.model_validate(stored | {"extra": 1})
    for wrong in ({"code": "no code"}, {"severity": "odd"}, {"message": 1}):
        with pytest.raises(ValueError, match="findings"):
            Verdict.model_validate(stored | {"findings": [stored["findings"][0] | wrong]})


def test_texts_of_a_finding_are_cut_to_their_limits() -> None:
    stored = verdict(Check.COMPAT, "info").model_dump(mode="json")
    long = {"location": "l" * 601, "message": "m" * 2001, "actual": "a" * 601}
    (cut,) = Verdict.model_validate(stored | {"findings": [stored["findings"][0] | long]}).findings
    assert (len(cut.location), len(cut.message), len(cut.actual)) == (600, 2000, 600)
