"""The Python files of a package, read out of a folder, a wheel, a source distribution or a wheel's URL.

    with opened(where, "vllm") as tree:
        tree.read("vllm/lora/peft_helper.py")        the text, or None

Nothing is installed, imported or written. A wheel is read file by file, at a URL by HTTP ranges, so that a wheel of
hundreds of megabytes costs a few. A file over `FILE_LIMIT_BYTES` reads as absent.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

FILE_LIMIT_BYTES = 2**22
FILES_LIMIT = 50_000
SOURCE_LIMIT_BYTES = 2**29
"""Of all Python files in a source distribution, which is unpacked into memory."""
BLOCK_BYTES = 2**20
TIMEOUT_SECONDS = 60


class SourceTree:
    """Files by their path inside the package's parent folder (`vllm/__init__.py`)."""

    def __init__(self, files: Mapping[str, Callable[[], bytes]]) -> None:
        if len(files) > FILES_LIMIT:
            raise ValueError(f"the source has {len(files)} Python files; the limit is {FILES_LIMIT}")
        self._files = files

    def names(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def read(self, name: str) -> str | None:
        """The file's text; None if there is no such file, or if it is too long or not UTF-8."""
        opener = self._files.get(name)
        if opener is None:
            return None
        data = opener()
        if len(data) > FILE_LIMIT_BYTES:
            return None
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return None


@contextlib.contextmanager
def opened(where: str, package: str) -> Iterator[SourceTree]:
    """The package's files at `where`: a folder, a `.whl`, a `.tar.gz`, or the URL of a wheel."""
    if where.startswith(("http://", "https://")):
        with httpx.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS) as client:
            remote = io.BufferedReader(_RemoteFile(client, where), BLOCK_BYTES)
            with zipfile.ZipFile(remote) as wheel:
                yield SourceTree(_of_zip(wheel, package))
        return
    path = Path(where)
    if path.is_dir():
        yield SourceTree(_of_folder(path, package))
    elif path.name.endswith((".tar.gz", ".tgz")):
        yield SourceTree(_of_tar(path, package))
    else:
        with zipfile.ZipFile(path) as wheel:
            yield SourceTree(_of_zip(wheel, package))


def _of_folder(folder: Path, package: str) -> dict[str, Callable[[], bytes]]:
    """Links are left out: they may lead out of the folder."""

    def reader(path: Path) -> Callable[[], bytes]:
        return lambda: path.read_bytes() if path.stat().st_size <= FILE_LIMIT_BYTES else b"\0" * (FILE_LIMIT_BYTES + 1)

    inside = (path for path in (folder / package).rglob("*.py") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): reader(path) for path in inside}


def _of_zip(archive: zipfile.ZipFile, package: str) -> dict[str, Callable[[], bytes]]:
    def reader(info: zipfile.ZipInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            with archive.open(info) as member:  # never trust the size that the archive states
                return member.read(FILE_LIMIT_BYTES + 1)

        return read

    infos = [info for info in archive.infolist() if info.filename.endswith(".py")]
    return {name: reader(info) for info in infos if (name := _inside(info.filename, package))}


def _of_tar(path: Path, package: str) -> dict[str, Callable[[], bytes]]:
    def reader(data: bytes) -> Callable[[], bytes]:
        return lambda: data

    files: dict[str, Callable[[], bytes]] = {}
    total = 0
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = _inside(member.name, package) if member.isfile() and member.name.endswith(".py") else ""
            content = archive.extractfile(member) if name else None
            if content is None:
                continue
            data = content.read(FILE_LIMIT_BYTES + 1)
            total += len(data)
            if total > SOURCE_LIMIT_BYTES or len(files) > FILES_LIMIT:
                raise ValueError(f"{path.name} holds more Python source than {SOURCE_LIMIT_BYTES} bytes")
            files[name] = reader(data)
    return files


def _inside(name: str, package: str) -> str:
    """The path from the package's folder on; source distributions put it under `name-version/` or `…/python/`."""
    parts = name.split("/")
    return "/".join(parts[parts.index(package) :]) if package in parts[:3] else ""


class _RemoteFile(io.RawIOBase):
    """A file behind a URL whose server serves ranges."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client, self._url, self._position = client, url, 0
        response = client.head(url)
        response.raise_for_status()
        self._size = int(response.headers["content-length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        end = min(self._position + len(buffer), self._size)
        if self._position >= end:
            return 0
        response = self._client.get(self._url, headers={"Range": f"bytes={self._position}-{end - 1}"})
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            raise OSError(f"the server responds with {response.status_code} to a range; download the wheel instead")
        data = response.content[: end - self._position]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
