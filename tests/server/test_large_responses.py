"""Responses of megabytes count for who reads them until they are sent, and few of them are made at once."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from fastapi import Request, Response
from starlette.background import BackgroundTask

from registry.api.bases import BaseAdd
from registry.errors import Unavailable
from registry.server import app as server_app
from registry.server.catalog import base_rows, bases
from registry.server.database import db
from registry.server.database.models import BaseRow
from registry.server.http import routing
from registry.server.http.request_body import BodyBudget
from registry.server.http.routing import SingleThreadRoute
from tests import samples
from tests.base_specs import spec_of
from tests.harness import Harness
from tests.raw_asgi import RawResponse, call, call_in_loop

pytestmark = pytest.mark.security
PATH = "/api/v1/bases/tiny-llama"


@pytest.fixture
def size_bytes(harness: Harness) -> int:
    """Of the response with a base of many modules."""
    spec = spec_of(samples.llama())
    shape = spec.modules["lm_head"]
    modules = spec.modules | {f"model.layers.0.other.{n}": shape for n in range(3000)}
    harness.admin.add_base(BaseAdd(spec=spec.model_copy(update={"modules": modules})))
    size = len(harness.admin.connection.send("GET", "/bases/tiny-llama").content)
    assert size > 3 * routing.PART_BYTES
    return size


async def read_base(harness: Harness, secret: str, **options: Any) -> RawResponse:
    return await call_in_loop(harness.app, "GET", PATH, [("authorization", f"Bearer {secret}")], **options)


def test_responses_that_are_not_read_are_counted_until_they_are(harness: Harness, size_bytes: int) -> None:
    own_secrets = [harness.issue("pull", namespaces=["acme"], name="mine")[1]] * 3
    others = [harness.issue("pull", namespaces=[name], name=name)[1] for name in ("acme", "globex")]
    budget = harness.app.state.response_budget = BodyBudget(4 * size_bytes, 2 * size_bytes, 5 * size_bytes // 2)
    slow: list[RawResponse] = []

    async def read_all() -> tuple[list[RawResponse], RawResponse]:
        may_read = anyio.Event()

        async def read_slowly(secret: str) -> None:
            slow.append(await read_base(harness, secret, wait_to_read=may_read.wait))

        async with anyio.create_task_group() as group:
            for number, secret in enumerate(own_secrets[:2], 1):
                group.start_soon(read_slowly, secret)
                with anyio.fail_after(120):
                    while budget.used_bytes != number * size_bytes:
                        await anyio.lowlevel.checkpoint()
            meanwhile = [await read_base(harness, secret) for secret in (own_secrets[2], *others)]
            may_read.set()
        return meanwhile, await read_base(harness, own_secrets[2])

    (refused, of_namespace, other), after = anyio.run(read_all)
    assert [(r.status, r.json()["code"], r.headers["retry-after"]) for r in (refused, of_namespace)] == [
        (503, "TRY_LATER", "1")
    ] * 2
    for response in (*slow, other, after):
        assert (response.status, len(response.body), response.largest_part) == (200, size_bytes, routing.PART_BYTES)
    assert budget.used_bytes == 0


def test_a_reader_that_hangs_up_gives_its_bytes_back(harness: Harness, size_bytes: int) -> None:
    secret = harness.issue("pull")[1]
    counted = []

    async def hang_up() -> None:
        counted.append(harness.app.state.response_budget.used_bytes)
        raise OSError("the connection was closed")

    with pytest.raises(OSError, match="was closed"):
        anyio.run(lambda: read_base(harness, secret, wait_to_read=hang_up))
    assert (counted, harness.app.state.response_budget.used_bytes) == ([size_bytes], 0)


def test_a_repeated_response_is_counted_too(harness: Harness, size_bytes: int) -> None:
    spec = harness.admin.base("tiny-llama").spec.model_copy(update={"name": "acme/many"})
    body = BaseAdd(spec=spec).model_dump_json(exclude_defaults=True).encode()
    secret = harness.issue("push", namespaces=["acme"])[1]
    headers = [
        ("authorization", f"Bearer {secret}"), ("content-type", "application/json"), ("idempotency-key", "a" * 32),
    ]  # fmt: skip

    def post() -> RawResponse:
        return call(harness.app, "POST", "/api/v1/bases", headers, [body])

    first, repeated = post(), post()
    assert (first.status, repeated.status, repeated.headers["idempotency-replayed"]) == (201, 201, "true")
    assert (first.body, repeated.largest_part) == (repeated.body, routing.PART_BYTES)
    harness.app.state.response_budget = BodyBudget(size_bytes // 2, size_bytes, size_bytes)
    refused = post()
    assert (refused.status, refused.json()["code"]) == (503, "TRY_LATER")


def test_neither_a_repeated_request_nor_an_error_keeps_what_was_parsed(harness: Harness) -> None:
    """Not until the collector runs, which a server lets run seldom: 60 MB of each repetition stayed."""
    spec = spec_of(samples.llama()).model_copy(update={"name": "acme/many"})
    other = spec.model_copy(update={"vocab": 1})
    secret = harness.issue("push", namespaces=["acme"])[1]
    statuses = []

    def post(body: bytes, key: str) -> None:
        headers = [
            ("authorization", f"Bearer {secret}"),
            ("content-type", "application/json"),
            ("idempotency-key", key),
        ]
        statuses.append(call(harness.app, "POST", "/api/v1/bases", headers, [body]).status)

    bodies = [BaseAdd(spec=parsed).model_dump_json(exclude_defaults=True).encode() for parsed in (spec, other)]
    post(bodies[0], "a" * 32)
    gc.collect()
    gc.disable()
    try:
        post(bodies[0], "a" * 32)
        post(bodies[1], "b" * 32)
        parsed_types = [type(each) for each in gc.get_objects() if isinstance(each, BaseAdd)]
    finally:
        gc.enable()
    assert (statuses, parsed_types) == ([201, 201, 409], [])


def test_what_follows_a_change_is_done_though_its_response_is_refused() -> None:
    done: list[bool] = []
    response = Response(b" " * (routing.PART_BYTES + 1), background=BackgroundTask(done.append, True))
    counted = routing._CountedResponse(response, BodyBudget(1, 1, 1), ("person", ""))

    async def refuse(*_: Any) -> Any:
        raise AssertionError("nothing is read or sent")

    with pytest.raises(Unavailable, match="not read yet"):
        anyio.run(lambda: counted({"type": "http"}, refuse, refuse))
    assert done == [True]


@pytest.mark.usefixtures("size_bytes")
def test_two_large_responses_of_a_person_are_made_at_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [*[harness.issue("pull", name="mine")[1]] * 4, harness.issue("pull", name="other")[1]]
    begun, go_on = threading.Semaphore(0), threading.Event()
    show = bases.show

    def hold(*arguments: Any) -> Any:
        begun.release()
        assert go_on.wait(120)
        return show(*arguments)

    monkeypatch.setattr(bases, "show", hold)
    waiting: list[int] = []

    async def read_all() -> None:
        async with anyio.create_task_group() as group:
            for secret in secrets:
                group.start_soon(read_base, harness, secret)
            for _ in range(3):  # two of the first person, and the other one
                assert await anyio.to_thread.run_sync(begun.acquire, True, 120)
            shares = [limiter for key, limiter in routing._SHARE_LIMITERS.get().items() if "large responses" in key]
            waiting.extend(sorted(limiter.statistics().tasks_waiting for limiter in shares))
            go_on.set()

    anyio.run(read_all)
    assert waiting == [0, 2]


def test_small_responses_are_not_counted() -> None:
    small = Response(b" " * routing.PART_BYTES)
    assert routing._counted(Request({"type": "http"}), small) is small


def test_a_base_that_many_requests_need_is_read_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 40 threads each took 100 MB for a base of 100,000 modules."""
    harness.admin.add_base(BaseAdd(spec=spec_of(samples.llama())))
    base_rows._SPECS.clear()
    begun, go_on = threading.Semaphore(0), threading.Event()
    parse = base_rows.parse_spec

    def hold(*arguments: Any) -> Any:
        begun.release()
        assert go_on.wait(120)
        return parse(*arguments)

    monkeypatch.setattr(base_rows, "parse_spec", hold)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(harness.admin.base, "tiny-llama") for _ in range(4)]
        assert begun.acquire(timeout=120)
        assert not begun.acquire(timeout=0.3), "a second thread reads it, too"
        monkeypatch.setattr(base_rows, "READ_SECONDS", 0.01)
        with pytest.raises(Unavailable, match="others are being read"):
            base_rows.load_spec(BaseRow(name="other", fingerprint="x", created_at=db.now(), created_by="x", spec={}))
        go_on.set()
        assert len({result.result().fingerprint for result in results}) == 1
    assert not begun.acquire(blocking=False)


def test_routes_that_return_pages_make_a_few_at_a_time() -> None:
    routes = [route for router in server_app.ROUTERS for route in router.routes if isinstance(route, SingleThreadRoute)]
    paths = {route.path.removeprefix("/api/v1") for route in routes if route.responds_at_length}
    resources = {"/adapters", "/bases", "/jobs", "/namespaces", "/tokens", "/webhooks"}
    assert resources | {"/adapters/{namespace}/{name}/versions", "/bases/{base:path}"} <= paths
