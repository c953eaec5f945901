"""The entry point: the table of commands, each imported when it runs, and the exit code of every error.

The help of `adapter` itself imports no command.
"""

import codecs
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import click
from click.exceptions import NoSuchCommand, NoSuchOption

from registry import __version__, lazy

from .console import options, output

COMPLETION = "_ADAPTER_COMPLETE"
"""Variable by which a shell requests completions."""

_DOCUMENT_OPTION = re.compile(rf"(?<![^\0])(?:--json|(?:-o\0?|--output[\0=])({'|'.join(output.DOCUMENTS)}))(?![^\0])")
"""The option that asks for a document, in words that are joined by NUL and that click may not be able to parse."""

SUGGESTED = frozenset({"ADAPTER_UNKNOWN", "ALIAS_UNKNOWN", "BASE_UNKNOWN"})
"""Errors that get the nearest name."""


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """Where a command is implemented, the section of the help it is in, and the extra it needs."""

    path: str
    section: str
    help: str
    extra: str = ""

    def load(self, name: str) -> click.Command:
        """Import the command. `Invalid` (EXTRA_MISSING)."""
        command: click.Command = lazy.load(_own(self.path), self.extra, f"adapter {name}")
        return command


def _commands() -> dict[str, CommandSpec]:
    spec, move, look, evaluate = CommandSpec, "Push and pull", "Inspect", "Evaluate"
    make, release, manage = "Create", "Release", "Manage"
    return {
        "push": spec(".push:push", move, "Push a folder as a new version, checked against its base."),
        "apply": spec(".apply:apply", move, "Push, tag and promote what a file lists."),
        "push-all": spec(".push:push_all", move, "Push every adapter folder in a folder."),
        "pull": spec(".pull:pull", move, "Download a version, every byte verified."),
        "cat": spec(".pull:cat", move, "Print a file of a version, every byte verified."),
        "pull-all": spec(".pull:pull_all", move, "Download every adapter of a base."),
        "export": spec(".export:export", move, "Export adapters of a base for engines: folders, S3, Kubernetes."),
        "list": spec(".adapters:list_adapters", look, "List adapters: newest version, base, verdicts, aliases."),
        "versions": spec(".adapters:versions_of", look, "List the versions of an adapter."),
        "show": spec(".show:show", look, "Show a version: aliases, verdicts, facts, norms."),
        "open": spec(".show:open_page", look, "Open the page of an adapter or version in a browser."),
        "history": spec(".aliases:history", look, "Show who moved an alias, when and why."),
        "lineage": spec(".lineage:lineage", look, "Show what a version was made from, or what was made from it."),
        "diff": spec(".diff:diff", look, "Compare two versions or folders."),
        "audit": spec(".audit:audit", look, "Audit log: log, verify, export, key."),
        "fleet": spec(".fleet:fleet", look, "Show which node serves which version."),
        "check": spec(".checks:check", evaluate, "Check whether an adapter fits a base and its engines."),
        "engine-settings": spec(".checks:engine_settings", evaluate, "Recommend engine settings for a base."),
        "smoke-test": spec(".jobs:smoke_test", evaluate, "Have workers test versions on their base."),
        "job": spec(".jobs:job", evaluate, "Jobs: list, show, cancel."),
        "recheck-engines": spec(".checks:recheck_engines", evaluate, "Renew the stored engine verdicts."),
        "sign": spec(".verify:sign", evaluate, "Sign a version, or attach a signature."),
        "verify": spec(".verify:verify", evaluate, "Verify a version's bytes, signatures and log entry."),
        "merge": spec(".merge:merge", make, "Combine adapters, resize one, or fuse one into its base."),
        "convert": spec(".convert:convert", make, "Convert a version to another format."),
        "extract": spec(".merge:extract", make, "Make an adapter from the difference of two models."),
        "promote": spec(".aliases:promote", release, "Point an alias at a version, through its gate."),
        "rollback": spec(".aliases:rollback", release, "Point an alias back at an earlier version."),
        "alias": spec(".aliases:alias", release, "Aliases: list, delete."),
        "yank": spec(".adapters:yank", release, "Withdraw a version from aliases."),
        "gate": spec(".gates:gate", release, "Gates of aliases: set, show, list, delete."),
        "approve": spec(".gates:approve", release, "Approve a version for an alias."),
        "quarantine": spec(".adapters:quarantine", release, "Withhold a version until an owner lifts it."),
        "tag": spec(".metadata:tag", manage, "Tags of an adapter or version: add, delete, list."),
        "describe": spec(".metadata:describe", manage, "Describe an adapter or version; link to pages about it."),
        "rename": spec(".adapters:rename", manage, "Rename an adapter or move it to another namespace."),
        "delete": spec(".adapters:delete", manage, "Delete a version, or an adapter and all its versions."),
        "retention": spec(".retention:retention", manage, "Retention: which versions gc deletes by rule."),
    }


def _setup_commands() -> dict[str, CommandSpec]:
    spec, setup, run = CommandSpec, "Set up", "Run"
    return {
        "base": spec(".bases:base", setup, "Base models: add, list, show, alias, delete, identify, thresholds."),
        "login": spec(".login:login", setup, "Remember a registry and your token."),
        "logout": spec(".login:logout", setup, "Forget the token of a registry on this machine."),
        "context": spec(".login:context", setup, "Registries by name: add, use, list, delete."),
        "whoami": spec(".login:whoami", setup, "Show the registry and your rights."),
        "token": spec(".tokens:token", setup, "Tokens: create, rotate, exchange, list, revoke, generate."),
        "namespace": spec(".namespaces:namespace", setup, "Namespaces: roles, visibility, limits."),
        "publisher": spec(".publishers:publisher", setup, "Trusted publishers: CI jobs without stored secrets."),
        "webhook": spec(".webhooks:webhook", setup, "Webhooks: create, list, delete, deliveries."),
        "completion": spec(".console.completion:completion", setup, "Completion for bash, zsh or fish."),
        "config": spec(".server.config:config_group", setup, "Settings of servers: show."),
        "doctor": spec(".doctor:doctor", setup, "Diagnose problems between you and the registry."),
        "serve": spec(".server.serve:serve", run, "Run the registry server.", extra="server"),
        "worker": spec(".worker:worker", run, "Run a worker: smoke tests, merges and conversions.", extra="worker"),
        "agent": spec(".agent:agent", run, "Keep engines in sync with an alias."),
        "migrate": spec(".server.serve:migrate", run, "Upgrade the database schema.", extra="server"),
        "backup": spec(".server.backup:backup_group", run, "Database: back up, restore.", extra="server"),
        "audit-key": spec(".server.keys:audit_key", run, "Key of the audit log: rotate, replace.", extra="server"),
        "gc": spec(".maintenance:gc", run, "Delete versions by rule, and unreferenced data."),
        "fsck": spec(".maintenance:fsck", run, "Check that rows, bytes and history agree."),
        "reindex": spec(".maintenance:reindex", run, "Import versions that only the blob store has."),
    }


COMMANDS = _commands() | _setup_commands()


WORDS_OF_OTHERS = {
    "download": "pull", "upload": "push", "info": "show", "inspect": "show", "search": "list --text", "ls": "list",
    "find": "list --text", "log": "audit log", "status": "doctor",
    "get": "pull", "rm": "delete", "remove": "delete",
}  # fmt: skip
"""Command of another tool → ours."""


def _own(path: str) -> str:
    """The path of something in this package, which is `cli` in a checkout and `registry.cli` in a wheel."""
    return f"{__package__}{path}"


class LazyGroup(click.Group):
    """`adapter`: imports the module of a command when it runs, and turns errors into messages and exit codes."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line, or complete one for a shell."""
        if COMPLETION in os.environ:
            lazy.load(_own(".console.completion:register"))()
        _open_closed_streams()
        _accept_all_characters()
        try:
            return super().main(*args, **extra)
        except OSError as error:  # of a help, which is printed before a command is invoked
            sys.exit(output.print_error(error, click.Context(self)))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words: an error in them is a document if one of them asks for that.

        `help X` is `X --help`, `version` is `--version`, and nothing asks for the help.
        """
        if not args or args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        elif args == ["version"]:
            args = ["--version"]
        ctx.meta["cli.words"] = args[: args.index("--")] if "--" in args else list(args)
        return super().parse_args(ctx, args)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """The names of all commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and complete a command; None for an unknown name."""
        spec = COMMANDS.get(cmd_name)
        if spec is None:
            return None
        command = spec.load(cmd_name)
        if COMPLETION in os.environ:
            lazy.load(_own(".console.completion:attach"))(command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors end in a message and the exit code of the error's class."""
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            if isinstance(error, NoSuchCommand | NoSuchOption):
                error = _with_suggestions(error)
            elif isinstance(error, click.UsageError) and "extra argument" in error.message:
                error = _with_joined_ref(error, ctx.meta["cli.words"])
            document_option = _DOCUMENT_OPTION.search("\0".join(ctx.meta["cli.words"]))
            if document_option is None:
                raise error from None
            ctx.meta["cli.output"] = document_option[1] or "json"
            ctx.exit(output.print_usage_error(error, ctx))
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(output.print_interrupted(ctx))
        except Exception as error:
            if getattr(error, "code", "") in SUGGESTED and options.DESTRUCTIVE.isdisjoint(ctx.meta["cli.words"]):
                lazy.load(_own(".console.completion:suggest"))(error)
            code = output.print_error(error, ctx)
            if code is None:
                raise
            ctx.exit(code)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands into the help, by section."""
        for section in dict.fromkeys(spec.section for spec in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, spec.help) for name, spec in COMMANDS.items() if spec.section == section])


def _open_closed_streams() -> None:
    """Let a command that was started without an output, `>&-`, print into nothing: its streams are None then."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def _accept_all_characters() -> None:
    """Write UTF-8 into pipes and files: the code pages of Windows and old locales lack characters that we print.

    A terminal, and PYTHONIOENCODING, keep their encoding, and show such a character as an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            keeps = stream.isatty() or "PYTHONIOENCODING" in os.environ
            stream.reconfigure(encoding=None if keeps else "utf-8", errors="backslashreplace")


def _with_suggestions(error: NoSuchCommand | NoSuchOption) -> click.UsageError:
    """The error with the nearest names, or with none if the command or one of these names is destructive."""
    command = error.ctx.command if error.ctx is not None else main
    if isinstance(error, NoSuchCommand) and command is main:
        if error.command_name in WORDS_OF_OTHERS:
            own_word = WORDS_OF_OTHERS[error.command_name]
            return click.UsageError(f"No such command '{error.command_name}'. Did you mean '{own_word}'?", error.ctx)
        error = NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=error.ctx)
    is_safe = options.DESTRUCTIVE.isdisjoint((*(error.possibilities or ()), command.name or ""))
    return error if is_safe else click.UsageError(error.message, error.ctx)


def _with_joined_ref(error: click.UsageError, words: Sequence[str]) -> click.UsageError:
    """The error with the REF that was typed with a blank before its @ or :, unless the command is destructive."""
    refs = (name + selector for name, selector in pairwise(words) if "/" in name and selector[:1] in ("@", ":"))
    ref = next(refs, "") if options.DESTRUCTIVE.isdisjoint(words) else ""
    return click.UsageError(f"{error.message.rstrip('.')}. Did you mean '{ref}'?", error.ctx) if ref else error


def _print_version(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"adapter-registry {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup, params=[*options.log_options()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)  # fmt: skip
@click.option("--timeout", "_timeout", type=click.FloatRange(0, 86_400, min_open=True), expose_value=False,
              callback=options.keep_option, help="Seconds to wait for a response (ADAPTER_TIMEOUT).")  # fmt: skip
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def main() -> None:
    """Push, check, promote, serve and audit LoRA adapters.

    A REF is namespace/name (the newest version), namespace/name:alias, namespace/name@3 or namespace/name@sha256:….
    Abbreviate a digest to 8 or more unique digits.
    The registry is ADAPTER_REGISTRY, else the one of `adapter login`, else the embedded one in your data folder.
    """


if __name__ == "__main__":
    main(prog_name="adapter")
