"""docs/reference/settings.md: environment variables, from `Settings` and environment.toml (here)."""

from __future__ import annotations

import ast
import inspect
import tomllib
from pathlib import Path

from registry.server.settings import Settings
from scripts.reference.tables import table

INTRODUCTION = """\
# Settings

Settings are read from environment variables. Those of a server can also be in a TOML file, which `REGISTRY_CONFIG` or
`--config` names: `REGISTRY_LINK_SECONDS=600` is `link_seconds = 600`. Variables win. `REGISTRY_DATABASE_URL_FILE`
(`database_url_file`) names a file that holds only the URL of the database, with its password. `adapter config show`
prints each setting and where it comes from, without passwords. A value that cannot be read, and a setting that does
not exist, stop the start and are named.
"""
GROUPS = {
    "client": (
        "Client",
        "For every command. Pulled blobs are cached in `$XDG_CACHE_HOME/adapter-registry` (`~/.cache`).",
    ),
    "logs": ("Logs", "For `adapter worker` and `adapter agent`."),
    "worker": ("Worker", "For `adapter worker`."),
    "agent": ("Agent", "For `adapter agent`."),
    "vllm": ("vLLM plugin", "Read in the process of vLLM, together with `ADAPTER_REGISTRY` and `ADAPTER_TOKEN`."),
}


def client() -> dict[str, dict[str, dict[str, str]]]:
    """Group → variable → what it means, and its default."""
    return tomllib.loads(Path(__file__).with_name("environment.toml").read_text())


def server() -> list[tuple[str, str, str]]:
    """(variable, meaning, default) of each field of `Settings`, from the string below it."""
    (cls,) = ast.parse(inspect.getsource(Settings)).body
    if not isinstance(cls, ast.ClassDef):
        raise TypeError("Settings is not a class")
    rows = []
    for field, doc in zip(cls.body, cls.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            if not (isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)):
                raise LookupError(f"Settings.{field.target.id} has no docstring")
            default = getattr(Settings(), field.target.id)
            rows.append(
                (f"REGISTRY_{field.target.id.upper()}", str(doc.value.value), "" if default == "" else f"{default}")
            )
    return rows


def markdown() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## Server\n", "`adapter serve --data DIR` equals `REGISTRY_DATA=DIR`.\n"]
    parts.append(table(["variable", "meaning", "default"], ((f"`{name}`", *rest) for name, *rest in server())))
    for key, group in client().items():
        title, about = GROUPS[key]
        rows = ((f"`{name}`", row["means"], row["default"]) for name, row in group.items())
        parts += [f"## {title}\n", about + "\n", table(["variable", "meaning", "default"], rows)]
    return "\n".join(parts)
