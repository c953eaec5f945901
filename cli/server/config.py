"""`adapter config show`: the settings of a server, where each comes from, and its limits."""

import os
from dataclasses import asdict, dataclass, fields

import click

from registry.server.limits import LIMITS
from registry.server.settings import Settings, hide_secrets, read_sources

from ..console import output, tables
from ..console.options import Group
from ..console.tables import Column, Table


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as a server with this environment has it."""

    name: str
    value: str
    source: str


SETTINGS: Table[Setting] = Table((
    Column("setting", lambda row: row.name, lambda row: output.strong(row.name)),
    Column("value", lambda row: row.value),
    Column("source", lambda row: row.source),
))  # fmt: skip
CONFIG_OPTION = click.option(
    "--config", type=click.Path(dir_okay=False), help="TOML file of settings (REGISTRY_CONFIG)."
)


def environment(*, config: str | None, data: str | None = None) -> dict[str, str]:
    """The environment with what options set of it."""
    variables = {"REGISTRY_CONFIG": config, "REGISTRY_DATA": data}
    return {**os.environ, **{name: value for name, value in variables.items() if value}}


@click.group("config", cls=Group)
def config_group() -> None:
    """Settings of servers."""


@config_group.command("show")
@CONFIG_OPTION
@tables.prints(SETTINGS)
def show_config(config: str | None) -> None:
    """Show the settings of a server and its limits.

    Each setting with where it comes from, each limit with its reason. Passwords are hidden.
    """
    variables = environment(config=config)
    sources = read_sources(variables)
    settings = Settings.from_env(variables)
    rows = []
    for field in fields(settings):
        value = hide_secrets(str(getattr(settings, field.name)))
        source = sources[field.name].origin if field.name in sources else "default"
        rows.append(Setting(field.name, value, source))
    document = {"items": [asdict(row) for row in rows], "limits": [asdict(limit) for limit in LIMITS]}
    rows += [Setting(limit.name, limit.value, f"limit: {limit.why}") for limit in LIMITS]
    SETTINGS.print(rows, document=document)
