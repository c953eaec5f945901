"""Bytes of blobs in request and response bodies: by direct I/O if the server offers it, else by the event loop.

- Bytes are hashed and written while they arrive. Each upload needs one buffer of memory.
- A slow peer holds no thread: when it pauses, direct I/O hands the transfer back to the event loop.
- A response is as long as its Content-Length, or its connection is closed.
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
from registry.server.http.direct_io import MINIMUM_BYTES, direct_io_of
from registry.server.http.routing import run_in_store_thread, run_in_store_thread_always
from registry.server.storage.blobs import BlobWriter

WRITE_BYTES = 2**20
"""Received chunks are collected to about this size before they are hashed and written."""
READ_BYTES = 2**18
"""How much of a file is in memory for each client that is too slow for direct I/O."""


class UploadResponse(Response):
    """Answers 204 after it has written the request's body; without a writer the body is discarded.

    `context` is open while the body is received.
    """

    def __init__(self, writer: BlobWriter | None, size_bytes: int, context: AbstractContextManager[None]) -> None:
        super().__init__(status_code=204)
        self._writer = writer
        self._size_bytes = size_bytes
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if self._writer is None:
            async for _ in request.stream():
                pass
        else:
            await self._write(request, self._writer)
        await super().__call__(scope, receive, send)

    async def _write(self, request: Request, writer: BlobWriter) -> None:
        try:
            with self._context:
                await receive_body(request, writer, self._size_bytes)
                failpoints.reach("upload.received")
                await run_in_store_thread(writer.finish)
                failpoints.reach("upload.written")
        except BaseException:
            await run_in_store_thread_always(writer.abort)
            raise


async def receive_body(request: Request, writer: BlobWriter, size_bytes: int) -> None:
    """Write the body of a request. The writer refuses what exceeds its limit."""
    if request.headers.get("content-length") == str(size_bytes):
        await _receive_directly(request, writer, size_bytes)
    buffer = bytearray()
    async for chunk in request.stream():
        buffer += chunk
        if len(buffer) >= WRITE_BYTES:
            await run_in_store_thread(writer.write, buffer)
            buffer = bytearray()
            failpoints.reach("upload.half")
    if buffer:
        await run_in_store_thread(writer.write, buffer)


async def _receive_directly(request: Request, writer: BlobWriter, size_bytes: int) -> None:
    """Write what arrives without a pause, if the server offers direct I/O."""
    direct_io = direct_io_of(request.scope)
    if direct_io is None or size_bytes < MINIMUM_BYTES:
        return
    first = direct_io.begin_body()
    if first is None:
        return
    remaining = size_bytes - len(first)
    try:
        writer.write(first)
        failpoints.reach("upload.half")
        count = await run_in_store_thread(direct_io.read_into, writer.write, remaining)
    except ConnectionError as e:
        direct_io.abort_body()
        raise ClientDisconnect() from e
    except BaseException:
        direct_io.abort_body()
        raise
    direct_io.end_body(count, whole=count == remaining)


class FileRangeResponse(Response):
    """Sends a range of a file."""

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
                start += await self._send_directly(scope, descriptor)
            except OSError:  # the client has left; the server notices it in a moment
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
            while start < end:
                chunk = await run_in_threadpool(os.pread, descriptor, min(READ_BYTES, end - start), start)
                if not chunk:
                    raise EOFError(f"{self._path} became shorter while it was sent")
                start += len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            os.close(descriptor)

    async def _send_directly(self, scope: Scope, descriptor: int) -> int:
        direct_io = direct_io_of(scope)
        if direct_io is None or self._length < MINIMUM_BYTES or not await direct_io.begin_answer():
            return 0
        sent = 0
        try:
            sent = await run_in_threadpool(direct_io.send_file, descriptor, self._start, self._length)
        finally:
            direct_io.end_answer(sent)
        return sent
