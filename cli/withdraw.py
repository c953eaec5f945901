"""`adapter yank` and `adapter quarantine`: withdraw a version, from its aliases or from everyone."""

from __future__ import annotations

import click

from registry.names import NEWEST, Ref

from . import arguments, output, session, versions


@click.command()
@click.argument("ref", type=arguments.REF)
@click.option("--reason", required=True, help="Reason; shown to everyone who requests the version.")
@click.option("--undo", is_flag=True, help="Undo a yank: aliases that point at the version work again.")
def yank(ref: Ref, reason: str, undo: bool) -> None:
    """Withdraw a version: aliases no longer lead to it. It can still be read by digest.

    \b
    adapter yank acme/support@4 --reason 'trained on the wrong data'
    adapter yank acme/support@4 --undo --reason 'it was another run'
    """
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
            verb = "still points at it and answers" if len(pointing) == 1 else "still point at it and answer"
            output.line(f"  {', '.join(pointing)} {verb} YANKED: roll back or promote another version")
        if NEWEST in version.aliases:
            output.line(f"  no other version is available: {version.name} answers YANKED until the next push")
        versions.print_served_on(version.served_on)

    output.answer(version, text)


@click.command()
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

    output.answer(version, text)
