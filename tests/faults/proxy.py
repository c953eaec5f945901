"""`FaultProxy`: a proxy before a real S3 store that makes chosen operations fail.

    with FaultProxy(store.endpoint) as proxy:
        proxy.fail("complete", "error_in_200", times=2)
        ...                                             # talk to proxy.endpoint
        assert proxy.happened("complete") == 2

    500, 503        the response of a broken or busy (SlowDown) store; the request does not reach it
    hang            no response for `hang_seconds`, then the connection ends
    reset_before    the connection ends before the request reaches the store
    reset_after     the store acts and its response is lost
    cut             half of the body of a GET's response, or of a PUT
    flip            one bit of that is flipped
    error_in_200    status 200, and an error in the body, as S3 responses a late failure of Complete and Copy

Requests keep their Host, so that signatures stay true.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
from collections import Counter
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

ACTS = ("500", "503", "hang", "reset_before", "reset_after", "cut", "flip", "error_in_200")
_ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>injected</Message></Error>'
_FOREVER = 10**9


@dataclass
class Fault:
    act: str
    remaining: int
    share: float


class Reset(Exception):
    """End this connection at once."""


class FaultProxy:
    def __init__(self, endpoint: str, *, hang_seconds: float = 1.5, seed: int = 0) -> None:
        parts = urlsplit(endpoint)
        self._target = (parts.hostname or "", parts.port or 80)
        self.hang_seconds = hang_seconds
        self._random = random.Random(seed)
        self._faults: dict[str, Fault] = {}
        self._happened: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.endpoint = ""

    # ------------------------------------------------------------ what goes wrong
    def fail(self, operation: str, act: str, *, times: int = _FOREVER, share: float = 1.0) -> None:
        """Make the next `times` requests of this operation fail, each with the probability `share`."""
        if act not in ACTS:
            raise ValueError(act)
        self._faults[operation] = Fault(act, times, share)

    def heal(self) -> None:
        self._faults.clear()

    def happened(self, operation: str) -> int:
        return self._happened[operation]

    def _act(self, operation: str) -> str:
        self.counts[operation] += 1
        fault = self._faults.get(operation)
        if fault is None or fault.remaining <= 0 or self._random.random() >= fault.share:
            return ""
        fault.remaining -= 1
        self._happened[operation] += 1
        return fault.act

    # ------------------------------------------------------------ the server
    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, request after request, each on a connection of its own to the store."""
        try:
            while head := await _head(reader):
                await self._exchange(head, reader, writer)
        except (Reset, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()

    async def _exchange(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        operation = operation_of(head)
        act = self._act(operation)
        if act == "reset_before":
            raise Reset
        if b"expect: 100-continue" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"(?i)\r\nexpect: 100-continue", b"", head)
        body = await reader.readexactly(_length(head))
        if act == "hang":
            await asyncio.sleep(self.hang_seconds)
            raise Reset
        if act in ("500", "503", "error_in_200"):
            writer.write(_refusal(act, "HEAD" if head.startswith(b"HEAD") else ""))
            await writer.drain()
            return
        sends = head.startswith(b"PUT") and body
        if act == "cut" and sends:
            await self._forward_half(head, body)
            raise Reset
        if act == "flip" and sends:
            body = self._flipped(body)
        response_head, response = await self._forward(head, body)
        if act == "reset_after":
            raise Reset
        if act == "flip" and not sends and response:
            response = self._flipped(response)
        half = act == "cut" and not sends
        writer.write(response_head + (response[: len(response) // 2] if half else response))
        await writer.drain()
        if half:
            raise Reset

    async def _forward(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection(*self._target, limit=2**20)
        try:
            writer.write(head + body)
            await writer.drain()
            response = await _head(reader)
            status = int(response.split(b" ", 2)[1])
            if head.startswith(b"HEAD") or status in (204, 304):
                return response, b""
            if b"transfer-encoding: chunked" in response.lower():
                return response, await _chunked(reader)
            return response, await reader.readexactly(_length(response))
        finally:
            writer.close()

    async def _forward_half(self, head: bytes, body: bytes) -> None:
        _, writer = await asyncio.open_connection(*self._target)
        with contextlib.suppress(ConnectionError):
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
        writer.close()

    def _flipped(self, data: bytes) -> bytes:
        at = self._random.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << self._random.randrange(8))]) + data[at + 1 :]


def operation_of(head: bytes) -> str:
    """put, part, copy, create, complete, abort, get, head, list, parts or delete."""
    method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    query = parse_qs(urlsplit(target).query, keep_blank_values=True)
    if "uploadId" in query:
        return {"PUT": "part", "POST": "complete", "DELETE": "abort", "GET": "parts"}[method]
    if method == "POST":
        return "create" if "uploads" in query else "post"
    if method == "PUT":
        return "copy" if b"x-amz-copy-source:" in head.lower() else "put"
    if method == "GET":
        return "list" if "list-type" in query or "uploads" in query else "get"
    return method.lower()


def _refusal(act: str, method: str) -> bytes:
    status, code = {
        "500": ("500 Internal Server Error", "InternalError"),
        "503": ("503 Slow Down", "SlowDown"),
        "error_in_200": ("200 OK", "InternalError"),
    }[act]
    body = b"" if method == "HEAD" else _ERROR.format(code).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _length(head: bytes) -> int:
    match = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(match[1]) if match else 0


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    """The chunks as they came, to be passed on as they are."""
    raw = b""
    while True:
        line = await reader.readline()
        size = int(line.split(b";")[0], 16)
        raw += line + await reader.readexactly(size + 2)
        if not size:
            return raw
