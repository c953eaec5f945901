"""Bits that flip between store and server: facts come from verified bytes, or nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from registry.client.registry import Registry
from registry.client.transport.connection import Connection
from registry.server.evaluation.norms import INLINE_BYTES
from registry.server.push import inspect
from tests.harness import URL, Harness
from tests.memory_blobs import MemoryBlobs

NAME = "acme/support"


class FlippingBlobs(MemoryBlobs):
    """The next `flips` reads of a header return p_proj where the file has q_proj: one bit of one letter."""

    flips = 0

    def read(self, key: str, start: int, length: int) -> bytes:
        data = super().read(key, start, length)
        if self.flips and b"lora_A" in data:
            self.flips -= 1
            return data.replace(b"q_proj", b"p_proj", 1)
        return data


@pytest.fixture
def blobs() -> FlippingBlobs:
    return FlippingBlobs()


@pytest.fixture
def harness(database_url: str, blobs: FlippingBlobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness


@pytest.fixture
def client(harness: Harness) -> Registry:
    """Return a client that retries without pauses."""
    return Registry(URL, connection=Connection(URL, harness.secret, transport=harness.transport, wait=lambda _: None))


@pytest.mark.parametrize("read_whole_up_to_bytes", [0, INLINE_BYTES])
def test_a_header_with_a_flipped_bit_is_read_again_and_never_stored(
    harness: Harness,
    blobs: FlippingBlobs,
    client: Registry,
    monkeypatch: pytest.MonkeyPatch,
    read_whole_up_to_bytes: int,
) -> None:
    monkeypatch.setattr(inspect, "INLINE_BYTES", read_whole_up_to_bytes)
    blobs.flips = 1
    pushed = harness.push(NAME, by=client).version
    assert blobs.flips == 0
    assert "q_proj" in pushed.facts["targets"]
    assert [verdict.outcome for verdict in pushed.verdicts if verdict.check == "compat"] == ["pass"]
