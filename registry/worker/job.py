"""Which runner does which kind of job: one table, `RUNNERS`.

Invariants
- A kind without a line here is never claimed.
- A kind in `BASELESS` needs no base on this machine; every other kind is claimed only for bases that were found here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from registry.jobs import Kind
from registry.worker import validation
from registry.worker.conversions import runner as conversions
from registry.worker.merge import runner
from registry.worker.task import Done, Task

Runner = Callable[[Task], Done]

RUNNERS: Mapping[Kind, Runner] = {
    Kind.SMOKE_TEST: validation.validate,
    Kind.MERGE: runner.merge,
    Kind.FUSE: runner.fuse,
    Kind.CONVERT: conversions.convert,
    Kind.CONVERT_ON_BASE: conversions.convert,
}
BASELESS: frozenset[Kind] = frozenset({Kind.MERGE, Kind.CONVERT})
"""Kinds whose work reads no weights of a base."""


def run(task: Task) -> Done:
    """Do a claimed job. `Failed` when this attempt cannot answer; anything else that is raised fails it, too."""
    return RUNNERS[task.job.kind](task)
