"""Examples of commands (cli/examples.toml), read when a help is printed."""

import tomllib
from pathlib import Path

import click

FILE = Path(__file__).parent.parent / "examples.toml"


def read() -> dict[str, list[str]]:
    """Name of a command, such as `token create`, → its examples."""
    return {name: text.strip().splitlines() for name, text in tomllib.loads(FILE.read_text("utf-8")).items()}


def write(command: click.Command, name: str, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the end of a command's help, and its examples."""
    click.Command.format_epilog(command, ctx, formatter)
    with formatter.section("Examples"):
        for line in read().get(name, ()):
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
