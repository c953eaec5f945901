"""Generates rules of engines from their own source, without importing it: `registry/engines/generated/*.json`.

    tree       the Python files of a wheel, a source distribution, a folder or a URL
    syntax     classes, bases, constants and imports, from syntax trees
    models     what is inside a model's class
    vllm, sglang    what the source of each says about LoRA

One file holds all versions of an engine: a value is written with the first version that has it, and holds until the
next one that is written. Rows that are equal in all versions are written once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from registry.engines import source_facts as engine_versions
from scripts.engine_rules import sglang, vllm
from scripts.engine_rules.syntax import Library
from scripts.engine_rules.tree import opened

ENGINES: Mapping[str, Callable[[Library], dict[str, Any]]] = {"vllm": vllm.facts, "sglang": sglang.facts}
FOLDER = Path(__file__).resolve().parents[2] / "registry" / "engines" / "generated"
TABLES = ("architectures", "classes")
"""Facts that are written row by row; the others are written as one value."""


def read(engine: str, where: str) -> dict[str, Any]:
    """The facts of the release at `where`."""
    with opened(where, engine) as tree:
        return ENGINES[engine](Library(tree))


def generated(engine: str) -> dict[str, dict[str, Any]]:
    """Version → its facts, as the file in the repository has them; nothing if there is none."""
    path = FOLDER / f"{engine}.json"
    return expanded(json.loads(path.read_text())) if path.exists() else {}


def write(engine: str, versions: Mapping[str, Mapping[str, Any]]) -> Path:
    path = FOLDER / f"{engine}.json"
    path.write_text(rendered(compressed(engine, versions)))
    return path


def compressed(engine: str, versions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The document of all versions: each value by the first version that has it, `null` from where a row is gone."""
    ordered = sorted(versions, key=engine_versions.version_of)
    document: dict[str, Any] = {"engine": engine, "versions": ordered}
    names = sorted({name for facts in versions.values() for name in facts})
    for name in names:
        values = {version: versions[version].get(name) for version in ordered}
        if name in TABLES:
            rows = sorted({row for table in values.values() for row in table or {}})
            document[name] = {row: _spans({v: (table or {}).get(row) for v, table in values.items()}) for row in rows}
        else:
            document[name] = _spans(values)
    return document


def _spans(values: Mapping[str, Any]) -> dict[str, Any]:
    spans: dict[str, Any] = {}
    previous: Any = None
    for version, value in values.items():
        if value != previous:
            spans[version] = previous = value
    return spans


def expanded(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Version → facts: what `compressed` put together."""
    versions: dict[str, dict[str, Any]] = {}
    for version in document["versions"]:
        facts = versions[version] = {}
        for name, spans in document.items():
            if name in TABLES:
                rows = (
                    (row, engine_versions.at(inner, engine_versions.version_of(version)))
                    for row, inner in spans.items()
                )
                facts[name] = {row: value for row, value in rows if value is not None}
            elif name not in ("engine", "versions"):
                facts[name] = engine_versions.at(spans, engine_versions.version_of(version))
    return versions


def rendered(document: Mapping[str, Any]) -> str:
    """JSON with one row a line, so that a difference between versions reads as one."""
    lines = []
    for name, value in document.items():
        if name in TABLES:
            rows = ",\n".join(f"  {json.dumps(row)}: {json.dumps(spans)}" for row, spans in value.items())
            lines.append(f" {json.dumps(name)}: {{\n{rows}\n }}")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
