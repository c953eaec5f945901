"""Examples of commands (cli/examples.toml), read when a help is printed."""

import tomllib
from pathlib import Path

FILE = Path(__file__).parent.parent / "examples.toml"


def read() -> dict[str, list[str]]:
    """Name of a command, such as `token create`, → its examples."""
    return {name: text.strip().splitlines() for name, text in tomllib.loads(FILE.read_text("utf-8")).items()}
