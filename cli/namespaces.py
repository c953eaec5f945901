"""`adapter namespace …`.

What changes much, such as a deletion, asks for confirmation, or takes `--yes`.
"""

from collections.abc import Callable
from typing import Any

import click

from registry.api.access import NAMESPACE_RULES, NamespaceSet, NamespaceView, SubjectRoles
from registry.client import response_checks
from registry.roles import Role, in_words

from .console import arguments, output, session, tables
from .console.options import Group
from .console.tables import Column, Table


@click.group(cls=Group)
def namespace() -> None:
    """Namespaces: roles, visibility, limits."""


@namespace.command()
@click.argument("name")
@click.option("--owner", default="", help="Owner, such as alice@example.org. Default: you.")
@click.option("--rehearsal", is_flag=True, help="Names of deleted adapters are free at once; it is never public.")
def create(name: str, owner: str, rehearsal: bool) -> None:
    """Create a private namespace. For administrators.

    One that was deleted within the grace time is restored, without its roles.
    """
    session.print_response(
        lambda registry: registry.create_namespace(name, owner=owner, rehearsal=rehearsal), _print_namespace
    )


NAMESPACES: Table[NamespaceView] = Table((
    Column("name", lambda item: item.name, lambda item: output.strong(item.name)),
    Column("visibility", lambda item: "public" if item.public else "private"),
    Column("versions", lambda item: item.used_versions),
    Column("bytes", lambda item: item.used_bytes, lambda item: output.size(item.used_bytes)),
), empty="No namespaces.")  # fmt: skip


@namespace.command("list")
@tables.prints(NAMESPACES)
def list_namespaces() -> None:
    """List the namespaces you can see."""
    with session.registry() as registry:
        pages = response_checks.all_pages(lambda cursor: registry.namespaces(cursor=cursor, limit=200))
        items = [item for page in pages for item in page.items]
    NAMESPACES.print(items)


@namespace.command()
@click.argument("name")
def show(name: str) -> None:
    """Show a namespace: limits, usage and, for owners, roles."""
    session.print_response(lambda registry: registry.namespace(name), _print_namespace)


def _print_namespace(view: NamespaceView) -> None:
    kind = "rehearsal" if view.rehearsal else "public" if view.public else "private"
    output.line(f"{output.strong(view.name)}  {kind}")
    bytes_limit = f" of {output.size(view.quota_bytes)}" if view.quota_bytes else ""
    versions_limit = f" of {view.quota_versions}" if view.quota_versions else ""
    rows = [("bytes", output.size(view.used_bytes) + bytes_limit)]
    rows += [("versions", f"{view.used_versions}{versions_limit}")]
    rows += [("pushes", f"{view.pushes_per_hour} an hour")] if view.pushes_per_hour else []
    rows += [("rule", rule.text(True)) for rule in NAMESPACE_RULES if getattr(view, rule.field)]
    rows += [(str(role), subject) for subject, roles in (view.roles or {}).items() for role in roles]
    output.facts(rows)


def _rule_options(command: Callable[..., None]) -> Callable[..., None]:
    for rule in reversed(NAMESPACE_RULES):
        option = rule.field.replace("_", "-")
        text = f"{rule.text(True)}, or with --no-{option} {rule.off}.".capitalize()
        command = click.option(f"--{option}/--no-{option}", default=None, help=text)(command)
    return command


@namespace.command("set")
@click.argument("name")
@click.option("--public/--private", default=None, help="Allow every token to pull, or only roles.")
@_rule_options
@click.option("--quota-bytes", type=arguments.SIZE, help="Maximum size of its versions, such as 500GB; 0: unlimited.")
@click.option("--quota-versions", type=click.IntRange(0), help="Maximum number of versions; 0: unlimited.")
@click.option("--pushes-per-hour", type=click.IntRange(0), help="Maximum pushes per hour; 0: unlimited.")
@arguments.changes
def change(name: str, reason: str, dry_run: bool, **values: Any) -> None:
    """Make a namespace public or private, or set its rules and limits."""
    request = NamespaceSet(**values)
    session.print_response(
        lambda registry: registry.change_namespace(name, request, reason=reason, dry_run=dry_run), _print_namespace
    )


_ROLE = click.Choice([role.value for role in Role])


@namespace.command()
@click.argument("name")
@click.argument("subject")
@click.argument("role", type=_ROLE, metavar="ROLE")
@click.option("--alias", "aliases", multiple=True, help="With pusher or promoter: only this alias (repeatable).")
@arguments.changes
def grant(name: str, subject: str, role: str, aliases: tuple[str, ...], **change: Any) -> None:
    """Give SUBJECT a role in a namespace, beside those that it has. The namespace * means all.

    ROLE is reader, pusher, promoter, owner or auditor. With --alias a pusher may also move and approve these aliases,
    and a promoter only these. Granting the same role again replaces its aliases.
    """
    session.print_response(
        lambda registry: registry.grant_role(name, subject, role, aliases=aliases, **change), _print_roles
    )


@namespace.command()
@click.argument("name")
@click.argument("subject")
@click.argument("role", type=_ROLE, metavar="ROLE", required=False)
@arguments.changes
def revoke(name: str, subject: str, role: str | None, **change: Any) -> None:
    """Remove SUBJECT's roles in a namespace at once.

    With ROLE only this one.
    """
    session.print_response(lambda registry: registry.revoke_role(name, subject, role or "", **change), _print_roles)


def _print_roles(view: SubjectRoles) -> None:
    where = "all namespaces" if view.namespace == "*" else view.namespace
    was = f" was {in_words(view.before)} in {where};" if view.before and view.before != view.roles else ""
    now = f"is {in_words(view.roles)}" if view.roles else "has no role"
    output.line(f"{view.subject}{was} {now} {'now' if was else f'in {where}'}.")


@namespace.command("delete")
@click.argument("name", type=arguments.NAMESPACE)
@arguments.changes
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete_namespace(name: str, yes: bool, **change: Any) -> None:
    """Delete an empty namespace. An administrator can create it again within the grace time."""
    output.confirm(f"Delete the namespace {name} and its roles?", yes or change["dry_run"])
    session.print_response(
        lambda registry: registry.delete_namespace(name, **change),
        lambda _: output.line(f"{name} deleted. An administrator restores it with: adapter namespace create {name}"),
    )
