"""`Notes`: findings as they are made, with many of one sort folded into one.

Invariants
- Findings with equal severity, code and group are one finding: the first in full, and how many more.
- After `ERRORS_LIMIT` sorts of errors no new sort is kept: the answer is no, and long enough.
- Texts are cut to what a `Finding` may hold; nothing that an adapter contains can make this room fail.

Example
    >>> notes = Notes()
    >>> notes.error("compat.shape", "layers.0.q_proj", "…", group="q_proj"); notes.error("compat.shape", "layers.1.q_proj", "…", group="q_proj")
    >>> [f.sentence for f in notes.findings()]
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
        self, code: str, place: str, sentence: str, expected: object = "", found: object = "", *, group: str = ""
    ) -> None:
        self.note("error", code, place, sentence, expected, found, group=group)

    def warning(
        self, code: str, place: str, sentence: str, expected: object = "", found: object = "", *, group: str = ""
    ) -> None:
        self.note("warning", code, place, sentence, expected, found, group=group)

    def unknown(self, code: str, place: str, sentence: str, *, group: str = "") -> None:
        self.note("unknown", code, place, sentence, group=group)

    def info(self, code: str, place: str, sentence: str, *, group: str = "") -> None:
        self.note("info", code, place, sentence, group=group)

    def note(
        self, severity: Severity, code: str, place: str, sentence: str,
        expected: object = "", found: object = "", *, group: str = "",
    ) -> None:  # fmt: skip
        key = (severity, code, group or place)
        if key not in self._first:
            if self._errors >= ERRORS_LIMIT:
                return
            self._errors += severity == "error"
            self._first[key] = Finding(
                code=code, severity=severity, place=place[:600], sentence=sentence[:1900],
                expected=str(expected)[:600], found=str(found)[:600],
            )  # fmt: skip
        self._counts[key] = self._counts.get(key, 0) + 1

    def findings(self) -> list[Finding]:
        """In the order in which each sort was first noted."""
        return [
            first if (more := self._counts[key] - 1) == 0
            else first.model_copy(update={"sentence": f"{first.sentence} (and {more} more like it)"})
            for key, first in self._first.items()
        ]  # fmt: skip
