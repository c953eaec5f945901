"""`CommitRequest`: the body of a commit in the Hub API, newline-delimited JSON, as values.

    {"key": "header", "value": {"summary": …, "description": …, "parentCommit": …}}
    {"key": "file", "value": {"path": …, "content": <base64>, "encoding": "base64"}}
    {"key": "lfsFile", "value": {"path": …, "algo": "sha256", "oid": <hex>, "size": …}}
    {"key": "deletedFile", "value": {"path": …}}    {"key": "deletedFolder", "value": {"path": …}}

- The content of a file is not decoded here: `Content` reads it in pieces, so memory does not grow with it.
- Paths, the number of operations and the length of every other field are checked before anything is done.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from registry import names
from registry.digest import Digest
from registry.errors import Invalid, TooLarge
from registry.hub import git_header
from registry.strict import json as strict_json
from registry.strict.json import Dialect
from registry.versions.files import FILE_LIMIT_BYTES

OPERATIONS_LIMIT = 1000
LINE_LIMIT_BYTES = 64 * 2**10
"""Bytes of a line without the content of its file."""
BODY_LIMIT_BYTES = 768 * 2**20
_DIALECT = Dialect(error_code="REQUEST_INVALID", family="commit", depth=4)
_CONTENT = re.compile(rb'"content"[ \t]*:[ \t]*"')
_CUT = "~"
"""Stands for the content of a file while its line is parsed: no base64 text."""
_PIECE_BYTES = 4 * 2**18
_OID = re.compile(r"[0-9a-f]{64}\Z")


class Body(Protocol):
    """The bytes of a request: `bytes`, or a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, span: slice, /) -> bytes: ...
    def find(self, part: bytes, start: int, end: int, /) -> int:
        """Return where `part`, which is one byte, is; or -1."""


@dataclass(frozen=True)
class Content:
    """The base64 text of one file in the body of a commit."""

    body: Body
    start: int
    end: int
    path: str

    def chunks(self) -> Iterator[bytes]:
        """Yield the decoded bytes, `size_bytes` in all. `Invalid` (REQUEST_INVALID) for text that is not base64."""
        count = 0
        for at in range(self.start, self.end, _PIECE_BYTES):
            piece = self.body[at : min(at + _PIECE_BYTES, self.end)]
            try:
                data = base64.b64decode(piece, validate=True)
            except ValueError:
                raise Invalid("REQUEST_INVALID", f"{self.path}: its content is not base64") from None
            count += len(data)
            is_last = at + _PIECE_BYTES >= self.end
            if count != self.size_bytes if is_last else len(data) != _PIECE_BYTES // 4 * 3:
                raise Invalid("REQUEST_INVALID", f"{self.path}: its content is not one base64 text")
            yield data

    @cached_property
    def size_bytes(self) -> int:
        """The number of decoded bytes, which the length of the text tells."""
        padding = self.body[max(self.start, self.end - 2) : self.end].count(b"=")
        return max((self.end - self.start) // 4 * 3 - padding, 0)

    @cached_property
    def ids(self) -> tuple[Digest, str]:
        """The SHA-256 of the bytes, and the id of their git blob."""
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(git_header(self.size_bytes), usedforsecurity=False)
        for chunk in self.chunks():
            sha256.update(chunk)
            sha1.update(chunk)
        return Digest(f"sha256:{sha256.hexdigest()}"), sha1.hexdigest()


@dataclass(frozen=True, slots=True)
class AddFile:
    """A file whose bytes are in the commit."""

    path: str
    content: Content


@dataclass(frozen=True, slots=True)
class AddLarge:
    """A file that was uploaded before, or that is in the repository. `size_bytes` is None for a copy."""

    path: str
    digest: Digest
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Delete:
    """A file to remove, or a folder with everything in it."""

    path: str


Operation = AddFile | AddLarge | Delete


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """What a commit is to do. `parent` is the commit that the client expects at the branch; empty for any."""

    summary: str
    description: str
    parent: str
    operations: tuple[Operation, ...]

    @property
    def message(self) -> str:
        """The summary and the description."""
        return f"{self.summary}\n\n{self.description}".strip()


def read_commit(body: Body) -> CommitRequest:
    """Parse the body of a commit. `Invalid` and `TooLarge` name the line."""
    header: dict[str, Any] | None = None
    operations: list[Operation] = []
    for number, (start, end) in enumerate(_lines(body), 1):
        key, value, content = _read_line(body, start, end, number)
        if key == "header" and header is None:
            header = value
        elif header is None:
            raise Invalid("REQUEST_INVALID", f"line {number}: a commit begins with its header")
        else:
            operations.append(_operation(key, value, content, number))
        if len(operations) > OPERATIONS_LIMIT:
            raise TooLarge("SIZE_INVALID", f"commit: over the limit of {OPERATIONS_LIMIT} operations")
    if header is None:
        raise Invalid("REQUEST_INVALID", "the commit is empty: it has no header")
    summary, description, parent = (_text(header, key, 1) for key in ("summary", "description", "parentCommit"))
    return CommitRequest(summary, description, parent, tuple(operations))


def _lines(body: Body) -> Iterator[tuple[int, int]]:
    """Yield where each line begins and ends. Empty ones are passed over, but count: a body may hold nothing else."""
    start, size, empty = 0, len(body), 0
    while start < size:
        end = body.find(b"\n", start, size)
        end = size if end < 0 else end
        if end > start:
            yield start, end
        elif (empty := empty + 1) > OPERATIONS_LIMIT:
            raise TooLarge("SIZE_INVALID", f"commit: over the limit of {OPERATIONS_LIMIT} empty lines")
        start = end + 1


def _read_line(body: Body, start: int, end: int, number: int) -> tuple[str, dict[str, Any], Content | None]:
    """Return the key and the value of a line, and the content that its value has. The content is not copied.

    Content beside or deeper in the value is none: a reader that takes the first one would store other bytes.
    """
    head = body[start : min(end, start + LINE_LIMIT_BYTES)]
    content, text = None, head
    if match := _CONTENT.search(head):
        first = start + match.end()
        last = body.find(b'"', first, end)
        if last < 0:
            raise Invalid("REQUEST_INVALID", f"line {number}: the content has no end")
        content = Content(body, first, last, f"line {number}")
        text = head[: match.end()] + _CUT.encode() + body[last : min(end, last + LINE_LIMIT_BYTES)]
    if (end - start) - (content.end - content.start if content else 0) > LINE_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"line {number}: over the limit of {LINE_LIMIT_BYTES} bytes without content")
    line = strict_json.parse_object(text, _DIALECT, file=f"line {number}")
    key, value = line.get("key"), line.get("value")
    if not isinstance(key, str) or not isinstance(value, dict):
        raise Invalid("REQUEST_INVALID", f"line {number}: has no `key` and `value`")
    return key, value, content if "content" not in line and value.get("content") == _CUT else None


def _operation(key: str, value: dict[str, Any], content: Content | None, number: int) -> Operation:
    path = _text(value, "path", number)
    if key in ("deletedFile", "deletedFolder"):
        return Delete(names.file_path(path.rstrip("/")))
    if key == "file":
        if content is None or value.get("encoding", "base64") != "base64":
            raise Invalid("REQUEST_INVALID", f"line {number}: a file needs its `content` in base64, in its `value`")
        return AddFile(names.file_path(path), Content(content.body, content.start, content.end, path))
    if key == "lfsFile":
        oid, size = _text(value, "oid", number), value.get("size")
        if value.get("algo", "sha256") != "sha256" or not _OID.match(oid):
            raise Invalid("REQUEST_INVALID", f"line {number}: `oid` is not a SHA-256 in hex")
        if size is not None and (type(size) is not int or not 0 <= size <= FILE_LIMIT_BYTES):
            raise Invalid("REQUEST_INVALID", f"line {number}: `size` is not a number up to {FILE_LIMIT_BYTES}")
        return AddLarge(names.file_path(path), Digest(f"sha256:{oid}"), size)
    raise Invalid("REQUEST_INVALID", f"line {number}: {key[:40]!r} is not an operation that this registry knows")


def _text(value: dict[str, Any], key: str, number: int) -> str:
    text = value.get(key) or ""
    if not isinstance(text, str):
        raise Invalid("REQUEST_INVALID", f"line {number}: `{key}` is not a text")
    return text
