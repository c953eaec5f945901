"""Commands about many adapters: select them, show a plan, ask, send one request, and report every outcome.

The plan is a dry run on the server, and the report does not repeat it. What is sent afterwards names the versions and
generations of the plan, so nothing else happens if someone moves an alias meanwhile.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

import click

from registry.api.catalog import AdapterView
from registry.client import response_checks
from registry.client.aliases import Groups
from registry.client.core import Versions
from registry.errors import Conflict, NotFound, RegistryError

from . import output, tables
from .tables import Column, Table

PAGE_LIMIT = 200
LEFT_OUT_SHOWN = 5


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """What happens to one adapter, for plan and report. `step`: the kind of change, if there are several."""

    name: str
    change: str
    state: str
    error: RegistryError | None = None
    step: str = ""


def _outcome(row: PlannedChange) -> str:
    state = output.styled(row.state, *(["red"] if row.error else []))
    return f"{state}: {row.error.detail}" if row.error else state


CHANGES: Table[PlannedChange] = Table((
    Column("name", lambda row: row.name, lambda row: output.strong(row.name)),
    Column("step", lambda row: row.step, wide=True),
    Column("change", lambda row: row.change),
    Column("outcome", lambda row: row.state, _outcome, flows=True),
    Column("error", lambda row: row.error.code if row.error else "", wide=True),
))  # fmt: skip
Item = TypeVar("Item")
Send = Callable[..., Sequence[Any]]
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Options:
    """Which adapters a command is about, and how it proceeds. Without a namespace it is about one adapter.

    One change needs no question, so `yes` then says nothing new.
    """

    namespace: str = ""
    select: tuple[str, ...] = ()
    dry_run: bool = False
    atomic: bool = False
    yes: bool = False

    def require_none(self, *, may_plan: bool = False) -> None:
        """A usage error if an option is set that needs a namespace. `may_plan`: --dry-run does not."""
        if self.select or self.atomic or (self.dry_run and not may_plan):
            needing = "--select and --atomic need" if may_plan else "--select, --dry-run and --atomic need"
            raise click.UsageError(f"{needing} --namespace")
        tables.refuse_row_options("--namespace")


_ATOMIC = "All or nothing, in one transaction."
_SELECT = (
    click.option("--select", multiple=True, metavar="tag=KEY[=VALUE]|PATTERN",
                 help="With --namespace: only these adapters, by tag or by a pattern of the name (repeatable)."),
    click.option("--namespace", default="", help="All adapters of this namespace instead of one."),
)  # fmt: skip


def options(command: Command) -> Command:
    """Add the options of `Options` to a command."""
    for option in (*_proceed(_ATOMIC), *_SELECT):
        command = option(command)
    return tables.prints(CHANGES)(command)


def proceed_options(*, atomic: str = _ATOMIC) -> Callable[[Command], Command]:
    """Add those options that do not select adapters. `atomic`: the help text of --atomic."""

    def decorate(command: Command) -> Command:
        for option in _proceed(atomic):
            command = option(command)
        return tables.prints(CHANGES)(command)

    return decorate


def _proceed(atomic: str) -> tuple[Callable[[Any], Any], ...]:
    return (
        click.option("--yes", is_flag=True, help="Do not ask after the plan."),
        click.option("--atomic", is_flag=True, help=atomic),
        click.option("--dry-run", is_flag=True, help="Show the plan and change nothing."),
    )


def select(registry: Versions, options: Options, alias: str = "") -> list[AdapterView]:
    """The adapters that the options select, of those with this alias, by name. `NotFound` for none.

    With an alias, tags are those of the version that it points at. Adapters whose name matches are said to be left out.
    """
    tags = [text.removeprefix("tag=") for text in options.select if text.startswith("tag=")]
    patterns = [text for text in options.select if not text.startswith("tag=")]
    if mistaken := next((text for text in patterns if "=" in text), ""):
        raise click.UsageError(f"--select: {mistaken!r} is no pattern of a name; a tag is 'tag={mistaken}'")

    def find(**filters: Any) -> list[AdapterView]:
        pages = response_checks.all_pages(
            lambda cursor: registry.adapters(namespace=options.namespace, cursor=cursor, limit=PAGE_LIMIT, **filters)
        )
        views = [view for page in pages for view in page.items]
        response_checks.check_namespace(options.namespace, views)
        return [view for view in views if all(fnmatchcase(view.name.partition("/")[2], text) for text in patterns)]

    views = find(alias=alias, tag=tags)
    having = f" with the alias '{alias}'" if alias else ""
    if not views:
        aliases = {each for view in find() for each in view.aliases} if alias else set()
        near = difflib.get_close_matches(alias, aliases - {alias}, n=1)
        message = f"no adapter in '{options.namespace}'{having} is selected"
        raise NotFound("ADAPTER_UNKNOWN", message, candidates=near)
    if alias or tags:
        selected = {view.name for view in views}
        others = sorted(view.name for view in find() if view.name not in selected)
        if others:
            tagged = f"{' and' if alias else ' with'} the tags {', '.join(tags)}" if tags else ""
            output.note(f"left out, not{having}{tagged}: {output.some(others, LEFT_OUT_SHOWN)}")
    return sorted(views, key=lambda view: view.name)


@dataclass(frozen=True)
class Work(Generic[Item]):
    """What to do with each item: requests, and the words for plan and report.

    `send` is a bulk request of `changes`. `pin` makes of an item and its planned result what is sent, None if nothing
    would change. `describe` gives the subject and the change of an item; its result is None if there is an error.
    """

    noun: str
    past_verb: str
    changes: Groups
    send: Send
    pin: Callable[[Item, Any], Item | None]
    describe: Callable[[Item, Any], tuple[str, str]]


def run(work: Work[Item], items: Sequence[Item], options: Options) -> None:
    """Plan, ask, send, report. The exit code is that of the first error."""
    outcomes = list(work.send(items, dry_run=True))
    pending: dict[int, Item] = {}
    plan_shown = False
    for position, (item, outcome) in enumerate(zip(items, outcomes, strict=True)):
        pinned = None if isinstance(outcome, RegistryError) else work.pin(item, outcome)
        if pinned is not None:
            pending[position] = pinned
    refused = sum(isinstance(outcome, RegistryError) for outcome in outcomes)
    if not options.dry_run:
        if pending and not (options.atomic and refused):
            if output.is_text():
                _print(work, items, outcomes, dict.fromkeys(pending, "planned"))
                plan_shown = True
            output.confirm(f"Change {len(pending)} of {output.plural(len(items), work.noun)}?", options.yes)
            sent = work.send(list(pending.values()), atomic=options.atomic)
            for position, outcome in zip(pending, sent, strict=True):
                outcomes[position] = outcome
        elif pending:
            incomplete = Conflict("COMMIT_INCOMPLETE", "nothing was changed, because another item has an error")
            for position in pending:
                outcomes[position] = incomplete
    states = dict.fromkeys(pending, "planned" if options.dry_run else work.past_verb)
    _report(work, items, outcomes, states, plan_shown=plan_shown)


def _report(
    work: Work[Item], items: Sequence[Item], outcomes: Sequence[Any], states: dict[int, str], *, plan_shown: bool
) -> None:
    """Print the outcomes; after the plan only those that differ from it, and the summary."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, RegistryError)]
    changed = sum(not isinstance(outcomes[position], RegistryError) for position in states)
    counts: dict[str, Any] = {
        "changed": changed, "unchanged": len(items) - changed - len(errors), "refused": len(errors),
    }  # fmt: skip
    rows = [
        {
            "name": work.describe(item, None)[0],
            "state": _state(outcome, states.get(position, "")),
            "result": None if isinstance(outcome, RegistryError) else outcome,
            "error": outcome.to_problem() if isinstance(outcome, RegistryError) else None,
        }
        for position, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
    ]
    words = {"changed": next(iter(states.values()), work.past_verb)}
    summary = ", ".join(f"{count} {words.get(word, word)}" for word, count in counts.items())
    summary += closing_group(work.changes.group_id if changed else "")
    counts["group_id"] = work.changes.group_id
    if plan_shown:
        unplanned = [n for n in states if isinstance(outcomes[n], RegistryError)]
        if unplanned:
            _print(work, [items[n] for n in unplanned], [outcomes[n] for n in unplanned], {})
        output.line(summary)
    else:
        _print(work, items, outcomes, states, document={"items": rows, **counts}, below=lambda: output.line(summary))
    exit_by(errors)


def closing_group(group_id: str) -> str:
    """The id by which changes can be found and undone, for the end of a summary; empty if there were none."""
    return output.faint(f"  group {group_id}") if group_id else ""


def exit_by(errors: Sequence[RegistryError]) -> None:
    """Print the next step of the first error and end with its exit code.

    It is before one that only says that another item has an error.
    """
    own = [error for error in errors if error.code != "COMMIT_INCOMPLETE"]
    if next_step := next((error.next_step for error in own if error.next_step), ""):
        output.note(f"Next: {next_step}" + (" (of the first error)" if len(own) > 1 else ""))
    if errors:
        output.exit_with(output.exit_code_of((own or errors)[0]))


def _state(outcome: Any, state: str) -> str:
    return "refused" if isinstance(outcome, RegistryError) else state or "unchanged"


def _print(
    work: Work[Item], items: Sequence[Item], outcomes: Sequence[Any], states: dict[int, str], **options: Any
) -> None:
    rows = []
    for position, (item, outcome) in enumerate(zip(items, outcomes, strict=True)):
        error = outcome if isinstance(outcome, RegistryError) else None
        name, change = work.describe(item, None if error else outcome)
        rows.append(PlannedChange(name, change, _state(outcome, states.get(position, "")), error))
    CHANGES.print(worth_reading(rows), **options)


def worth_reading(rows: Sequence[PlannedChange]) -> list[PlannedChange]:
    """The rows that people read: what changes, and errors of its own. The summary counts the others."""
    if not output.is_text():
        return list(rows)
    return [row for row in rows if (row.error.code != "COMMIT_INCOMPLETE" if row.error else row.state != "unchanged")]
