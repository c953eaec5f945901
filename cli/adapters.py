"""`adapter list`, `versions`, `rename`, `delete`, `yank` and `quarantine`.

What changes much, such as a deletion, asks for confirmation, or takes `--yes`.
"""

from functools import partial
from typing import Any

import click

from registry.api.catalog import AdapterView, DeleteResult, VersionView
from registry.api.search import AdapterFilters
from registry.client.core import Versions
from registry.errors import Conflict, NotFound
from registry.evaluation.verdicts import Check
from registry.names import NEWEST, AdapterName, Ref
from registry.next_steps import NextStep, StepKind

from .console import arguments, completion, fields, output, session, tables, versions
from .console.options import Command
from .console.tables import Column, Table

PAGE_LIMIT = 200
EMPTY = "No adapters. Push one: adapter push DIR NAMESPACE/NAME --base BASE"


def _check_column(check: Check) -> Column[VersionView]:
    return Column(check, lambda item: _outcome(item, check), lambda item: output.outcome(_outcome(item, check)))


def _other_aliases(item: AdapterView) -> str:
    return " ".join(f"{alias}@{number}" for alias, number in sorted(item.aliases.items()) if alias != NEWEST)


ADAPTERS: Table[AdapterView] = Table((
    Column("name", lambda item: item.name, lambda item: output.strong(item.name)),
    Column("newest", lambda item: item.newest, lambda item: f"@{item.newest}"),
    Column("base", lambda item: item.base),
    Column("compat", lambda item: item.verdicts.get("compat"), lambda item: versions.outcome_of(item, "compat")),
    Column("weights", lambda item: item.verdicts.get("weights"), lambda item: versions.outcome_of(item, "weights")),
    Column("smoke", lambda item: item.verdicts.get("smoke"), lambda item: versions.outcome_of(item, "smoke")),
    Column("aliases", _other_aliases),
    Column("updated", lambda item: item.updated_at),
    Column("method", lambda item: item.method, lambda item: versions.method_name(item.method)),
    Column("rank", lambda item: item.rank or None),
    Column("size", lambda item: item.size_bytes, lambda item: output.size(item.size_bytes)),
    Column("versions", lambda item: item.versions, wide=True),
    Column("tags", lambda item: item.tags, wide=True),
    Column("description", lambda item: item.description, wide=True),
))  # fmt: skip
VERSIONS: Table[VersionView] = Table((
    Column("version", lambda item: item.number, lambda item: output.strong(f"@{item.number}")),
    *map(_check_column, (Check.COMPAT, Check.WEIGHTS, Check.SMOKE)),
    Column("aliases", lambda item: item.aliases),
    Column("state", versions.state_of, versions.styled_state_of),
    Column("pushed", lambda item: item.created_at),
    Column("by", lambda item: item.created_by),
    Column("digest", lambda item: item.digest, lambda item: str(item.digest)[: versions.SHORT_DIGEST]),
    Column("tags", lambda item: versions.tag_texts(item.tags)),
    Column("method", lambda item: versions.method_name(str(item.facts.get("method") or ""))),
    Column("size", lambda item: item.size_bytes, lambda item: output.size(item.size_bytes)),
    Column("message", lambda item: item.message, wide=True),
), name=lambda item: f"{item.name}@{item.number}")  # fmt: skip


@click.command("list", cls=Command)
@click.argument("name", type=arguments.NAME, required=False)
@fields.options_of(AdapterFilters)
@click.option("--limit", type=click.IntRange(1), help="Maximum number of rows.")
@tables.prints(ADAPTERS)
def list_adapters(name: AdapterName | None, limit: int | None, **query: Any) -> None:
    """List adapters with their newest version, or only the adapter NAME.

    --namespace, --alias and --owner filter by the adapter, --tag and --text by either, and all others by the newest
    version. A word of --text matches words that begin with it. `adapter versions NAME` lists the versions of one
    adapter.
    """
    if name is not None:
        if any(query.values()):
            raise click.UsageError("filters do not go with NAME")
        with session.versions() as registry:
            ADAPTERS.print([registry.adapter(name)])
        output.note(f"adapter versions {name} lists its versions")
        return
    if query["outcome"] and not query["engine"]:
        raise click.UsageError("--outcome needs --engine")
    if query["base_match"] and not query["base"]:
        raise click.UsageError("--base-match needs --base")
    with session.versions() as registry:
        search: dict[str, Any] = {name: list(v) if isinstance(v, tuple) else v for name, v in query.items()}
        items, total = session.first_items(partial(registry.adapters, **search), limit)
        others = 0 if items or not any(query.values()) else registry.adapters(limit=1, count=True).total or 0
    empty = f"No adapter matches; {others} without filters." if others else session.about_embedded() + EMPTY
    if not items and query["base"] and (near := completion.nearest("base", query["base"])):
        empty += f" Did you mean --base {near}?"
    ADAPTERS.print(items, total=total, empty=empty)


# ------------------------------------------------------------------ versions
@click.command("versions", cls=Command)
@click.argument("name", type=arguments.NAME)
@click.option("--deleted", is_flag=True, help="Include deleted versions.")
@click.option("--limit", type=click.IntRange(1), help="Maximum number of rows.")
@tables.prints(VERSIONS)
def versions_of(name: AdapterName, deleted: bool, limit: int | None) -> None:
    """List the versions of NAME, newest first, with verdicts, aliases and tags."""
    with session.versions() as registry:
        items, total = session.first_items(partial(registry.versions, name, include_deleted=deleted), limit)
    VERSIONS.print(items, total=total)


def _outcome(version: VersionView, check: Check) -> str:
    """The outcome of the newest verdict of a check; the registry's own comes before one of the owner."""
    outcomes = [verdict.outcome for verdict in version.verdicts if verdict.check is check and not verdict.by_owner]
    return outcomes[-1] if outcomes else ""


# ------------------------------------------------------------------ rename, delete
@click.command(cls=Command)
@click.argument("subject", type=arguments.DELETABLE, metavar="NAME[@VERSION]")
@click.option("--reason", default="", help="Reason; shown to everyone who requests the version.")
@click.option("--force", is_flag=True, help="Delete it although something needs it. Needs --reason.")
@click.option("--undo", is_flag=True, help="Restore it, within the grace time.")
@click.option("--release-name", is_flag=True, help="Free the name of a deleted adapter that nobody else ever pulled.")
@click.option("--dry-run", is_flag=True, help="Only show what would be deleted, and what needs it.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete(
    subject: AdapterName | Ref, reason: str, force: bool, undo: bool, release_name: bool, dry_run: bool, yes: bool
) -> None:
    """Delete one version (NAME@3), or an adapter with all its versions (NAME).

    Both can be restored with --undo until the grace time ends. Numbers are never used again; a name only after
    --release-name, or in a rehearsal namespace. Nothing is
    deleted that an alias, a node, a job, a child or another's signature needs: it is listed, and --force passes
    over it. Aliases of a single version move first.
    """
    if dry_run + undo + release_name > 1:
        raise click.UsageError("give one of --dry-run, --undo and --release-name")
    if release_name:
        _release_name(subject, reason, yes=yes)
    elif dry_run:
        _preview(subject, force=force)
    elif isinstance(subject, Ref):
        _delete_version(subject, reason, force=force, undo=undo, yes=yes)
    elif undo:
        session.print_response(
            lambda registry: registry.undelete_adapter(subject, reason or "restored"), _print_restored_adapter
        )
    else:
        _delete_adapter(subject, reason, force=force, yes=yes)


def _print_restored_adapter(result: DeleteResult) -> None:
    title = output.strong(result.name)
    count = output.plural(result.versions, "version")
    output.line(f"{title} is restored with {count}." if result.versions else f"{title} was not deleted.")


def _release_name(subject: AdapterName | Ref, reason: str, *, yes: bool) -> None:
    if isinstance(subject, Ref):
        raise click.UsageError("--release-name is about an adapter: give its name without a version")
    output.confirm(f"Release the name {subject}? The next push of anybody who may push there takes it.", yes)
    session.print_response(
        lambda registry: registry.release_name(subject, reason or "released"),
        lambda result: output.line(f"{output.strong(result.name)} is free. The next push continues its numbers."),
    )


def _delete_adapter(name: AdapterName, reason: str, *, force: bool, yes: bool) -> None:
    with session.registry() as registry:
        plan = registry.delete_adapter(name, force=force, dry_run=True)
        if force or not plan.needs:
            question = f"Delete {name} and {output.plural(plan.versions, 'version')}?"
            output.confirm("\n".join([*(f"  {need.message}" for need in plan.needs), question]), yes)
        deleted = registry.delete_adapter(name, reason, force=force)

    def text() -> None:
        count = output.plural(deleted.versions, "version")
        output.line(f"{output.strong(deleted.name)} is deleted with {count}. "
                    f"Restore it with: adapter delete {deleted.name} --undo")  # fmt: skip
        versions.print_served_on(deleted.served_on)

    output.result(deleted, text)


def _preview(subject: AdapterName | Ref, *, force: bool) -> None:
    """Print what a deletion would do, and what needs it."""
    reason = next_step = ""
    with session.registry() as registry:
        if isinstance(subject, AdapterName):
            result = registry.delete_adapter(subject, force=force, dry_run=True)
            if result.needs and not force:
                result, next_step = result.model_copy(update={"versions": 0}), NextStep(StepKind.FORCE).as_command()
        else:
            try:
                version = registry.delete_version(subject, force=force, dry_run=True)
                name, count = f"{version.name}@{version.number}", int(version.deleted_at is None)
                result = DeleteResult(name=name, versions=count, served_on=version.served_on)
                if version.deleted_at is not None:
                    reason = f": {versions.state_of(version)} since {output.moment(version.deleted_at)}"
            except Conflict as e:
                result, next_step = DeleteResult(name=str(subject), needs=list(e.findings)), e.next_step

    def text() -> None:
        is_adapter = isinstance(subject, AdapterName) and result.versions
        versions_text = f" and its {output.plural(result.versions, 'version')}" if is_adapter else ""
        verb = "Would delete" if result.versions else "Would not delete"
        output.line(f"{verb} {output.strong(result.name)}{versions_text}{reason}.")
        for need in result.needs:
            output.line(f"  {need.message}")
        if next_step:
            output.line(f"Next: {next_step}")
        versions.print_served_on(result.served_on)

    output.result(result, text)


def _delete_version(ref: Ref, reason: str, *, force: bool, undo: bool, yes: bool) -> None:
    with session.registry() as registry:
        if not undo and not yes:
            registry.version(ref)  # before the question: there may be no such version
        if not undo:
            output.confirm(f"Delete {ref}?", yes)
        was_deleted = undo and _is_deleted(registry, ref)
        if undo:
            version = registry.undelete_version(ref, reason or "restored")
        else:
            version = registry.delete_version(ref, reason, force=force)

    def text() -> None:
        title = output.strong(f"{version.name}@{version.number}")
        if undo:
            output.line(f"{title} is restored." if was_deleted else f"{title} was not deleted: nothing to restore.")
            return
        output.line(f"{title} is deleted. Restore it with: adapter delete {version.name}@{version.number} --undo")
        versions.print_served_on(version.served_on)

    output.result(version, text)


def _is_deleted(registry: Versions, ref: Ref) -> bool:
    try:
        registry.version(ref)
    except NotFound as e:
        return e.code == "VERSION_DELETED"
    return False


@click.command(cls=Command)
@click.argument("name", type=arguments.NAME)
@click.argument("to", type=arguments.NAME)
@arguments.changes
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def rename(name: AdapterName, to: AdapterName, yes: bool, **change: Any) -> None:
    """Rename an adapter to TO, also into another namespace that exists and that you own.

    The old name leads to the new one and is never used for another adapter; only renaming back frees it. Trusted
    publishers are not moved. In another namespace approvals end, and its gates count before the adapter's own.
    """
    output.confirm(f"Rename {name} to {to}?", yes or change["dry_run"])
    session.print_response(
        lambda registry: registry.rename(name, to, **change),
        lambda moved: output.line(f"{name} is now {output.strong(moved.name)}."),
    )


# ------------------------------------------------------------------ yank, quarantine
@click.command(cls=Command)
@click.argument("ref", type=arguments.REF)
@click.option("--reason", required=True, help="Reason; shown to everyone who requests the version.")
@click.option("--undo", is_flag=True, help="Undo a yank: aliases that point at the version work again.")
def yank(ref: Ref, reason: str, undo: bool) -> None:
    """Withdraw a version: aliases no longer resolve to it. It can still be read by digest."""
    with session.registry() as registry:
        digest = registry.version(ref).digest
        version = registry.yank(Ref(ref.name, digest), reason, undo=undo)

    def text() -> None:
        title = output.strong(f"{version.name}@{version.number}")
        if undo:
            output.line(f"{title} is no longer yanked: {reason}")
            return
        output.line(f"{title} is yanked: {version.yank_reason}")
        pointing = [alias for alias in version.aliases if alias != NEWEST]
        if pointing:
            verb = "still points at it and serves it" if len(pointing) == 1 else "still point at it and serve it"
            output.line(f"  {', '.join(pointing)} {verb} YANKED: roll back or promote another version")
        if NEWEST in version.aliases:
            output.line(f"  no other version is available: {version.name} resolves to YANKED until the next push")
        versions.print_served_on(version.served_on)

    output.result(version, text)


@click.command(cls=Command)
@click.argument("ref", type=arguments.REF)
@click.option("--reason", required=True, help="Reason; shown to everyone who requests the version.")
@click.option("--undo", is_flag=True, help="Lift the quarantine. For owners.")
def quarantine(ref: Ref, reason: str, undo: bool) -> None:
    """Withhold a version: no one can resolve, move or change it until an owner lifts the quarantine."""
    with session.registry() as registry:
        version = registry.unquarantine(ref, reason) if undo else registry.quarantine(ref, reason)

    def text() -> None:
        title = output.strong(f"{version.name}@{version.number}")
        output.line(f"{title} is {'no longer ' if undo else ''}in quarantine: {reason}")
        versions.print_served_on(version.served_on)

    output.result(version, text)
