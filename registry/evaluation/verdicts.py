"""`Finding` and `Verdict`: evaluation as data, and how findings add up.

    Finding   one observation: code, severity, location, message; the expected and the actual value
    Verdict   check × subject (a version's digest) × base fingerprint → pass, warn, fail or unknown

The worst finding decides: an error makes `fail`, an unknown `unknown`, a warning `warn`, anything else `pass`.
`unknown` means that the evidence is not enough; a gate that requires the check stays closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from registry.digest import Digest
from registry.model import FrozenModel

PROFILE_LIMIT = 400
"""Letters of an engine's profile, such as `vllm==0.33.0,max_lora_rank=32`."""
FINDINGS_LIMIT = 200
"""Findings kept per verdict; `summary` counts the rest, so a million wrong tensors stay a small answer."""


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
    PASS = "pass"  # noqa: S105 - a verdict, not a password
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


Severity = Literal["error", "warning", "info", "unknown"]


class Finding(FrozenModel):
    """One observation. `location` is a tensor, a field or a file; `expected` and `actual` are printable."""

    code: str = Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$", max_length=100)
    severity: Severity
    location: str = Field(max_length=600)
    message: str = Field(max_length=2000)
    expected: str = Field(default="", max_length=600)
    actual: str = Field(default="", max_length=600)

    @classmethod
    def of(
        cls, severity: Severity, code: str, location: str, message: str, expected: object = "", actual: object = ""
    ) -> Finding:
        """A finding whose texts are cut to their limits."""
        return cls(
            code=code, severity=severity, location=location[:600], message=message[:2000],
            expected=str(expected)[:600], actual=str(actual)[:600],
        )  # fmt: skip


def convert_old_finding(stored: Any) -> Any:
    """A finding as schemas 0014 and 0019 stored it, with the names of today. Reports and records never change."""
    if not isinstance(stored, dict):
        return stored
    renamed = {_OLD_FIELDS.get(key, key): value for key, value in stored.items()}
    return renamed | {"code": convert_old_code(str(stored.get("code", "")))}


def convert_old_code(code: str) -> str:
    """The code of today for one that schemas 0014 or 0019 stored."""
    family, dot, rest = code.partition(".")
    code = _OLD_FAMILIES.get(family, family) + dot + rest
    return _OLD_CODES.get(code, code)


_OLD_FIELDS = {"place": "location", "sentence": "message", "found": "actual"}
_OLD_FAMILIES = {"acts": "smoke", "fit": "compat", "values": "weights"}
_OLD_CODES = {
    "compat.method_unjudged": "compat.method_not_judged",
    "compat.module_unannounced": "compat.module_not_targeted",
    "compat.unties": "compat.embeddings_untied",
    "format.gguf_no_adapter": "format.gguf_not_adapter",
    "lora.magnitude_unannounced": "lora.magnitude_without_dora",
    "lora.prefix_wrong": "lora.prefix_invalid",
    "lora.rank_unannounced": "lora.rank_differs_from_config",
    "smoke.does_not_fit": "smoke.incompatible",
    "smoke.golden_endless": "smoke.golden_not_ended",
    "smoke.golden_unasked": "smoke.golden_skipped",
    "smoke.picture_not_finite": "smoke.image_not_finite",
    "smoke.picture_unchanged": "smoke.image_unchanged",
}


def add_up(findings: Iterable[Finding]) -> Outcome:
    """The worst of the findings: error, then unknown, then warning. No findings pass."""
    severities = {f.severity for f in findings}
    if "error" in severities:
        return Outcome.FAIL
    if "unknown" in severities:
        return Outcome.UNKNOWN
    return Outcome.WARN if "warning" in severities else Outcome.PASS


class Verdict(FrozenModel):
    """The stored judgment of one check on one version and one base.

    `profile` is `engine==version,setting=…` for `engine`, and empty for every other check.
    `made_by` names the tools and their versions; a newer tool renews the verdict. `judged_by` is whose token reported
    it, empty for the server. `by_owner`: the namespace's own worker judged, not the registry's.
    """

    check: Check
    subject: Digest
    base: str
    base_fingerprint: str
    profile: str = ""
    outcome: Outcome
    findings: tuple[Finding, ...] = Field(default=(), max_length=FINDINGS_LIMIT)
    summary: str = Field(default="", max_length=2000)
    report: Digest | None = None
    made_by: dict[str, str] = Field(default_factory=dict)
    made_at: datetime | None = None
    judged_by: str = ""
    by_owner: bool = False

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
            findings=tuple(sorted(findings, key=lambda f: _ORDER[f.severity])[:FINDINGS_LIMIT]),
            summary=summarize(findings),
            **rest,
        )


_ORDER: dict[str, int] = {"error": 0, "unknown": 1, "warning": 2, "info": 3}


def summarize(findings: Sequence[Finding]) -> str:
    """The message of the first of the worst findings, and how many more there are."""
    worst = sorted((f for f in findings if f.severity != "info"), key=lambda f: _ORDER[f.severity])
    if not worst:
        return ""
    more = len(worst) - 1
    return worst[0].message[:1500] + (f" (and {more} more finding{'s' * (more > 1)})" if more else "")
