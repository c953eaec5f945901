"""Attack: a header that our reader and the safetensors library read differently. What we accept, it must accept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.adapters import safetensors as tensors
from registry.errors import RegistryError
from tests import samples
from tests.bad_files import WEIGHTS

pytestmark = pytest.mark.security

safetensors = pytest.importorskip("safetensors")
FILE = "adapter_model.safetensors"
GOOD = samples.safetensors({
    "base.a.lora_A.weight": ("F32", (2, 3), None), "base.b.lora_B.weight": ("F16", (4,), None),
    "c": ("I64", (), None), "d": ("BF16", (0, 4), b""), "e": ("U8", (5,), None),
})  # fmt: skip
HEADER_END = 8 + int.from_bytes(GOOD[:8], "little")


def ours(data: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    try:
        header = tensors.read_bytes(data, file=FILE)
    except RegistryError:
        return None
    at = header.data_start
    return {t.name: (t.dtype, list(t.shape), data[at + t.start : at + t.end]) for t in header}


def theirs(data: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    try:
        tensors_: list[tuple[str, Mapping[str, Any]]] = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return None
    return {name: (info["dtype"], list(info["shape"]), bytes(info["data"])) for name, info in tensors_}


def agree(data: bytes) -> None:
    parsed = ours(data)
    if parsed is not None:
        assert parsed == theirs(data)


def test_the_library_and_we_read_a_good_file_alike() -> None:
    assert ours(GOOD) == theirs(GOOD) != {}


def test_files_by_peft_and_by_samples_are_read_alike() -> None:
    for files in (samples.lora(samples.llama(), dora=True), samples.lora(samples.gpt2(), targets=["c_attn"])):
        assert ours(files[samples.WEIGHTS]) == theirs(files[samples.WEIGHTS])


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_bad_file_is_refused_by_us_whatever_the_library_does(name: str) -> None:
    assert ours(WEIGHTS[name][0]) is None


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_flipped_cut_and_repeated_bytes_never_make_us_accept_what_the_library_refuses(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, HEADER_END + 4))
        way = data.draw(st.sampled_from(["set", "cut", "insert"]))
        byte = data.draw(st.sampled_from(list(b'{}[]",:-.0123456789eE \t\n\\u\x00\xff')) | st.integers(0, 255))
        if way == "set" and at < len(raw):
            raw[at] = byte
        elif way == "cut":
            del raw[at : at + 1]
        else:
            raw.insert(at, byte)
    if data.draw(st.booleans()) and len(raw) > 8:  # let the length still tell the truth about the header
        end = raw.find(b"}}") + 2
        raw[:8] = max(0, end - 8).to_bytes(8, "little")
    agree(bytes(raw))


NUMBERS = st.integers(-2, 20) | st.sampled_from([2**31, 2**62, 2**63, 2**64, -0.0, 1.5, 1e3, True, None, "4"])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F8_E4M3", "F4", "f32", "", None]),
        "shape": st.lists(NUMBERS, max_size=4),
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
    },
    optional={"extra": st.just(1)},
)


@settings(max_examples=600, deadline=None)
@given(
    st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), ENTRIES | st.just({}) | st.just([]), max_size=3),
    st.integers(0, 24),
)
def test_made_up_headers_never_make_us_accept_what_the_library_refuses(header: dict[str, Any], size: int) -> None:
    agree(samples.raw_safetensors(json.dumps(header), bytes(size)))


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\\/."), min_size=1, max_size=20),
        st.tuples(st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "F64"]), st.lists(st.integers(0, 4), max_size=4)),
        min_size=1,
        max_size=6,
    )
)
def test_every_honest_file_is_accepted_by_both_with_equal_tensors(shapes: dict[str, tuple[str, list[int]]]) -> None:
    shapes.pop("__metadata__", None)
    data = samples.safetensors({name: (dtype, tuple(shape), None) for name, (dtype, shape) in shapes.items()})
    if shapes:
        assert ours(data) == theirs(data)
        assert ours(data) is not None
