"""Many adapters at a time: a result for each, in batches, and one progress for all. One failure stops no other."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, Self, TypeVar

from registry.api.transfer import BULK_LIMIT
from registry.client.transfer.file_transfer import Progress
from registry.errors import Invalid, RegistryError

ADAPTERS_AT_ONCE = 4
Output = TypeVar("Output")
Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)  # with slots, Python 3.11 cannot call Result[X](…)
class Result(Generic[Output]):
    """The value or the error for one adapter."""

    name: str
    folder: Path
    value: Output | None = None
    error: RegistryError | None = None


def result_of(name: str, folder: Path, work: Callable[[], Output]) -> Result[Output]:
    """Run `work` for one adapter. Its result holds the error, if the registry or the file system reports one."""
    try:
        return Result(name, folder, work())
    except RegistryError as e:
        return Result(name, folder, error=e)
    except OSError as e:
        return Result(name, folder, error=Invalid("FOLDER_INVALID", f"{folder}: {e.strerror or e}"))


def run_each(
    work: Callable[[Item], Result[Output]], items: Iterable[Item], on_result: Callable[[Result[Output]], None]
) -> list[Result[Output]]:
    """Run `work` for all items, a few at a time; results are in the order of the items.

    `on_result` is called with each result as soon as there is one, never by two threads at a time.
    """
    lock = threading.Lock()

    def run(item: Item) -> Result[Output]:
        result = work(item)
        with lock:
            on_result(result)
        return result

    with ThreadPoolExecutor(ADAPTERS_AT_ONCE, thread_name_prefix="adapter") as pool:
        try:
            return list(pool.map(run, items))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def in_batches(
    prepare: Callable[[Sequence[Item]], Prepared], finish: Callable[[Prepared], list[Output]], items: Sequence[Item]
) -> list[Output]:
    """`prepare` and `finish` as many items as a request may have, again and again. The next ones are prepared early."""
    batches = [items[start : start + BULK_LIMIT] for start in range(0, len(items), BULK_LIMIT)]
    results: list[Output] = []
    with ThreadPoolExecutor(1, thread_name_prefix="batch") as pool:
        prepared = [pool.submit(prepare, batch) for batch in batches[:1]]
        for position in range(len(batches)):
            ready = prepared.pop().result()
            prepared += [pool.submit(prepare, batch) for batch in batches[position + 1 : position + 2]]
            results += finish(ready)
    return results


class BackgroundThread:
    """Runs functions one after the other. Ctrl-C does not wait for it, as it does for a `ThreadPoolExecutor`."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._queue.put(None)
        if kind is None or issubclass(kind, Exception):
            self._thread.join()

    def submit(self, work: Callable[[], Output]) -> Future[Output]:
        """Run `work` after what was submitted before."""
        future: Future[Output] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as e:
                future.set_exception(e)

        self._queue.put(run)
        return future

    def _run(self) -> None:
        while (run := self._queue.get()) is not None:
            run()


class SharedProgress:
    """One progress for many adapters: their totals add up."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._total_bytes = 0

    def start(self, total_bytes: int) -> None:
        """Add the bytes of one more adapter to the total."""
        with self._lock:
            self._total_bytes += total_bytes
            self._inner.start(self._total_bytes)

    def advance(self, count: int) -> None:
        """Count transferred bytes of any adapter."""
        with self._lock:
            self._inner.advance(count)
