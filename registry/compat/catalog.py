"""The findings of this check, from registry/findings.toml: how severe each is, and what it follows from.

`CompatFindings` collects them, so no rule of the check repeats a severity.
"""

from dataclasses import replace
from typing import cast

from registry import finding_catalog
from registry.bases import BaseSpec
from registry.findings import Finding, FindingCollector, Severity

MODULES = "modules"
"""What findings follow from that depend on the modules of the base."""
CLAIMED_BASE = "claimed base"
"""Of findings that a base does not cause any more once the name that the configuration claims is one of its aliases."""


def codes_that_follow_from(cause: str) -> frozenset[str]:
    """The codes of the findings with this cause, `MODULES` or `CLAIMED_BASE`."""
    return frozenset(code for code, row in finding_catalog.rows().items() if row.get("follows_from") == cause)


def _severity_of(code: str) -> Severity:
    return cast(Severity, finding_catalog.rows()[code]["severity"])


def compat_finding(code: str, location: str, message: str, expected: object = "", actual: object = "") -> Finding:
    """A finding with the severity of its row."""
    return Finding.of(_severity_of(code), code, location, message, expected, actual)


class CompatFindings(FindingCollector):
    """Findings of the check `compat`, each with the severity of its row."""

    def report(
        self, code: str, location: str, message: str, expected: object = "", actual: object = "", *,
        group: str = "", severity: Severity | None = None,
    ) -> None:  # fmt: skip
        """Add a finding. `severity` is for a case that differs from the row."""
        self.add(severity or _severity_of(code), code, location, message, expected, actual, group=group)

    def on(self, base: BaseSpec) -> list[Finding]:
        """All findings; those about modules are unknown where the base's files do not show names and kinds.

        "embed" in a linear module's name, or a block of experts that the library builds differently, must not be an
        error.
        """
        findings = self.all()
        if base.names_known or not findings:
            return findings
        of_modules = codes_that_follow_from(MODULES)
        return [
            replace(finding, severity="unknown")
            if finding.severity == "error" and finding.code in of_modules
            else finding
            for finding in findings
        ]
