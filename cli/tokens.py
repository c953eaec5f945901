"""`adapter token …`: create, rotate, exchange, list, revoke, generate. A new secret is printed once."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from registry.api.access import TokenCreate, TokenCreated, TokenView
from registry.client import registries
from registry.durations import relative
from registry.errors import Invalid
from registry.roles import Scope
from registry.token_secret import new_secret

from .console import arguments, output, session, tables
from .console.options import Group
from .console.tables import Column, Table
from .login import read_secret, rights_of

SECRET_PREFIX = "lra_"  # noqa: S105 - no secret


def _parse_id(text: str) -> str:
    if text.startswith(SECRET_PREFIX):
        raise Invalid(
            "REQUEST_INVALID",
            "this is a token's secret, not its id; it was not sent",
            next_step="`ADAPTER_TOKEN=SECRET adapter whoami` shows the id of a token, even of a leaked one",
        )
    return text


TOKEN = arguments.ParsedArgument("token", _parse_id)
"""The id or the name of a token."""


@click.group(cls=Group)
def token() -> None:
    """Tokens: create, rotate, exchange, list, revoke, generate."""


@token.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice([scope.value for scope in Scope]),
              help="Scope (repeatable).")  # fmt: skip
@click.option("--namespace", "namespaces", multiple=True, default=("*",),
              help="Namespace where it is valid (repeatable). Default: all.")  # fmt: skip
@click.option("--subject", default="", help="Subject whose roles limit the token, such as alice@example.org.")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME", help="Only this adapter (repeatable).")
@click.option("--alias", "aliases", multiple=True, help="With --scope promote: only this alias (repeatable).")
@click.option("--expires", type=arguments.DURATION, help="Lifetime: 12h, 90d … Default: unlimited.")
def create(
    name: str, scopes: tuple[str, ...], namespaces: tuple[str, ...], subject: str, adapters: tuple[str, ...],
    aliases: tuple[str, ...], expires: int | None,
) -> None:  # fmt: skip
    """Create a token. Its secret is shown only now."""
    request = TokenCreate(
        name=name, scopes=list(scopes), namespaces=list(namespaces), expires_in_seconds=expires, subject=subject,
        adapters=list(adapters), aliases=list(aliases),
    )  # fmt: skip
    session.print_response(lambda registry: registry.create_token(request), _print_secret)


def _print_secret(created: TokenCreated) -> None:
    output.line(created.secret)
    rights = rights_of(created.token)
    rights = f"what the roles of {created.token.subject} allow, at most {rights}" if created.token.subject else rights
    until = f", until {output.moment(created.token.expires_at)}" if created.token.expires_at else ""
    output.note(f"token {created.token.id} for {created.token.subject or created.token.name}: {rights}{until}")
    output.note("the secret is shown only now")


@token.command()
def generate() -> None:
    """Print a random secret and its SHA-256, offline.

    The SHA-256 is for REGISTRY_ADMIN_TOKEN_SHA256. Nothing is stored.
    """
    secret = new_secret()
    sha256 = hashlib.sha256(secret.encode()).hexdigest()
    output.result({"secret": secret, "sha256": sha256}, lambda: output.facts([("secret", secret), ("sha256", sha256)]))


@token.command()
@click.argument("token_id", type=TOKEN, metavar="ID|NAME", default="")
@click.option("--keep-old", type=arguments.DURATION, help="Time for which the old secret stays valid: 15m …")
def rotate(token_id: str, keep_old: int | None) -> None:
    """Replace the secret of a token by its ID or its unique NAME.

    Without either it is your own, and the new secret is saved if the old one was.
    """
    with session.registry() as registry:
        own_id = registry.whoami().token_id
        rotated_id = _id_of(token_id, registry.tokens().items) if token_id else own_id
        created = registry.rotate_token(rotated_id, keep_seconds=keep_old or 0)
    saved_in = registries.replace_token(created.secret) if created.token.id == own_id else ""

    def text() -> None:
        if saved_in:
            output.line(f"{created.token.id} ({created.token.name}) has a new secret, saved in {saved_in}.")
        else:
            _print_secret(created)

    output.result(created, text)


@token.command()
@click.option("--adapter", default="", metavar="NAME", help="Adapter to push; required for a CI job.")
def exchange(adapter: str) -> None:
    """Exchange an identity token for a registry token.

    A CI job or an identity provider issued the identity token; it is read from ADAPTER_IDENTITY_TOKEN or a pipe. The
    registry token expires within minutes. See `adapter publisher add`.
    """
    assertion = read_secret("ADAPTER_IDENTITY_TOKEN", "identity token")
    session.print_response(lambda registry: registry.exchange_token(assertion, adapter=adapter), _print_secret)


def _end_of(item: TokenView) -> str:
    return output.styled("revoked", "red") if item.revoked_at else relative(item.expires_at)


TOKENS: Table[TokenView] = Table((
    Column("id", lambda item: item.id, whole=True),
    Column("name", lambda item: item.name, lambda item: output.strong(item.name)),
    Column("subject", lambda item: item.subject),
    Column("scopes", lambda item: item.scopes),
    Column("where", lambda item: item.adapters or item.namespaces),
    Column("last used", lambda item: item.last_used_at),
    Column("ends", lambda item: item.revoked_at or item.expires_at, _end_of),
    Column("created", lambda item: item.created_at, wide=True),
), empty="No tokens.")  # fmt: skip


@token.command("list")
@click.option("--ended", is_flag=True, help="Include revoked and expired tokens.")
@click.option("--service-accounts", is_flag=True, help="Only tokens that belong to no person: without a subject.")
@tables.prints(TOKENS)
def list_tokens(ended: bool, service_accounts: bool) -> None:
    """List the tokens you may revoke, and when each was last used.

    The last use is recorded every ten minutes.
    """
    with session.registry() as registry:
        tokens = [item for item in registry.tokens().items if not (service_accounts and item.subject)]
    items = [item for item in tokens if ended or not _has_ended(item)]
    TOKENS.print(items)
    if len(items) < len(tokens):
        output.note(f"not shown: {output.plural(len(tokens) - len(items), 'ended token')} (--ended shows all)")


def _has_ended(item: TokenView) -> bool:
    return item.revoked_at is not None or (item.expires_at is not None and item.expires_at <= datetime.now(UTC))


@token.command()
@click.argument("token_id", type=TOKEN, metavar="ID|NAME")
@arguments.changes
def revoke(token_id: str, **change: Any) -> None:
    """Revoke a token at once by its ID or its unique NAME."""
    session.print_response(
        lambda registry: registry.revoke_token(_id_of(token_id, registry.tokens().items), **change),
        lambda revoked: output.line(f"{revoked.id} ({revoked.name}) is revoked."),
    )


def _id_of(token_id: str, tokens: Sequence[TokenView]) -> str:
    """The id of the token with this id, or with this name. `Invalid` if several that are valid have the name."""
    ids = [item.id for item in tokens if item.name == token_id and not _has_ended(item)]
    if not ids or any(item.id == token_id for item in tokens):
        return token_id
    if len(ids) > 1:
        message = f"{len(ids)} tokens are named {token_id[:80]!r}"
        raise Invalid("REQUEST_INVALID", message, next_step=f"pass one of their ids: {', '.join(ids)}")
    return ids[0]
