"""Which of diffusers' pipelines have `load_lora_weights`, by its source: `python -m scripts.engine_rules.pipelines`.

Writes registry/engines/generated/diffusers.json from the installed wheel, which is read and not imported.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from importlib import metadata
from pathlib import Path

from scripts.engine_rules import FOLDER

FILE = FOLDER / "diffusers.json"
LOADER = "load_lora_weights"


def installed() -> Path | None:
    """The folder of the installed wheel; None without one."""
    spec = importlib.util.find_spec("diffusers")
    return Path(spec.origin).parent if spec and spec.origin else None


def read(folder: Path) -> dict[str, bool]:
    """Class of a pipeline → whether it, or a class that it derives from, defines the loader."""
    classes: dict[str, tuple[tuple[str, ...], bool]] = {}
    for file in sorted(path for part in ("loaders", "pipelines") for path in (folder / part).rglob("*.py")):
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                bases = tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases)
                classes[node.name] = bases, any(getattr(member, "name", "") == LOADER for member in node.body)

    def derives(name: str, pipeline: bool) -> bool:
        bases, has_loader = classes.get(name, ((), False))
        is_one = name == "DiffusionPipeline" if pipeline else has_loader
        return is_one or any(derives(base, pipeline) for base in bases)

    names = [name for name in classes if name != "DiffusionPipeline" and derives(name, True)]
    return {name: derives(name, False) for name in sorted(names)}


def rendered() -> str:
    """The file's text, of the installed wheel, as `registry/engines/source_facts.py` reads it: a class a line."""
    folder, version = installed(), metadata.version("diffusers")
    pipelines = read(folder) if folder else {}
    tables: dict[str, dict[str, object]] = {
        "architectures": {name: {version: name} for name in pipelines},
        "classes": {name: {version: {"lora": has_loader}} for name, has_loader in pipelines.items()},
    }
    lines = [f'{{\n "engine": "diffusers",\n "versions": ["{version}"],\n "suffixes": {{}}']
    for title, rows in tables.items():
        joined = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        lines.append(f' "{title}": {{\n{joined}\n }}')
    return ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(rendered())
