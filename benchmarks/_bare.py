"""The floor under benchmarks/resolve.py: an ASGI application that sends so many bytes, and knows nothing.

It runs as `adapter serve` does: uvicorn in one process. What it costs is what Python costs.

Example
    $ python -m benchmarks._bare 1921
    http://127.0.0.1:40001
"""

from __future__ import annotations

import socket
import sys

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send


def application(size_bytes: int) -> ASGIApp:
    body = b"x" * size_bytes
    headers = [(b"content-length", str(size_bytes).encode()), (b"content-type", b"application/json")]

    async def respond(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return respond


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        application(int(sys.argv[1])), http="httptools", log_level="warning", access_log=False, lifespan="off"
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
