"""A node with random events in any order: what is served stays served, and at the end the node converges."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest

from registry.errors import RegistryError
from tests.serving.node import Node

SEEDS = range(8)
STEPS = 40
NAMES = ("acme/a", "acme/b", "bolt/c")
ELSEWHERE = ("/elsewhere", b"other")


class RandomEvents:
    """One node and the acts that may befall it, drawn by a seed."""

    def __init__(self, node: Node, seed: int) -> None:
        self.node, self.chance = node, random.Random(seed)
        self.pushed = dict.fromkeys(NAMES, 0)
        usual = (self.push, self.push, self.promote, self.promote, self.yank, self.wait, self.wait, self.heal)
        self.acts: tuple[Callable[[], object], ...] = (
            *usual, self.unload, self.replace, self.kill, node.start,
            lambda: setattr(node.transport, "spoil", lambda data: data[:-3]),
            lambda: setattr(node.transport, "cut", True),
            lambda: setattr(node.engine, "deaf", True),
        )  # fmt: skip

    def push(self) -> None:
        name = self.chance.choice(NAMES)
        self.pushed[name] += 1
        self.node.push(name)

    def promote(self) -> None:
        name = self.chance.choice(NAMES)
        self.node.promote(name, self.chance.randint(1, max(1, self.pushed[name])))

    def yank(self) -> None:
        name = self.chance.choice(NAMES)
        self.node.harness.admin.yank(f"{name}@{self.chance.randint(1, max(1, self.pushed[name]))}", "bad data")

    def wait(self) -> None:
        self.node.clock.now += self.chance.choice((1, 11, 40))

    def unload(self) -> None:
        for name in self.chance.sample(self.node.loaded, min(1, len(self.node.loaded))):
            del self.node.engine.loaded[name]

    def replace(self) -> None:
        """Somebody else loads other weights under one of our names."""
        for name in self.chance.sample(self.node.loaded, min(1, len(self.node.loaded))):
            self.node.engine.loaded[name] = ELSEWHERE

    def kill(self) -> None:
        self.node.engine.stop()
        self.node.engine.start()

    def heal(self) -> None:
        self.node.transport.cut, self.node.transport.spoil, self.node.engine.deaf = False, None, False


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_what_served_goes_on_and_a_node_that_is_well_again_converges(node: Node, seed: int) -> None:
    events = RandomEvents(node, seed)
    for _ in range(STEPS):
        answered = dict(node.reconciler.aliases)
        with contextlib.suppress(RegistryError):  # an act that the rules refuse
            events.chance.choice(events.acts)()
        try:
            node.states()
        except RegistryError:
            continue
        now, in_engine = node.reconciler.aliases, node.engine.loaded
        assert set(now.values()) <= set(in_engine)
        desired = {entry.name for entry in node.agent._desired.adapters} if node.agent._desired else set()
        assert all(name in now for name, served in answered.items() if name in desired and served in in_engine)
    events.heal()
    for _ in range(4):  # refusals are left alone for a while, and old versions drain
        node.clock.now += 61
        states = node.states()
    assert set(states.values()) <= {"ready"}
    assert set(states) == {name for name, loaded in node.engine.loaded.items() if loaded != ELSEWHERE}
    assert sorted(node.reconciler.aliases.values()) == sorted(states)
    assert node.reported() == dict.fromkeys(states, "serving")
