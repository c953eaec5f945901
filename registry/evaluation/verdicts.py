"""`Verdict`: evaluation as data, and how findings add up.

    Verdict   check × subject (a version's digest) × base fingerprint → pass, warn, fail or unknown

The worst finding decides: an error makes `fail`, an unknown `unknown`, a warning `warn`, anything else `pass`.
`unknown` means that the evidence is not enough; a gate that requires the check stays closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from itertools import accumulate
from typing import Any

from pydantic import Field

from registry.digest import Digest
from registry.findings import Finding
from registry.model import FrozenModel

PROFILE_LIMIT = 400
"""Letters of an engine's profile, such as `vllm==0.33.0,max_lora_rank=32`."""
WEIGHTS_PENDING = "gate.weights_pending"
"""The finding of a gate whose version has large weights that are not read yet."""
FINDINGS_LIMIT = 200
"""Findings kept per verdict; `summary` counts the rest, so the response about a million wrong tensors stays small."""
FINDINGS_TEXT_LIMIT = 64 * 2**10
"""Characters of all findings kept per verdict: a page of versions has the verdicts of 200."""


class Check(StrEnum):
    """What a verdict is about.

    `compat`: the header fits the base. `weights`: the numbers are finite, not zero, not huge. `engine`: a serving
    engine serves it as trained. `smoke`: it works on the base.
    """

    COMPAT = "compat"
    WEIGHTS = "weights"
    ENGINE = "engine"
    SMOKE = "smoke"


class Outcome(StrEnum):
    """Outcome of a check. `unknown`: the evidence is not enough, and a gate that requires the check stays closed."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


def add_up(findings: Iterable[Finding]) -> Outcome:
    """The worst of the findings: error, then unknown, then warning. No findings pass."""
    severities = {f.severity for f in findings}
    if "error" in severities:
        return Outcome.FAIL
    if "unknown" in severities:
        return Outcome.UNKNOWN
    return Outcome.WARN if "warning" in severities else Outcome.PASS


class Verdict(FrozenModel):
    """The stored result of one check on one version and one base.

    `profile` is `engine==version,setting=…` for `engine`, and empty for every other check.
    `made_by` names the tools and their versions; a newer tool renews the verdict. `reported_by` is whose token reported
    it, empty for the server. `by_owner`: the namespace's own worker reported it, not the registry's.
    """

    check: Check
    """Which check: `compat` (header fits the base), `weights` (numbers), `engine` (a serving engine), `smoke` (a
    run)."""
    subject: Digest
    """Digest of the version that was checked."""
    base: str
    """Name of the base model, such as `llama-3.1-8b`."""
    base_fingerprint: str
    """Digest of the architecture of the base: tensor names, shapes, and what changes the computation."""
    profile: str = ""
    """Engine with version and settings: `vllm==0.33.0,max_lora_rank=32`. Empty if there is none."""
    outcome: Outcome
    """`pass`, `warn`, `fail`, or `unknown` if the evidence is not enough."""
    findings: tuple[Finding, ...] = Field(default=(), max_length=FINDINGS_LIMIT)
    """The worst findings, at most 200; `summary` counts the rest."""
    summary: str = Field(default="", max_length=2000)
    """The first of the worst findings, and how many more there are."""
    report: Digest | None = None
    """Digest of the full report; null if the server made the verdict."""
    made_by: dict[str, str] = {}
    """Tool → version that made it. A newer tool renews the verdict."""
    made_at: datetime | None = None
    """When it was made."""
    reported_by: str = ""
    """Identity of the worker whose report decided it; empty for the server."""
    by_owner: bool = False
    """Whether a worker of the namespace reported it, rather than one of the registry."""

    @classmethod
    def of(
        cls, check: Check, subject: Digest, base: str, base_fingerprint: str, findings: Sequence[Finding], **rest: Any
    ) -> Verdict:
        """A verdict whose outcome is what the findings add up to."""
        return cls(
            check=check,
            subject=subject,
            base=base,
            base_fingerprint=base_fingerprint,
            outcome=add_up(findings),
            findings=_worst(findings),
            summary=summarize(findings),
            **rest,
        )


def _worst(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings for which a verdict has space, the worst first."""
    ordered = sorted(findings, key=lambda f: _ORDER[f.severity])[:FINDINGS_LIMIT]
    sizes = accumulate(sum(map(len, finding.to_dict().values())) for finding in ordered)
    return tuple(finding for finding, size in zip(ordered, sizes, strict=True) if size <= FINDINGS_TEXT_LIMIT)


_ORDER: dict[str, int] = {"error": 0, "unknown": 1, "warning": 2, "info": 3}


def summarize(findings: Sequence[Finding]) -> str:
    """The message of the first of the worst findings, and how many more there are."""
    worst = sorted((f for f in findings if f.severity != "info"), key=lambda f: _ORDER[f.severity])
    if not worst:
        return ""
    more = len(worst) - 1
    return worst[0].message[:1500] + (f" (and {more} more finding{'s' * (more > 1)})" if more else "")
