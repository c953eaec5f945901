"""`adapter audit log`, `verify`, `prove`, `export` and `key`.

Each first checks that the log extends the one that this machine saw before, else exit 70. `verify` trusts only the key:
it hashes every row, entry and tile again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from registry.api.audit import EventView
from registry.client.audit import Audit, FolderLog, ServerLog, export_log
from registry.client.core import Versions
from registry.errors import Corrupt
from registry.events import describe
from registry.tlog import notes
from registry.tlog.notes import Checkpoint, Verifier
from registry.tlog.replay import Replay, replay

from .console import arguments, output, session, tables
from .console.options import Group
from .console.tables import Column, Table


@click.group(cls=Group)
def audit() -> None:
    """Audit log: who did what and when, with proof that no entry was changed."""


# ------------------------------------------------------------------ log
def _what(item: EventView) -> str:
    text = describe(item.action, item.object, item.detail)
    reason = f": “{text.reason}”" if text.reason else ""
    return f"{text.message}{reason}" + (output.faint(f"  ({text.details})") if text.details else "")


EVENTS: Table[EventView] = Table((
    Column("seq", lambda item: item.seq),
    Column("time", lambda item: item.at, lambda item: output.moment(item.at)),
    Column("actor", lambda item: item.actor, lambda item: output.strong(item.actor)),
    Column("action", lambda item: item.action, wide=True),
    Column("object", lambda item: item.object, wide=True),
    Column("event", lambda item: output.unstyled(_what(item)), _what, flows=True),
), empty="No events that you may see.")  # fmt: skip


@audit.command()
@click.option(
    "--object", "about", default="", metavar="NAME",
    help="Only events about this name, such as acme/support, or names like acme/* or *:prod.",
)  # fmt: skip
@click.option("--namespace", default="", help="Only events about this namespace.")
@click.option("--group", "group_id", default="", help="Only events of this group of changes.")
@click.option("--action", "actions", multiple=True, help="Only this event type, such as alias.move (repeatable).")
@click.option("--after", type=click.IntRange(0), default=0, metavar="SEQ", help="Only events after this number.")
@click.option("--limit", type=click.IntRange(1), help="Maximum number of events; the newest are shown.")
@click.option("--actor", default="", help="Only events of this subject or token:NAME.")
@click.option("--since", default="", metavar="TIME", help="Only events from this time on.")
@click.option("--until", default="", metavar="TIME", help="Only events until this time.")
@click.option("--follow", is_flag=True, help="Keep printing new events.")
@tables.prints(EVENTS)
def log(
    about: str, namespace: str, group_id: str, actions: tuple[str, ...], after: int, limit: int | None, actor: str,
    since: str, until: str, follow: bool,
) -> None:  # fmt: skip
    """Show what happened in the registry, oldest first.

    Times without an offset are UTC; a date is the whole day, and a duration such as 7d counts back from now. Exits 70
    if the log does not extend the one this machine saw before.
    """
    if follow and until:
        raise click.UsageError("--follow never ends: use it without --until")
    times = {"first_at": arguments.read_time(since, "--since") if since else None,
             "last_at": arguments.read_time(until, "--until", end_of_day=True) if until else None}  # fmt: skip
    search = {"object": about, "namespace": namespace, "group_id": group_id, "action": list(actions), "by": actor,
              **{name: at.isoformat() for name, at in times.items() if at is not None}}  # fmt: skip
    with _checked() as (registry, _):
        events = Audit(registry).events(after, **search)
        matching = list(events)
        items = matching[-limit:] if limit else matching
        EVENTS.print(items, total=len(matching))
        if follow:
            for event in _following(registry, items[-1].seq if items else after, search):
                EVENTS.append(event)


def _following(registry: Versions, after: int, search: dict[str, Any]) -> Iterator[EventView]:
    while True:
        page = Audit(registry).page(after, wait=20, **search)
        yield from page.items
        after = page.last


@contextmanager
def _checked() -> Iterator[tuple[Versions, str]]:
    """The registry and its checkpoint's note, once its log is proved to extend the one seen before."""
    with session.versions() as registry:
        note = Audit(registry).checkpoint()
        session.trusted_checkpoints().check(registry, note)
        yield registry, note


# ------------------------------------------------------------------ verify
@audit.command()
@click.argument(
    "folder", required=False, metavar="[DIR]", type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--log-key", "keys", multiple=True, metavar="KEY", help="Trust this log key (repeatable).")
def verify(folder: Path | None, keys: tuple[str, ...]) -> None:
    """Verify the log of the registry or of an exported folder.

    Compares rows, entries, tiles and the checkpoint. Needs the scope audit.

    A folder needs no registry; pass --log-key with a log key from another source.
    """
    verifiers = tuple(Verifier.parse(key) for key in keys)
    if folder is not None:
        source = FolderLog(folder)
        replayed = replay(source, *(verifiers or source.keys()))
        trusted = bool(verifiers)
    else:
        with _checked() as (registry, note):
            remembered = session.trusted_checkpoints().find(registry, note).verifiers
            replayed = replay(ServerLog(Audit(registry), note), *(verifiers or remembered))
            trusted = True
    document = {
        "ok": not replayed.problems, "origin": replayed.origin, "size": replayed.size, "root": replayed.root.hex(),
        "key_given": trusted, "problems": replayed.problems,
    }  # fmt: skip
    output.result(document, lambda: _print_replay(replayed, trusted))
    if replayed.problems:
        output.exit_with(output.CORRUPT)


def _print_replay(replayed: Replay, trusted: bool) -> None:
    if replayed.problems:
        output.line(output.styled("the audit log was changed or is damaged:", "red", "bold"))
        for problem in replayed.problems:
            output.line(f"  {problem}")
        return
    output.line(
        f"{output.plural(replayed.size, 'event')} of {output.strong(replayed.origin)}: rows, entries, tiles, root match"
    )
    output.facts([("root", replayed.root.hex())])
    if not trusted:
        output.line(output.faint("  the key came with the folder: pass one from another source with --log-key"))


@audit.command()
@click.argument("number", metavar="ENTRY", type=click.IntRange(1))
def prove(number: int) -> None:
    """Show an entry, and verify here that the log contains it."""
    with _checked() as (registry, note):
        verifiers = session.trusted_checkpoints().find(registry, note).verifiers
        event = Audit(registry).proof(number)
        covering = notes.verify_proof(event.proof, event.entry.encode(), *verifiers)
        if covering is None or notes.proof_index(event.proof) != number - 1:
            raise Corrupt("LOG_INCONSISTENT", f"the proof does not show entry {number} in the log")
        try:
            entry = event.event()
        except ValueError as e:
            raise Corrupt("LOG_INCONSISTENT", f"entry {number} of the log is not JSON: {e}") from e
    document = {"entry": entry, "size": covering.size, "origin": covering.origin}

    def text() -> None:
        for line in output.json_text(document["entry"]).splitlines():
            output.line(line)
        output.note(f"entry {number} is in {covering.origin}, which has {covering.size} entries")

    output.result(document, text)


# ------------------------------------------------------------------ export, key
@audit.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def export(folder: Path) -> None:
    """Write the whole log to DIR, to verify it offline."""
    with _checked() as (registry, _):
        checkpoint: Checkpoint = export_log(Audit(registry), folder)
    document = {"path": str(folder.absolute()), "origin": checkpoint.origin, "size": checkpoint.size}
    output.result(
        document, lambda: output.line(f"{output.plural(checkpoint.size, 'event')} of {checkpoint.origin} in {folder}")
    )


@audit.command()
@click.option("--trust", is_flag=True, help="Trust these keys from now on; older ones stay if the log goes on.")
@click.option("--former", multiple=True, metavar="KEY", help="With --trust: a lost key of before (repeatable).")
def key(trust: bool, former: tuple[str, ...]) -> None:
    """Show the keys that sign the log; --trust accepts new ones.

    Last come keys that only this machine remembers, such as one that the registry lost.
    """
    if former and not trust:
        raise click.UsageError("--former needs --trust")
    with session.versions() as registry:
        keys, note = Audit(registry).log_keys(), Audit(registry).checkpoint()
        checkpoints = session.trusted_checkpoints()
        if trust:
            remembered = checkpoints.trust(registry, tuple(keys.keys), note, former)
        else:
            remembered = checkpoints.find(registry, note)
    older = [text for text in remembered.keys if text not in keys.keys]

    def text() -> None:
        for line in (*keys.keys, *older):
            output.line(line)
        if trust:
            output.note("saved; from now on the log must extend this checkpoint")

    output.result(keys.model_dump(mode="json") | {"remembered": older}, text)
