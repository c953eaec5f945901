"""The in-process transport behaves as a socket to a server would."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from registry.client.transport.in_process import CHUNKS_AHEAD
from tests.httpx_transports import HttpxInProcess

pytest.importorskip("starlette")
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


class Observations:
    """What the application saw."""

    def __init__(self) -> None:
        self.produced = 0
        self.events: list[str] = []
        self.flood_ended = threading.Event()
        self.released = threading.Event()

    def tidies(self, _request: Request) -> Response:
        def tidy() -> None:
            self.released.wait(60)
            self.events.append("tidied")

        return PlainTextResponse("done", background=BackgroundTask(tidy))


def application(observations: Observations) -> Starlette:
    async def echo(request: Request) -> Response:
        return Response(await request.body(), headers={"x-query": request.url.query})

    async def count(request: Request) -> Response:
        sizes = [len(chunk) async for chunk in request.stream() if chunk]
        return JSONResponse({"chunks": len(sizes), "bytes": sum(sizes)})

    async def flood(_request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(1000):
                observations.produced += 1
                yield b"x" * 1000

        class Flood(StreamingResponse):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                try:
                    await super().__call__(scope, receive, send)
                finally:
                    observations.flood_ended.set()

        return Flood(chunks())

    async def breaks(_request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            raise RuntimeError("in the middle")

        return StreamingResponse(chunks())

    def fails(_request: Request) -> Response:
        raise RuntimeError("before the response")

    def path(request: Request) -> Response:
        return PlainTextResponse(request.scope["raw_path"].decode() + " " + request.scope["path"])

    return Starlette(
        routes=[
            Route("/echo", echo, methods=["GET", "POST"]),
            Route("/count", count, methods=["PUT"]),
            Route("/flood", flood),
            Route("/breaks", breaks),
            Route("/fails", fails),
            Route("/tidies", observations.tidies),
            Route("/path/{rest:path}", path),
        ],
    )


@pytest.fixture
def observations() -> Observations:
    return Observations()


@pytest.fixture
def client(observations: Observations) -> Iterator[httpx.Client]:
    with httpx.Client(
        transport=HttpxInProcess(application(observations)), base_url="http://app.test", timeout=120
    ) as client:
        yield client


def test_a_body_and_a_query_arrive_and_come_back(client: httpx.Client) -> None:
    response = client.post("/echo?a=1&b=%2F", content=b"hello")
    assert (response.status_code, response.content, response.headers["x-query"]) == (200, b"hello", "a=1&b=%2F")


def test_a_request_body_is_streamed_chunk_by_chunk(client: httpx.Client) -> None:
    response = client.put("/count", content=(b"x" * 10 for _ in range(50)))
    assert response.json() == {"chunks": 50, "bytes": 500}


def test_a_slow_reader_holds_the_application_back(client: httpx.Client, observations: Observations) -> None:
    with client.stream("GET", "/flood") as response:
        chunks = response.iter_raw()
        next(chunks)
        assert observations.produced <= CHUNKS_AHEAD + 3
        assert sum(len(chunk) for chunk in chunks) == 999 * 1000
    assert observations.produced == 1000


def test_an_application_learns_that_the_caller_has_left(client: httpx.Client, observations: Observations) -> None:
    with client.stream("GET", "/flood") as response:
        next(response.iter_raw())
    assert observations.flood_ended.wait(60)
    assert observations.produced < 1000


def test_a_failing_application_looks_like_a_server_error(client: httpx.Client) -> None:
    assert client.get("/fails").status_code == 500


def test_a_response_that_breaks_off_is_a_protocol_error(client: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="cut off"):
        client.get("/breaks")


def test_close_waits_for_what_is_done_after_a_response(observations: Observations) -> None:
    with httpx.Client(transport=HttpxInProcess(application(observations)), base_url="http://app.test") as client:
        assert client.get("/tidies").text == "done"
        threading.Timer(0.1, observations.released.set).start()
    assert observations.events == ["tidied"]
