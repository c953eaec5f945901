"""`AsyncAdapterRegistry`: `AdapterRegistry` for asyncio. Each call runs in a thread; nothing is implemented twice.

A call that is cancelled is no longer waited for; its thread ends by itself.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from registry.client.registry import Registry
from registry.sdk.registry import AdapterRegistry

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_END = object()


def _in_thread(
    method: Callable[Concatenate[AdapterRegistry, Arguments], Result],
) -> Callable[Concatenate[AsyncAdapterRegistry, Arguments], Coroutine[Any, Any, Result]]:
    """The method as a coroutine, with the same arguments."""

    @functools.wraps(method)
    async def call(self: AsyncAdapterRegistry, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return await asyncio.to_thread(method, self.registry, *args, **kwargs)

    return call


def _iterated(
    method: Callable[Concatenate[AdapterRegistry, Arguments], Iterator[Result]],
) -> Callable[Concatenate[AsyncAdapterRegistry, Arguments], AsyncIterator[Result]]:
    """The generator as an asynchronous one, with the same arguments. Each page is requested when it is needed."""

    @functools.wraps(method)
    async def generate(
        self: AsyncAdapterRegistry, /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> AsyncIterator[Result]:
        iterator: Iterator[Any] = method(self.registry, *args, **kwargs)
        while True:
            item: Any = await asyncio.to_thread(next, iterator, _END)
            if item is _END:
                return
            yield item

    return generate


class AsyncAdapterRegistry:
    """The methods of `AdapterRegistry` as coroutines, its iterators as asynchronous ones. Use it in `async with`."""

    def __init__(
        self, url: str = "", token: str = "", *, client: Registry | None = None,
        on_wait: Callable[[str], None] | None = None, insecure: bool = False,
    ) -> None:  # fmt: skip
        self.registry = AdapterRegistry(url, token, client=client, on_wait=on_wait, insecure=insecure)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    close = _in_thread(AdapterRegistry.close)
    push = _in_thread(AdapterRegistry.push)
    push_all = _in_thread(AdapterRegistry.push_all)
    pull = _in_thread(AdapterRegistry.pull)
    pull_all = _in_thread(AdapterRegistry.pull_all)
    load = _in_thread(AdapterRegistry.load)
    check = _in_thread(AdapterRegistry.check)
    smoke_test = _in_thread(AdapterRegistry.smoke_test)
    promote = _in_thread(AdapterRegistry.promote)
    rollback = _in_thread(AdapterRegistry.rollback)
    delete_alias = _in_thread(AdapterRegistry.delete_alias)
    resolve = _in_thread(AdapterRegistry.resolve)
    version = _in_thread(AdapterRegistry.version)
    lineage = _in_thread(AdapterRegistry.lineage)
    versions = _iterated(AdapterRegistry.versions)
    search = _iterated(AdapterRegistry.search)
