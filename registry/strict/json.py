"""JSON that reads the same for every reader: no duplicate keys, no NaN, no half characters, bounded depth.

The depth is measured by a scan before anything is parsed, so 100,000 brackets cost milliseconds and no stack. Every
refusal is an `Invalid` with a dotted reason: `<family>.invalid`, `.duplicate_key`, `.too_deep`, `.not_finite`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from registry.errors import Invalid
from registry.findings import Finding

_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
SPLIT_BYTES = 2**20
"""How much may be split at its quotes at once: a part takes up to 40 bytes of memory."""
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SIGNED_ZERO, _LONG_INTEGER = re.compile(r"-0(?![.0-9eE])"), re.compile(r"[0-9][0-9]{40}")
"""Two patterns of which `re` knows how they begin: as one, or with `{41}`, they take three times as long."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which error a refusal is (`error_code`, a code of `Invalid`), its reasons' family, and what is allowed.

    `depth` counts nested objects and arrays. `not_finite` lets NaN and Infinity through (some base
    configurations hold them), `duplicate_keys` the last value of a key. `signed_zero` false refuses `-0`, which some
    readers take for a fraction. `unreadable` is the rule that text which is no JSON breaks.
    """

    error_code: str
    family: str
    depth: int = 16
    not_finite: bool = False
    duplicate_keys: bool = False
    signed_zero: bool = True
    unreadable: str = "invalid"


def parse(data: bytes, dialect: Dialect, *, file: str) -> Any:
    """The value of one JSON text. `Invalid` (the dialect's code) names the file and the broken rule."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        refuse(dialect, file, dialect.unreadable, f"is not UTF-8 text (byte {e.start})")
    if text.startswith("\ufeff"):
        refuse(dialect, file, dialect.unreadable, "begins with a byte order mark, which JSON does not allow")
    if depth_of(data, stop_at=dialect.depth) > dialect.depth:
        refuse(dialect, file, "too_deep", f"nests objects and arrays deeper than {dialect.depth}")
    # looked for once, because a callback for each integer is slow
    odd = _SIGNED_ZERO.search(text) or _LONG_INTEGER.search(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: _object(pairs, dialect, file),
            parse_constant=lambda word: _constant(word, dialect, file),
            parse_int=(lambda digits: _integer(digits, dialect, file)) if odd else None,
        )
    except json.JSONDecodeError as e:
        message = f"is not JSON: {e.msg} at line {e.lineno}, column {e.colno}"
        refuse(dialect, file, dialect.unreadable, message)
    if "\\u" in text:
        where = find_text(value, _SURROGATE, depth=dialect.depth)
        if where is not None:
            location = f"{file}.{where}".removesuffix(".")
            refuse(dialect, location, dialect.unreadable, "holds half of a surrogate pair, which no text can hold")
    return value


def parse_object(data: bytes, dialect: Dialect, *, file: str) -> dict[str, Any]:
    """The object of one JSON text. `Invalid` as `parse`, and for any other value."""
    values = parse(data, dialect, file=file)
    if not isinstance(values, dict):
        refuse(dialect, file, "invalid", f"must hold one object, not {type(values).__name__}")
    return values


def depth_of(data: bytes, *, stop_at: int) -> int:
    """The deepest nesting of brackets outside texts; what is deeper than `stop_at` counts as `stop_at` + 1.

    All texts are cut out, then the innermost pairs are cut out layer by layer: `stop_at` passes at C's speed.
    """
    few = len(data) <= SPLIT_BYTES and b"\\" not in data  # then every second part lies between two quotes
    outside = b"".join(data.split(b'"')[::2]) if few else _TEXT.sub(b"", data)
    brackets = outside.translate(_TO_SQUARE, _NOT_BRACKETS)
    for depth in range(stop_at + 1):
        if not brackets:
            return depth
        if depth < stop_at:
            brackets = brackets.replace(b"[]", b"")
    if brackets.startswith(b"[") and brackets.count(b"[") == brackets.count(b"]"):
        return stop_at + 1
    open_now = 0  # unbalanced: the parser will refuse it, unless it is too deep for the parser
    for bracket in brackets:
        open_now += 1 if bracket == ord("[") else -1
        if not 0 <= open_now <= stop_at:
            break
    return stop_at + (open_now > stop_at)


def find_text(value: Any, pattern: re.Pattern[str], *, depth: int, location: str = "") -> str | None:
    """Where a value first has a text or a key that this pattern finds: `items.0.name`. `ValueError` beyond `depth`."""
    if isinstance(value, str):
        return location if pattern.search(value) else None
    if not isinstance(value, dict | list):
        return None
    if depth == 0:
        raise ValueError("nests lists and objects too deeply")
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(key, str) and pattern.search(key):
            return location
        where = find_text(item, pattern, depth=depth - 1, location=f"{location}.{key}".lstrip("."))
        if where is not None:
            return where
    return None


def has_more_values(data: bytes, limit: int) -> bool:
    """Whether a JSON text has more commas and opening brackets outside texts: a value takes some hundred bytes.

    UTF-16 has NUL bytes, and no texts that can be cut out: there every comma and bracket counts. So do those of texts
    after the first `limit` ones, because cutting out millions of texts takes seconds.
    """
    return count_values(data) > limit and (b"\0" in data or count_values(_TEXT.sub(b"", data, count=limit)) > limit)


def count_values(data: bytes) -> int:
    """The commas and opening brackets of a JSON text, those in texts included."""
    return sum(data.count(mark) for mark in (b",", b"[", b"{"))


def refuse(dialect: Dialect, file: str, rule: str, message: str) -> NoReturn:
    """Raise the dialect's error for a broken rule."""
    raise Invalid(
        dialect.error_code,
        f"{file}: {message}" if not message.startswith("is ") else f"{file} {message}",
        findings=[Finding(f"{dialect.family}.{rule}", file, message)],
    )


def _object(pairs: Sequence[tuple[str, Any]], dialect: Dialect, file: str) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs) and not dialect.duplicate_keys:
        keys: set[str] = set()
        for key, _ in pairs:
            if key in keys:
                refuse(dialect, file, "duplicate_key", f"the key {key[:120]!r} is written twice in one object")
            keys.add(key)
    return result


def _constant(word: str, dialect: Dialect, file: str) -> float:
    if not dialect.not_finite:
        refuse(dialect, file, "not_finite", f"holds {word}, which is not a number of JSON")
    return float(word)


def _integer(digits: str, dialect: Dialect, file: str) -> int:
    if len(digits) > 40:
        refuse(dialect, file, dialect.unreadable, f"holds an integer of {len(digits)} digits; the limit is 40")
    if digits == "-0" and not dialect.signed_zero:
        refuse(dialect, file, dialect.unreadable, "holds the integer -0, which not all readers take for an integer")
    return int(digits)
