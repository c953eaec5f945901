"""`adapter publisher …`: the CI jobs that may push an adapter without a stored secret."""

from typing import Any

import click

from registry.api.access import PublisherAdd, PublisherView
from registry.errors import Invalid
from registry.names import AdapterName

from .console import arguments, output, session, tables
from .console.options import Group
from .console.tables import Column, Table


@click.group(cls=Group)
def publisher() -> None:
    """Trusted publishers: CI jobs that may push an adapter without a stored secret."""


PUBLISHERS: Table[PublisherView] = Table((
    Column("id", lambda item: item.id, whole=True),
    Column("issuer", lambda item: item.issuer),
    Column("claims", lambda item: dict(sorted(item.claims.items()))),
    Column("aliases", lambda item: item.aliases),
    Column("created by", lambda item: item.created_by),
    Column("created", lambda item: item.created_at, wide=True),
), empty="No trusted publishers.")  # fmt: skip


@publisher.command()
@click.argument("name", type=arguments.NAME)
@click.option("--issuer", required=True, help="Issuer of the identity tokens (their claim `iss`).")
@click.option("--claim", "claims", multiple=True, required=True, metavar="CLAIM=PATTERN",
              help="Required claim; * matches any text (repeatable).")  # fmt: skip
@click.option("--alias", "aliases", multiple=True, help="Alias that these jobs may move, too (repeatable).")
@tables.prints(PUBLISHERS)
def add(name: AdapterName, issuer: str, claims: tuple[str, ...], aliases: tuple[str, ...]) -> None:
    """Let CI jobs push NAME with their identity tokens.

    A token of the issuer may push the adapter NAME if its claims match, and move the aliases that you name.

    NAME may not exist yet. The server accepts only issuers in REGISTRY_ISSUERS.
    """
    required_claims = dict(claim.split("=", 1) for claim in claims if "=" in claim)
    if len(required_claims) != len(claims):
        raise Invalid(
            "REQUEST_INVALID", "--claim takes CLAIM=PATTERN, each claim once", next_step="--claim repository=a/b"
        )
    request = PublisherAdd(issuer=issuer, claims=required_claims, aliases=list(aliases))
    with session.registry() as registry:
        created = registry.add_publisher(name, request)
    _print_publishers([created], created)


@publisher.command("list")
@click.argument("name", type=arguments.NAME)
@tables.prints(PUBLISHERS)
def list_publishers(name: AdapterName) -> None:
    """List the trusted publishers of an adapter."""
    with session.registry() as registry:
        _print_publishers(registry.publishers(name).items)


def _print_publishers(items: list[PublisherView], document: PublisherView | None = None) -> None:
    PUBLISHERS.print(items, document=document)
    for issuer in sorted({item.issuer for item in items if not item.issuer_is_configured}):
        output.note(f"the server rejects tokens of {issuer} until REGISTRY_ISSUERS lists it")


@publisher.command()
@click.argument("name", type=arguments.NAME)
@click.argument("publisher_id", metavar="ID")
@arguments.changes
def delete(name: AdapterName, publisher_id: str, **change: Any) -> None:
    """Delete a trusted publisher."""
    session.print_response(
        lambda registry: registry.delete_publisher(name, publisher_id, **change),
        lambda deleted: output.line(f"{deleted.id} may no longer push {deleted.adapter}."),
    )
