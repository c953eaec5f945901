"""`MergeRequest`: a recipe with folders in place of names, run as a program of its own. No torch here."""

from collections.abc import Callable
from pathlib import Path

from registry.adapters.methods import find
from registry.adapters.peft.config import read_config
from registry.merging.recipes import MergeOperation, MergeReport, Recipe
from registry.versions.files import CONFIG
from registry.worker.sandbox import program


class MergeRequest(program.ProgramRequest):
    """A merge of folders. `sources`: adapters. `base`: the base to fuse into, or to extract against."""

    FOLDERS = ("sources", "base", "tuned", "out")

    recipe: Recipe
    sources: tuple[program.FolderPath, ...] = ()
    base: program.FolderPath = ""
    base_name: str = ""
    tuned: program.FolderPath = ""
    out: program.FolderPath

    def run(
        self, progress: Callable[[str], None] | None = None, *, threads: int = 0, seconds: float = 0
    ) -> MergeReport:
        """Merge. An exception of `progress` ends the process and propagates.

        Raises what the process reported, or `Unavailable` (TRY_LATER) if it died or took over `seconds` (0: no limit).
        """
        module = "peft_methods" if self._needs_peft() else "process"
        report = program.run_program(
            f"registry.worker.merge.{module}", self, work="the merge", progress=progress, threads=threads,
            seconds=seconds,
        )  # fmt: skip
        return MergeReport.model_validate(report)

    def _needs_peft(self) -> bool:
        """Whether PEFT must compute the update; importing it takes seconds."""
        if self.recipe.operation is not MergeOperation.FUSE or not self.sources:
            return False
        config = Path(self.sources[0]) / CONFIG
        return config.is_file() and find(read_config(config.read_bytes()).method).fused_by == "peft"
