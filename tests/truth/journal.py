"""What was already asked: PEFT's answers by the digest of their input, the registry's by that and its own code.

A run that was stopped goes on where it stopped; after a change of the registry only the registry is asked again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import registry


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

    def put(self, key: str, value: Any) -> None:
        """Keep a value, on disk too."""
        self._rows[key] = value
        self._file.write(json.dumps({"key": key, "value": value}) + "\n")
        self._file.flush()


def code_digest() -> str:
    """Of the registry's code and tables."""
    root = Path(registry.__file__).parent
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".toml"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
