"""registry/findings.toml in memory: what each code of a finding means, how severe it is, and what to do."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any


@cache
def rows() -> dict[str, dict[str, Any]]:
    """Code → row. Parsed with the first finding: that takes as long as a small push takes for its evaluation."""
    document = tomllib.loads((Path(__file__).parent / "findings.toml").read_text("utf-8"))
    return {f"{name}.{code}": row for name, group in document.items() for code, row in group["codes"].items()}


def fix_of(code: str) -> str:
    """What to do about findings of this code; empty for those that a newer release made, or that need nothing."""
    return str(rows().get(code, {}).get("fix", ""))
