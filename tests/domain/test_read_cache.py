"""What is remembered of files that were read before, and how much of it."""

from __future__ import annotations

import pytest

from registry.adapters.read import BYTES_LIMIT, ReadCache
from registry.versions.files import Read


@pytest.mark.security
def test_large_headers_are_not_kept_in_memory() -> None:
    cache: ReadCache[bytes] = ReadCache(limit=32)
    computed: list[int] = []

    def compute(number: int, size_bytes: int) -> None:
        content = number.to_bytes(1, "big") * size_bytes

        def evaluate(read: Read) -> bytes:
            computed.append(number)
            return read("weights", 0, size_bytes)

        assert cache.compute(size_bytes, lambda _, start, length: content[start : start + length], evaluate) == content

    for number in (1, 1, 2, 3, 3, 2, 1):
        compute(number, BYTES_LIMIT // 2)
    assert computed == [1, 2, 3, 1], "two of this size are remembered"
    for _ in range(2):
        compute(4, BYTES_LIMIT + 1)
    assert computed[4:] == [4, 4], "what is larger never is"
