"""Which of diffusers' pipelines load LoRA, by its source: `python -m scripts.engine_rules.pipelines`.

Writes registry/engines/generated/diffusers.json from the installed wheel, which is read and not imported.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from scripts.engine_rules import FOLDER

FILE = FOLDER / "diffusers.json"
LOADER = "load_lora_weights"


def installed() -> Path | None:
    """The folder of the installed wheel; None without one."""
    spec = importlib.util.find_spec("diffusers")
    return Path(spec.origin).parent if spec and spec.origin else None


def read(folder: Path) -> dict[str, dict[str, object]]:
    """Class of a pipeline → `lora`: whether `load_lora_weights` works in it; `components`: which it loads into.

    Each class that `__init__` takes for such a component, other than text encoders, needs `load_lora_adapter`: where
    one of two lacks it, the pipeline makes that one (StableDiffusionControlNetXSPipeline).
    """
    nodes: dict[str, ast.ClassDef] = {}
    for file in sorted(path for part in ("loaders", "models", "pipelines") for path in (folder / part).rglob("*.py")):
        nodes |= {node.name: node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.ClassDef)}

    def line_of(name: str) -> Iterator[ast.ClassDef]:
        """The class and all that it derives from, nearest first."""
        if node := nodes.get(name):
            yield node
            for base in (ast.unparse(base).rpartition(".")[2] for base in node.bases):
                yield from line_of(base) if base != name else ()  # one of another library with its name

    def member(name: str, of: str) -> ast.stmt | None:
        return next((statement for node in line_of(of) for statement in node.body if _name(statement) == name), None)

    def has_loader(name: str, components: tuple[str, ...]) -> bool:
        init = member("__init__", name)
        arguments = [*init.args.args, *init.args.kwonlyargs] if isinstance(init, ast.FunctionDef) else []
        models = [argument for argument in arguments if argument.arg in components and "text" not in argument.arg]
        kinds = {kind for argument in models if argument.annotation
                 for kind in re.findall(r"\w+", ast.unparse(argument.annotation)) if kind in nodes}  # fmt: skip
        if not models or member(LOADER, name) is None:  # PRXPipeline's loader wants a U-Net, which it lacks
            return False
        return all(member("load_lora_adapter", kind) for kind in kinds)

    rows: dict[str, dict[str, object]] = {}
    for name in sorted(nodes):
        if name != "DiffusionPipeline" and any(node.name == "DiffusionPipeline" for node in line_of(name)):
            listed = member("_lora_loadable_modules", name)
            components = tuple(ast.literal_eval(listed.value)) if isinstance(listed, ast.Assign) else ()
            rows[name] = {"lora": has_loader(name, components)}
            if rows[name]["lora"]:
                rows[name]["components"] = components
    return rows


def _name(statement: ast.stmt) -> str:
    """What a class's statement defines."""
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return str(getattr(statement, "name", ""))


def rendered() -> str:
    """The file's text, of the installed wheel, as `registry/engines/source_facts.py` reads it: a class a line."""
    folder, version = installed(), metadata.version("diffusers")
    pipelines = read(folder) if folder else {}
    tables: dict[str, dict[str, object]] = {
        "architectures": {name: {version: name} for name in pipelines},
        "classes": {name: {version: row} for name, row in pipelines.items()},
    }
    lines = [f'{{\n "engine": "diffusers",\n "versions": ["{version}"],\n "suffixes": {{}}']
    for title, rows in tables.items():
        joined = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        lines.append(f' "{title}": {{\n{joined}\n }}')
    return ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(rendered())
