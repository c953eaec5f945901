"""`Finding`: one observation or one broken rule. Errors and verdicts list findings; findings.toml explains each code.

A dataclass: every command needs errors, and so findings, and few of them need pydantic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partialmethod
from typing import Any, ClassVar, Literal, get_args

Severity = Literal["error", "warning", "info", "unknown"]
TEXT_LIMIT = 600
MESSAGE_LIMIT = 2000
_CODE = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")
_CODE_LIMIT = 100
_FIELDS_LIMIT = 26


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation. `location` is a tensor, a field or a file. `expected` and `actual` are printable values.

    Texts are cut to their limits. `ValueError` for a code that is not in dotted form (`safetensors.duplicate_key`).
    """

    code: str
    """Dotted code for programs, such as `safetensors.duplicate_key`. The reference of findings explains each."""
    location: str
    """The tensor, field or file that it is about."""
    message: str
    """What was observed, in one clause for people."""
    severity: Severity = "error"
    """`error` fails a verdict, `unknown` leaves it open, `warning` warns, `info` changes nothing."""
    expected: str = ""
    """The value that the rule asks for, as text. Empty if the rule has no value."""
    actual: str = ""
    """The value that was found, as text."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if len(self.code) > _CODE_LIMIT or not _CODE.fullmatch(self.code):
            raise ValueError(f"not the code of a finding: {self.code[:_CODE_LIMIT]!r}")
        for field, limit in _LIMITS.items():
            text = getattr(self, field)
            if len(text) > limit:
                object.__setattr__(self, field, text[:limit])

    @classmethod
    def of(
        cls, severity: Severity, code: str, location: str, message: str, expected: object = "", actual: object = ""
    ) -> Finding:
        """A finding with any values as text."""
        return cls(code, location, message, severity, str(expected), str(actual))

    @classmethod
    def of_not_finite(cls, code: str, tensors: Sequence[str], cause: str = "") -> Finding:
        """One finding for all tensors of a file that hold NaN or infinities. Its location is the first of them."""
        subject = f"{tensors[0][:400]} holds"
        if len(tensors) > 1:
            others = "another tensor" if len(tensors) == 2 else f"{len(tensors) - 1} other tensors"
            subject = f"{tensors[0][:400]} and {others} hold"
        message = f"{subject} NaN or infinite values{cause}"
        return cls(code, tensors[0], message, "error", "finite numbers", "NaN or infinity")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding | None:
        """The finding of an untrusted JSON object; what is not a text is empty. None without a valid code."""

        def text(field: str) -> str:
            return value if isinstance(value := values.get(field), str) else ""

        severity: Severity = next((word for word in get_args(Severity) if word == values.get("severity")), "error")
        try:
            return cls(text("code"), text("location"), text("message"), severity, text("expected"), text("actual"))
        except ValueError:
            return None

    def to_text(self) -> str:
        """One line: where, what, and the two values; without what the message says itself."""
        texts = (value for value in (self.expected, self.actual) if value)
        are_said = all(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", self.message) for value in texts)
        values = "" if are_said else f" (expected {self.expected}, actual {self.actual})"
        where = "" if self.message.startswith(f"{self.location} ") else f"{self.location}: "
        return f"{where}{self.message}{values}"

    def to_dict(self) -> dict[str, str]:
        """As JSON."""
        return {
            "code": self.code, "location": self.location, "message": self.message, "severity": self.severity,
            "expected": self.expected, "actual": self.actual,
        }  # fmt: skip


_LIMITS = {"location": TEXT_LIMIT, "message": MESSAGE_LIMIT, "expected": TEXT_LIMIT, "actual": TEXT_LIMIT}


def limit_fields(finding: object) -> None:
    """`ValueError` for many fields: pydantic would keep some 400 bytes for each that it does not know."""
    if isinstance(finding, dict) and len(finding) > _FIELDS_LIMIT:
        raise ValueError(f"a finding has {len(finding)} fields, over the limit of {_FIELDS_LIMIT}")


ERRORS_LIMIT = 500
"""Kinds of errors that are kept: an adapter with more is refused anyway."""


class FindingCollector:
    """Findings as they are made; many of one kind become one finding with a count.

    `group` names the kind that is folded; without it each location counts once for each code.
    """

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
