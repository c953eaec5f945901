"""Bytes of blobs in request and response bodies, moved by the event loop, which holds no thread for a slow peer.

- Bytes are hashed and written while they arrive. Each upload needs one buffer of memory.
- A response is as long as its Content-Length, or its connection is closed.
- Large files of a local store travel by signed links (`local_links`), which cost less.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from registry.server import failpoints
from registry.server.http.routing import run_in_store_thread, run_in_store_thread_always
from registry.server.storage.blobs import BlobWriter

WRITE_BYTES = 2**20
"""Received chunks are collected to about this size before they are hashed and written."""
READ_BYTES = 2**18
"""How much of a file is in memory for each client."""


class UploadResponse(Response):
    """Answers 204 after it has written the request's body; without a writer the body is discarded.

    `context` is open while the body is received.
    """

    def __init__(self, writer: BlobWriter | None, context: AbstractContextManager[None]) -> None:
        super().__init__(status_code=204)
        self._writer = writer
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
                await receive_body(request, writer)
                failpoints.reach("upload.received")
                await run_in_store_thread(writer.finish)
                failpoints.reach("upload.written")
        except BaseException:
            await run_in_store_thread_always(writer.abort)
            raise


async def receive_body(request: Request, writer: BlobWriter) -> None:
    """Write the body of a request. The writer refuses what exceeds its limit."""
    buffer = bytearray()
    async for chunk in request.stream():
        buffer += chunk
        if len(buffer) >= WRITE_BYTES:
            await run_in_store_thread(writer.write, buffer)
            buffer = bytearray()
            failpoints.reach("upload.half")
    if buffer:
        await run_in_store_thread(writer.write, buffer)


class FileRangeResponse(Response):
    """Sends a range of a file."""

    def __init__(self, path: Path, start: int, length: int, status_code: int, headers: dict[str, str]) -> None:
        super().__init__(None, status_code, {**headers, "Content-Length": str(length)}, "application/octet-stream")
        self._path = path
        self._start = start
        self._length = length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the interface of ASGI
        descriptor = await run_in_threadpool(os.open, self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            start, end = self._start, self._start + self._length
            while start < end:
                chunk = await run_in_threadpool(os.pread, descriptor, min(READ_BYTES, end - start), start)
                if not chunk:
                    raise EOFError(f"{self._path} became shorter while it was sent")
                start += len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            os.close(descriptor)
