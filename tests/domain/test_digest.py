"""Digests and canonical JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from registry.digest import Digest, Hasher, canonical_json
from registry.errors import Invalid


def test_a_digest_is_sha256_and_64_lower_case_hex_digits() -> None:
    digest = Digest.of(b"abc")
    assert digest == "sha256:" + hashlib.sha256(b"abc").hexdigest()
    assert digest.hex == hashlib.sha256(b"abc").hexdigest()
    assert digest.short == digest.hex[:12]


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha256:" + "A" * 64, "SHA256:" + "0" * 64, "0" * 64,
     "sha512:" + "0" * 64, "sha256:../../x" + "0" * 55, "sha256:" + "0" * 64 + "\n", " sha256:" + "0" * 64],
)  # fmt: skip
def test_anything_else_is_no_digest(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        Digest(text)
    assert caught.value.code == "DIGEST_INVALID"


def test_a_stream_hashes_as_its_bytes_do() -> None:
    hasher = Hasher()
    for chunk in (b"a", bytearray(b"bc"), memoryview(b"def")):
        hasher.update(chunk)
    assert (hasher.digest(), hasher.size_bytes) == (Digest.of(b"abcdef"), 6)


def test_a_digest_is_a_json_value_of_pydantic() -> None:
    class Holder(BaseModel):
        digest: Digest

    holder = Holder.model_validate_json(json.dumps({"digest": Digest.of(b"")}))
    assert isinstance(holder.digest, Digest)
    assert json.loads(holder.model_dump_json()) == {"digest": str(Digest.of(b""))}
    with pytest.raises(ValidationError):
        Holder.model_validate({"digest": "sha256:x"})


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": [1, None, True], "a": "é"}) == '{"a":"é","b":[1,null,true]}'.encode()
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


def test_canonical_json_sorts_by_utf_16_units() -> None:
    value = {"\ufb33": 1, "\U0001f600": 2, "a": 3}  # RFC 8785: the surrogate pair of the emoji sorts before U+FB33
    assert list(json.loads(canonical_json(value))) == ["a", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize("value", [1.5, {"a": float("nan")}, 2**53 + 1, {1: 2}, "\ud800", b"x", [object()]])
def test_what_two_writers_would_disagree_about_has_no_canonical_form(value: Any) -> None:
    with pytest.raises(Invalid):
        canonical_json(value)
