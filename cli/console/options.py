"""What every command has: `-o`, `--json`, `--quiet`, `--verbose`, arguments in UTF-8, examples; those with rows also
`--columns` and `--sort`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import click

from registry import errors

from . import examples
from .output import FORMATS, ROW_FORMATS, confirm, one_line

METAVARS = {
    "--action": "ACTION", "--actor": "IDENTITY", "--alias": "ALIAS", "--annotation": "KEY=VALUE", "--base": "BASE",
    "--engine": "PROFILE", "--group": "GROUP", "--issuer": "URL", "--namespace": "NAMESPACE", "--node": "NODE",
    "--owner": "SUBJECT", "--ref": "REF", "--subject": "SUBJECT", "--tag": "KEY[=VALUE]",
}  # fmt: skip
"""What the value of an option is, in every command that has it."""
DESTRUCTIVE = frozenset({"cancel", "delete", "quarantine", "rename", "replace", "revoke", "yank"})
"""Commands that nothing suggests and in which nothing is suggested: what a person meant may be something else."""


ASKING = frozenset({"delete", "revoke"})
"""Commands that ask before what another command cannot take back; those with a question of their own have `--yes`."""


class Command(click.Command):
    """A command with what every command has: options, a question before it ends something, checks, examples."""

    def __init__(self, *args: Any, **values: Any) -> None:
        super().__init__(*args, **values)
        table = getattr(self.callback, "table", None)
        self.params += [*(_row_options(table) if table is not None else ()), *_shared_options(table is not None)]
        for option in self.params:
            option.metavar = option.metavar or METAVARS.get(option.opts[0])
        self.callback = _with_utf8_arguments(self)
        if self.name in ASKING and all("--yes" not in param.opts for param in self.params):
            self.params.append(click.Option(["--yes"], is_flag=True, help="Do not ask for confirmation."))
            self.callback = _with_question(self.callback)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the command; a usage error for an option with one value that is written twice."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            for param in self.params:
                is_single = (
                    isinstance(param, click.Option) and param.expose_value and not (param.multiple or param.is_flag)
                )
                if is_single and order.count(param) > 1:
                    raise click.UsageError(f"{param.opts[0]} is written twice, and takes one value", ctx)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the end of the command's help, and its examples."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Examples"):
            for line in examples.read().get(words_of(ctx), ()):
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Group(click.Group):
    """A noun with commands that have what every command has."""

    command_class = Command
    group_class = type


def words_of(ctx: click.Context) -> str:
    """The words of a command after `adapter`, such as `token create`."""
    return ctx.command_path.partition(" ")[2]


def _shared_options(prints_rows: bool) -> Iterator[click.Option]:
    formats = click.Choice(ROW_FORMATS if prints_rows else FORMATS)
    option = partial(click.Option, expose_value=False)
    yield option(["-o", "--output", "_output"], type=formats, callback=keep_option, help="Format of the result.")
    yield option(["--json", "as_json"], is_flag=True, callback=_set_json, help="Same as -o json.")
    yield from log_options()


def _row_options(table: Any) -> Iterator[click.Option]:
    names = ", ".join(column.name for column in table.columns)
    option = partial(click.Option, expose_value=False, callback=keep_option)
    yield option(["--columns", "_columns"], metavar="NAME,…", help=f"Columns of a table or CSV: {names}.")
    yield option(["--sort", "_sort"], metavar="[-]NAME", help="Sort by this column; with - in front the largest first.")


def _with_utf8_arguments(command: click.Command) -> Callable[..., Any]:
    """The command's function, after a check that every text can be sent. Only paths may have other bytes."""
    labels = {param.name: param.human_readable_name for param in command.params}
    function = command.callback

    def run(**values: Any) -> Any:
        for name, value in values.items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and any("\ud800" <= c <= "\udfff" for c in text):
                    raise errors.Invalid("REQUEST_INVALID", f"{labels[name]}: {one_line(text)!r} is not valid UTF-8")
        return function(**values) if function is not None else None

    return run


def _with_question(function: Callable[..., Any] | None) -> Callable[..., Any]:
    """The command's function, after a question that repeats the words of the command."""

    def run(*, yes: bool, **values: Any) -> Any:
        words = [words_of(click.get_current_context()), *(str(value) for value in values.values() if value)]
        confirm(f"Run `adapter {' '.join(words)}`?", yes or bool(values.get("dry_run")))
        return function(**values) if function is not None else None

    return run


def _set_json(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["cli.output"] = "json"


def keep_option(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    """Callback of an option that every command has: keep its value for the output of the command."""
    if value:
        ctx.meta[f"cli.{str(option.name).removeprefix('_')}"] = value


def log_options() -> Iterator[click.Option]:
    """`--quiet` and `--verbose`, which may stand before and after the command's name."""
    flag = partial(click.Option, is_flag=True, expose_value=False, callback=keep_option)
    yield flag(["-q", "--quiet", "_quiet"], help="Print no notes and no progress.")
    yield flag(["-v", "--verbose", "_verbose"], help="Print each request to the registry.")
