"""Read a safetensors header from bytes, strictly and within limits; the values of tensors are never read.

A safetensors file is eight bytes (little-endian length n), n bytes of JSON (tensor name → dtype, shape and two
offsets into what follows; `__metadata__` → texts), then the tensors' bytes, end to end, without holes.
What is accepted here, the safetensors library accepts with equal tensors; the reverse is not true.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from registry.errors import Invalid, TooLarge
from registry.findings import Finding
from registry.strict import json as strict_json

Read = Callable[[int, int], bytes]
"""Read `length` bytes from `offset`: a file, a range request, a memory view."""


HEADER_LIMIT_BYTES = 16 * 2**20
TENSORS_LIMIT = 200_000
NAME_LIMIT_BYTES = 512
NAME_PARTS_LIMIT = 64
"""Rules compare a name part by part. The deepest modules that we know have some fifteen."""
DIMENSIONS_LIMIT = 8
SIDE_LIMIT = 2**40
METADATA_LIMIT_BYTES = 2**20
FINDINGS_LIMIT = 100
"""These limits hold for adapters and for the shards of bases."""

DTYPE_BYTES: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element. Types of less than a byte (F4, F6) are refused: their shape does not give their size."""

FLOATS = frozenset({"F16", "BF16", "F32", "F64", "F8_E5M2", "F8_E4M3"})
"""The types an adapter's weights may have."""

_DIALECT = strict_json.Dialect(
    "TENSORS_INVALID", "safetensors", depth=3, signed_zero=False, unreadable="header_invalid"
)
_FIELDS = {"dtype", "shape", "data_offsets"}
LFS_POINTER = b"version https://git-lfs"
LFS_NEXT_STEP = "download the files themselves: git lfs pull"
_AGAIN = "copy or download the file again"
SAVE_AGAIN = (
    "load it in PEFT (PeftModel.from_pretrained) and save it with save_pretrained(..., safe_serialization=True)"
)
_WRONG_FILES: tuple[tuple[bytes, str, str], ...] = (
    (LFS_POINTER, "a Git LFS pointer: the weights themselves were never downloaded", LFS_NEXT_STEP),
    (b"<", "an HTML or XML page: a download stored the server's error message", _AGAIN),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"PK\x03\x04", "a zip archive, as PyTorch's pickled .bin and .pt files are", SAVE_AGAIN),
    (b"\x80", "a Python pickle, which can run code", SAVE_AGAIN),
    (b"GGUF", "a GGUF file of llama.cpp", "name it *.gguf"),
    (b"{", "JSON text", SAVE_AGAIN),
)
"""How a file begins that is no safetensors, what it is, and what to do."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a header. `start` and `end` count bytes from `Header.data_start`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """All entries in the order of their bytes, the metadata texts, and where the tensors' bytes begin."""

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    data_start: int
    size_bytes: int
    _by_name: dict[str, TensorInfo] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._by_name.update((t.name, t) for t in self.tensors)

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def get(self, name: str) -> TensorInfo | None:
        """The entry of this name."""
        return self._by_name.get(name)


def read_header(read: Read, size_bytes: int, *, file: str) -> Header:
    """The header of a safetensors file of `size_bytes` bytes; `file` is its name in messages.

    `Invalid` (TENSORS_INVALID) with every broken rule, `TooLarge` (SIZE_INVALID) beyond a limit.
    """
    if size_bytes < 8:
        head = read(0, size_bytes) if size_bytes else b""
        message = "is truncated" if size_bytes else "is empty"
        _refuse_file(file, head, f"{message}: a safetensors file begins with 8 bytes of length", _AGAIN)
    head = read(0, 8)
    if len(head) != 8:
        _refuse_file(file, head, f"ended after {len(head)} of its first 8 bytes")
    (length,) = struct.unpack("<Q", head)
    if length > size_bytes - 8:
        head += read(8, min(size_bytes - 8, 16))
        message = f"its header should have {length} bytes, and only {size_bytes - 8} follow"
        if length > HEADER_LIMIT_BYTES:
            _refuse_file(file, head, f"is no safetensors file: {message}", SAVE_AGAIN)
        _refuse_file(file, head, f"is truncated: {message}", _AGAIN)
    if length > HEADER_LIMIT_BYTES:
        _too_large(file, "safetensors.header_too_large", f"a header of {length} bytes", HEADER_LIMIT_BYTES, "bytes")
    raw = read(8, length)
    if len(raw) != length:
        _refuse_file(file, head, f"ended after {len(raw)} of its header's {length} bytes")
    if raw[:1] != b"{" or not raw.endswith((b"}", b" ")):
        _refuse_file(file, head + raw[:16], "has a header that does not begin with '{' and end with '}' or spaces")
    entries = strict_json.parse(raw, _DIALECT, file=file)
    count = len(entries) - ("__metadata__" in entries)
    if count > TENSORS_LIMIT:
        _too_large(file, "safetensors.too_many_tensors", f"{count} tensors", TENSORS_LIMIT, "tensors")
    return _HeaderReader(file, size_bytes - 8 - length).header(entries, 8 + length, size_bytes)


def read_bytes(data: bytes | memoryview, *, file: str) -> Header:
    """The header of a file that is already in memory."""
    return read_header(lambda offset, length: bytes(data[offset : offset + length]), len(data), file=file)


def wrong_file(head: bytes) -> str:
    """What a file is that begins with `head` and is not safetensors, in words; empty if unknown."""
    text = head.lstrip(b" \t\r\n\xef\xbb\xbf")
    return next((words for magic, words, _ in _WRONG_FILES if text.startswith(magic)), "")


def _refuse_file(file: str, head: bytes, message: str, next_step: str = "") -> NoReturn:
    kind = wrong_file(head)
    if kind and not message.startswith("ended"):
        raise Invalid(
            "TENSORS_INVALID",
            f"{file} is not a safetensors file: it is {kind}",
            findings=[Finding("safetensors.not_safetensors", file, f"is {kind}")],
            next_step=next(step for _, words, step in _WRONG_FILES if words == kind),
        )
    finding = Finding("safetensors.header_invalid", file, message)
    raise Invalid.from_finding("TENSORS_INVALID", finding, next_step=next_step)


def _too_large(file: str, code: str, actual: str, limit: int, unit: str) -> NoReturn:
    raise TooLarge.from_finding("SIZE_INVALID", Finding(code, file, f"has {actual}; the limit is {limit} {unit}"))


_INT = frozenset({int})
"""The type of a whole number; that of True is another."""


class _HeaderReader:
    """Checks one parsed header and keeps every broken rule it meets."""

    def __init__(self, file: str, data_bytes: int) -> None:
        self._file = file
        self._data_bytes = data_bytes
        self._is_truncated = False
        self._findings: list[Finding] = []

    def header(self, entries: dict[str, Any], data_start: int, size_bytes: int) -> Header:
        metadata = self._metadata(entries.pop("__metadata__", {}))
        infos = [self._tensor(name, entry) for name, entry in entries.items()]
        tensors = sorted((t for t in infos if t is not None), key=lambda t: (t.start, t.end))
        if not entries:
            self._broken("safetensors.empty", "__metadata__", "the file holds no tensor")
        if not self._findings:
            self._layout(tensors)
        if self._findings:
            first, more = self._findings[0], len(self._findings) - 1
            raise Invalid(
                "TENSORS_INVALID",
                f"{self._file}: {first.location!r}: {first.message}" + (f" (and {more} more)" if more else ""),
                findings=self._findings,
                next_step=_AGAIN if self._is_truncated else "",
            )
        return Header(tuple(tensors), metadata, data_start, size_bytes)

    def _broken(self, code: str, location: str, message: str) -> None:
        if len(self._findings) < FINDINGS_LIMIT:
            self._findings.append(Finding(code, location[:120], message))

    def _metadata(self, value: Any) -> dict[str, str]:
        code, location = "safetensors.metadata_invalid", "__metadata__"
        if not isinstance(value, dict):
            self._broken(code, location, "must be an object of texts")
            return {}
        for key, text in value.items():
            if not isinstance(text, str):
                self._broken(code, location, f"the value of {key[:80]!r} must be text, not {type(text).__name__}")
        if self._findings:
            return {}
        size = sum(len(k.encode()) + len(v.encode()) for k, v in value.items())
        if size > METADATA_LIMIT_BYTES:
            actual = f"{size} bytes of metadata"
            _too_large(self._file, "safetensors.metadata_too_large", actual, METADATA_LIMIT_BYTES, "bytes")
        return value

    def _tensor(self, name: str, entry: Any) -> TensorInfo | None:
        before = len(self._findings)
        problem = self._problem_with_name(name)
        if problem:
            self._broken("safetensors.tensor_name_invalid", name, problem)
        if not isinstance(entry, dict) or set(entry) != _FIELDS:
            self._broken("safetensors.entry_invalid", name, "must be an object of dtype, shape and data_offsets")
            return None
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
            self._broken("safetensors.dtype_invalid", name, f"the dtype {str(dtype)[:40]!r} is not one that we read")
            return None
        if not self._whole_numbers(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= self._data_bytes:
            rule = "data_offsets must be two whole numbers, rising"
            if self._whole_numbers(offsets) and len(offsets) == 2 and offsets[1] > self._data_bytes:
                rule = f"ends at data byte {offsets[1]} of {self._data_bytes}: the file is truncated"
                self._is_truncated = True
            self._broken("safetensors.offsets_invalid", name, rule)
            return None
        if not self._whole_numbers(shape) or len(shape) > DIMENSIONS_LIMIT or max(shape, default=0) > SIDE_LIMIT:
            rule = f"shape must be at most {DIMENSIONS_LIMIT} whole numbers of at most {SIDE_LIMIT}"
            self._broken("safetensors.shape_invalid", name, rule)
            return None
        info = TensorInfo(name, dtype, tuple(shape), offsets[0], offsets[1])
        expected = info.elements * DTYPE_BYTES[dtype]
        if expected != info.size_bytes:
            rule = f"shape {shape} of {dtype} takes {expected} bytes, the offsets hold {info.size_bytes}"
            self._broken("safetensors.size_invalid", name, rule)
        return info if len(self._findings) == before else None

    def _problem_with_name(self, name: str) -> str:
        if not name or len(name.encode()) > NAME_LIMIT_BYTES:
            return f"a tensor's name must have 1 to {NAME_LIMIT_BYTES} bytes"
        if name.count(".") >= NAME_PARTS_LIMIT:
            return f"a tensor's name must have at most {NAME_PARTS_LIMIT} parts"
        if not (name.isascii() and name.isprintable()) or " " in name:
            return "a tensor's name must be printable ASCII without spaces"
        if "\\" in name or ".." in name or name.startswith("/"):
            return "a tensor's name must not look like a path: no backslash, no '..', no leading '/'"
        return ""

    @staticmethod
    def _whole_numbers(value: Any) -> bool:
        return isinstance(value, list) and _INT.issuperset(map(type, value)) and min(value, default=0) >= 0

    def _layout(self, tensors: list[TensorInfo]) -> None:
        """Every data byte belongs to exactly one tensor: no hole, no overlap, nothing behind the last."""
        at = 0
        for info in tensors:
            if info.start != at:
                kind = "leaves a hole before" if info.start > at else "overlaps another tensor at"
                self._broken("safetensors.layout_invalid", info.name, f"{kind} data byte {info.start}; expected {at}")
            at = max(at, info.end)
        if at != self._data_bytes:
            rule = f"{self._data_bytes - at} bytes follow the last tensor, which no tensor owns"
            self._broken("safetensors.layout_invalid", tensors[-1].name, rule)
