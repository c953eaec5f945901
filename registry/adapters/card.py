"""`Card`: what the README of an adapter claims about its origin: data sets, bases, and the versions of its tools.

Invariants
- A claim is only ever shown as one: nothing is decided by it, and what cannot be read is left out, never an error.
- The front matter is read by a small grammar (top-level keys with a scalar or a flat list), never as YAML, which can
  hold aliases that grow without end and tags that name code.
- Names are Hub ids (`org/name`); at most 64 KiB are looked at, and 32 names of each kind are kept.

Example
    >>> read(b"---\\ndatasets:\\n- tatsu-lab/alpaca\\n---\\n### Framework versions\\n\\n- PEFT 0.18.0\\n").tools
    {'peft': '0.18.0'}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FILE = "README.md"
READ_LIMIT_BYTES = 64 * 2**10
NAMES_LIMIT = 32
TOOLS_LIMIT = 16
HUB_DATASETS = "hf://datasets/"

_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*):[ \t]*(.*)\Z")
_ITEM = re.compile(r"[ \t]*-[ \t]+(.+)\Z")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")
_FRAMEWORKS = re.compile(r"^#{1,6} framework versions[ \t]*$", re.IGNORECASE | re.MULTILINE)
_TOOL = re.compile(r"[-*] ([A-Za-z][A-Za-z0-9_.-]{0,39}):? ([0-9][0-9A-Za-z.+!_-]{0,39})\Z")


@dataclass(frozen=True, slots=True)
class Card:
    datasets: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON, without what is not claimed."""
        found = {"datasets": list(self.datasets), "bases": list(self.bases), "tools": dict(self.tools)}
        return {key: value for key, value in found.items() if value}


def read(data: bytes) -> Card:
    """The claims of a README, of its first 64 KiB. Never raises."""
    text = data[:READ_LIMIT_BYTES].decode("utf-8", "replace").replace("\r\n", "\n")
    written = dict(_front_matter(text))
    return Card(
        datasets=_names(written.get("datasets", [])),
        bases=_names(written.get("base_model", [])),
        tools=dict(_tools(text)),
    )


def _front_matter(text: str) -> Iterator[tuple[str, list[str]]]:
    """Top-level keys and their values: a scalar, `[a, b]`, or the items of a list below. The first of a key counts."""
    lines = text.split("\n")
    if lines[0].strip() != "---":
        return
    key, seen = "", set()
    values: list[str] = []
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if found := _KEY.match(line):
            if key and key not in seen:
                yield key, values
                seen.add(key)
            key, values = found[1], list(_inline(found[2]))
        elif (item := _ITEM.match(line)) and key:
            values.append(_plain(item[1]))
    if key and key not in seen:
        yield key, values


def _inline(text: str) -> Iterator[str]:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        yield from (_plain(part) for part in text[1:-1].split(","))
    elif text:
        yield _plain(text)


def _plain(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _names(values: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if _HUB_ID.match(value)))[:NAMES_LIMIT]


def _tools(text: str) -> Iterator[tuple[str, str]]:
    """The list below "Framework versions", as trainers write it: `- PEFT 0.18.0`, `- TRL: 0.24.0`."""
    heading = _FRAMEWORKS.search(text)
    if heading is None:
        return
    for line in text[heading.end() :].strip().split("\n")[:TOOLS_LIMIT]:
        found = _TOOL.match(line.strip())
        if found is None:
            return
        yield found[1].lower(), found[2]
