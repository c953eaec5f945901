"""`RunningServer`: a `LinkServer` in a thread, over a folder of blobs and an ASGI application of the test.

The application responds `/plain` with `ok`, and every other request with `by the application`. So a response says who
gave it: a thread that handles links, or the application.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from registry.digest import Digest
from registry.server.http.request_log import RequestLog
from registry.server.local_links.backend import LinkBackend
from registry.server.local_links.connections import ConnectionLimits
from registry.server.local_links.server import LinkServer
from registry.server.storage.blobs import BlobWriter, key_of, staging_key_of
from registry.server.storage.local import LocalBlobs
from registry.server.storage.signed_links import LinkSigner, SignedLink

PLAIN = b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n"
Run = Callable[[Coroutine[Any, Any, None]], object]


async def _respond(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    text = b"ok" if scope["path"] == "/plain" else b"by the application"
    more = scope["path"] != "/plain"
    while more:
        message = await receive()
        more = message.get("more_body", False)
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


class RunningServer:
    def __init__(
        self, root: Path, *, application: Any = _respond, run: Run = asyncio.run,
        limits: ConnectionLimits | None = None, stall_seconds: float = 60,
    ) -> None:  # fmt: skip
        self.blobs = LocalBlobs(root)
        self.signer = self.blobs.links = LinkSigner(lambda: "the secret of this deployment")
        self.requests = RequestLog()
        self.counts = self.requests.counts
        self.uploads: list[tuple[str, str]] = []
        self.stopping = threading.Event()
        self.refuse: Exception | None = None
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**18)
        self.port = listener.getsockname()[1]
        self.started = threading.Event()
        backend = LinkBackend(self.blobs, self._upload, stall_seconds, self.stopping.is_set)
        self.server = LinkServer(
            application, listener, self.signer, backend,
            limits=limits or ConnectionLimits(1000, 1000), requests=self.requests, on_start=self.started.set,
            on_stop=self.stopping.set,
        )  # fmt: skip
        self.thread = threading.Thread(target=lambda: run(self.server.serve()))

    @contextmanager
    def _upload(self, link: SignedLink) -> Iterator[BlobWriter]:
        if self.refuse is not None:
            raise self.refuse
        self.uploads.append((link.owner, link.key))
        yield self.blobs.open_writer(link.key, limit_bytes=link.size_bytes)

    def __enter__(self) -> Self:
        self.thread.start()
        assert self.started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    # ------------------------------------------------------------ clients
    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def store(self, data: bytes) -> str:
        """Store a blob and return its key."""
        key = key_of(Digest.of(data))
        self.blobs.put(key, [data], limit_bytes=len(data))
        return key

    def read_link(self, data: bytes, **changes: Any) -> str:
        return self.signer.sign("GET", self.store(data), len(data), **{"seconds": 60, "owner": "tok_1", **changes})

    def write_link(self, data: bytes, push: str = "psh_1", **changes: Any) -> str:
        key = staging_key_of(push, Digest.of(data))
        return self.signer.sign("PUT", key, len(data), **{"seconds": 60, "owner": "tok_1", **changes})

    def stored(self, data: bytes, push: str = "psh_1") -> bytes | None:
        path = self.blobs.local_path(staging_key_of(push, Digest.of(data)))
        return path.read_bytes() if path is not None and path.exists() else None

    def leftovers(self) -> list[Path]:
        return list((self.blobs.root / "tmp").glob("*"))


def head_of(method: str, target: str, size_bytes: int | None = None, *more: str) -> bytes:
    """The head of a request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *more]
    if size_bytes is not None:
        lines.append(f"Content-Length: {size_bytes}")
    return "\r\n".join([*lines, "", ""]).encode()
