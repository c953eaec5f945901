"""`Card`: what the README of an adapter claims: data sets, bases, the versions of its tools, license and tags.

Claims decide nothing; what cannot be read is left out. The front matter is YAML without aliases and tags, of limited
size and depth: an alias can grow without end, and a tag can name code.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from registry.findings import Finding
from registry.strict import yaml as strict_yaml
from registry.versions.files import CARD, Read

READ_LIMIT_BYTES = 64 * 2**10
NAMES_LIMIT = 32
TOOLS_LIMIT = 16

LABELS = ("license", "pipeline_tag", "language", "tags")
"""Keys of the front matter by whose values the Hub finds models."""
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")
_LABEL = re.compile(r"\w[\w .+:/-]{0,63}\Z")
_FRAMEWORKS = re.compile(r"^#{1,6} framework versions[ \t]*$", re.IGNORECASE | re.MULTILINE)
_TOOL = re.compile(r"[-*] ([A-Za-z][A-Za-z0-9_.-]{0,39}):? ([0-9][0-9A-Za-z.+!_-]{0,39})\Z")


@dataclass(frozen=True, slots=True)
class Card:
    datasets: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of `LABELS` → its values."""

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON, without what is not claimed."""
        labels = {key: list(values) for key, values in self.labels.items() if values}
        facts = {
            "datasets": list(self.datasets), "bases": list(self.bases), "tools": dict(self.tools), "labels": labels
        }  # fmt: skip
        return {key: value for key, value in facts.items() if value}


def read(data: bytes) -> Card:
    """The claims of a README, of its first 64 KiB. Never raises."""
    text = data[:READ_LIMIT_BYTES].decode("utf-8", "replace").replace("\r\n", "\n")
    matter, _ = _front_matter(text)
    return Card(
        datasets=_names(matter.get("datasets")), bases=_names(matter.get("base_model")), tools=dict(_tools(text)),
        labels={key: _names(matter.get(key), _LABEL) for key in LABELS},
    )  # fmt: skip


def labels_of(facts: Mapping[str, Any]) -> list[str]:
    """The tags that the Hub gives a model, from the facts of its card: `license:mit`, `dataset:acme/chats`, `en`."""
    labels = facts.get("labels") or {}
    tags = [f"license:{value}" for value in labels.get("license", ())]
    tags += [f"dataset:{name}" for name in facts.get("datasets", ())]
    return tags + [value for key in LABELS if key != "license" for value in labels.get(key, ())]


def check_card(sizes: Mapping[str, int], read: Read) -> list[Finding]:
    """A warning for a README whose front matter cannot be read; `sizes` are those of the version's files by path."""
    if CARD not in sizes:
        return []
    problem = describe_problem(read(CARD, 0, min(sizes[CARD], READ_LIMIT_BYTES)))
    message = f"{CARD} {problem}: its data sets and bases are not shown"
    return [Finding.of("warning", "card.front_matter_invalid", CARD, message)] if problem else []


def describe_problem(data: bytes) -> str:
    """What is wrong with the front matter of a README; empty if it can be read."""
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        if e.start < READ_LIMIT_BYTES - 4:  # not a character that the limit cuts
            return "is not UTF-8 text"
        text = data.decode("utf-8", "replace")
    return _front_matter(text.replace("\r\n", "\n"))[1]


def _front_matter(text: str) -> tuple[dict[Any, Any], str]:
    """The front matter, empty where there is none that can be read, and what is wrong with it."""
    matter = _FRONT_MATTER.match(text)
    if matter is None:
        return {}, "has front matter without an end" if text.startswith("---") else ""
    if problem := strict_yaml.problem(matter[1]):
        return {}, f"has front matter that {problem}"
    try:
        loaded = yaml.load(matter[1], strict_yaml.LOADER)  # noqa: S506  # constructs strings, lists and maps only
    except yaml.YAMLError:
        return {}, "has front matter that is not YAML"
    if isinstance(loaded, dict):
        return loaded, ""
    return {}, "" if loaded is None else "has front matter that is not a map"


def _names(claimed: Any, pattern: re.Pattern[str] = _HUB_ID) -> tuple[str, ...]:
    names = claimed if isinstance(claimed, list) else [claimed]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and pattern.match(name)))[:NAMES_LIMIT]


def _tools(text: str) -> Iterator[tuple[str, str]]:
    """The list below "Framework versions", as trainers write it: `- PEFT 0.18.0`, `- TRL: 0.24.0`."""
    heading = _FRAMEWORKS.search(text)
    if heading is None:
        return
    for line in text[heading.end() :].strip().split("\n")[:TOOLS_LIMIT]:
        match = _TOOL.match(line.strip())
        if match is None:
            return
        yield match[1].lower(), match[2]
