"""One changed byte in any row, leaf or tile of a log of ten thousand events is found."""

from __future__ import annotations

import random

from registry import tlog
from registry.tlog.replay import replay
from tests.audit import logs
from tests.world import World

EVENTS = 10_000


def test_one_changed_byte_in_any_row_leaf_or_tile_of_ten_thousand_events_is_found(world: World) -> None:
    logs.append(world, EVENTS - 1)
    held, verifier = logs.Held(world), world.app.state.log.keys.signer.verifier
    seen = replay(held, verifier)
    assert (seen.size, seen.problems) == (EVENTS, [])
    draw = random.Random(7)

    def changed(data: bytes) -> bytes:
        at = draw.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]

    # Every row on its own: its leaf is another one than the tile's, which is what a replay compares.
    leaves = b"".join(held.parts[0, index] for index in range(-(-EVENTS // 256)))
    for number, line in enumerate(held.lines):
        assert tlog.leaf_hash(line) == leaves[number * 32 : number * 32 + 32]
        assert tlog.leaf_hash(changed(line)) != leaves[number * 32 : number * 32 + 32]
    for number in [0, 255, 256, EVENTS - 1, *draw.sample(range(EVENTS), 6)]:
        kept, held.lines[number] = held.lines[number], changed(held.lines[number])
        problems = replay(held, verifier).problems
        assert any(f"(event {number + 1})" in problem for problem in problems), number
        assert any("do not make the root" in problem for problem in problems)
        held.lines[number] = kept
    # Every tile and every bundle of entries.
    for part, data in list(held.parts.items()):
        held.parts[part] = changed(data)
        assert replay(held, verifier).problems, part
        held.parts[part] = data
    note, held.note = held.note, held.note.replace("\n10000\n", "\n9999\n")
    assert replay(held, verifier).problems == ["the checkpoint is not signed by a key of this log"]
    held.note = note
    del held.lines[-1]
    assert replay(held, verifier).problems
