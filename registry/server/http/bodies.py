"""Files in response bodies, sent by the event loop, which holds no thread for a slow peer.

- A response is as long as its Content-Length, or its connection is closed.
- Large files of a local store travel by signed links (`local_links`), which cost less.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

READ_BYTES = 2**18
"""How much of a file is in memory for each client."""


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
