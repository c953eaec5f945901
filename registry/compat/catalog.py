"""The findings of this check, from registry/findings.toml: how severe each is, and what it follows from.

`CompatFindings` collects them, so no rule of the check repeats a severity.
"""

import tomllib
from dataclasses import replace
from importlib import resources

from registry.bases import BaseSpec
from registry.findings import Finding, FindingCollector, Severity

_FILE = resources.files("registry") / "findings.toml"
_ROWS = {f"compat.{code}": row for code, row in tomllib.loads(_FILE.read_text("utf-8"))["compat"]["codes"].items()}
SEVERITIES: dict[str, Severity] = {code: row["severity"] for code, row in _ROWS.items()}
OF_MODULES = frozenset(code for code, row in _ROWS.items() if row.get("follows_from") == "modules")
"""Findings that follow from the modules of the base."""
OF_CLAIMED_BASE = frozenset(code for code, row in _ROWS.items() if row.get("follows_from") == "claimed base")
"""Findings that a base does not cause any more once the name that the configuration claims is one of its aliases."""


def compat_finding(code: str, location: str, message: str, expected: object = "", actual: object = "") -> Finding:
    """A finding with the severity of its row."""
    return Finding.of(SEVERITIES[code], code, location, message, expected, actual)


class CompatFindings(FindingCollector):
    """Findings of the check `compat`, each with the severity of its row."""

    def report(
        self, code: str, location: str, message: str, expected: object = "", actual: object = "", *,
        group: str = "", severity: Severity | None = None,
    ) -> None:  # fmt: skip
        """Add a finding. `severity` is for a case that differs from the row."""
        self.add(severity or SEVERITIES[code], code, location, message, expected, actual, group=group)

    def on(self, base: BaseSpec) -> list[Finding]:
        """All findings; those about modules are unknown where the base's files do not show names and kinds.

        "embed" in a linear module's name, or a block of experts that the library builds differently, must not be an
        error.
        """
        if base.names_known:
            return self.all()
        return [
            replace(finding, severity="unknown")
            if finding.severity == "error" and finding.code in OF_MODULES
            else finding
            for finding in self.all()
        ]
