"""How findings add up."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from registry.digest import Digest
from registry.evaluation.verdicts import FINDINGS_LIMIT, Check, Finding, Outcome, Severity, Verdict, add_up, summarise

SUBJECT = Digest.of(b"version")
BASE = str(Digest.of(b"base"))


def finding(severity: Severity, sentence: str = "a sentence") -> Finding:
    return Finding(code="compat.shape", severity=severity, place="x", sentence=sentence)


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
    assert summarise(found) == "e (and 1 more finding)"
    assert summarise([finding("info")]) == ""


def test_a_verdict_keeps_the_worst_findings_within_the_limit() -> None:
    many = [finding("warning")] * FINDINGS_LIMIT + [finding("error")]
    made = Verdict.of(Check.COMPAT, SUBJECT, "llama", BASE, many)
    assert (made.outcome, len(made.findings), made.findings[0].severity) == (Outcome.FAIL, FINDINGS_LIMIT, "error")


def test_a_verdict_survives_json() -> None:
    made = verdict(Check.SMOKE, "warning")
    assert Verdict.model_validate_json(made.model_dump_json()) == made


def test_values_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        finding("info").place = "y"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Finding.model_validate({"code": "a.b", "severity": "info", "place": "", "sentence": "", "extra": 1})
