"""`adapter retention …`, for owners: which versions `adapter gc` deletes by rule."""

from typing import Any

import click

from registry import names
from registry.api.maintenance import RetentionDecision, RetentionView
from registry.client import response_checks
from registry.client.registry import Registry
from registry.errors import Invalid
from registry.names import AdapterName
from registry.versions.retention import NEWEST_LIMIT, RetentionRule

from .console import arguments, output, session, tables
from .console.options import Group
from .console.tables import Column, Table


@click.group(cls=Group)
def retention() -> None:
    """Retention: which versions `adapter gc` deletes by rule. Deleted versions can be restored for a time.

    A version stays although a rule would delete it while something needs it: an alias or its rollback, an approval, a
    serving node, a job, an adapter or base made from it, or a tag or signature of someone other than its pusher.
    """


PLAN: Table[RetentionDecision] = Table((
    Column("version", lambda item: f"{item.name}@{item.number}", whole=True),
    Column("action", lambda item: "delete" if item.deletes else "keep"),
    Column("bytes", lambda item: item.size_bytes, lambda item: output.size(item.size_bytes)),
    Column("reason", lambda item: item.reason, flows=True),
))  # fmt: skip


@retention.command("set")
@click.argument("scope", metavar="NAMESPACE|NAME")
@click.option("--keep-newest", type=click.IntRange(1, NEWEST_LIMIT), metavar="N", help="Keep the newest N versions.")
@click.option("--keep-younger", type=arguments.DURATION, metavar="TIME", help="Keep versions younger than 12h, 7d …")
@click.option("--dry-run", is_flag=True, help="Show what the rule would do to each version.")
@arguments.reason
@tables.prints(PLAN)
def set_rule(scope: str, keep_newest: int | None, keep_younger: int | None, dry_run: bool, reason: str) -> None:
    """Set the rule of an adapter, or of all adapters of a namespace. For owners.

    With both options a version stays if either keeps it.
    """
    if keep_newest is None and keep_younger is None:
        raise Invalid("REQUEST_INVALID", "the rule keeps nothing", next_step="pass --keep-newest or --keep-younger")
    rule = RetentionRule(keep_newest=keep_newest, keep_seconds=keep_younger)
    if dry_run:
        _print_plan(scope, rule)
    else:
        tables.refuse_row_options("--dry-run")
        session.print_response(lambda registry: registry.set_retention(scope, rule, reason), _print_rule)


@retention.command()
@click.argument("scope", metavar="NAMESPACE|NAME")
@click.option("--plan", is_flag=True, help="Show what the next `adapter gc` does to each version.")
@tables.prints(PLAN)
def show(scope: str, plan: bool) -> None:
    """Show the rule in force."""
    if plan:
        _print_plan(scope, None)
    else:
        tables.refuse_row_options("--plan")
        session.print_response(lambda registry: registry.retention(scope), _print_rule)


@retention.command()
@click.argument("scope", metavar="NAMESPACE|NAME")
@arguments.changes
def delete(scope: str, **change: Any) -> None:
    """Delete a rule and show what applies instead. For owners."""
    session.print_response(lambda registry: registry.delete_retention(scope, **change), _print_rule)


def _print_rule(view: RetentionView) -> None:
    if view.rule is None:
        output.line("No rule: every version stays until someone deletes it or it expires.")
        return
    output.line(f"{output.strong(view.rule.text)}  {output.faint(f'set on {view.set_on} by {view.set_by}')}")


def _print_plan(scope: str, rule: RetentionRule | None) -> None:
    """Print what goes, and then what stays, of an adapter or of all adapters of a namespace."""
    with session.registry() as registry:
        plans = {name: _read_plan(registry, scope, name, rule) for name in _names_in(registry, scope)}
        in_force = rule or registry.retention(scope).rule
    items = sorted((item for plan in plans.values() for item in plan), key=lambda item: not item.deletes)
    deleted = [item for item in items if item.deletes]
    freed = output.size(sum(item.size_bytes for item in deleted))
    adapters = f" of {output.plural(len(plans), 'adapter')}" if len(plans) != 1 else ""

    def above() -> None:
        output.line(f"{output.plural(len(deleted), 'version')} of {len(items)}{adapters} would be deleted, {freed}.")
        output.line(output.faint(in_force.text if in_force is not None else "no rule"))

    PLAN.print(items, document={"rule": in_force, "deletes": len(deleted)}, above=above)


def _names_in(registry: Registry, scope: str) -> list[str]:
    if "/" in scope:
        return [str(AdapterName.parse(scope))]
    names.namespace(scope)
    pages = response_checks.all_pages(lambda cursor: registry.adapters(namespace=scope, cursor=cursor))
    return [view.name for page in pages for view in page.items]


def _read_plan(registry: Registry, scope: str, name: str, rule: RetentionRule | None) -> list[RetentionDecision]:
    """What happens to the versions of an adapter: under its own rule, if it has one and `rule` is of the namespace."""
    if rule is not None and name != scope and registry.retention(name).set_on == name:
        rule = None
    pages = response_checks.all_pages(lambda cursor: registry.retention_plan(name, rule, cursor=cursor))
    return [item for page in pages for item in page.items]
