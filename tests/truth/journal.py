"""What was already asked: PEFT's answers by the digest of their input, the registry's by that and its own code.

A run that was stopped goes on where it stopped; after a change of the registry only the registry is asked again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import registry

EVALUATING = (
    "adapters", "bases", "compat", "engines", "evaluation", "strict", "versions", "worker",
    "server/evaluation", "server/jobs", "server/push",
)  # fmt: skip
"""The folders whose code decides a verdict. What stores, sends and shows it is tested elsewhere."""
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Journal:
    """One JSON object a line in `FOLDER/NAME.jsonl`; a later line replaces an earlier one with its key."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # the line that a kill cut off
                    continue
                self._rows[row["key"]] = row["value"]
        self._file = open(path, "a")  # noqa: SIM115 - open as long as the run

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self._rows.get(key)

    def values(self) -> list[Any]:
        """All values."""
        return list(self._rows.values())

    def forget(self, group: str, existing: Collection[str]) -> None:
        """Empty the rows of cases that the group no longer has."""
        for key in [key for key in self._rows if key.startswith(f"{group}/") and key not in existing]:
            self.put(key, {})

    def put(self, key: str, value: Any) -> None:
        """Keep a value, on disk too."""
        self._rows[key] = value
        self._file.write(json.dumps({"key": key, "value": value}) + "\n")
        self._file.flush()


def code_digest() -> str:
    """Of the code that evaluates, without its comments and docstrings, and of its tables."""
    root = Path(registry.__file__).parent
    files = sorted(path for folder in EVALUATING for path in (root / folder).rglob("*"))
    contents = [_statements(path) for path in files if path.suffix == ".py"]
    contents += [path.read_text() for path in files if path.suffix in (".toml", ".json")]
    return hashlib.sha256("".join(contents).encode()).hexdigest()[:16]


def _statements(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def commit() -> str:
    """The commit that is checked out; empty outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
