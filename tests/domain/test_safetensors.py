"""The safetensors header reader on good files. Bad ones: tests/bad_inputs/test_safetensors_headers.py."""

from __future__ import annotations

import pytest

from registry.adapters import safetensors
from registry.errors import Invalid, TooLarge
from tests import samples

FILE = "adapter_model.safetensors"


def test_a_header_tells_names_types_shapes_and_places() -> None:
    data = samples.safetensors({"b": ("F16", (2, 3), None), "a": ("F32", (), None)}, {"format": "pt", "x": "é"})
    header = safetensors.read_bytes(data, file=FILE)
    a, b = header.tensors
    assert (a.name, a.dtype, a.shape, a.size_bytes, a.elements) == ("a", "F32", (), 4, 1)
    assert (b.name, b.dtype, b.shape, b.size_bytes, b.elements) == ("b", "F16", (2, 3), 12, 6)
    assert header.metadata == {"format": "pt", "x": "é"}
    assert data[header.data_start + b.start : header.data_start + b.end] == samples.tensors_of(data)["b"][2]
    assert header.size_bytes == len(data)
    assert header.get("b") is b
    assert header.get("c") is None


def test_a_header_is_read_in_two_reads_whatever_the_size_of_the_file() -> None:
    data = samples.llama().files["model.safetensors"]
    reads: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return data[offset : offset + length]

    header = safetensors.read_header(read, len(data), file=FILE)
    assert reads == [(0, 8), (8, header.data_start - 8)]
    assert len(header) == 39


def test_tensors_come_in_the_order_of_their_bytes() -> None:
    entries = {
        "late": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
        "none": {"dtype": "F32", "shape": [0, 7], "data_offsets": [3, 3]},
        "early": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    header = safetensors.read_bytes(samples.raw_safetensors(entries, b"abcde"), file=FILE)
    assert [t.name for t in header] == ["early", "none", "late"]


def test_a_header_of_more_tensors_than_the_limit_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "TENSORS_LIMIT", 2)
    with pytest.raises(TooLarge, match="3 tensors; the limit is 2"):
        safetensors.read_bytes(samples.safetensors({f"t{i}": ("F32", (1,), None) for i in range(3)}), file=FILE)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\n<html>", "HTML"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"PK\x03\x04", "zip"),
        (b"\x80\x04", "pickle"),
        (b"GGUF", "GGUF"),
        (b"anything", ""),
    ],
)
def test_a_wrong_file_is_called_by_its_name(head: bytes, words: str) -> None:
    assert words in safetensors.wrong_file(head)
    assert bool(words) == bool(safetensors.wrong_file(head))


@pytest.mark.parametrize(
    ("keep", "words", "next_step"),
    [
        (0, "is empty", "download the file again"),
        (5, "is truncated: a safetensors file begins with 8 bytes", "download the file again"),
        (40, "is truncated: its header should have", "download the file again"),
        (-1, "the file is truncated", "download the file again"),
    ],
)
def test_a_file_that_was_cut_off_says_so_and_what_to_do(keep: int, words: str, next_step: str) -> None:
    whole = samples.lora(samples.llama())[samples.WEIGHTS]
    with pytest.raises(Invalid, match=words) as refused:
        safetensors.read_bytes(whole[:keep], file=FILE)
    assert next_step in str(refused.value.next_step)
