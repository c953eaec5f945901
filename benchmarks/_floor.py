"""The least that moving adapters can cost on a machine: two bare processes that hash on both sides and do nothing else.

python -m benchmarks._floor serve FOLDER sync|nosync
python -m benchmarks._floor put PORT FOLDER…
python -m benchmarks._floor get PORT DEST sync|nosync NAME…

- One connection for each of `AT_ONCE` threads, a header of fixed length for each file, `sendfile` one way and whole
  buffers the other: no HTTP, no names, no database, no evaluation. Each side hashes every byte once.
- A sender hashes a file before it sends it, as every content-addressed push does: the digest is the name.
- With `sync`, files are forced to disk before they are acknowledged; the distribution registry does so when it is
  pushed to, oras does not when it pulls.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 4
BUFFER_BYTES = 2**20
HEAD_BYTES = 256
DIGEST_BYTES = 32


def hash_of(path: Path) -> bytes:
    hasher, buffer = hashlib.sha256(), bytearray(BUFFER_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(view[:count])
    return hasher.digest()


def send(line: socket.socket, path: Path, size: int) -> None:
    with open(path, "rb") as file:
        start = 0
        while start < size:
            start += os.sendfile(line.fileno(), file.fileno(), start, size - start)


def receive(line: socket.socket, path: Path, size: int, *, sync: bool) -> bytes:
    hasher, buffer = hashlib.sha256(), bytearray(BUFFER_BYTES)
    view = memoryview(buffer)
    with open(path, "wb", buffering=0) as file:
        while size:
            count = line.recv_into(buffer, min(size, BUFFER_BYTES), socket.MSG_WAITALL)
            if not count:
                raise EOFError(path.name)
            hasher.update(view[:count])
            file.write(view[:count])
            size -= count
        if sync:
            os.fsync(file.fileno())
    return hasher.digest()


def serve(folder: Path, sync: bool) -> None:
    files: dict[str, tuple[bytes, int]] = {}

    def serve_line(line: socket.socket) -> None:
        while head := line.recv(HEAD_BYTES, socket.MSG_WAITALL):
            verb, name, size = head.decode().split()
            path = folder / name.replace("/", "_")
            if verb == "put":
                files[name] = (receive(line, path, int(size), sync=sync), int(size))
                line.sendall(files[name][0])
            else:
                line.sendall(files[name][0] + files[name][1].to_bytes(8, "big"))
                send(line, path, files[name][1])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            line = listener.accept()[0]
            threading.Thread(target=serve_line, args=(line,), daemon=True).start()


class Lines:
    """A connection for each thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._own = threading.local()

    def ask(self, verb: str, name: str, size: int = 0) -> socket.socket:
        if not hasattr(self._own, "line"):
            self._own.line = socket.create_connection(("127.0.0.1", self._port))
        line: socket.socket = self._own.line
        line.sendall(f"{verb} {name} {size}".ljust(HEAD_BYTES).encode())
        return line


def put(port: int, folders: list[Path]) -> None:
    lines = Lines(port)

    def one(path: Path) -> None:
        digest, size = hash_of(path), path.stat().st_size
        line = lines.ask("put", f"{path.parent.name}/{path.name}", size)
        send(line, path, size)
        same(line.recv(DIGEST_BYTES, socket.MSG_WAITALL), digest, path)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, [path for folder in folders for path in sorted(folder.iterdir())]))


def get(port: int, dest: Path, sync: bool, names: list[str]) -> None:
    lines = Lines(port)

    def one(name: str) -> None:
        line = lines.ask("get", name)
        head = line.recv(DIGEST_BYTES + 8, socket.MSG_WAITALL)
        path = dest / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = receive(line, path, int.from_bytes(head[DIGEST_BYTES:], "big"), sync=sync)
        same(digest, head[:DIGEST_BYTES], path)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, names))


def same(actual: bytes, other: bytes, path: Path) -> None:
    if actual != other:
        raise ValueError(f"{path} arrived as other bytes")


def main(verb: str, *arguments: str) -> None:
    if verb == "serve":
        serve(Path(arguments[0]), arguments[1] == "sync")
    elif verb == "put":
        put(int(arguments[0]), [Path(text) for text in arguments[1:]])
    else:
        get(int(arguments[0]), Path(arguments[1]), arguments[2] == "sync", list(arguments[3:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
