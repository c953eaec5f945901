"""`RecordingProxy`: forwards everything between a client and a server and records the heads of the requests.

- What must never pass is said with `watch`: it is found wherever it stands in the stream, also across two reads.

Example
    with RecordingProxy(store.endpoint) as proxy:
        ...                                  # talk to proxy.endpoint
        assert all("authorization" not in head.lower() for head in proxy.heads)
"""

from __future__ import annotations

import re
import socket
import threading
from urllib.parse import urlsplit

_HEAD = re.compile(rb"(?:GET|HEAD|PUT|POST|DELETE) [^\r\n]+ HTTP/1\.1\r\n.*?\r\n\r\n", re.DOTALL)


class RecordingProxy:
    """One thread for each direction of each connection."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._target = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[str] = []
        self.sightings = 0
        self.cut_after: int | None = None
        """The next response that brings more bytes than this is cut off there; then it is None again."""
        self._watched = b""
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, *, after: int) -> None:
        """Cut the next response that brings more than `after` bytes."""
        self.cut_after = after

    def __enter__(self) -> RecordingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self._listener, *self._open):
            connection.close()

    def targets(self, method: str) -> list[str]:
        """The targets of the requests with this method, in the order in which they came."""
        return [head.split(" ", 2)[1] for head in self.heads if head.startswith(method + " ")]

    def watch(self, word: str) -> None:
        """Count in `sightings` each piece from a client that holds this word, from now on."""
        self._watched = word.encode()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._open += [client, server]
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _look(self, before: bytes, data: bytes) -> bytes:
        """Look for the watched word in what came now; the end of it, in which the word may have begun."""
        if not self._watched:
            return b""
        self.sightings += self._watched in before + data
        return (before + data)[1 - len(self._watched) :]

    def _pass(self, source: socket.socket, target: socket.socket, remember: bool) -> None:
        before, passed = b"", 0
        try:
            while data := source.recv(2**16):
                passed += len(data)
                if not remember and self.cut_after is not None and passed > self.cut_after:
                    self.cut_after = None
                    return
                if remember:  # a head fits into one read here: our clients send it in one piece
                    self.heads += [head.decode("latin-1") for head in _HEAD.findall(data)]
                    before = self._look(before, data)
                target.sendall(data)
        except OSError:
            pass
        finally:
            for connection in (source, target):
                connection.close()
