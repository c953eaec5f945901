"""`Notes`: findings as they are made, with many of one sort folded into one.

Invariants
- Findings with equal severity, code and group are one finding: the first in full, and how many more.
- After `ERRORS_LIMIT` sorts of errors no new sort is kept: the answer is no, and long enough.
- Texts are cut to what a `Finding` may hold; nothing that an adapter contains can make this room fail.

Example
    >>> notes = Notes()
    >>> notes.error("compat.shape", "layers.0.q_proj", "…", group="q_proj"); notes.error("compat.shape", "layers.1.q_proj", "…", group="q_proj")
    >>> [f.message for f in notes.findings()]
    ['… (and 1 more like it)']
"""  # noqa: E501

from __future__ import annotations

from registry.evaluation.verdicts import Finding, Severity

ERRORS_LIMIT = 500


class Notes:
    """Collects findings. `group` names the sort that is folded; without it a place is noted once for each code."""

    def __init__(self) -> None:
        self._first: dict[tuple[Severity, str, str], Finding] = {}
        self._errors = 0
        self._counts: dict[tuple[Severity, str, str], int] = {}

    def error(
        self, code: str, location: str, message: str, expected: object = "", found: object = "", *, group: str = ""
    ) -> None:
        self.note("error", code, location, message, expected, found, group=group)

    def warning(
        self, code: str, location: str, message: str, expected: object = "", found: object = "", *, group: str = ""
    ) -> None:
        self.note("warning", code, location, message, expected, found, group=group)

    def unknown(self, code: str, location: str, message: str, *, group: str = "") -> None:
        self.note("unknown", code, location, message, group=group)

    def info(self, code: str, location: str, message: str, *, group: str = "") -> None:
        self.note("info", code, location, message, group=group)

    def note(
        self, severity: Severity, code: str, location: str, message: str,
        expected: object = "", found: object = "", *, group: str = "",
    ) -> None:  # fmt: skip
        key = (severity, code, group or location)
        if key not in self._first:
            if self._errors >= ERRORS_LIMIT:
                return
            self._errors += severity == "error"
            self._first[key] = Finding.of(severity, code, location, message[:1900], expected, found)
        self._counts[key] = self._counts.get(key, 0) + 1

    def findings(self) -> list[Finding]:
        """In the order in which each sort was first noted."""
        return [
            first if (more := self._counts[key] - 1) == 0
            else first.model_copy(update={"message": f"{first.message} (and {more} more like it)"})
            for key, first in self._first.items()
        ]  # fmt: skip
