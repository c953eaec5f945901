"""Bits that flip between store and server: what a push stores was read from verified bytes, or is not stored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from registry.client.connection import Connection
from registry.client.registry import Registry
from registry.server.evaluation.weights.measure import INLINE_BYTES
from registry.server.push import inspect
from tests.memory_blobs import MemoryBlobs
from tests.world import URL, World

NAME = "acme/support"


class Bent(MemoryBlobs):
    """The next `left` reads of a header say p_proj where the file says q_proj: one bit of one letter."""

    left = 0

    def read(self, key: str, start: int, length: int) -> bytes:
        found = super().read(key, start, length)
        if self.left and b"lora_A" in found:
            self.left -= 1
            return found.replace(b"q_proj", b"p_proj", 1)
        return found


@pytest.fixture
def blobs() -> Bent:
    return Bent()


@pytest.fixture
def world(database_url: str, blobs: Bent) -> Iterator[World]:
    with World(database_url, blobs=blobs) as made:
        made.add_base()
        yield made


@pytest.fixture
def client(world: World) -> Registry:
    """As everybody's, but without pauses."""
    return Registry(URL, connection=Connection(URL, world.secret, transport=world.transport, wait=lambda _: None))


@pytest.mark.parametrize("read_whole_up_to_bytes", [0, INLINE_BYTES])
def test_a_flipped_bit_in_a_header_is_read_again_and_never_stored(
    world: World, blobs: Bent, client: Registry, monkeypatch: pytest.MonkeyPatch, read_whole_up_to_bytes: int
) -> None:
    monkeypatch.setattr(inspect, "INLINE_BYTES", read_whole_up_to_bytes)
    blobs.left = 1
    pushed = world.push(NAME, by=client).version
    assert blobs.left == 0
    assert "q_proj" in pushed.facts["targets"]
    assert [verdict.outcome for verdict in pushed.verdicts if verdict.check == "compat"] == ["pass"]
