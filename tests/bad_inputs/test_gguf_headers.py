"""Hostile GGUF headers: every count and length that promises more than the file holds, and every broken layout."""

from __future__ import annotations

import struct
from functools import partial

import pytest

from registry.adapters.formats import gguf
from registry.errors import Invalid, RegistryError, TooLarge
from tests import non_peft_files

pytestmark = pytest.mark.security

PAIR = {"blk.0.attn_q.weight.lora_a": ("F32", (4, 32), None), "blk.0.attn_q.weight.lora_b": ("F32", (32, 4), None)}
GOOD = non_peft_files.gguf(PAIR)
FIELDS = {"general.type": "adapter"}


def patched(find: bytes, put: bytes) -> bytes:
    assert GOOD.count(find) >= 1
    return GOOD.replace(find, put, 1)


def with_field(raw: bytes) -> bytes:
    return non_peft_files.gguf(PAIR, {**FIELDS, "x": raw})


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


NESTED = struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1)
BAD_HEADERS: dict[str, tuple[bytes, str]] = {
    "another magic": (b"GGML" + GOOD[4:], "gguf.magic_invalid"),
    "version 1": (non_peft_files.gguf(PAIR, version=1), "gguf.version_unknown"),
    "big-endian": (GOOD[:4] + struct.pack(">I", 3) + GOOD[8:], "gguf.version_unknown"),
    "2^63 tensors": (GOOD[:8] + number(2**63) + GOOD[16:], "gguf.too_large"),
    "2^63 fields": (GOOD[:16] + number(2**63) + GOOD[24:], "gguf.too_large"),
    "more tensors than are described": (GOOD[:8] + number(9) + GOOD[16:], ""),
    "a key of 2^40 bytes": (GOOD[:24] + number(2**40) + GOOD[32:], "gguf.too_large"),
    "a text of 2^40 bytes": (with_field(struct.pack("<I", 8) + number(2**40)), "gguf.too_large"),
    "a text that is not UTF-8": (with_field(struct.pack("<I", 8) + non_peft_files.text(b"\xff\xfe")),
                                 "gguf.text_invalid"),
    "an array of 2^50 items": (with_field(struct.pack("<IIQ", 9, 4, 2**50)), "gguf.too_large"),
    "arrays in arrays in arrays": (with_field(NESTED), "gguf.value_invalid"),
    "a value of type 99": (with_field(struct.pack("<I", 99)), "gguf.value_invalid"),
    "NaN as a value": (with_field(struct.pack("<If", 6, float("nan"))), "gguf.value_invalid"),
    "a field twice": (GOOD.replace(b"adapter.type", b"general.type", 1), "gguf.duplicate_name"),
    "alignment 0": (non_peft_files.gguf(PAIR, {"general.alignment": 0}), "gguf.alignment_invalid"),
    "alignment 7": (non_peft_files.gguf(PAIR, {"general.alignment": 7}), "gguf.alignment_invalid"),
    "no tensor": (non_peft_files.gguf({}), "safetensors.empty"),
    "a tensor twice": (GOOD.replace(b"lora_b", b"lora_a", 1), "gguf.duplicate_name"),
    "a tensor of type 255": (patched(struct.pack("<IQ", 0, 512), struct.pack("<IQ", 255, 512)),
                             "safetensors.dtype_invalid"),
    "nine dimensions": (patched(struct.pack("<IQQ", 2, 32, 4), struct.pack("<IQQ", 9, 32, 4)),
                        "safetensors.shape_invalid"),
    "a side of 2^62": (patched(struct.pack("<IQQ", 2, 32, 4), struct.pack("<IQQ", 2, 2**62, 4)),
                       "safetensors.shape_invalid"),
    "an empty side": (patched(struct.pack("<IQQ", 2, 32, 4), struct.pack("<IQQ", 2, 0, 4)),
                      "safetensors.shape_invalid"),
    "an overlap": (patched(struct.pack("<IQ", 0, 512), struct.pack("<IQ", 0, 256)), "safetensors.layout_invalid"),
    "a hole": (patched(struct.pack("<IQ", 0, 512), struct.pack("<IQ", 0, 1024)), "safetensors.layout_invalid"),
    "bytes behind the last tensor": (GOOD + b"x" * 64, "safetensors.layout_invalid"),
    "a name with a space": (GOOD.replace(b"attn_q.weight.lora_a", b"attn q.weight.lora_a"),
                            "safetensors.tensor_name_invalid"),
}  # fmt: skip


def read(data: bytes) -> gguf.Gguf:
    return gguf.read_header(lambda at, n: data[at : at + n], len(data), file="adapter.gguf")


def test_a_good_header_is_read_as_rows_and_columns() -> None:
    header = read(GOOD)
    assert header.fields["adapter.lora.alpha"] == 16.0
    assert [(t.name, t.shape, t.size_bytes) for t in header.header] == [
        ("blk.0.attn_q.weight.lora_a", (4, 32), 512),
        ("blk.0.attn_q.weight.lora_b", (32, 4), 512),
    ]


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_bad_header_is_refused_with_its_rule(name: str) -> None:
    data, reason = BAD_HEADERS[name]
    with pytest.raises((Invalid, TooLarge)) as refused:
        read(data)
    assert "adapter.gguf" in refused.value.detail
    if reason:
        assert [r.code for r in refused.value.findings] == [reason]


def test_a_header_that_ends_anywhere_is_refused_without_reading_past_the_file() -> None:
    within_file = []

    def reader(data: bytes, at: int, length: int) -> bytes:
        within_file.append(at + length <= len(data))
        return data[at : at + length]

    for end in range(len(GOOD) - 1):
        data = GOOD[:end]
        with pytest.raises(RegistryError):
            gguf.read_header(partial(reader, data), end, file="adapter.gguf")
    assert all(within_file)


def test_any_byte_changed_gives_a_response_or_a_refusal_of_ours() -> None:
    for at in range(400):
        for value in (0x00, 0xFF, GOOD[at] ^ 0x80):
            data = GOOD[:at] + bytes([value]) + GOOD[at + 1 :]
            try:
                read(data)
            except RegistryError:
                continue
