"""The bytes of blobs in and out of requests: by the lane that the HTTP server offers, else by its event loop.

Invariants
- Hashing and writing go on while bytes come in; memory stays at one buffer for each upload.
- A slow peer holds no thread: what stalls on a lane goes on in the event loop.
- An answer is as long as its Content-Length says, or its connection is closed.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from registry.server import failpoints
from registry.server.http import direct_io
from registry.server.routes import threads
from registry.server.storage.blobs import BlobWriter

STEP_BYTES = 2**20
"""Received chunks are gathered to about this much before they are hashed and written."""
PIECE_BYTES = 2**18
"""What is held in memory for each reader that is too slow for a lane."""


class Receipt(Response):
    """204, once the request's body is in the sink, or thrown away where there is none; `meanwhile` is open so long."""

    def __init__(self, sink: BlobWriter | None, size_bytes: int, meanwhile: AbstractContextManager[None]) -> None:
        super().__init__(status_code=204)
        self._sink = sink
        self._size_bytes = size_bytes
        self._meanwhile = meanwhile

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if self._sink is None:
            async for _ in request.stream():
                pass
        else:
            await self._keep(request, self._sink)
        await super().__call__(scope, receive, send)

    async def _keep(self, request: Request, sink: BlobWriter) -> None:
        try:
            with self._meanwhile:
                await receive(request, sink, self._size_bytes)
                failpoints.reach("upload.received")
                await threads.ask_store(sink.finish)
                failpoints.reach("upload.written")
        except BaseException:
            await threads.end_at_store(sink.abort)
            raise


async def receive(request: Request, sink: BlobWriter, size_bytes: int) -> None:
    """Everything that the request's body holds goes into the sink, which refuses what is too much."""
    if request.headers.get("content-length") == str(size_bytes):
        await _receive_by_lane(request, sink, size_bytes)
    gathered = bytearray()
    async for chunk in request.stream():
        gathered += chunk
        if len(gathered) >= STEP_BYTES:
            await threads.ask_store(sink.write, gathered)
            gathered = bytearray()
            failpoints.reach("upload.half")
    if gathered:
        await threads.ask_store(sink.write, gathered)


async def _receive_by_lane(request: Request, sink: BlobWriter, size_bytes: int) -> None:
    """As much of the body as comes without a pause. Nothing, where there is no lane."""
    lane = direct_io.direct_io_of(request.scope)
    if lane is None or size_bytes < direct_io.MINIMUM_BYTES:
        return
    first = lane.begin_body()
    if first is None:
        return
    left = size_bytes - len(first)
    try:
        sink.write(first)
        failpoints.reach("upload.half")
        count = await threads.ask_store(lane.read_into, sink.write, left)
    except ConnectionError as e:
        lane.abort_body()
        raise ClientDisconnect() from e
    except BaseException:
        lane.abort_body()
        raise
    lane.end_body(count, whole=count == left)


class FileAnswer(Response):
    """A range of a file."""

    def __init__(self, path: Path, start: int, length: int, status_code: int, headers: dict[str, str]) -> None:
        super().__init__(None, status_code, {**headers, "Content-Length": str(length)}, "application/octet-stream")
        self._path = path
        self._start = start
        self._length = length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        descriptor = await run_in_threadpool(os.open, self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            start, end = self._start, self._start + self._length
            try:
                start += await self._send_by_lane(scope, descriptor)
            except OSError:  # the caller left; the server hears of it in a moment
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
            while start < end:
                piece = await run_in_threadpool(os.pread, descriptor, min(PIECE_BYTES, end - start), start)
                if not piece:
                    raise EOFError(f"{self._path} became shorter while it was sent")
                start += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            os.close(descriptor)

    async def _send_by_lane(self, scope: Scope, descriptor: int) -> int:
        lane = direct_io.direct_io_of(scope)
        if lane is None or self._length < direct_io.MINIMUM_BYTES or not await lane.begin_answer():
            return 0
        sent = 0
        try:
            sent = await run_in_threadpool(lane.send_file, descriptor, self._start, self._length)
        finally:
            lane.end_answer(sent)
        return sent
