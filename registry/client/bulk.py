"""Many adapters at once: push every folder, pull every adapter of a base.

Invariants
- A few adapters are under way at a time, so that hashing, sending and the server's work overlap.
- What is known is skipped: the base is asked for once, bytes that the registry or this machine holds do not move.
- One failure stops nothing: each adapter has its own result, in the order of the question.

Example
    >>> [r.error for r in bulk.push_all(registry, [(Path("out/a"), "acme/a")]) if r.error]
    []
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from registry.client import transfer
from registry.client.cache import Cache
from registry.client.streams import Progress, Silent
from registry.client.versions import Versions
from registry.errors import Invalid, RegistryError
from registry.names import AdapterName, Ref
from registry.provenance import Provenance
from registry.wire import PAGE_LIMIT, AdapterView, Resolved
from registry.wire.push import Pushed

ADAPTERS_AT_ONCE = 4
Answer = TypeVar("Answer")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Result(Generic[Answer]):
    """What became of one adapter: an answer or an error."""

    name: str
    folder: Path
    answer: Answer | None = None
    error: RegistryError | None = None


def push_all(
    registry: Versions,
    folders: Sequence[tuple[Path, str]],
    *,
    base: str = "",
    message: str = "",
    declared: Callable[[Path], Provenance | None] = lambda _folder: None,
    progress: Progress | None = None,
    told: Callable[[Result[Pushed]], None] = lambda _result: None,
) -> list[Result[Pushed]]:
    """Push each folder as the newest version of its name. `declared` says what a folder's adapter was made from, and
    `told` hears of each result when it is there.
    """
    known = transfer.Bases(registry)
    watched = _Sum(progress or Silent())

    def push(item: tuple[Path, str]) -> Result[Pushed]:
        folder, name = item

        def work() -> Pushed:
            adapter = AdapterName.parse(name)
            return transfer.push_folder(
                registry, folder, adapter, base=base, message=message, provenance=declared(folder), progress=watched,
                bases=known,
            )  # fmt: skip

        return _result(name, folder, work)

    return _each(push, folders, told)


def pull_all(
    registry: Versions,
    wanted: Sequence[tuple[Ref, Path]],
    *,
    cache: Cache | Callable[[], Cache] | None = transfer.USER_CACHE,
    progress: Progress | None = None,
    told: Callable[[Result[Resolved]], None] = lambda _result: None,
) -> list[Result[Resolved]]:
    """Bring each version into its folder."""
    watched = _Sum(progress or Silent())

    def pull(item: tuple[Ref, Path]) -> Result[Resolved]:
        ref, folder = item
        return _result(str(ref), folder, lambda: transfer.pull(registry, ref, folder, cache=cache, progress=watched))

    return _each(pull, wanted, told)


def fleet(registry: Versions, base: str, *, namespace: str = "", alias: str = "") -> Iterator[AdapterView]:
    """Every adapter of a base that the actor may see; those of one namespace, those with one alias, if asked."""
    cursor = ""
    while True:
        page = registry.adapters(base=base, namespace=namespace, alias=alias, cursor=cursor, limit=PAGE_LIMIT)
        yield from page.items
        cursor = page.next_cursor
        if not cursor:
            return


def _result(name: str, folder: Path, work: Callable[[], Answer]) -> Result[Answer]:
    try:
        return Result(name, folder, work())
    except RegistryError as e:
        return Result(name, folder, error=e)
    except OSError as e:
        return Result(name, folder, error=Invalid("FOLDER_INVALID", f"{folder}: {e.strerror or e}"))


def _each(
    work: Callable[[Item], Result[Answer]], items: Iterable[Item], told: Callable[[Result[Answer]], None]
) -> list[Result[Answer]]:
    telling = threading.Lock()

    def one(item: Item) -> Result[Answer]:
        result = work(item)
        with telling:
            told(result)
        return result

    with ThreadPoolExecutor(ADAPTERS_AT_ONCE, thread_name_prefix="adapter") as pool:
        try:
            return list(pool.map(one, items))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Sum:
    """One progress for many adapters: totals add up as they become known."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._total_bytes = 0

    def start(self, total_bytes: int) -> None:
        with self._lock:
            self._total_bytes += total_bytes
            self._inner.start(self._total_bytes)

    def advance(self, count: int) -> None:
        with self._lock:
            self._inner.advance(count)
