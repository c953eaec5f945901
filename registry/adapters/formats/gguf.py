"""Read the header of a GGUF adapter from bytes, strictly and within limits; the values of tensors are never read.

A GGUF file is the magic `GGUF`, a version, the counts of tensors and of fields, the fields (typed keys and values), a
description of each tensor, padding to the alignment, and the tensors' bytes (github.com/ggml-org/ggml, docs/gguf.md).
No count or length is believed before the bytes that it promises were read. What llama.cpp refuses is refused.
"""

import math
import struct
from dataclasses import dataclass
from typing import NoReturn

from registry.adapters.safetensors import Header, Read, TensorInfo
from registry.errors import Invalid, TooLarge
from registry.findings import Finding

MAGIC = b"GGUF"
HEADER_LIMIT_BYTES = 16 * 2**20
WINDOW_BYTES = 64 * 2**10
FIELDS_LIMIT = 4096
TENSORS_LIMIT = 200_000
TEXT_LIMIT_BYTES = 2**20
NAME_LIMIT_BYTES = 512
ITEMS_LIMIT = 100_000
DEPTH_LIMIT = 2
SIDE_LIMIT = 2**40

ADAPTER = "adapter"
"""Begins the keys of an adapter's fields, and is the `general.type` of one."""
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type number of a value → its struct code. 8 is text, 9 an array."""
_TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8), 8: ("Q8_0", 32, 34),
}  # fmt: skip
"""Type number of a tensor → its name, the elements of a block, the bytes of a block."""

Field = str | int | float | bool | tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Gguf:
    """The fields, and the tensors as a `Header` whose shapes are in row-major order ([rows, columns])."""

    fields: dict[str, Field]
    header: Header
    version: int

    @property
    def kinds(self) -> tuple[str, str]:
        """What the file says that it is: `("adapter", "lora")` for a LoRA adapter."""
        return self.text("general.type"), self.text(f"{ADAPTER}.type")

    def text(self, key: str) -> str:
        """The text of a field; empty if it is absent or of another type."""
        value = self.fields.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> float | None:
        """The number of a field; None if it is absent or of another type."""
        value = self.fields.get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_header(read: Read, size_bytes: int, *, file: str) -> Gguf:
    """The header of a GGUF file of `size_bytes` bytes; `file` is its name in messages.

    `Invalid` (TENSORS_INVALID) at the first broken rule, `TooLarge` (SIZE_INVALID) beyond a limit.
    """
    return _GgufReader(read, size_bytes, file).header()


class _GgufReader:
    """Takes value after value from windows of the file."""

    def __init__(self, read: Read, size_bytes: int, file: str) -> None:
        self._read, self._size, self._file = read, size_bytes, file
        self._window, self._start, self._at = b"", 0, 0

    def header(self) -> Gguf:
        if self._take(len(MAGIC)) != MAGIC:
            self._refuse("gguf.magic_invalid", "does not begin with 'GGUF'")
        version = self._number("I")
        if version not in (2, 3):
            self._refuse("gguf.version_unknown", f"has GGUF version {version}; 2 and 3 are read, little-endian")
        tensors, fields = self._count("Q", TENSORS_LIMIT, "tensors"), self._count("Q", FIELDS_LIMIT, "fields")
        by_key: dict[str, Field] = {}
        for _ in range(fields):
            key = self._text(NAME_LIMIT_BYTES, "a field's name")
            if key in by_key:
                self._refuse("gguf.duplicate_name", f"has the field {key[:80]!r} twice")
            by_key[key] = self._value(int(self._number("I")), 0)
        described = [self._tensor() for _ in range(tensors)]
        if not described:
            self._refuse("safetensors.empty", "holds no tensor")
        alignment = by_key.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 2**16 or alignment % 8:
            self._refuse("gguf.alignment_invalid", f"has alignment {str(alignment)[:20]}, not a multiple of 8")
        data_start = -(-self._at // alignment) * alignment
        self._layout(described, data_start, alignment)
        texts = {key: value for key, value in by_key.items() if isinstance(value, str)}
        return Gguf(by_key, Header(tuple(described), texts, data_start, self._size), int(version))

    # -------------------------------------------------------------- values
    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > self._size:
            self._refuse("gguf.cut_off", f"ends within its header, after {self._size} bytes")
        if end > HEADER_LIMIT_BYTES:
            self._too_large(f"a header of over {HEADER_LIMIT_BYTES} bytes", HEADER_LIMIT_BYTES, "bytes")
        if end > self._start + len(self._window):
            self._start = self._at
            self._window = self._read(self._at, min(max(length, WINDOW_BYTES), self._size - self._at))
            if len(self._window) < length:
                self._refuse("gguf.cut_off", f"could not be read at byte {self._at}")
        data = self._window[self._at - self._start : end - self._start]
        self._at = end
        return data

    def _number(self, code: str) -> float:
        value: float = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]
        return value

    def _count(self, code: str, limit: int, noun: str) -> int:
        count = int(self._number(code))
        if count > limit:
            self._too_large(f"{count} {noun}", limit, noun)
        return count

    def _text(self, limit: int, noun: str) -> str:
        length = int(self._number("Q"))
        if length > limit:
            self._too_large(f"{noun} of {length} bytes", limit, "bytes")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            self._refuse("gguf.text_invalid", f"has {noun} that is not UTF-8, before byte {self._at}")

    def _value(self, kind: int, depth: int) -> Field:
        if kind == 8:
            return self._text(TEXT_LIMIT_BYTES, "a text")
        if kind == 9:
            if depth >= DEPTH_LIMIT:
                self._refuse("gguf.value_invalid", f"nests arrays deeper than {DEPTH_LIMIT}")
            inner = int(self._number("I"))
            return tuple(self._value(inner, depth + 1) for _ in range(self._count("Q", ITEMS_LIMIT, "items")))
        if kind not in _NUMBERS:
            self._refuse("gguf.value_invalid", f"has a value of the unknown type {kind}, before byte {self._at}")
        if kind == 7:
            return self._take(1) != b"\0"
        value = self._number(_NUMBERS[kind])
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse("gguf.value_invalid", f"has a number that is not finite, before byte {self._at}")
        return value

    # -------------------------------------------------------------- tensors
    def _tensor(self) -> TensorInfo:
        name = self._text(NAME_LIMIT_BYTES, "a tensor's name")
        if not name or not all("!" <= c <= "~" for c in name):
            rule = "must be printable ASCII without spaces"
            self._refuse("safetensors.tensor_name_invalid", f"has a tensor named {name[:80]!r}: a name {rule}")
        dimensions = int(self._number("I"))
        if not 1 <= dimensions <= 4:
            self._refuse("safetensors.shape_invalid", f"has the tensor {name[:80]!r} of {dimensions} dimensions")
        sides = [int(self._number("Q")) for _ in range(dimensions)]
        kind, start = int(self._number("I")), int(self._number("Q"))
        if kind not in _TENSOR_TYPES:
            message = f"has the tensor {name[:80]!r} of type {kind}; F32, F16, BF16, F64 and Q8_0 are read"
            self._refuse("safetensors.dtype_invalid", message)
        dtype, block, size = _TENSOR_TYPES[kind]
        elements = math.prod(sides)
        if any(not 0 < side <= SIDE_LIMIT for side in sides) or elements > SIDE_LIMIT or sides[0] % block:
            self._refuse("safetensors.shape_invalid", f"has the tensor {name[:80]!r} of the impossible shape {sides}")
        return TensorInfo(name, dtype, tuple(reversed(sides)), start, start + elements // block * size)

    def _layout(self, tensors: list[TensorInfo], data_start: int, alignment: int) -> None:
        """Each tensor begins at the first aligned byte after the one before it, and the last ends in the file."""
        names, expected, end = set(), 0, 0
        for info in tensors:
            if info.name in names:
                self._refuse("gguf.duplicate_name", f"has the tensor {info.name[:80]!r} twice")
            names.add(info.name)
            if info.start != expected:
                message = f"has the tensor {info.name[:80]!r} at data byte {info.start}; expected {expected}"
                self._refuse("safetensors.layout_invalid", message)
            end = info.end
            expected = -(-end // alignment) * alignment
        data_bytes = self._size - data_start
        if not end <= data_bytes <= expected:
            message = f"has {max(0, data_bytes)} bytes of data, and its tensors take {end} to {expected}"
            self._refuse("safetensors.layout_invalid", message)

    # -------------------------------------------------------------- refusals
    def _refuse(self, code: str, message: str) -> NoReturn:
        raise Invalid.from_finding("TENSORS_INVALID", Finding(code, self._file, message))

    def _too_large(self, actual: str, limit: int, unit: str) -> NoReturn:
        message = f"has {actual}; the limit is {limit} {unit}"
        raise TooLarge.from_finding("SIZE_INVALID", Finding("gguf.too_large", self._file, message))
