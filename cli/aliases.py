"""`adapter promote`, `rollback` and `history`.

A promotion is a compare-and-swap: it names the generation that this command read and the number that REF had then, and
fails if someone else moved the alias in between.
"""

from __future__ import annotations

from datetime import UTC, datetime

import click

from registry.api.aliases import AliasMove, AliasView
from registry.client import answers
from registry.client.registry import Registry
from registry.errors import Invalid, NotFound
from registry.names import NEWEST, AdapterName, Ref

from . import arguments, output, session


@click.command()
@click.argument("ref", type=arguments.REF)
@click.argument("alias")
@click.option("--reason", default="", help="Reason; kept in the history.")
@click.option("--generation", type=click.IntRange(0), help="Move only if the alias is at this generation (0: new).")
@click.option(
    "--break-glass", is_flag=True, help="Pass a closed gate; owners only, needs --reason, stays marked in the history."
)
def promote(ref: Ref, alias: str, reason: str, generation: int | None, break_glass: bool) -> None:
    """Point ALIAS at the version REF, through the alias's gate.

    A closed gate lists what is missing and exits 6. Without --generation the alias is read first and moves only if no
    one else moved it since.
    """
    with session.registry() as registry:
        number = registry.version(ref).number
        generation_read = _generation(registry, ref.name, alias) if generation is None else generation
        moved = registry.promote(
            ref.name, alias, str(number), generation=generation_read, reason=reason, break_glass=break_glass
        )
    was_there = moved.generation == generation_read
    output.answer(moved, lambda: _print_moved(ref.name, moved, " already" if was_there else ""))


def _generation(registry: Registry, name: AdapterName, alias: str) -> int:
    try:
        return registry.alias(name, alias).generation
    except NotFound as e:
        if e.code != "ALIAS_UNKNOWN":
            raise
        return 0


def _print_moved(name: AdapterName, moved: AliasView, already: str = "") -> None:
    output.line(f"{output.strong(f'{name}:{moved.alias}')} → @{moved.number}{already}  {output.faint(moved.digest)}")
    output.line(output.faint(f"  generation {moved.generation}, {output.moment(moved.moved_at)} by {moved.moved_by}"))


@click.command()
@click.argument("name")
@click.argument("alias", required=False, default="", metavar="ALIAS")
@click.option("--to", default="", help="Target version: number, digest or REF. Default: the previous one.")
@click.option("--reason", default="", help="Reason; kept in the history.")
def rollback(name: str, alias: str, to: str, reason: str) -> None:
    """Point ALIAS of NAME back at the previous or an earlier version."""
    name, alias = arguments.split_alias(name, alias)
    adapter = AdapterName.parse(name)
    selector = str(_ref_of(adapter, to).selector) if "/" in to else to.lstrip("@")
    session.answer(
        lambda registry: registry.rollback(adapter, alias, to=selector, reason=reason),
        lambda moved: _print_moved(adapter, moved),
    )


def _ref_of(adapter: AdapterName, text: str) -> Ref:
    ref = Ref.parse(text)
    if ref.name != adapter:
        raise Invalid("NAME_INVALID", f"--to {text!r} is a version of {ref.name}, but the alias belongs to {adapter}")
    return ref


@click.command()
@click.argument("name")
@click.option("--at", "at", default="", metavar="TIME", help="State at this time, such as 2026-05-03T14:05Z.")
def history(name: str, at: str) -> None:
    """Show every move of the aliases of NAME (or of NAME:ALIAS), newest first."""
    ref = Ref.parse(name)
    if not isinstance(ref.selector, str) or "@" in name:
        raise Invalid("NAME_INVALID", f"{name!r}: history takes NAME or NAME:ALIAS")
    alias = str(ref.selector) if ":" in name else ""
    moment = read_time(at) if at else None
    with session.registry() as registry:
        pages = answers.all_pages(lambda cursor: registry.history(ref.name, alias=alias, at=moment, cursor=cursor))
        moves = [move for page in pages for move in page.moves]
    output.answer({"name": str(ref.name), "moves": moves}, lambda: _print_history(ref, moves, moment))


def read_time(text: str) -> datetime:
    """An ISO 8601 time, in UTC if it has no offset. `Invalid` (REQUEST_INVALID) for anything else."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as e:
        raise Invalid("REQUEST_INVALID", f"--at {text[:60]!r} is not a time such as 2026-05-03T14:05Z") from e
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _to_the_second(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _print_history(ref: Ref, moves: list[AliasMove], at: datetime | None) -> None:
    about = str(ref.name) if ref.selector == NEWEST else str(ref)
    if not moves:
        output.line(f"{about}: no alias was moved" + (f" before {_to_the_second(at)}" if at else ""))
        return
    if at:
        output.line(f"{output.strong(str(ref.name))} at {_to_the_second(at)}:")
    else:
        output.line(output.strong(about))
    width = max(len(move.alias) for move in moves)
    for move in moves:
        _print_move(move, width)


def _print_move(move: AliasMove, width: int) -> None:
    origin = f"@{move.from_number} → " if move.from_number else ""
    target = f"@{move.number}" if move.number else "nothing"
    output.line(
        f"  {output.moment(move.at)}  {move.alias:<{width}}  "
        f"{output.strong(origin + target)}  by {move.actor}  {output.faint(f'generation {move.generation}')}"
    )
    indent = " " * 6
    if move.reason:
        output.line(f"{indent}“{move.reason}”")
    evidence = [f"{e['check']} {output.outcome(str(e['outcome']))}" for e in move.evidence if e.get("outcome")]
    evidence += [f"{e['check']} by {e['by']}" for e in move.evidence if e.get("by")]
    evidence += [f"{e['seconds']} s in {e['alias']}" for e in move.evidence if e.get("check") == "soak"]
    evidence += [f"as in generation {e['generation']}" for e in move.evidence if e.get("generation")]
    if any(e.get("check") == "break_glass" for e in move.evidence):
        output.line(output.styled(f"{indent}through a closed gate (break-glass)", "red"))
    if evidence:
        output.line(f"{indent}{output.faint('on')} {', '.join(evidence)}")
