"""No request waits for the blob store while its transaction is open: a slow store must not hold connections.

Each request has a context of its own, which its threads share. A session notes the context in which it begins a
transaction, and a call of the store looks for one that is open in its context.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import event
from sqlmodel import Session

from registry.client.audit import Audit
from registry.errors import NotFound
from registry.server.storage.blobs import BlobStore
from tests.access.matrix import Matrix
from tests.access.tenants import send
from tests.bulk import plan_pull
from tests.harness import Harness
from tests.httpx_transports import HttpxInProcess
from tests.memory_blobs import MemoryBlobs

pytestmark = pytest.mark.security
CALLS = ("stat", "open", "read", "list", "open_writer", "delete", "delete_unfinished", "collect")
REQUEST: ContextVar[str] = ContextVar("request", default="")


class Watch:
    """The transactions that are open, by request, and the calls of the store during one."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.open: dict[str, set[int]] = {}
        self.problems: set[str] = set()

    def begin(self, session: Session, *_: Any) -> None:
        session.info["request of transaction"] = REQUEST.get()
        self.open.setdefault(REQUEST.get(), set()).add(id(session))

    def end(self, session: Session, transaction: Any) -> None:
        if transaction.parent is None:
            self.open.get(session.info.get("request of transaction", ""), set()).discard(id(session))

    def call(self, name: str) -> None:
        request = REQUEST.get()
        if request and self.open.get(request):
            self.problems.add(f"{request.partition('#')[0]}: {name}")


def watched(blobs: BlobStore, watch: Watch) -> BlobStore:
    def watch_calls(name: str, method: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            watch.call(name)
            return method(*arguments, **more)

        return call

    for name in CALLS:
        setattr(blobs, name, watch_calls(name, getattr(blobs, name)))
    return blobs


@contextmanager
def watched_harness(database_url: str) -> Iterator[tuple[Harness, Watch]]:
    watch = Watch()
    with Harness(database_url, blobs=watched(MemoryBlobs(), watch)) as harness:
        harness.transport.close()
        app = harness.app

        async def number_requests(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                REQUEST.set(f"{scope['method']} {scope['path']}#{next(watch.numbers)}")
            await app(scope, receive, send)

        harness.transport = HttpxInProcess(number_requests)
        harness.admin = harness.client(harness.secret)
        event.listen(Session, "after_begin", watch.begin)
        event.listen(Session, "after_transaction_end", watch.end)
        try:
            yield harness, watch
        finally:
            event.remove(Session, "after_begin", watch.begin)
            event.remove(Session, "after_transaction_end", watch.end)


def test_no_route_calls_the_store_while_its_transaction_is_open(database_url: str) -> None:
    with watched_harness(database_url) as (harness, watch):
        for _ in Matrix(harness).responses():
            pass
        harness.transport.settle()
        assert watch.problems == set()


def test_reads_of_bytes_call_the_store_after_their_transaction(database_url: str) -> None:
    with watched_harness(database_url) as (harness, watch):
        harness.add_base()
        harness.push("acme/support")
        harness.validate("acme/support@1")
        harness.app.state.audit_log.step()
        report = next(v.report for v in harness.admin.version("acme/support").verdicts if v.report is not None)
        version = "/api/v1/adapters/acme/support/versions/1"
        for path in (
            f"{version}/files/adapter_config.json", f"{version}/reports/{report}",
            f"{version}/attestations", "/api/v1/audit/tile/entries/000.p/3", "/api/v1/audit/tile/0/000.p/3?stored=true",
            "/acme/support/resolve/main/adapter_config.json", "/acme/support/raw/main/adapter_config.json",
        ):  # fmt: skip
            assert send(harness, "GET", path, harness.secret).status_code == 200, path
        plan_pull(harness.admin, "acme/support@1")
        with suppress(NotFound):
            harness.admin.reference_logprobs("acme/support")
        assert Audit(harness.admin).checkpoint()
        harness.transport.settle()
        assert watch.problems == set()
