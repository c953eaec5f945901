"""`adapter promote`, `rollback`, `history`, `alias list` and `alias delete`.

A promotion is a compare-and-swap: it names the generation that this command read and the number that REF had then, and
fails if someone else moved the alias in between.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import click

from registry import names
from registry.api.aliases import (
    AliasMove,
    AliasView,
    History,
    MovedAlias,
    MoveItem,
    NamespaceHistory,
    NamespaceMove,
)
from registry.client import response_checks
from registry.client.aliases import Groups
from registry.client.core import only
from registry.client.registry import Registry
from registry.errors import Invalid, NotFound
from registry.names import AdapterName, Ref

from .console import arguments, groups, output, session, tables
from .console.options import Command, Group
from .console.tables import Column, Table


@click.command(cls=Command)
@click.argument("ref", type=arguments.REF, required=False)
@click.argument("alias", required=False, default="")
@click.option("--from", "source", default="", metavar="ALIAS", help="With --namespace: take the version from here.")
@click.option("--to", "target", default="", metavar="ALIAS", help="With --namespace: the alias to move.")
@groups.options
@click.option("--reason", default="", help="Reason; kept in the history.")
@click.option("--generation", type=click.IntRange(0), help="Move only if the alias is at this generation (0: new).")
@click.option(
    "--break-glass", is_flag=True, help="Pass a closed gate; owners only, needs --reason, stays marked in the history."
)
@click.option("--create-alias", is_flag=True, help="Make a new alias although its name looks like another one.")
def promote(
    ref: Ref | None, alias: str, source: str, target: str, reason: str, generation: int | None, break_glass: bool,
    create_alias: bool, **group: Any,
) -> None:  # fmt: skip
    """Point ALIAS at the version REF, through the alias's gate.

    A new alias whose name looks like one in use needs --create-alias.
    A closed gate lists what is missing and exits 6. Without --generation the alias is read first and moves only if no
    one else moved it since. With --namespace, do the same for many adapters; a plan is shown first.
    """
    options = groups.Options(**group)
    if options.namespace:
        if ref or alias or generation is not None or not (source and target):
            raise click.UsageError("--namespace needs --from and --to, and takes no REF, ALIAS or --generation")
        how: dict[str, Any] = {"alias": target, "version": source, "reason": reason}
        how |= {"break_glass": break_glass, "create_alias": create_alias}
        _move_group(options, source, how)
        return
    if ref is None or not alias or source or target:
        raise click.UsageError("give REF ALIAS, or --namespace with --from and --to")
    options.require_none(may_plan=True)
    with session.registry() as registry:
        number = registry.version(ref).number
        generation_read = registry.generation(ref.name, alias) if generation is None else generation
        item = MoveItem(
            name=str(ref.name), alias=alias, version=str(number), generation=generation_read, reason=reason,
            break_glass=break_glass, create_alias=create_alias,
        )  # fmt: skip
        _move(registry, item, dry_run=options.dry_run)


def _move(registry: Registry, item: MoveItem, *, dry_run: bool) -> None:
    """Move one alias, or only say what would happen."""
    moved = only(Groups(registry).move_aliases([item], dry_run=dry_run))
    output.result(moved, lambda: _print_moved(moved, planned=dry_run))


def _move_group(options: groups.Options, having: str, how: dict[str, Any]) -> None:
    with session.registry() as registry:
        items = [MoveItem(name=view.name, **how) for view in groups.select(registry, options, having)]
        _run_moves(Groups(registry), items, options)


def _run_moves(changes: Groups, items: Sequence[MoveItem], options: groups.Options) -> None:
    work = groups.Work("alias", "moved", changes, changes.move_aliases, pin_move, describe_move)
    groups.run(work, items, options)


def pin_move(item: MoveItem, planned: MovedAlias) -> MoveItem | None:
    """The move to the version and from the generation of the plan; None if the alias is there already."""
    if not planned.moved:
        return None
    return item.model_copy(update={"version": str(planned.number), "generation": planned.generation - 1})


def describe_move(item: MoveItem, moved: MovedAlias | None) -> tuple[str, str]:
    """The alias, and from where to where it moves."""
    if moved is None:
        return f"{item.name}:{item.alias}", item.version
    origin = f"@{moved.from_number} → " if moved.from_number and moved.moved else ""
    return f"{item.name}:{item.alias}", f"{origin}@{moved.number}"


def _print_moved(moved: MovedAlias, *, planned: bool) -> None:
    origin = f"@{moved.from_number} → " if moved.moved and moved.from_number else "→ "
    already = "" if moved.moved else " already"
    change = f"{origin}@{moved.number}{already}"
    output.line(f"{output.strong(f'{moved.name}:{moved.alias}')} {change}  {output.faint(moved.digest)}")
    generation = f"generation {moved.generation}" if moved.generation > 1 else "a new alias"
    done = "planned: nothing was changed" if planned else f"{output.moment(moved.moved_at)} by {moved.moved_by}"
    output.line(output.faint(f"  {generation}, {done}"))


@click.command(cls=Command)
@click.argument("name", required=False, default="")
@click.argument("alias", required=False, default="", metavar="ALIAS")
@click.option("--version", "to", default="", metavar="VERSION", help="Number, digest or REF. Default: the one before.")
@click.option("--alias", "group_alias", default="", help="With --namespace: the alias to move back.")
@click.option("--group", "group_id", default="", help="Undo this group of changes instead.")
@click.option("--since", default="", metavar="TIME", help="With --namespace: undo all moves from this time on.")
@click.option("--actor", default="", help="With --since: only moves by this subject or token:NAME.")
@groups.options
@click.option("--reason", required=True, help="Reason; kept in the history.")
def rollback(
    name: str, alias: str, to: str, group_alias: str, reason: str, group_id: str, since: str, actor: str, **group: Any
) -> None:
    """Point ALIAS of NAME back at the previous or an earlier version.

    With --namespace, do the same for many adapters; a plan is shown first. --group and --since undo what was moved
    together, or from a time on: each alias goes back to where it was before. Aliases that someone moved since are
    listed and stay.
    """
    options = groups.Options(**group)
    if group_id or since or actor:
        takes = bool(group_alias and options.namespace and since) if not group_id else not (since or actor)
        if name or to or options.select or not takes or (group_id and (group_alias or options.namespace)):
            raise click.UsageError("give --group alone, or --since with --namespace and --alias")
        _undo(options, reason, {"group_id": group_id, "alias": group_alias, "by": actor}, since)
        return
    if options.namespace:
        if name or to or not group_alias:
            raise click.UsageError("--namespace needs --alias, and takes no NAME, ALIAS or --version")
        _move_group(options, group_alias, {"alias": group_alias, "rollback": True, "reason": reason})
        return
    options.require_none(may_plan=True)
    name, alias = arguments.split_alias(name, alias or group_alias)
    adapter = AdapterName.parse(name)
    selector = str(_ref_of(adapter, to).selector) if "/" in to else to.lstrip("@")
    item = MoveItem(name=str(adapter), alias=alias, version=selector, rollback=True, reason=reason)
    with session.registry() as registry:
        _move(registry, item, dry_run=options.dry_run)


def _undo(options: groups.Options, reason: str, moved: dict[str, str], since: str) -> None:
    """Move the aliases that were moved so back to where they pointed before."""
    first = arguments.read_time(since, "--since") if since else None
    which = moved["group_id"] or f"{options.namespace}:{moved['alias']} since {output.moment(first)}"
    with session.registry() as registry:
        changes = Groups(registry)
        pages = response_checks.all_pages(
            lambda cursor: changes.moves(namespace=options.namespace, since=first, cursor=cursor, **moved)
        )
        items = undo_items((move for page in pages for move in page.items), reason)
        if not items:
            raise NotFound("ALIAS_UNKNOWN", f"no alias was moved in {which}, or you may not see it")
        _run_moves(changes, items, options)


def undo_items(moves: Iterable[NamespaceMove], reason: str) -> list[MoveItem]:
    """For each alias the move to where it pointed before the first of these moves.

    The generation lets it fail if another move came after them or between them.
    """
    of_alias: defaultdict[tuple[str, str], list[NamespaceMove]] = defaultdict(list)
    for move in moves:
        of_alias[move.name, move.alias].append(move)
    firsts = {key: min(of_one, key=lambda move: move.generation) for key, of_one in sorted(of_alias.items())}
    return [
        MoveItem(
            name=name, alias=alias, version=str(first.from_number or ""), rollback=True, reason=reason,
            generation=first.generation + len(of_alias[name, alias]) - 1,
        )
        for (name, alias), first in firsts.items()
    ]  # fmt: skip


@click.group(cls=Group)
def alias() -> None:
    """Aliases: list, delete. `promote` and `rollback` move them, and `history` shows their moves."""


ALIASES: Table[AliasView] = Table((
    Column("alias", lambda item: item.alias),
    Column("version", lambda item: item.number, lambda item: output.strong(f"@{item.number}")),
    Column("since", lambda item: item.moved_at, lambda item: output.moment(item.moved_at)),
    Column("by", lambda item: item.moved_by),
    Column("reason", lambda item: item.reason, flows=True),
    Column("generation", lambda item: item.generation, wide=True),
    Column("digest", lambda item: item.digest, wide=True),
))  # fmt: skip


@alias.command("list")
@click.argument("name", type=arguments.NAME)
@tables.prints(ALIASES)
def list_aliases(name: AdapterName) -> None:
    """List the aliases of NAME, and what they point at."""
    with session.registry() as registry:
        ALIASES.print(registry.aliases(name).items)


@alias.command()
@click.argument("name", metavar="NAME")
@click.argument("word", required=False, default="", metavar="ALIAS")
@click.option("--reason", default="", help="Reason; kept in the history.")
@click.option("--force", is_flag=True, help="Delete it although nodes serve the adapter by it.")
@arguments.dry_run
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete(name: str, word: str, reason: str, force: bool, dry_run: bool, yes: bool) -> None:
    """Delete ALIAS of NAME. Its history and its gate stay.

    Nodes that follow the alias unload the adapter; while some serve it, the command lists them and exits 5.
    """
    name, word = arguments.split_alias(name, word)
    adapter = AdapterName.parse(name)
    with session.registry() as registry:
        pointer = registry.alias(adapter, word)
        output.confirm(f"Delete {adapter}:{word}, which points at @{pointer.number}?", yes or dry_run)
        how: dict[str, Any] = {"reason": reason, "force": force, "dry_run": dry_run}
        move = registry.delete_alias(adapter, word, generation=pointer.generation, **how)
    output.result(move, lambda: output.line(f"{adapter}:{word} deleted; it pointed at @{move.from_number}."))


def _ref_of(adapter: AdapterName, text: str) -> Ref:
    ref = Ref.parse(text)
    if ref.name != adapter:
        raise Invalid("NAME_INVALID", f"{text!r} is a version of {ref.name}, but the alias belongs to {adapter}")
    return ref


def _change(move: AliasMove) -> str:
    origin = f"@{move.from_number} → " if move.from_number else ""
    return output.strong(origin + (f"@{move.number}" if move.number else "nothing"))


def _adapter_of(move: AliasMove) -> str:
    """The adapter, in the history of a namespace only: else it stands above the moves."""
    return move.name if isinstance(move, NamespaceMove) else ""


MOVES: Table[AliasMove] = Table((
    Column("time", lambda move: move.at, lambda move: output.moment(move.at)),
    Column("alias", lambda move: move.alias, lambda move: f"{_adapter_of(move)}:{move.alias}".lstrip(":")),
    Column("version", lambda move: move.number, _change),
    Column("by", lambda move: move.actor),
    Column("generation", lambda move: move.generation),
    Column("name", lambda move: _adapter_of(move), wide=True),
    Column("from", lambda move: move.from_number, wide=True),
    Column("group", lambda move: move.group_id, wide=True),
    Column("reason", lambda move: move.reason, wide=True),
))  # fmt: skip


@click.command(cls=Command)
@click.argument("name", metavar="NAMESPACE|NAME")
@click.option("--alias", "word", default="", help="Only moves of this alias.")
@click.option("--at", "at", default="", metavar="TIME", help="State at this time, such as 2026-05-03T14:05Z.")
@click.option("--actor", default="", help="Only moves by this subject or token:NAME.")
@click.option("--since", default="", metavar="TIME", help="Only moves from this time on.")
@click.option("--until", default="", metavar="TIME", help="Only moves until this time.")
@click.option("--limit", type=click.IntRange(1), help="Only the newest moves, this many.")
@tables.prints(MOVES)
def history(name: str, word: str, at: str, actor: str, since: str, until: str, limit: int | None) -> None:
    """Show every move of the aliases of NAME (or of NAME:ALIAS), or of all adapters of NAMESPACE, newest first.

    With --at, show where each alias pointed then, and who had moved it there.

    Times without an offset are UTC. A date stands for the whole day: --since for its start, --at and --until for its
    end. A duration such as 12h or 7d counts back from now.
    """
    about, alias = _parse_about(name, word)
    moment = arguments.read_time(at, "--at", end_of_day=True) if at else None
    first = arguments.read_time(since, "--since") if since else None
    last = arguments.read_time(until, "--until", end_of_day=True) if until else None
    with session.registry() as registry:
        moves = list(_read_history(registry, about, alias, moment))
    total = len(moves)
    moves = [
        move
        for move in moves
        if actor in ("", move.actor) and (first is None or move.at >= first) and (last is None or move.at <= last)
    ][:limit]
    _print_history(about, alias, moves, moment, total)


def _parse_about(text: str, alias: str) -> tuple[AdapterName | str, str]:
    """The adapter or namespace that a history is about, and the alias, empty for all."""
    if not set("/:@") & set(text):
        return names.namespace(text), alias
    ref = Ref.parse(text)
    if not isinstance(ref.selector, str) or "@" in text or (alias and ":" in text):
        raise Invalid("NAME_INVALID", f"{text!r}: history takes NAMESPACE, NAME or NAME:ALIAS")
    return ref.name, str(ref.selector) if ":" in text else alias


def _read_history(registry: Registry, about: AdapterName | str, alias: str, at: datetime | None) -> Iterator[AliasMove]:
    def fetch(cursor: str) -> History | NamespaceHistory:
        if isinstance(about, AdapterName):
            return registry.history(about, alias=alias, at=at, cursor=cursor)
        return registry.namespace_history(about, alias=alias, at=at, cursor=cursor)

    for page in response_checks.all_pages(fetch):
        yield from page.moves


def _print_history(
    about: AdapterName | str, alias: str, moves: list[AliasMove], at: datetime | None, total: int
) -> None:
    subject = f"{about}:{alias}" if alias else str(about)
    title = output.strong(str(about) if at else subject) + (f" at {output.moment(at)}:" if at else "")
    MOVES.print(
        moves, key="moves", document={"name" if isinstance(about, AdapterName) else "namespace": str(about)},
        total=total, details=evidence_lines, above=lambda: output.line(title) if moves else None,
        empty=f"{subject}: no alias was moved" + (f" before {output.moment(at)}" if at else ""),
    )  # fmt: skip


def evidence_lines(move: AliasMove) -> list[str]:
    """What let the move through its gate, in lines under it."""
    evidence = [f"{e['check']} {output.outcome(str(e['outcome']))}" for e in move.evidence if e.get("outcome")]
    evidence += [f"{e['check']} by {e['by']}" for e in move.evidence if e.get("by")]
    evidence += [f"{e['seconds']} s in {e['alias']}" for e in move.evidence if e.get("check") == "soak"]
    evidence += [f"the evidence of generation {e['generation']}" for e in move.evidence if e.get("generation")]
    lines = [f"“{move.reason}”"] if move.reason else []
    if any(e.get("check") == "break_glass" for e in move.evidence):
        lines.append(output.styled("through a closed gate (break-glass)", "red"))
    lines += [f"{output.faint('on')} {', '.join(evidence)}"] if evidence else []
    return [f"      {line}" for line in lines]
