"""Requests that this server sends to others: small JSON documents, such as keys of an identity provider, and deadlines.

- A deadline is one for a whole response, whatever is being waited for: TLS, headers or the body. A read timeout begins
  again at each byte, so a server that sends one now and then would hold a thread without end.
"""

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

DOCUMENT_LIMIT_BYTES = 2**20


def request_document(
    method: str, url: str, *, seconds: float, headers: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
) -> tuple[int, Any]:  # fmt: skip
    """The status and the JSON document of a response. `ValueError` if there is none in time, or a large one.

    For the URLs of the operator's file. Redirects are not followed, and nothing is decompressed.
    """
    headers = {"Accept": "application/json", **(headers or {}), "Accept-Encoding": "identity"}
    data = bytearray()
    try:
        with (
            shut_down_after(seconds) as watch,
            httpx.Client(timeout=seconds, verify=ssl.create_default_context()) as client,
            client.stream(method, url, data=form, headers=headers, extensions=trace(watch)) as response,
        ):
            for chunk in response.iter_raw(65536):
                data += chunk
                if len(data) > DOCUMENT_LIMIT_BYTES:
                    raise ValueError(f"the response of {url} is over {DOCUMENT_LIMIT_BYTES} bytes")
            return response.status_code, json.loads(data)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, RecursionError) as e:
        raise ValueError(f"{url} does not respond with a document: {type(e).__name__}") from e


@contextmanager
def shut_down_after(seconds: float) -> Iterator[Callable[[socket.socket], None]]:
    """Yield a function that takes each connection of a request. After so many seconds they are shut down."""
    connections: list[socket.socket] = []
    lock, is_over = threading.Lock(), False

    def watch(connection: socket.socket) -> None:
        with lock:
            connections.append(connection.dup())  # TLS takes the original over
        if is_over:
            shut_down()

    def shut_down() -> None:
        nonlocal is_over
        with lock:
            is_over = True
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()
        with lock:
            for connection in connections:
                connection.close()


def trace(watch: Callable[[socket.socket], None]) -> dict[str, Any]:
    """The extension of an httpx request that calls `watch` with its connection."""

    def on_event(name: str, info: Mapping[str, Any]) -> None:
        if name == "connection.connect_tcp.complete":
            watch(info["return_value"].get_extra_info("socket"))

    return {"trace": on_event}
