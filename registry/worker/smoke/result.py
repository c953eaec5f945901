"""`SmokeResult`: the findings and measurements of a smoke test; and which errors are not the adapter's fault.

A measurement has its unit in its name; a number that is not finite is None. Running out of memory is no finding: it is
raised, and the attempt fails. Numbers beyond the limits of a report are those limits: an adapter that makes answers
e^44 times as unlikely gets its verdict.
"""

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from registry.evaluation.reference_logprobs import ReferenceLogprobs
from registry.evaluation.reports import ANSWERS_LIMIT, NUMBER_LIMIT, Answer
from registry.evaluation.thresholds import Thresholds
from registry.findings import Finding, Severity
from registry.worker.sandbox.program import Progress, error_text, ignore_progress

PACKING_LIBRARIES = ("bitsandbytes", "compressed_tensors", "gptqmodel", "hqq")


@dataclass(slots=True)
class SmokeResult:
    """What a smoke test found and measured on one adapter.

    `images`: name → PNG in base64, of image models. `structure`: what PEFT says of names and shapes; None if it was not
    asked. Its errors are among the findings, too. `engine`: what the engine's own library took of the file; None if it
    did not load the file.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    findings: list[Finding] = field(default_factory=list)
    measurements: dict[str, float | bool | None] = field(default_factory=dict)
    module_norms: dict[str, list[float | None]] = field(default_factory=dict)
    golden: list[dict[str, float | bool]] = field(default_factory=list)
    execution: dict[str, Any] = field(default_factory=dict)
    reference_logprobs: ReferenceLogprobs | None = None
    images: dict[str, str] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    structure: list[Finding] | None = None
    engine: list[Finding] | None = None
    say: Progress = ignore_progress

    def note(
        self, severity: Severity, code: str, location: str, message: str, expected: str = "", actual: str = ""
    ) -> None:
        """Add a finding."""
        self.findings.append(Finding.of(severity, code, location, message, expected, actual))

    def note_structure(self, findings: list[Finding]) -> bool:
        """Add what PEFT says of names and shapes; whether the adapter fits."""
        self.structure = findings
        errors = [finding for finding in findings if finding.severity == "error"]
        self.findings += errors
        return not errors

    def measure(self, name: str, value: float) -> None:
        """Add a measurement."""
        self.measurements[name] = reportable(value)

    def has(self, *codes: str) -> bool:
        """Whether a finding has one of these codes."""
        return any(finding.code in codes for finding in self.findings)

    def to_message(self) -> dict[str, Any]:
        """Convert to JSON for the requesting process."""
        logprobs = self.reference_logprobs
        return {
            "findings": [finding.to_dict() for finding in self.findings],
            "measurements": self.measurements,
            "module_norms": self.module_norms,
            "golden": self.golden,
            "execution": self.execution,
            "reference_logprobs": logprobs.model_dump(mode="json") if logprobs is not None else None,
            "images": self.images,
            "answers": [answer.model_dump() for answer in self.answers[:ANSWERS_LIMIT]],
            "structure": [finding.to_dict() for finding in self.structure or ()],
            "engine": None if self.engine is None else [finding.to_dict() for finding in self.engine],
        }


def reportable(value: float | None, digits: int = 6) -> float | None:
    """Round a number to significant digits and to the limits of a report; None if it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{max(-NUMBER_LIMIT, min(value, NUMBER_LIMIT)):.{digits}g}")


def first_line(error: BaseException) -> str:
    """Format an exception as one line: its class and the first line of its message."""
    return error_text(error, whole=False)[:1500]


def library_message(error: BaseException) -> str:
    """Format a library's exception as one line: its class and its whole message, cut to 600 characters."""
    return error_text(error)[:600]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch raises RuntimeError both for that and for errors in an adapter."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text


def machine_fault(error: BaseException) -> bool:
    """Whether memory ran out or a device failed: the attempt fails, and so does the process."""
    return out_of_memory(error) or "cuda error" in str(error).lower() or type(error).__name__ == "AcceleratorError"


def _packing_library(error: BaseException) -> str:
    """The library for packed bases in which an exception was raised; empty for one from elsewhere."""
    modules = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((library for library in PACKING_LIBRARIES if f"{modules[-1]}.".startswith(f"{library}.")), "")


class LibraryFailed(Exception):
    """A library fails on this adapter: the check ends, and `finding` says how."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


@contextmanager
def exceptions_as(severity: Severity, code: str, location: str, problem: str) -> Iterator[None]:
    """Raise a library's exception as `LibraryFailed` with this finding, but a fault of the machine as it is.

    One that a library for packed bases raises says nothing of the adapter: the finding is unknown then.
    """
    try:
        yield
    except Exception as e:
        if machine_fault(e):
            raise
        if library := _packing_library(e):
            problem = f"{library} {version(library)} cannot run this base with the adapter"
            severity, code = "unknown", "smoke.packing_failed"
        raise LibraryFailed(Finding.of(severity, code, location, f"{problem}: {library_message(e)}")) from e
