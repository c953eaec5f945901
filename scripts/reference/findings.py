"""docs/reference/findings.md: every finding code, from registry/findings.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import registry
from scripts.reference.tables import table

INTRODUCTION = """\
# Findings

A finding names exactly what is wrong: `code`, `severity`, `location`, `message`, and where it helps the
`expected` and the `actual` value. Findings of a *verdict* have the severity error, unknown, warning or info; the worst
one decides the outcome. Findings of an [error](errors.md) are the rules that the input breaks, all of them.
"""


def groups() -> dict[str, dict[str, Any]]:
    """First part of a code → title, about, and the codes of the group."""
    return tomllib.loads((Path(registry.__file__).parent / "findings.toml").read_text())


def codes() -> set[str]:
    """Every code that has a row."""
    return {f"{name}.{code}" for name, group in groups().items() for code in group["codes"]}


def markdown() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name, group in groups().items():
        parts += [f"## {group['title']}\n", *([group["about"] + "\n"] if "about" in group else [])]
        columns = {"severity": "severity", "means": "meaning", "fix": "what to do"}
        used = [column for column in columns if any(column in row for row in group["codes"].values())]
        rows = ([f"`{name}.{code}`", *(row.get(column, "") for column in used)] for code, row in group["codes"].items())
        parts.append(table(["code", *(columns[column] for column in used)], rows))
    return "\n".join(parts)
