"""`Digest`: bytes named by their SHA-256 (a name, never a permission), and the canonical JSON of values (RFC 8785).

Canonical JSON refuses floats, because writers print them differently, and integers beyond ±2^53.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from registry.errors import Invalid

_GRAMMAR = re.compile(r"sha256:[0-9a-f]{64}\Z")
_LARGEST_INTEGER = 2**53


class Digest(str):
    """`sha256:<64 hex>`. A `str`, so it is JSON, a dictionary key and a column value as it stands."""

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        if not isinstance(text, str) or not _GRAMMAR.match(text):
            raise Invalid("DIGEST_INVALID", f"digest {str(text)[:80]!r} is not 'sha256:' and 64 lower-case hex digits")
        return super().__new__(cls, text)

    def __repr__(self) -> str:
        return f"Digest({str(self)!r})"

    @property
    def hex(self) -> str:
        """The 64 hexadecimal digits."""
        return self[7:]

    @property
    def short(self) -> str:
        """The first 12 hex digits, for people. Never used for look-up."""
        return self[7:19]

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The digest of these bytes."""
        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @classmethod
    def of_file(cls, path: Path) -> Digest:
        """The digest of a file's bytes, read as a stream."""
        with path.open("rb") as file:
            return cls("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())

    @classmethod
    def of_chunks(cls, chunks: Iterable[bytes]) -> Digest:
        """The digest of all chunks together."""
        hasher = Hasher()
        for chunk in chunks:
            hasher.update(chunk)
        return hasher.digest()

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: type[Any], _handler: Any) -> dict[str, Any]:
        """A dictionary is a core schema, so that pydantic need not be imported here."""
        return {
            "type": "function-after",
            "function": {"type": "no-info", "function": _parse_for_pydantic},
            "schema": {"type": "str", "pattern": r"^sha256:[0-9a-f]{64}$"},
            "serialization": {"type": "to-string"},
        }


def _parse_for_pydantic(text: str) -> Digest:
    try:
        return Digest(text)
    except Invalid as e:  # pydantic wants a ValueError; the sentence is the same
        raise ValueError(e.detail) from e


class DigestPrefix(str):
    """The beginning of a digest, `sha256:` and some of its hex digits: what a person copies from a table."""


class Hasher:
    """SHA-256 of a stream, fed chunk by chunk, that also counts bytes."""

    __slots__ = ("_sha", "size_bytes")

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.size_bytes = 0

    def update(self, chunk: bytes | bytearray | memoryview) -> None:
        """Feed the next chunk."""
        self._sha.update(chunk)
        self.size_bytes += len(chunk)

    def digest(self) -> Digest:
        """The digest of what was fed so far."""
        return Digest("sha256:" + self._sha.hexdigest())


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON value (RFC 8785). `Invalid` if it holds what we do not allow."""
    try:
        return json.dumps(_ordered(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, UnicodeEncodeError):
        raise _not_canonical(value) from None


def _ordered(value: Any) -> Any:
    """The value with its keys in order. `TypeError` for what has no canonical form, wherever it stands."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        if abs(value) > _LARGEST_INTEGER:
            raise TypeError
        return value
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in _sorted(value)}
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    raise TypeError


def _sorted(keys: Iterable[str]) -> list[str]:
    """RFC 8785 sorts by UTF-16 code units, which differs from Python's order beyond U+FFFF."""
    ordered = sorted(keys)
    return ordered if "".join(ordered).isascii() else sorted(ordered, key=lambda key: key.encode("utf-16-be"))


def _not_canonical(value: Any) -> Invalid:
    """Where and why. Asked only when something is known to be wrong: naming places takes longer than looking."""
    problem = next(_problems(value, "$"), "$: this value has no canonical form")
    return Invalid("MANIFEST_INVALID", problem)


def _problems(value: Any, location: str) -> Iterator[str]:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            yield f"{location}: text holds half of a surrogate pair"
    elif isinstance(value, int):
        if abs(value) > _LARGEST_INTEGER:
            yield f"{location}: integer {value} is beyond ±2^53"
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _problems(item, f"{location}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"{location}: key {key!r} is not text"
            elif any("\ud800" <= c <= "\udfff" for c in key):
                yield f"{location}: key {key!r} holds half of a surrogate pair"
            yield from _problems(item, f"{location}.{key}")
    else:
        yield f"{location}: {type(value).__name__} has no canonical form"
