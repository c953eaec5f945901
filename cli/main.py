"""The door of the command line: a table from command to room, and the only late import of the code base.

Invariants
- Help and completion of commands' names import nothing but click.
- A room is imported when its command is typed; an extra that is missing then is one sentence, not a trace.
- An error of ours becomes one sentence and the exit code of its class (cli/output.py), for every command alike.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import click

OURS = ("registry", "cli")
NO_PLUGINS = ("PYDANTIC_DISABLE_PLUGINS", "__all__")
"""pydantic's own switch: else it reads about every package that is installed, to load those that watch it at work."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a command is: module and attribute, the section of the help it stands in, and the extra it needs.

    `weights`: its first word is a folder whose weights are hashed while the room opens (0), or those of the folders in
    it (1).
    """

    module: str
    attribute: str
    section: str
    help: str
    extra: str = ""
    weights: int | None = None


DOORS: dict[str, Door] = {
    "push": Door(".push", "push", "Move", "Push a folder as a new version, checked against its base.", weights=0),
    "push-all": Door(".bulk_push", "push_all", "Move", "Push every adapter folder in a folder.", weights=1),
    "pull": Door(".pull", "pull", "Move", "Download a version, every byte verified."),
    "pull-all": Door(".bulk_pull", "pull_all", "Move", "Download every adapter of a base."),
    "export": Door(".export", "export", "Move", "Export adapters of a base for engines: folders, S3, Kubernetes."),
    "list": Door(".adapters", "list_adapters", "Look", "List adapters: newest version, base, verdicts, aliases."),
    "show": Door(".show", "show", "Look", "Show a version: facts, verdicts, aliases, norms."),
    "history": Door(".aliases", "history", "Look", "Show who moved an alias, when and why."),
    "lineage": Door(".lineage", "lineage", "Look", "Show what a version was made from, or what was made from it."),
    "check": Door(".checks", "check", "Judge", "Check whether an adapter fits a base, and what engines do with it."),
    "engine-settings": Door(
        ".engines", "engine_settings", "Judge", "Recommend engine settings for all adapters of a base."
    ),
    "diff": Door(".diff", "diff", "Look", "Compare two versions or folders."),
    "smoke-test": Door(".smoke_tests", "smoke_test", "Judge", "Have workers test versions on their base."),
    "sign": Door(".sign", "sign", "Judge", "Sign a version, or attach a signature."),
    "verify": Door(".verify", "verify", "Judge", "Verify a version's bytes, signatures and log entry."),
    "job": Door(".jobs", "job", "Judge", "Jobs: list, show, cancel."),
    "recheck-engines": Door(".engines", "recheck_engines", "Judge", "Renew the stored engine verdicts."),
    "merge": Door(".merge", "merge", "Make", "Combine adapters, resize one, or fuse one into its base."),
    "convert": Door(".convert", "convert", "Make", "Convert a version to another format."),
    "extract": Door(".merge", "extract", "Make", "Make an adapter from the difference of two models."),
    "promote": Door(".aliases", "promote", "Decide", "Point an alias at a version, through its gate."),
    "rollback": Door(".aliases", "rollback", "Decide", "Point an alias back at an earlier version."),
    "yank": Door(".aliases", "yank", "Decide", "Withdraw a version from aliases."),
    "gate": Door(".gates", "gate", "Decide", "Gates of aliases: set, show, list, remove."),
    "approve": Door(".gates", "approve", "Decide", "Approve a version for an alias."),
    "quarantine": Door(".gates", "quarantine", "Decide", "Withhold a version until an owner lifts it."),
    "base": Door(".bases", "base", "Set up", "Base models: add, list, show, identify, thresholds."),
    "login": Door(".access", "login", "Set up", "Remember a registry and your token."),
    "token": Door(".access", "token", "Set up", "Tokens: create, rotate, exchange, list, revoke."),
    "namespace": Door(".namespaces", "namespace", "Set up", "Namespaces: roles, visibility, limits."),
    "publisher": Door(".namespaces", "publisher", "Set up", "Trusted publishers: CI jobs without stored secrets."),
    "rename": Door(".namespaces", "rename", "Set up", "Rename an adapter or move it to another namespace."),
    "delete": Door(".namespaces", "delete", "Set up", "Delete an adapter and all its versions."),
    "whoami": Door(".access", "whoami", "Set up", "Show the registry and your rights."),
    "webhook": Door(".webhooks", "webhook", "Set up", "Webhooks: create, list, delete, deliveries."),
    "doctor": Door(".doctor", "doctor", "Set up", "Diagnose problems between you and the registry."),
    "audit": Door(".audit", "audit", "Look", "The audit log: log, verify, export, key."),
    "fleet": Door(".fleet", "fleet", "Look", "Show which node serves which version."),
    "serve": Door(".serve", "serve", "Run", "Run the registry server.", extra="server"),
    "worker": Door(".worker", "worker", "Run", "Run a worker that tests adapters on their base.", extra="worker"),
    "agent": Door(".agent", "agent", "Run", "Keep engines in sync with an alias."),
    "migrate": Door(".serve", "migrate", "Run", "Upgrade the database schema.", extra="server"),
    "gc": Door(".upkeep", "gc", "Run", "Delete unreferenced data."),
    "fsck": Door(".upkeep", "fsck", "Run", "Check that rows, bytes and history agree."),
    "reindex": Door(".upkeep", "reindex", "Run", "Rebuild lost rows from the bucket."),
}


class MissingExtra(click.ClickException):
    """A command whose packages are not installed. Exit code 2: the call cannot work as it is."""

    exit_code = 2


def spare(module: str) -> None:
    """Have `module` be an empty one, unless it is there already: whoever tries to import from it does without.

    httpx imports rich and pygments for a command line of its own: a third of what importing it costs, for nothing.
    """
    sys.modules.setdefault(module, ModuleType(module))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """What comes to be in here is no garbage: it is not looked through while it grows, and never again after it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def load(module: str, attribute: str, extra: str = "", what: str = "") -> Any:
    """What `module` calls `attribute`. `MissingExtra` says what to install if a package is not there.

    A module that begins with a dot is one of this package, which is `cli` in a checkout and `registry.cli` in a wheel.
    """
    if module.startswith("."):
        module = f"{__package__}{module}"
    try:
        with contextlib.nullcontext() if module in sys.modules else uncollected():
            return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as e:
        missing = (e.name or "").split(".")[0]
        if not extra or missing in OURS:
            raise
        raise MissingExtra(
            f"{what} needs the extra '{extra}' ({missing} is not installed): pip install 'adapter-registry[{extra}]'"
        ) from e


class Rooms(click.Group):
    """`adapter`: opens the room of the command that was typed, and ends its errors in a sentence."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(DOORS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        door = DOORS.get(args[0])
        if door is not None and door.weights is not None and args[1:]:
            load("registry.client.local.hashing", "begin")(args[1], depth=door.weights)
        return super().resolve_command(ctx, args)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        door = DOORS.get(cmd_name)
        if door is None:
            return None
        spare("httpx._main")
        if not door.extra:
            os.environ.setdefault(*NO_PLUGINS)
        command: click.Command = load(door.module, door.attribute, door.extra, f"adapter {cmd_name}")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except Exception as error:
            code: int | None = load(".output", "tell")(error, ctx)
            if code is None:
                raise
            ctx.exit(code)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(door.section for door in DOORS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, door.help) for name, door in DOORS.items() if door.section == section])


def _print_version(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"adapter-registry {load('registry', '__version__')}")
        ctx.exit()


@click.group(cls=Rooms, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def main() -> None:
    """Push, check, promote, serve and audit LoRA adapters.

    A REF is namespace/name (the newest version), namespace/name:alias, namespace/name@3 or namespace/name@sha256:….
    The registry is ADAPTER_REGISTRY, else the one of `adapter login`, else the embedded one in your data folder.
    """


if __name__ == "__main__":
    main(prog_name="adapter")
