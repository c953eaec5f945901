"""`ConversionRequest`: a conversion with folders in place of names, run as a program of its own. No torch here."""

import importlib.util
from collections.abc import Callable
from typing import NoReturn

from registry.bases import BaseSpec
from registry.errors import Unavailable
from registry.merging.conversions import Conversion, Converted, TargetFormat, refusal
from registry.worker.sandbox import program

LIBRARIES: dict[TargetFormat, tuple[str, str]] = {
    TargetFormat.CANONICAL: ("torch", "worker"),
    TargetFormat.PLAIN: ("peft", "worker"),
    TargetFormat.PEFT: ("torch", "worker"),
    TargetFormat.DIFFUSERS: ("diffusers", "images"),
    TargetFormat.GGUF: ("gguf", "gguf"),
}
"""Target → the library that it needs, and the extra that installs it. The module of a target is `to_` and its name."""
DETERMINISTIC = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""Exceptions that another attempt at the same adapter would raise again."""


class ConversionRequest(program.ProgramRequest):
    """A conversion of folders. `source`: the original. `base_folder`: the base's weights, if they are needed."""

    FOLDERS = ("source", "out", "base_folder")

    conversion: Conversion
    source: program.FolderPath
    out: program.FolderPath
    base: BaseSpec
    base_folder: program.FolderPath = ""

    def run(self, check: Callable[[], None] | None = None, *, threads: int = 0, seconds: float = 0) -> Converted:
        """Convert. `check` is called every second; its exception ends the process and propagates.

        Raises what the process reported; `Unavailable` (TRY_LATER) if it died, took over `seconds` (0: no limit), or a
        library is missing here.
        """
        library, extra = LIBRARIES[self.conversion.to]
        if importlib.util.find_spec(library) is None:
            raise Unavailable(
                "TRY_LATER",
                f"this worker has no {library}, which a conversion to {self.conversion.to} needs",
                next_step=f"install the extra {extra!r} on a worker",
            )
        report = program.run_program(
            f"registry.worker.conversions.to_{self.conversion.to}", self, work="the conversion", check=check,
            threads=threads, seconds=seconds,
        )  # fmt: skip
        return Converted.model_validate(report)


def serve(convert: Callable[[ConversionRequest], Converted]) -> NoReturn:
    """The `main` of a conversion's program: one request from standard input."""

    def respond(request: ConversionRequest, _progress: program.Progress) -> Converted:
        try:
            return convert(request)
        except DETERMINISTIC as e:
            raise refusal(f"the conversion fails on this adapter: {program.error_text(e)[:1000]}") from e

    program.serve(ConversionRequest, respond)
