"""Patterns over module paths that can never hang: a small grammar, matched in time linear in the path.

    one of several   a|b                 group   ( ) or (?: ), and at most optional: (...)?
    one character    a  .  [0-9]  [^.]   and     \\.  \\d  \\w
    repetition       *  +  ?  {m}  {m,}  {m,n}   of one character, each also with a trailing ?
    anchors          ^ at the beginning, $ at the end, \b where nothing precedes it
    look-ahead       (?= ) and (?! ), as LLaMA-Factory and ms-swift write them to leave a vision tower out

What is accepted here means the same in Python's `re.fullmatch`, which PEFT uses. A repeated group and neighboring open
repeats are refused: they make backtracking matchers take exponential time.
"""

import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

Characters = frozenset[str]
Part = tuple[int, int]
"""The first and the last state of a part of the automaton."""


@dataclass(frozen=True, slots=True)
class _Look:
    """A way without a character, open where the text goes on with `part`, or, if not `positive`, where it does not."""

    before: int
    after: int
    part: Part
    positive: bool


class Automaton:
    """States, and the ways between them by which a parser joins them. It must not grow once it was asked.

    A state is live at a position if what follows the state matches the rest of the text. A text is read from its end,
    so a look-ahead has its result when it is reached. Sets of live states are made as needed and cached.
    """

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


LENGTH_LIMIT = 2048
DEPTH_LIMIT = 8
REPEAT_LIMIT = 16
"""The largest m and n of {m,n}."""
OPEN_REPEATS_LIMIT = 6
"""Most `*`, `+` and `{m,}` in one pattern: a backtracking matcher's time is a power of it."""

REPEAT_STEPS = 8
"""How many more steps a backtracking matcher needs on a path of a module for each open repeat (measured: 3 to 8 ms for
five, at 0.1 µs a step)."""

LOOKS_LIMIT = 8
"""Most groups that look ahead: each is asked at every place of a path."""

_ALPHABET: Characters = frozenset(chr(c) for c in range(32, 127))
_CLASSES: dict[str, Characters] = {
    "d": frozenset(string.digits),
    "w": frozenset(string.ascii_letters + string.digits + "_"),
}
_SPECIAL = frozenset("()[]{}*+?|^$.\\")
_OPEN = -1


class PatternRefused(ValueError):
    """The text is outside the grammar; the message says which rule it breaks."""


class Pattern:
    """A compiled pattern."""

    def __init__(self, text: str) -> None:
        parser = _Parser(text)
        self.text = text
        self._whole, self._automaton = parser.whole(), parser.automaton
        self.steps = parser.steps
        """About how many steps a backtracking matcher needs for one path."""

    def matches(self, path: str) -> bool:
        """Whether the whole path matches, as `re.fullmatch` decides."""
        return self._automaton.matches(self._whole, path)


@lru_cache(maxsize=512)
def compile_pattern(text: str) -> Pattern:
    """The compiled pattern. `PatternRefused` says which rule of the grammar the text breaks."""
    return Pattern(text)


def is_plain(text: str) -> bool:
    """Whether the text is a module's name or path and no pattern. A dot then means a dot."""
    return not _SPECIAL.intersection(text.replace(".", ""))


def to_suffix_pattern(text: str) -> str:
    """The pattern of all paths that end in what `text` matches, at the beginning or after a dot."""
    if text.startswith("^"):
        return text
    return rf"(?:.*\.)?(?:{text.removesuffix('$')})"


class _Parser:
    """Recursive descent over the grammar; each rule returns the part of the automaton that it built."""

    def __init__(self, text: str) -> None:
        if len(text) > LENGTH_LIMIT:
            raise PatternRefused(f"is {len(text)} characters; the limit is {LENGTH_LIMIT}")
        if not text.isascii() or any(c not in _ALPHABET for c in text):
            raise PatternRefused("holds a control character or a character outside ASCII")
        self._text = text.removeprefix("^")
        if self._text.endswith("$") and not self._text.endswith("\\$"):
            self._text = self._text[:-1]
        self._at = 0
        self._open_repeats = 0
        self._looks = 0
        self.steps = 1
        self.automaton = Automaton()
        self._state, self._link = self.automaton.state, self.automaton.join

    def whole(self) -> Part:
        part = self._alternatives(0, at_start=True)
        if self._at < len(self._text):
            raise PatternRefused(f"has an unmatched ')' at character {self._at}")
        return part

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise PatternRefused("ends in the middle of a group, class or repetition")
        self._at += 1
        return character

    def _alternatives(self, depth: int, *, at_start: bool) -> Part:
        if depth > DEPTH_LIMIT:
            raise PatternRefused(f"nests groups deeper than {DEPTH_LIMIT}")
        first, last = self._state(), self._state()
        steps = 0
        while True:
            part = self._sequence(depth, at_start=at_start)
            steps += self.steps if self.steps > 1 else 0  # text without repeats fails at once
            self._link(first, part[0])
            self._link(part[1], last)
            if self._peek() != "|":
                self.steps = max(steps, 1)
                return first, last
            self._at += 1

    def _sequence(self, depth: int, *, at_start: bool) -> Part:
        first = last = self._state()
        open_before: Characters = frozenset()
        steps = 1
        while self._peek() not in ("", "|", ")"):
            if self._text.startswith("\\b", self._at) and at_start:
                self._at += 2
                continue
            if self._text.startswith(("(?=", "(?!"), self._at):
                part = self._look(depth, at_start=at_start)
                steps *= self.steps
            elif self._peek() == "(":
                part, open_before = self._group(depth, at_start=at_start), frozenset()
                steps *= self.steps
            elif self._text.startswith(("$)", "$|"), self._at):
                self._at += 1
                part = self.automaton.end()
            else:
                characters = self._character()
                least, most = self._repetition()
                if most == _OPEN:
                    self._open_repeats += 1
                    steps *= REPEAT_STEPS
                    if self._open_repeats > OPEN_REPEATS_LIMIT:
                        raise PatternRefused(f"has over {OPEN_REPEATS_LIMIT} open repeats ('*', '+', '{{m,}}')")
                    if open_before & characters:
                        raise PatternRefused("has two open repeats side by side that match the same characters")
                    open_before = characters
                elif least:
                    open_before = frozenset()
                part = self._repeated(characters, least, most)
            at_start = False
            self._link(last, part[0])
            last = part[1]
        self.steps = steps
        return first, last

    def _group(self, depth: int, *, at_start: bool) -> Part:
        self._take()
        if self._text.startswith("?:", self._at):
            self._at += 2
        elif self._peek() == "?":
            raise PatternRefused("has a group that begins with '(?' and is none of '(?:', '(?=' and '(?!'")
        first, last = self._inside(depth, at_start=at_start)
        if self._peek() == "?":
            self._at += 1
            self._link(first, last)
        if self._peek() and self._peek() in "*+?{":
            raise PatternRefused("repeats a group, which can take exponential time to match")
        return first, last

    def _look(self, depth: int, *, at_start: bool) -> Part:
        positive = self._text[self._at + 2] == "="
        self._at += 3
        self._looks += 1
        if self._looks > LOOKS_LIMIT:
            raise PatternRefused(f"has over {LOOKS_LIMIT} groups that look ahead")
        part = self._inside(depth, at_start=at_start)
        if self._peek() and self._peek() in "*+?{":
            raise PatternRefused("repeats a group that looks ahead")
        return self.automaton.look(part, positive=positive)

    def _inside(self, depth: int, *, at_start: bool) -> Part:
        part = self._alternatives(depth + 1, at_start=at_start)
        if self._take() != ")":
            raise PatternRefused("has an unclosed group")
        return part

    def _character(self) -> Characters:
        character = self._take()
        if character == ".":
            return _ALPHABET
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escape()
        if character in _SPECIAL:
            raise PatternRefused(f"has {character!r} where a character is expected")
        return frozenset(character)

    def _escape(self) -> Characters:
        character = self._take()
        if character in _CLASSES:
            return _CLASSES[character]
        if character.isalnum():
            raise PatternRefused(f"has the escape '\\{character}', which is not one of \\d and \\w")
        return frozenset(character)

    def _class(self) -> Characters:
        negated = self._peek() == "^"
        self._at += negated
        characters: set[str] = set()
        while (character := self._take()) != "]":
            members = self._escape() if character == "\\" else frozenset(character)
            if character == "[":
                raise PatternRefused("has a '[' inside a class")
            if len(members) == 1 and self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                (begin,), end = members, self._take()
                if end in "\\[" or end < begin:
                    raise PatternRefused("has a class whose range does not rise")
                members = frozenset(chr(c) for c in range(ord(begin), ord(end) + 1))
            characters |= members
        if not characters:
            raise PatternRefused("has an empty class")
        return _ALPHABET - characters if negated else frozenset(characters)

    def _repetition(self) -> tuple[int, int]:
        """The least and most repeats of the character just read; the most is `_OPEN` without a limit."""
        mark = self._peek()
        if not mark or mark not in "*+?{":
            return 1, 1
        self._at += 1
        least, most = {"*": (0, _OPEN), "+": (1, _OPEN), "?": (0, 1)}.get(mark) or self._braces()
        if self._peek() == "?":  # the lazy form matches the same paths
            self._at += 1
        if self._peek() and self._peek() in "*+?{":
            raise PatternRefused("repeats a repetition")
        return least, most

    def _braces(self) -> tuple[int, int]:
        inside = ""
        while (character := self._take()) != "}":
            inside += character
        low, comma, high = inside.partition(",")
        if not low.isdigit() or not (high.isdigit() or not high) or len(low) > 3 or len(high) > 3:
            raise PatternRefused(f"has the repetition '{{{inside[:20]}}}', which is not {{m}}, {{m,}} or {{m,n}}")
        least = int(low)
        most = int(high) if high else (_OPEN if comma else least)
        if max(least, most) > REPEAT_LIMIT or most not in (_OPEN, *range(least, REPEAT_LIMIT + 1)):
            raise PatternRefused(f"repeats over {REPEAT_LIMIT} times, or from more to less")
        return least, most

    def _repeated(self, characters: Characters, least: int, most: int) -> Part:
        first = last = self._state()
        for count in range(most if most != _OPEN else max(least, 1)):
            following = self._state()
            self.automaton.step(last, characters, following)
            if count >= least:
                self._link(last, following)
            last = following
        if most == _OPEN:
            end = self._state()
            self._link(last, end)
            back = self._state()
            self._link(last, back)
            self.automaton.step(back, characters, last)
            last = end
        return first, last
