"""Push every folder of many.

Invariants
- What is known is skipped: the base is asked for once, bytes that the registry holds do not move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from registry.api.transfer import PushResult
from registry.client import push as pushing
from registry.client.bulk import Result, Sum, each, result_of
from registry.client.core import Versions
from registry.client.streams import Progress, Silent
from registry.names import AdapterName
from registry.provenance import Provenance


def push_all(
    registry: Versions,
    folders: Sequence[tuple[Path, str]],
    *,
    base: str = "",
    message: str = "",
    declared: Callable[[Path], Provenance | None] = lambda _folder: None,
    progress: Progress | None = None,
    on_result: Callable[[Result[PushResult]], None] = lambda _result: None,
) -> list[Result[PushResult]]:
    """Push each folder as the newest version of its name. `declared` says what a folder's adapter was made from, and
    `told` hears of each result when it is there.
    """
    bases = pushing.Bases(registry)
    watched = Sum(progress or Silent())

    def push(item: tuple[Path, str]) -> Result[PushResult]:
        folder, name = item

        def work() -> PushResult:
            adapter = AdapterName.parse(name)
            return pushing.push_folder(
                registry, folder, adapter, base=base, message=message, provenance=declared(folder), progress=watched,
                bases=bases,
            )  # fmt: skip

        return result_of(name, folder, work)

    return each(push, folders, on_result)
