"""`adapter gate …` and `adapter approve`.

A scope with a slash is an adapter, one without is a namespace; an adapter's own gate overrides its namespace's. A gate
is replaced as a whole.
"""

from typing import Any

import click
from pydantic import ValidationError

from registry.api.aliases import ApprovalView, ApproveItem, GateView
from registry.client.aliases import Groups
from registry.errors import Invalid
from registry.evaluation.gates import Gate
from registry.evaluation.verdicts import Check
from registry.names import Ref
from registry.validation import first_problem

from .console import arguments, groups, output, session
from .console.options import Command, Group

CHECKS = [check.value for check in Check if check is not Check.ENGINE]
STRICT = "=pass"


class _RequiredCheck(click.Choice[str]):
    """A check that a gate can require by its name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if str(value).removesuffix(STRICT) == Check.ENGINE:
            self.fail("name the engine with --engine, such as --engine vllm==0.33.0", param, ctx)
        return super().convert(value, param, ctx)


@click.group(cls=Group)
def gate() -> None:
    """Gates: what a version needs before an alias moves to it."""


@gate.command("set")
@click.argument("scope", metavar="NAMESPACE|NAME")
@click.argument("alias", required=False, default="", metavar="ALIAS")
@click.option("--require", "requires", multiple=True, type=_RequiredCheck([*CHECKS, *(c + STRICT for c in CHECKS)]),
              help="Required check (repeatable); =pass also rejects warnings.")  # fmt: skip
@click.option("--engine", "engines", multiple=True, help="Engine that must serve it (repeatable).")
@click.option("--golden", is_flag=True, help="Require golden samples, all passed.")
@click.option("--approvals", type=click.IntRange(0, 32), default=0, show_default=True, help="Number of approvals.")
@click.option(
    "--approver",
    "approvers",
    multiple=True,
    metavar="IDENTITY",
    help="Who may approve: a subject or token:NAME (repeatable).",
)
@click.option("--two-person", is_flag=True, help="The promoter cannot be an approver.")
@click.option("--soak-in", default="", metavar="ALIAS", help="Alias that must have pointed at it first.")
@click.option("--soak", "soak_seconds", type=arguments.DURATION_OR_NONE, default="0s", metavar="TIME",
              help="How long --soak-in must have pointed at it: 12h, 7d …")  # fmt: skip
@click.option("--signed-by", multiple=True, type=arguments.SIGNER,
              help="Accepted signer: an identity, or a file with a public key (repeatable).")  # fmt: skip
@arguments.changes
def set_gate(
    scope: str, alias: str, requires: tuple[str, ...], engines: tuple[str, ...], golden: bool, approvals: int,
    approvers: tuple[str, ...], two_person: bool, soak_in: str, soak_seconds: int, signed_by: tuple[str, ...],
    **change: Any,
) -> None:  # fmt: skip
    """Replace the gate of ALIAS, for an adapter or a whole namespace. For owners.

    Requirements that are not named are dropped.
    """
    scope, alias = arguments.split_alias(scope, alias)
    try:
        new_gate = Gate(
            requires=tuple(Check(check) for check in requires if not check.endswith(STRICT)),
            passes=tuple(Check(check.removesuffix(STRICT)) for check in requires if check.endswith(STRICT)),
            engines=engines, golden=golden, approvals=approvals, approvers=approvers, two_person=two_person,
            soak_in=soak_in, soak_seconds=soak_seconds, signed_by=signed_by,
        )  # fmt: skip
    except ValidationError as e:
        raise Invalid("REQUEST_INVALID", "this gate can never open: " + first_problem(e, "")[1]) from e
    session.print_response(lambda registry: registry.set_gate(scope, alias, new_gate, **change), _print)


@gate.command()
@click.argument("scope", metavar="NAMESPACE|NAME|REF")
@click.argument("alias", required=False, default="", metavar="ALIAS")
def show(scope: str, alias: str) -> None:
    """Show the gate of ALIAS, and what a version (NAME@3) lacks."""
    scope, alias = arguments.split_alias(scope, alias)
    with session.registry() as registry:
        if not any(mark in scope for mark in "@:"):
            view = registry.gate(scope, alias)
            output.result(view, lambda: _print(view))
            return
        check = registry.check_gate(scope, alias)

    def text() -> None:
        _print(check.gate)
        output.line(f"  open for @{check.number}" if check.open else f"  closed for @{check.number}:")
        for finding in check.missing:
            output.line(f"    - {finding.message}")
        if check.next_step:
            output.line(f"  {output.strong('Next:')} {check.next_step}")

    output.result(check, text)


@gate.command("list")
@click.argument("scope", metavar="NAMESPACE|NAME")
def list_gates(scope: str) -> None:
    """List the gates of an adapter or a namespace."""
    with session.registry() as registry:
        listing = registry.gates(scope)

    def text() -> None:
        for view in listing.items:
            _print(view)
        if not listing.items:
            output.line(f"No gate is set on {scope}. The built-in gates apply: adapter gate show {scope} prod")

    output.result(listing, text)


@gate.command()
@click.argument("scope", metavar="NAMESPACE|NAME")
@click.argument("alias", required=False, default="", metavar="ALIAS")
@arguments.changes
def delete(scope: str, alias: str, **change: Any) -> None:
    """Delete a gate and show what applies instead. For owners."""
    scope, alias = arguments.split_alias(scope, alias)
    session.print_response(lambda registry: registry.delete_gate(scope, alias, **change), _print)


@click.command(cls=Command)
@click.argument("ref", type=arguments.REF, required=False)
@click.argument("alias", required=False, default="")
@click.option("--from", "source", default="", metavar="ALIAS", help="With --namespace: approve the version there.")
@click.option("--to", "target", default="", metavar="ALIAS", help="With --namespace: the alias to approve it for.")
@groups.options
@click.option("--reason", "comment", default="", help="What you reviewed; kept with the approval.")
def approve(ref: Ref | None, alias: str, source: str, target: str, comment: str, **group: Any) -> None:
    """Approve a version for ALIAS. The pusher's approval does not count.

    With --namespace, do the same for many adapters; a plan is shown first.
    """
    options = groups.Options(**group)
    if options.namespace:
        if ref or alias or not (source and target):
            raise click.UsageError("--namespace needs --from and --to, and takes no REF and ALIAS")
        _approve_group(options, source, target, comment)
        return
    if ref is None or not alias or source or target:
        raise click.UsageError("give REF ALIAS, or --namespace with --from and --to")
    options.require_none()
    with session.registry() as registry:
        approval = registry.approve(ref, alias, comment)
    reason = "you pushed the version, or are not one of its approvers"
    note = "" if approval.counts else f" The gate does not count this approval: {reason}."
    output.result(
        approval,
        lambda: output.line(
            f"Approved {ref.name}@{approval.number} for {approval.alias} as {approval.identity}.{note}"
        ),
    )


def _approve_group(options: groups.Options, source: str, target: str, comment: str) -> None:
    def pin(item: ApproveItem, planned: ApprovalView) -> ApproveItem | None:
        return item.model_copy(update={"ref": f"{_name(item)}@{planned.number}"}) if planned.created else None

    def describe(item: ApproveItem, approval: ApprovalView | None) -> tuple[str, str]:
        return _name(item), f"@{approval.number} for {target}" if approval is not None else f"for {target}"

    with session.registry() as registry:
        views = groups.select(registry, options, source)
        items = [ApproveItem(ref=f"{view.name}:{source}", alias=target, comment=comment) for view in views]
        changes = Groups(registry)
        work = groups.Work("version", "approved", changes, changes.approve_versions, pin, describe)
        groups.run(work, items, options)


def _name(item: ApproveItem) -> str:
    return str(Ref.parse(item.ref).name)


def _print(view: GateView) -> None:
    origin = f"set on {view.set_on} by {view.set_by}" if view.set_on else "built in"
    output.line(f"{output.strong(view.alias)}  {output.faint(origin)}")
    for requirement in view.gate.describe() or ["requires nothing"]:
        output.line(f"  {requirement}")
