"""`Fields`: take values of known kinds out of one JSON object, and keep every rule that one of them breaks.

A taken value is of the kind that was asked for, within its limits, or that kind's neutral value. Nothing here raises.

>>> fields = Fields({"r": "8"})
>>> fields.whole_number("r", 1, 64), fields.findings[0].code
(0, 'config.value_invalid')
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from registry.findings import Finding
from registry.strict import patterns

NAMES_LIMIT = 4096
"""Most names in one list; a loader's time grows with their product with the base's modules."""
PATTERNS_LIMIT = 1024
"""Most patterns in one object that are more than a name: each is tried on every module."""
PATTERN_STEPS_LIMIT = 2**16
"""About how many steps a backtracking matcher may need for one path and all patterns of one object: some 7 ms."""
NAME_LIMIT = 256
TEXT_LIMIT = 512
FINDINGS_LIMIT = 100
WHOLE_NUMBER_LIMIT = 2**31

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Fields:
    """One JSON object, read field by field."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.findings: list[Finding] = []
        self.pattern_steps = 0

    def reject(self, rule: str, field: str, message: str) -> None:
        """Keep a broken rule."""
        if len(self.findings) < FINDINGS_LIMIT:
            self.findings.append(Finding(f"config.{rule}", field[:120], message))

    def flag(self, field: str) -> bool:
        """True or false; null and absent are false."""
        value = self.values.get(field)
        if value is not None and not isinstance(value, bool):
            self.reject("value_invalid", field, f"must be true or false, not {_shown(value)}")
            return False
        return bool(value)

    def whole_number(self, field: str, least: int, most: int) -> int:
        """A whole number within the bounds; null and absent are 0."""
        value = self.values.get(field)
        if value is None:
            return 0
        return value if self._whole(field, value, least, most) else 0

    def number(self, field: str, limit: float) -> float | None:
        """A finite number of at most `limit` in size; null and absent are None."""
        value = self.values.get(field)
        return None if value is None else self._real(field, value, limit)

    def text(self, field: str) -> str:
        """One line of text; null and absent are empty."""
        value = self.values.get(field)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > TEXT_LIMIT or any(ord(c) < 32 or ord(c) == 127 for c in value):
            self.reject("value_invalid", field, f"must be one line of text of at most {TEXT_LIMIT} characters")
            return ""
        return value

    def names(self, field: str) -> tuple[str, ...]:
        """Names of modules: a list of texts, one text, or nothing."""
        value = self.values.get(field)
        if isinstance(value, str):
            value = [value]
        return () if value is None else self._names(field, value)

    def keys(self, field: str) -> tuple[str, ...]:
        """The keys of an object, which are names of modules; null and absent are empty."""
        value = self.values.get(field)
        if value is not None and not isinstance(value, dict):
            self.reject("value_invalid", field, "must be an object whose keys are names of modules")
            return ()
        return self._names(field, list(value or ()))

    def names_or_pattern(self, field: str) -> str | tuple[str, ...] | None:
        """A list of names (a tuple), or one pattern (text), or None."""
        value = self.values.get(field)
        if value is None:
            return None
        if isinstance(value, str):
            return value if self._pattern(field, value) else None
        return self._names(field, value)

    def whole_numbers(self, field: str, limit: int = WHOLE_NUMBER_LIMIT) -> tuple[int, ...]:
        """A list of whole numbers from 0 to `limit`, or one of them; null and absent are empty."""
        value = self.values.get(field)
        if value is None:
            return ()
        return self._whole_numbers(field, value if isinstance(value, list) else [value], limit)

    def by_pattern(self, field: str, limit: float, *, whole: bool) -> dict[str, Any]:
        """An object from patterns to numbers: 1 to `limit` if `whole`, else at most `limit` in size."""
        value = self.values.get(field)
        if not isinstance(value, dict) or len(value) > NAMES_LIMIT:
            if value is not None:
                self.reject("value_invalid", field, f"must be an object of at most {NAMES_LIMIT} patterns")
            return {}
        if sum(not patterns.is_plain(key) for key in value) > PATTERNS_LIMIT:
            self.reject("value_invalid", field, f"must hold at most {PATTERNS_LIMIT} patterns beyond plain names")
            return {}
        values: dict[str, Any] = {}
        for key, number in value.items():
            if not self._pattern(field, patterns.to_suffix_pattern(key), plain=patterns.is_plain(key)):
                continue
            if whole and self._whole(f"{field}.{key}", number, 1, int(limit)):
                values[key] = number
            elif not whole and (real := self._real(f"{field}.{key}", number, limit)) is not None:
                values[key] = real
        return values

    def lists_by_name(self, field: str) -> dict[str, tuple[int, ...]]:
        """An object from module names to lists of token numbers; a bare list stands for `embed_tokens`."""
        value = self.values.get(field)
        if isinstance(value, list):
            value = {"embed_tokens": value}
        if not isinstance(value, dict):
            if value is not None:
                self.reject("value_invalid", field, "must be an object of lists of token numbers")
            return {}
        names = self._names(field, list(value))
        lists = {name: value[name] for name in names if isinstance(value[name], list)}
        if len(lists) != len(value):
            self.reject("value_invalid", field, "must be an object of lists of token numbers")
        return {name: self._whole_numbers(field, numbers, WHOLE_NUMBER_LIMIT) for name, numbers in lists.items()}

    def _whole_numbers(self, field: str, value: list[Any], limit: int) -> tuple[int, ...]:
        if len(value) > 2**17 or not all(type(n) is int and 0 <= n <= limit for n in value):
            self.reject("value_invalid", field, f"must be a list of whole numbers from 0 to {limit}")
            return ()
        return tuple(value)

    def _whole(self, field: str, value: Any, least: int, most: int) -> bool:
        if type(value) is int and least <= value <= most:
            return True
        self.reject("value_invalid", field, f"must be a whole number from {least} to {most}, not {_shown(value)}")
        return False

    def _real(self, field: str, value: Any, limit: float) -> float | None:
        if type(value) in (int, float) and math.isfinite(value) and abs(value) <= limit:
            return float(value)
        self.reject("value_invalid", field, f"must be a number between -{limit:g} and {limit:g}, not {_shown(value)}")
        return None

    def _names(self, field: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > NAMES_LIMIT:
            self.reject("value_invalid", field, f"must be a list of at most {NAMES_LIMIT} names of modules")
            return ()
        for name in value:
            if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT or not set(name) <= _NAME_CHARACTERS:
                rule = f"{_shown(name)} is not a module's name: letters, digits, '.', '_' and '-', at most {NAME_LIMIT}"
                self.reject("pattern_refused", field, rule)
                return ()
        return tuple(value)

    def _pattern(self, field: str, text: str, *, plain: bool = False) -> bool:
        try:
            steps = 1 if plain else patterns.compile_pattern(text).steps
        except patterns.PatternRefused as e:
            self.reject("pattern_refused", field, f"the pattern {text[:120]!r} {e}")
            return False
        if self.pattern_steps <= PATTERN_STEPS_LIMIT < self.pattern_steps + steps:
            self.reject("pattern_refused", field, "has patterns that take a matcher too long: use fewer '*' and '+'")
        self.pattern_steps += steps
        return True


def walk(value: Any, location: str = "") -> Iterator[tuple[str, str, Any]]:
    """(location, key, value) of every field of a JSON value, at any depth: `a.b` for a field of an object in `a`."""
    if isinstance(value, list):
        for item in value:
            if isinstance(item, _CONTAINERS):
                yield from walk(item, location)
    elif isinstance(value, dict):
        for key, item in value.items():
            here = f"{location}.{key}" if location else key
            yield here, key, item
            if item and isinstance(item, _CONTAINERS):
                yield from walk(item, here)


_CONTAINERS = (list, dict)  # in each check, a tuple takes a third of the time of `list | dict`


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
