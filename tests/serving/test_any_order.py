"""A box to which everything happens, in any order: what answers goes on answering, and in the end all is well."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest

from registry.errors import RegistryError
from tests.serving.box import Box

SEEDS = range(8)
STEPS = 40
NAMES = ("acme/a", "acme/b", "bolt/c")
ELSEWHERE = ("/elsewhere", b"other")


class Story:
    """One box and the acts that may befall it, drawn by a seed."""

    def __init__(self, box: Box, seed: int) -> None:
        self.box, self.chance = box, random.Random(seed)
        self.pushed = dict.fromkeys(NAMES, 0)
        usual = (self.push, self.push, self.promote, self.promote, self.yank, self.wait, self.wait, self.heal)
        self.acts: tuple[Callable[[], object], ...] = (
            *usual, self.unload, self.replace, self.kill, box.start,
            lambda: setattr(box.line, "spoil", lambda data: data[:-3]), lambda: setattr(box.line, "cut", True),
            lambda: setattr(box.engine, "deaf", True),
        )  # fmt: skip

    def push(self) -> None:
        name = self.chance.choice(NAMES)
        self.pushed[name] += 1
        self.box.push(name)

    def promote(self) -> None:
        name = self.chance.choice(NAMES)
        self.box.promote(name, self.chance.randint(1, max(1, self.pushed[name])))

    def yank(self) -> None:
        name = self.chance.choice(NAMES)
        self.box.world.admin.yank(f"{name}@{self.chance.randint(1, max(1, self.pushed[name]))}", "bad data")

    def wait(self) -> None:
        self.box.clock.now += self.chance.choice((1, 11, 40))

    def unload(self) -> None:
        for name in self.chance.sample(self.box.loaded, min(1, len(self.box.loaded))):
            del self.box.engine.loaded[name]

    def replace(self) -> None:
        """Somebody else loads other weights under one of our names."""
        for name in self.chance.sample(self.box.loaded, min(1, len(self.box.loaded))):
            self.box.engine.loaded[name] = ELSEWHERE

    def kill(self) -> None:
        self.box.engine.stop()
        self.box.engine.start()

    def heal(self) -> None:
        self.box.line.cut, self.box.line.spoil, self.box.engine.deaf = False, None, False


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_who_answered_goes_on_and_a_box_that_is_well_again_converges(box: Box, seed: int) -> None:
    story = Story(box, seed)
    for _ in range(STEPS):
        answered = dict(box.station.aliases)
        with contextlib.suppress(RegistryError):  # an act that the rules refuse
            story.chance.choice(story.acts)()
        try:
            box.states()
        except RegistryError:
            continue
        now, held = box.station.aliases, box.engine.loaded
        assert set(now.values()) <= set(held)
        wanted = {entry.name for entry in box.agent._roster.adapters} if box.agent._roster else set()
        assert all(name in now for name, served in answered.items() if name in wanted and served in held)
    story.heal()
    for _ in range(4):  # refusals are left alone for a while, and old versions drain
        box.clock.now += 61
        states = box.states()
    assert set(states.values()) <= {"ready"}
    assert set(states) == {name for name, loaded in box.engine.loaded.items() if loaded != ELSEWHERE}
    assert sorted(box.station.aliases.values()) == sorted(states)
    assert box.reported() == dict.fromkeys(states, "serving")
