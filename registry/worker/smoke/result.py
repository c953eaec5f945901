"""`SmokeResult`: what a smoke test found and measured on one adapter.

- A measurement carries its unit in its name; a number that is not finite is None.
- What is wrong with the adapter is a finding. Running out of memory is not: it is raised, and the attempt fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from registry.evaluation.reference_logprobs import ReferenceLogprobs
from registry.evaluation.thresholds import Thresholds
from registry.evaluation.verdicts import Finding

Severity = Literal["error", "warning", "unknown", "info"]


def ignore_progress(_text: str) -> None:
    """Report no progress."""


@dataclass(slots=True)
class SmokeResult:
    thresholds: Thresholds = field(default_factory=Thresholds)
    findings: list[Finding] = field(default_factory=list)
    measurements: dict[str, Any] = field(default_factory=dict)
    reference_logprobs: ReferenceLogprobs | None = None
    images: dict[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = ignore_progress

    def note(
        self, severity: Severity, code: str, location: str, message: str, expected: str = "", found: str = ""
    ) -> None:
        self.findings.append(Finding.of(severity, code, location, message, expected, found))

    def measure(self, name: str, value: float) -> None:
        self.measurements[name] = float(f"{value:.6g}") if math.isfinite(value) else None

    def has(self, *codes: str) -> bool:
        return any(finding.code in codes for finding in self.findings)

    def to_message(self) -> dict[str, Any]:
        """Convert to JSON for the requesting process."""
        return {
            "findings": [finding.model_dump(mode="json") for finding in self.findings],
            "measurements": self.measurements,
            "reference_logprobs": self.reference_logprobs.model_dump(mode="json")
            if self.reference_logprobs is not None
            else None,
            "images": self.images,
        }
