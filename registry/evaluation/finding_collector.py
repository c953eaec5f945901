"""`FindingCollector`: findings as they are made; many of one kind become one finding with a count.

>>> collector = FindingCollector()
>>> for path in ("layers.0.q_proj", "layers.1.q_proj"):
...     collector.error("compat.shape", path, "…", group="q_proj")
>>> [finding.message for finding in collector.all()]
['… (and 1 more like it)']
"""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod

from registry.findings import Finding, Severity

ERRORS_LIMIT = 500
"""Kinds of errors that are kept: an adapter with more is refused anyway."""


class FindingCollector:
    """`group` names the kind that is folded; without it each location counts once for each code."""

    def __init__(self) -> None:
        self._first: dict[tuple[Severity, str, str], Finding] = {}
        self._errors = 0
        self._counts: dict[tuple[Severity, str, str], int] = {}

    def add(
        self, severity: Severity, code: str, location: str, message: str,
        expected: object = "", actual: object = "", *, group: str = "",
    ) -> None:  # fmt: skip
        """Add a finding, or count it with the first of its severity, code and group."""
        key = (severity, code, group or location)
        if key not in self._first:
            if self._errors >= ERRORS_LIMIT:
                return
            self._errors += severity == "error"
            self._first[key] = Finding.of(severity, code, location, message[:1900], expected, actual)
        self._counts[key] = self._counts.get(key, 0) + 1

    error = partialmethod(add, "error")
    warning = partialmethod(add, "warning")
    unknown = partialmethod(add, "unknown")
    info = partialmethod(add, "info")

    def all(self) -> list[Finding]:
        """In the order in which each kind was first added."""
        return [
            first if (more := self._counts[key] - 1) == 0
            else replace(first, message=f"{first.message} (and {more} more like it)")
            for key, first in self._first.items()
        ]  # fmt: skip
