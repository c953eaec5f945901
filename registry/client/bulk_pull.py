"""Pull every adapter of a base.

Invariants
- Bytes that this machine holds do not move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from registry.api import PAGE_LIMIT
from registry.api.catalog import AdapterView, Resolved
from registry.client import pull as pulling
from registry.client.bulk import Result, Sum, each, result_of
from registry.client.cache import Cache
from registry.client.core import Versions
from registry.client.streams import Progress, Silent
from registry.names import Ref


def pull_all(
    registry: Versions,
    refs: Sequence[tuple[Ref, Path]],
    *,
    cache: Cache | Callable[[], Cache] | None = pulling.USER_CACHE,
    progress: Progress | None = None,
    on_result: Callable[[Result[Resolved]], None] = lambda _result: None,
) -> list[Result[Resolved]]:
    """Bring each version into its folder."""
    watched = Sum(progress or Silent())

    def pull(item: tuple[Ref, Path]) -> Result[Resolved]:
        ref, folder = item
        return result_of(str(ref), folder, lambda: pulling.pull(registry, ref, folder, cache=cache, progress=watched))

    return each(pull, refs, on_result)


def adapters_of(registry: Versions, base: str, *, namespace: str = "", alias: str = "") -> Iterator[AdapterView]:
    """Every adapter of a base that the actor may see; those of one namespace, those with one alias, if asked."""
    cursor = ""
    while True:
        page = registry.adapters(base=base, namespace=namespace, alias=alias, cursor=cursor, limit=PAGE_LIMIT)
        yield from page.items
        cursor = page.next_cursor
        if not cursor:
            return
