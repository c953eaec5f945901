"""`Automaton`: what a pattern is compiled to. It answers in time linear in the text, also with look-ahead.

A state is live at a position if what follows the state matches the rest of the text. A text is read from its end to its
beginning, so a look-ahead has its answer when it is reached. Sets of live states are made as needed and cached.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Characters = frozenset[str]
Part = tuple[int, int]
"""The first and the last state of a part of the automaton."""


class _Look(NamedTuple):
    """A way without a character, open where the text goes on with `part`, or, if not `positive`, where it does not."""

    before: int
    after: int
    part: Part
    positive: bool


class Automaton:
    """States, and the ways between them by which a parser joins them. It must not grow once it was asked."""

    def __init__(self) -> None:
        self._states = 0
        self._free: dict[int, list[int]] = {}
        self._steps: dict[int, list[tuple[Characters, int]]] = {}
        self._at_end: dict[int, list[int]] = {}
        self._looks: list[_Look] = []
        self._ends: dict[Part, frozenset[int]] = {}
        self._known: dict[frozenset[int], frozenset[int]] = {}
        self._earlier: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def state(self) -> int:
        """A new state."""
        self._states += 1
        return self._states

    def join(self, before: int, after: int) -> None:
        """A way that takes no character."""
        self._free.setdefault(after, []).append(before)

    def step(self, before: int, characters: Characters, after: int) -> None:
        """A way that takes one of these characters."""
        self._steps.setdefault(after, []).append((characters, before))

    def end(self) -> Part:
        """A part that matches nothing, at the text's end only."""
        before, after = self.state(), self.state()
        self._at_end.setdefault(after, []).append(before)
        return before, after

    def look(self, part: Part, *, positive: bool) -> Part:
        """A part that matches nothing, where the text goes on with `part` (or not). Inner looks are made first."""
        look = _Look(self.state(), self.state(), part, positive)
        self._looks.append(look)
        return look.before, look.after

    def matches(self, whole: Part, text: str) -> bool:
        """Whether the whole text matches this part."""
        first, last = whole
        everywhere = [look.part[1] for look in self._looks]
        live = self._ends.get(whole)
        if live is None:
            live = self._ends[whole] = self._closure([last, *everywhere], self._at_end)
        for character in reversed(text):
            key = (live, character)
            earlier = self._earlier.get(key)
            if earlier is None:
                steps = (step for state in live for step in self._steps.get(state, ()))
                reached = [before for characters, before in steps if character in characters]
                earlier = self._closure([*reached, *everywhere], {})
                self._earlier[key] = earlier
            if not earlier:
                return False
            live = earlier
        return first in live

    def _closure(self, states: Iterable[int], more: dict[int, list[int]]) -> frozenset[int]:
        """These and all that lead to them without a character; `more` are ways that are open only here."""
        reached: set[int] = set()
        opened = {after: list(before) for after, before in more.items()}
        self._spread(states, reached, opened)
        for look in self._looks:
            if (look.part[0] in reached) is look.positive:
                opened.setdefault(look.after, []).append(look.before)
                if look.after in reached:
                    self._spread([look.before], reached, opened)
        closed = frozenset(reached)
        return self._known.setdefault(closed, closed)  # equal sets are one object, and quick to look up

    def _spread(self, states: Iterable[int], reached: set[int], opened: dict[int, list[int]]) -> None:
        todo = [state for state in states if state not in reached]
        reached.update(todo)
        while todo:
            state = todo.pop()
            for before in (*self._free.get(state, ()), *opened.get(state, ())):
                if before not in reached:
                    reached.add(before)
                    todo.append(before)
