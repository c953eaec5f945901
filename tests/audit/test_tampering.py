"""One changed byte in any row, leaf or tile of a log of ten thousand events is found."""

from __future__ import annotations

import random

import pytest

from registry.tlog import HASH_BYTES
from registry.tlog.replay import replay
from registry.tlog.tiles import TILE_WIDTH
from tests.audit import logs
from tests.harness import Harness

pytestmark = pytest.mark.security

EVENTS = 10_000


def test_one_changed_byte_in_any_row_leaf_or_tile_of_ten_thousand_events_is_found(harness: Harness) -> None:
    logs.append(harness, EVENTS - 1)
    copy, verifier = logs.LogCopy(harness), harness.app.state.audit_log.keys.signer.verifier
    replayed = replay(copy, verifier)
    assert (replayed.size, replayed.problems) == (EVENTS, [])
    draw = random.Random(7)

    def changed(data: bytes) -> bytes:
        at = draw.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]

    # Every row and every leaf, changed by one bit: a replay names each of them, one of each tile at a time.
    lines, tiles = list(copy.lines), dict(copy.parts)
    for location in range(TILE_WIDTH):
        rows = range(location, EVENTS, TILE_WIDTH)
        for number in rows:
            copy.lines[number] = changed(lines[number])
        problems = replay(copy, verifier).problems
        assert {n for n in rows if f"event {n + 1}: its row differs from its entry" in problems} == set(rows)
        assert {n for n in rows if any(f"(event {n + 1})" in problem for problem in problems)} == set(rows)
        copy.lines[location::TILE_WIDTH] = lines[location::TILE_WIDTH]
        for number in rows:
            tile, start = tiles[0, number // TILE_WIDTH], location * HASH_BYTES
            leaf = changed(tile[start : start + HASH_BYTES])
            copy.parts[0, number // TILE_WIDTH] = tile[:start] + leaf + tile[start + HASH_BYTES :]
        named = [p.rpartition("(event ")[2].rstrip(")") for p in replay(copy, verifier).problems]
        assert named == [str(number + 1) for number in rows]
        copy.parts = dict(tiles)
    # One row alone, anywhere, makes another root.
    for number in draw.sample(range(EVENTS), 3):
        copy.lines = [*lines[:number], changed(lines[number]), *lines[number + 1 :]]
        assert any("do not make the root" in problem for problem in replay(copy, verifier).problems)
    copy.lines = lines
    # Every tile and every bundle of entries, each with one changed byte, is named.
    whole = dict(copy.parts)
    copy.parts = {part: data[:-1] + bytes([data[-1] ^ 1]) for part, data in whole.items()}
    problems = replay(copy, verifier).problems
    named = [f"tile/{level}/{index:03d}" for level, index in whole if level != "entries"]
    assert [path for path in named if not any(problem.startswith(path) for problem in problems)] == []
    differ = [problem for problem in problems if problem.endswith("its row differs from its entry")]
    assert len(differ) == sum(part[0] == "entries" for part in whole)
    copy.parts = whole
    note, copy.note = copy.note, copy.note.replace("\n10000\n", "\n9999\n")
    assert replay(copy, verifier).problems == ["the checkpoint is not signed by a key of this log"]
    copy.note = note
    del copy.lines[-1]
    assert replay(copy, verifier).problems
