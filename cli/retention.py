"""`adapter retention …`, for owners: which versions `adapter gc` deletes by rule."""

import click

from registry.api.maintenance import RetentionDecision, RetentionView
from registry.client import response_checks
from registry.errors import Invalid
from registry.names import AdapterName
from registry.versions.retention import NEWEST_LIMIT, RetentionRule

from .console import arguments, output, session, tables
from .console.tables import Column, Table


@click.group()
def retention() -> None:
    """Retention: which versions `adapter gc` deletes by rule. Deleted versions can be restored for a time.

    A version stays although a rule would delete it while something needs it: an alias or its rollback, an approval, a
    serving node, a job, an adapter or base made from it, or a tag or signature of someone other than its pusher.
    """


PLAN: Table[RetentionDecision] = Table((
    Column("version", lambda item: item.number, lambda item: f"@{item.number}"),
    Column("action", lambda item: "delete" if item.deletes else "keep"),
    Column("reason", lambda item: item.reason, flows=True),
))  # fmt: skip


@retention.command("set")
@click.argument("scope", metavar="NAMESPACE|NAME")
@click.option("--keep-newest", type=click.IntRange(1, NEWEST_LIMIT), metavar="N", help="Keep the newest N versions.")
@click.option("--keep-younger", type=arguments.DURATION, metavar="TIME", help="Keep versions younger than 12h, 7d …")
@click.option("--dry-run", is_flag=True, help="Dry run: show what the rule would do to each version of NAME.")
@tables.prints(PLAN)
def set_rule(scope: str, keep_newest: int | None, keep_younger: int | None, dry_run: bool) -> None:
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
        session.print_response(lambda registry: registry.set_retention(scope, rule), _print_rule)


@retention.command()
@click.argument("scope", metavar="NAMESPACE|NAME")
@click.option("--plan", is_flag=True, help="Also show what the next `adapter gc` does to each version of NAME.")
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
def delete(scope: str) -> None:
    """Delete a rule and show what applies instead. For owners."""
    session.print_response(lambda registry: registry.delete_retention(scope), _print_rule)


def _print_rule(view: RetentionView) -> None:
    if view.rule is None:
        output.line("No rule: every version stays until someone deletes it or it expires.")
        return
    output.line(f"{output.strong(view.rule.text)}  {output.faint(f'set on {view.set_on} by {view.set_by}')}")


def _print_plan(scope: str, rule: RetentionRule | None) -> None:
    name = AdapterName.parse(scope)
    with session.registry() as registry:
        pages = list(response_checks.all_pages(lambda cursor: registry.retention_plan(name, rule, cursor=cursor)))
    items = [item for page in pages for item in page.items]
    rule = pages[0].rule
    deleted = sum(item.deletes for item in items)
    PLAN.print(
        items,
        document={"rule": rule},
        above=lambda: output.line(rule.text if rule is not None else "no rule"),
        below=lambda: output.line(f"{output.plural(deleted, 'version')} of {len(items)} would be deleted."),
    )
