"""`adapter apply`: pushes, tags and promotes what a file lists. A second run changes nothing."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from registry.api.aliases import DescribeItem, MovedAlias, MoveItem
from registry.client.adapters_file import AdapterEntry, read_adapters_file
from registry.client.aliases import Groups
from registry.client.registry import Registry
from registry.client.transfer import push
from registry.errors import Conflict, NotFound, RegistryError
from registry.names import NEWEST, AdapterName

from .console import groups, output, session, tables, versions
from .console.options import Command
from .console.progress import ProgressLine
from .console.tables import Table


@dataclass
class _Step:
    """One change that a file asks for. `state`: planned, unchanged, done or refused."""

    name: AdapterName
    action: str
    change: str
    state: str = "planned"
    error: RegistryError | None = None
    item: Any = None

    def set_outcome(self, outcome: Any, changed: bool, state: str) -> None:
        if isinstance(outcome, RegistryError):
            self.state, self.error = "refused", outcome
        else:
            self.state = state if changed else "unchanged"
        if isinstance(outcome, MovedAlias):
            before = f", instead of @{outcome.from_number}" if outcome.moved and outcome.from_number else ""
            self.change = f"{outcome.alias} → @{outcome.number}{before}"


STEPS: Table[groups.PlannedChange] = Table(
    tuple(replace(column, wide=column.name == "error") for column in groups.CHANGES.columns)
)


@click.command(cls=Command)
@click.option("--file", "-f", "path", required=True, type=click.Path(path_type=Path), help="The file, in TOML.")
@groups.proceed_options(atomic="After the pushes, change all tags and aliases or none.")
@tables.prints(STEPS)
def apply(path: Path, **flags: Any) -> None:
    """Push, tag and promote what FILE lists. A second run changes nothing.

    FILE is TOML. `namespace` and `base` hold for all adapters, and a folder is relative to FILE:

    \b
    namespace = "acme"
    base = "smollm2"
    [adapters.support]
    folder = "out/support"
    tags = {team = "nlp"}
    aliases = ["canary"]                     # the version of the folder
    [adapters.billing]
    aliases = {prod = "3", canary = "main"}

    An adapter may also have `base`, `message`, `description` and `links`. A plan is shown first. One failure does not
    stop the others. With --atomic, versions are pushed first and stay, with main pointing at them; then all tags and
    aliases change in one transaction, or none if anything failed. The plan says which folders would fail `compat`.
    """
    options = groups.Options(**flags)
    entries = read_adapters_file(path)
    with session.registry() as registry:
        pushes, numbers = _plan_pushes(registry, entries)
        tags = [
            _Step(name, "describe", " ".join(_words(entry)), item=DescribeItem(subject=str(name), **entry.change))
            for name, entry in entries.items()
            if entry.change
        ]
        moves = [
            _Step(name, "alias", f"{alias} → {version or (entry.folder and 'the folder') or 'main'}",
                  item=MoveItem(name=str(name), alias=alias, version=version))
            for name, entry in entries.items()
            for alias, version in entry.versions.items()
        ]  # fmt: skip
        steps = [*pushes, *tags, *moves]
        new = {step.name for step in pushes if step.state == "planned"}
        _plan_changes(registry, tags, moves, numbers, new)
        if options.dry_run:
            _end_steps(steps, "planned")
            return
        pending = [step for step in steps if step.state == "planned"]
        plan_shown = bool(pending) and output.is_text()
        if plan_shown:
            _print_steps(steps)
            if options.atomic and new:
                pushed = output.plural(len(new), "version")
                output.line(f"--atomic: keeps the {pushed} to push; tags and aliases change together or not")
        if pending:
            output.confirm(f"Make {output.plural(len(pending), 'change')}?", options.yes)
        changes = Groups(registry)
        _carry_out(registry, changes, entries, (pushes, tags, moves), numbers, atomic=options.atomic)
    _end_steps(steps, "done", atomic=options.atomic, pending=pending if plan_shown else None, group_id=changes.group_id)


def _words(entry: AdapterEntry) -> list[str]:
    texts = versions.tag_texts({key: value or "" for key, value in entry.tags.items()})
    return [*texts, *entry.links, *(["description"] if entry.description else [])]


def _plan_pushes(
    registry: Registry, entries: dict[AdapterName, AdapterEntry]
) -> tuple[list[_Step], dict[AdapterName, str]]:
    """A step for each folder, and the version of each adapter whose folder is pushed already."""
    steps, numbers = [], {}
    for base in dict.fromkeys(entry.base for entry in entries.values() if entry.folder):
        folders = [(Path(e.folder), str(name)) for name, e in entries.items() if e.folder and e.base == base]
        read = push.try_all(registry, folders, base=base)
        subjects = [f"{r.name}@{r.value.digest}" for r in read if r.value is not None]
        looks = Groups(registry).change_metadata([DescribeItem(subject=s) for s in subjects], dry_run=True)
        outcomes = dict(zip(subjects, looks, strict=True))
        for result in read:
            step = _Step(AdapterName.parse(result.name), "push", str(result.folder), error=result.error)
            look = outcomes.get(f"{result.name}@{result.value.digest}") if result.value is not None else None
            if result.error is not None:
                step.state = "refused"
            elif isinstance(look, NotFound):
                step.state = "planned"
                if result.value is not None and result.value.findings:
                    step.change += f" (compat would fail: {result.value.findings[0].to_text()})"
            elif isinstance(look, RegistryError):
                step.state, step.error = "refused", look
            elif look is not None:
                step.state, numbers[step.name] = "unchanged", look.subject.rpartition("@")[2]
            steps.append(step)
    return steps, numbers


def _plan_changes(
    registry: Registry, tags: Sequence[_Step], moves: Sequence[_Step], numbers: dict[AdapterName, str],
    new: Set[AdapterName],
) -> None:  # fmt: skip
    """Set what tags and aliases would become. What depends on a version that is still to be pushed stays planned."""
    client = Groups(registry)
    ready = [step for step in moves if step.item.version or step.name not in new]
    for step in ready:
        step.item = step.item.model_copy(update={"version": step.item.version or numbers.get(step.name, NEWEST)})
    for group, send, flag in ((tags, client.change_metadata, "changed"), (ready, client.move_aliases, "moved")):
        for step, outcome in zip(group, send([step.item for step in group], dry_run=True), strict=True):
            if not (isinstance(outcome, NotFound) and step.name in new):
                step.set_outcome(outcome, getattr(outcome, flag, False), "planned")


def _carry_out(
    registry: Registry, client: Groups, entries: dict[AdapterName, AdapterEntry], steps: tuple[list[_Step], ...],
    numbers: dict[AdapterName, str], *, atomic: bool,
) -> None:  # fmt: skip
    pushes, tags, moves = steps
    new = {step.name: step for step in pushes if step.state == "planned"}
    with ProgressLine("apply") as progress:
        for base, message in dict.fromkeys((entries[name].base, entries[name].message) for name in new):
            folders = [
                (Path(entries[name].folder), str(name))
                for name in new
                if (entries[name].base, entries[name].message) == (base, message)
            ]
            for result in push.push_all(registry, folders, base=base, message=message, progress=progress):
                step = new[AdapterName.parse(result.name)]
                step.set_outcome(result.error or result.value, True, "done")
                if result.value is not None:
                    numbers[step.name] = str(result.value.version.number)
    for step in moves:
        if not step.item.version:
            step.item = step.item.model_copy(update={"version": numbers.get(step.name, NEWEST)})
    tags, moves = ([step for step in group if step.state == "planned"] for group in (tags, moves))
    described, moved = [step.item for step in tags], [step.item for step in moves]
    outcomes: tuple[Sequence[Any], Sequence[Any]]
    if not atomic:
        outcomes = client.change_metadata(described), client.move_aliases(moved)
    elif any(step.error for group in steps for step in group):
        incomplete = Conflict("COMMIT_INCOMPLETE", "not changed, because another step has an error")
        outcomes = [incomplete] * len(tags), [incomplete] * len(moves)
    else:
        outcomes = client.change_together(moved, described)[::-1]
    for group, results, flag in ((tags, outcomes[0], "changed"), (moves, outcomes[1], "moved")):
        for step, outcome in zip(group, results, strict=True):
            step.set_outcome(outcome, getattr(outcome, flag, False), "done")


def _print_steps(steps: Sequence[_Step], **options: Any) -> None:
    rows = [groups.PlannedChange(str(step.name), step.change, step.state, step.error, step.action) for step in steps]
    STEPS.print(groups.worth_reading(rows), **options)


def _end_steps(
    steps: Sequence[_Step], past_verb: str, *, atomic: bool = False, pending: Sequence[_Step] | None = None,
    group_id: str = "",
) -> None:  # fmt: skip
    """Print the steps; after a plan with `pending` ones only those that differ from it, and the summary."""
    counts = {state: sum(step.state == state for step in steps) for state in (past_verb, "unchanged", "refused")}
    items = [
        {"name": str(step.name), "step": step.action, "change": step.change, "state": step.state,
         "error": step.error.to_problem() if step.error else None}
        for step in steps
    ]  # fmt: skip
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    if atomic and counts["refused"]:
        pushed = sum(step.action == "push" and step.state == past_verb for step in steps)
        summary += f"; kept {output.plural(pushed, 'pushed version')}, changed no tag or alias"
    summary += groups.closing_group(group_id)
    if pending is None:
        _print_steps(
            steps, document={"items": items, **counts, "group_id": group_id}, below=lambda: output.line(summary)
        )
    else:
        if refused := [step for step in pending if step.error is not None]:
            _print_steps(refused)
        output.line(summary)
    groups.exit_by([step.error for step in steps if step.error is not None])
