"""What one process takes on: turns and bytes of a tenant and in all, and what a hostile tenant may cost others."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from fastapi import Response
from starlette.background import BackgroundTask

from registry.api.bases import BaseAdd
from registry.api.operations.operation import VALUES_LIMIT
from registry.errors import Unavailable
from registry.server.http import admission, request_body, routing
from registry.server.http.admission import STRANGER_BYTES, Space, StrangersSpace, Turns
from registry.server.http.held_responses import PART_BYTES, HeldResponse
from tests import samples
from tests.base_specs import spec_of
from tests.harness import Harness
from tests.raw_asgi import ADDRESS, RawResponse, call, call_in_loop

pytestmark = pytest.mark.security
CHUNK = b" " * 2**14
LARGE = [CHUNK] * 128
PATH = "/api/v1/bases/tiny-llama"


def headers_of(secret: str) -> list[tuple[str, str]]:
    return [("content-type", "application/json"), ("authorization", f"Bearer {secret}")]


def post(harness: Harness, path: str, chunks: Iterable[bytes], *more: tuple[str, str], secret: str) -> RawResponse:
    return call(harness.app, "POST", f"/api/v1{path}", [*headers_of(secret), *more], chunks)


# ------------------------------------------------------------------ turns and bytes
def test_a_tenant_waits_for_its_own_requests_and_not_for_its_turn_in_all() -> None:
    turns, order = Turns(each=1, total=2), list[str]()

    async def run() -> None:
        go_on = anyio.Event()

        async def take(tenant: str) -> None:
            async with AsyncExitStack() as stack:
                await turns.take(stack, tenant)
                order.append(tenant)
                await go_on.wait()

        async with anyio.create_task_group() as group:
            for tenant in ("a", "a", "a", "b"):
                group.start_soon(take, tenant)
            await anyio.wait_all_tasks_blocked()
            assert sorted(order) == ["a", "b"]
            go_on.set()

    anyio.run(run)
    assert sorted(order) == ["a", "a", "a", "b"]


def test_a_tenant_and_the_process_have_space_that_is_given_back() -> None:
    space = Space(each=60, total=100)
    with space.hold() as a, space.hold() as b:
        a.add("a", 50)
        with pytest.raises(Unavailable):
            a.add("a", 11)
        b.add("b", 50)
        with pytest.raises(Unavailable):
            b.add("c", 1)
        b.add("c", 1, is_required=False)
    assert space.used_bytes == 0
    assert space.has_space("a", 60)


# ------------------------------------------------------------------ requests
def test_who_waits_too_long_for_a_turn_gets_503_and_others_are_served(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "WAIT_SECONDS", 0.3)
    begun, go_on = threading.Semaphore(0), threading.Event()
    check = request_body.check_values

    def hold(body: bytes, limit: int) -> None:
        if body:
            begun.release()
            assert go_on.wait(120)
        check(body, limit)

    monkeypatch.setattr(routing, "check_values", hold)
    hostile, same, other = (
        harness.issue("pull", namespaces=[namespace], name=name)[1]
        for name, namespace in (("hostile", "acme"), ("same", "acme"), ("other", "globex"))
    )
    late: list[RawResponse] = []

    async def run() -> RawResponse:
        async def check_body(secret: str) -> None:
            late.append(await call_in_loop(harness.app, "POST", "/api/v1/check", headers_of(secret), [b"{}"]))

        async with anyio.create_task_group() as group:
            for number in range(admission.REQUESTS_EACH + 3):
                group.start_soon(check_body, (hostile, same)[number % 2])
            for _ in range(admission.REQUESTS_EACH):
                assert await anyio.to_thread.run_sync(begun.acquire, True, 120)
            response = await call_in_loop(harness.app, "GET", "/api/v1/whoami", headers_of(other))
            with anyio.fail_after(120):
                while len(late) < 3:
                    await anyio.sleep(0.01)
            refused.extend(late)
            go_on.set()
        return response

    refused: list[RawResponse] = []
    assert anyio.run(run).status == 200
    assert [(r.status, r.json()["code"], r.headers["retry-after"]) for r in refused] == [(503, "TRY_LATER", "1")] * 3
    assert [r.status for r in late[3:]] == [400] * admission.REQUESTS_EACH


@pytest.mark.parametrize(
    "chunks", [LARGE, [b"[" + b"0," * VALUES_LIMIT + b"0]"]], ids=["of many bytes", "of many values"]
)
def test_a_tenant_has_one_large_body_that_is_parsed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, chunks: list[bytes]
) -> None:
    lock, turn = threading.Lock(), threading.Barrier(admission.LARGE)
    running, most = [0], list[int]()

    def count(_body: bytes, _limit: int) -> None:
        with lock:
            running[0] += 1
            most.append(running[0])
        turn.wait(120)
        with lock:
            running[0] -= 1

    monkeypatch.setattr(routing, "check_values", count)
    secrets = [harness.issue("pull", name=f"t{n}")[1] for n in range(admission.LARGE)]

    async def send_all() -> None:
        async with anyio.create_task_group() as group:
            for secret in secrets:  # the first one sends all of its requests first, and the next one gets turns too
                for _ in range(3):
                    group.start_soon(call_in_loop, harness.app, "POST", "/api/v1/check", headers_of(secret), chunks)

    anyio.run(send_all)
    assert len(most) == 3 * admission.LARGE
    assert max(most) == admission.LARGE


# ------------------------------------------------------------------ bodies
def test_a_body_beyond_the_space_of_its_tenant_gets_503_and_is_not_read(harness: Harness) -> None:
    secret = harness.issue("admin")[1]
    harness.app.state.admission.memory = Space(2**20, 2**30)
    response = post(harness, "/check", LARGE, ("content-length", str(2**21)), secret=secret)
    assert (response.status, response.json()["code"], response.bytes_read) == (503, "TRY_LATER", 0)
    assert int(response.headers["retry-after"]) >= 1
    assert post(harness, "/check", [b"{}"], ("content-length", "2"), secret=secret).status == 400


def test_what_has_arrived_counts_for_all_tokens_of_a_tenant_and_a_declared_size_for_nothing(harness: Harness) -> None:
    space = harness.app.state.admission.memory = Space(2**18, 2**30)
    first, second = (harness.issue("pull", namespaces=["acme"], name=name)[1] for name in ("alice", "bob"))
    other = harness.issue("pull", namespaces=["globex"])[1]
    assert post(harness, "/check", [b"{}"], secret=first).status == 400  # from now on its tenant is known
    used = []

    def chunks() -> Iterator[bytes]:
        yield b" "
        used.append(space.used_bytes)
        yield b" " * (2**17 - 1)
        used.append(space.used_bytes)
        with ThreadPoolExecutor(1) as pool:  # while this request is under way
            responses = [pool.submit(post, harness, "/check", LARGE[:12], secret=s).result() for s in (second, other)]
        assert [response.status for response in responses] == [503, 400]

    response = post(harness, "/check", chunks(), ("content-length", str(2**18)), secret=first)
    assert used == [1, 2**17]
    assert (response.status, space.used_bytes) == (400, 0)


@pytest.mark.parametrize("path", ["/check", "/bases", "/tokens/exchange"])
@pytest.mark.parametrize("is_authenticated", [True, False])
@pytest.mark.parametrize("size_bytes", [10, 2**17])
def test_a_connection_that_breaks_gives_its_bytes_back(
    harness: Harness, path: str, is_authenticated: bool, size_bytes: int
) -> None:
    secret = harness.issue("admin")[1] if is_authenticated else "lra_" + "0" * 38

    def chunks() -> Iterator[bytes]:
        yield b" " * size_bytes
        raise ConnectionResetError

    with contextlib.suppress(ConnectionResetError):
        post(harness, path, chunks(), secret=secret)
    spaces = harness.app.state.admission
    assert (spaces.memory.used_bytes, spaces.strangers.used_bytes) == (0, 0)


def test_bodies_of_strangers_have_a_space_of_their_own_and_valid_tokens_do_not_need_it(closed: Harness) -> None:
    closed.app.state.admission.strangers = StrangersSpace(100, 150)
    small = [b" " * 101]
    unknown = "lra_" + "0" * 38
    valid = post(closed, "/check", small, secret=closed.issue("pull")[1])
    assert (valid.status, post(closed, "/check", small, secret=unknown).status) == (400, 401)
    exchange = post(closed, "/tokens/exchange", small, secret=unknown)
    assert (exchange.status, exchange.json()["code"]) == (503, "TRY_LATER")
    with closed.app.state.admission.strangers.hold() as held:
        held.add(f"network {ADDRESS}", 100)
        assert call(closed.app, "POST", "/api/v1/tokens/exchange", (), [b"{}"]).status == 503
        assert call(closed.app, "POST", "/api/v1/tokens/exchange", (), [b"{}"], address="203.0.113.7").status != 503
    assert admission.STRANGERS_BYTES_EACH >= STRANGER_BYTES


# ------------------------------------------------------------------ responses
@pytest.fixture
def size_bytes(harness: Harness) -> int:
    """Of the response with a base of many modules."""
    spec = spec_of(samples.llama())
    shape = spec.modules["lm_head"]
    modules = spec.modules | {f"model.layers.0.other.{n}": shape for n in range(3000)}
    harness.admin.add_base(BaseAdd(spec=spec.model_copy(update={"modules": modules})))
    size = len(harness.admin.connection.send("GET", "/bases/tiny-llama").content)
    assert size > 3 * PART_BYTES
    return size


async def read_base(harness: Harness, secret: str, **options: Any) -> RawResponse:
    return await call_in_loop(harness.app, "GET", PATH, [("authorization", f"Bearer {secret}")], **options)


def test_responses_that_are_not_read_count_until_they_are(harness: Harness, size_bytes: int) -> None:
    own, same, other = (
        harness.issue("pull", namespaces=[namespace], name=name)[1]
        for name, namespace in (("own", "acme"), ("same", "acme"), ("other", "globex"))
    )
    space = harness.app.state.admission.memory = Space(2 * size_bytes, 4 * size_bytes)
    slow: list[RawResponse] = []

    async def read_all() -> tuple[list[RawResponse], RawResponse]:
        may_read = anyio.Event()

        async def read_slowly() -> None:
            slow.append(await read_base(harness, own, wait_to_read=may_read.wait))

        async with anyio.create_task_group() as group:
            for number in (1, 2):
                group.start_soon(read_slowly)
                with anyio.fail_after(120):
                    while space.used_bytes != number * size_bytes:
                        await anyio.lowlevel.checkpoint()
            meanwhile = [await read_base(harness, secret) for secret in (own, same, other)]
            may_read.set()
        return meanwhile, await read_base(harness, own)

    (refused, of_tenant, of_other), after = anyio.run(read_all)
    assert [(r.status, r.json()["code"], r.headers["retry-after"]) for r in (refused, of_tenant)] == [
        (503, "TRY_LATER", "1")
    ] * 2
    for response in (*slow, of_other, after):
        assert (response.status, len(response.body), response.largest_part) == (
            200,
            size_bytes,
            PART_BYTES,
        )
    assert space.used_bytes == 0


def test_a_reader_that_hangs_up_gives_its_bytes_back(harness: Harness, size_bytes: int) -> None:
    space, counted = harness.app.state.admission.memory, []

    async def hang_up() -> None:
        counted.append(space.used_bytes)
        raise OSError("the connection was closed")

    secret = harness.issue("pull")[1]
    with pytest.raises(OSError, match="was closed"):
        anyio.run(lambda: read_base(harness, secret, wait_to_read=hang_up))
    assert (counted, space.used_bytes) == ([size_bytes], 0)


def test_the_response_to_a_change_is_sent_in_any_case_and_what_follows_is_done() -> None:
    done, sent = list[bool](), list[int]()
    response = Response(b" " * (PART_BYTES + 1), background=BackgroundTask(done.append, True))
    space = Space(1, 1)

    async def send(message: Any) -> None:
        sent.append(len(message.get("body", b"")))
        assert space.used_bytes == PART_BYTES + 1

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    held = HeldResponse(response, space, "tenant", PART_BYTES + 1, is_refusable=False)
    anyio.run(lambda: held({"type": "http"}, receive, send))
    assert (sum(sent), done, space.used_bytes) == (PART_BYTES + 1, [True], 0)
