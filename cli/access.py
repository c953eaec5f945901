"""Who you are and who may do what: `adapter login`, `whoami`, `token …`.

Invariants
- A token's secret is asked for without echo or read from standard input; it is no argument, where others could see it.
- A secret is printed once, by the command that made it.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime

import click

from registry.api.access import TokenCreate, TokenCreated, TokenView, Whoami
from registry.client.registry import Registry
from registry.errors import Invalid
from registry.roles import Scope

from . import output, session

DAY_SECONDS = 86400
SECRETS_START = "lra_"


@click.command()
@click.argument("url")
@output.json_option
def login(url: str) -> None:
    """Remember the registry at URL and your token, read from ADAPTER_TOKEN, a pipe or a prompt."""
    secret = os.environ.get("ADAPTER_TOKEN", "").strip() or _ask()
    if not secret:
        raise Invalid("REQUEST_INVALID", "no token was given", next_step="ask the registry's administrator for one")
    with Registry(url, secret) as registry:
        who, kept_as = registry.whoami(), registry.url
    profile = session.read_profile()
    path = session.write_profile(session.LoginProfile(kept_as, {**profile.tokens, kept_as: secret}))

    def text() -> None:
        click.echo(f"You are {output.strong(who.actor)} at {kept_as}.")
        click.echo(output.faint(f"  {_rights(who.scopes, who.namespaces, who.adapters)}; remembered in {path}"))
        if session.RegistryTarget(kept_as, secret, "").readable:
            output.note(session.IN_THE_CLEAR)

    output.answer(who, text)


def _ask(what: str = "Token") -> str:
    if sys.stdin.isatty():
        answer: str = click.prompt(what, hide_input=True)
        return answer.strip()
    return sys.stdin.readline().strip()


@click.command()
@output.json_option
def whoami() -> None:
    """Show the registry and your identity, scopes and namespaces."""
    where = session.target()
    with session.registry() as registry:
        who = registry.whoami()
    output.answer(who, lambda: _print_whoami(where, who))


def _print_whoami(where: session.RegistryTarget, who: Whoami) -> None:
    click.echo(output.strong(who.actor) + ("" if where.embedded else f" at {where.url}"))
    expires = f"; until {output.moment(who.expires_at)}" if who.expires_at else ""
    rights = _rights(who.scopes, who.namespaces, who.adapters) + expires
    roles = ", ".join(f"{role} in {namespace}" for namespace, role in who.roles.items()) or "none"
    subject = [("subject", f"{who.subject}; roles: {roles}")] if who.subject else []
    token = [("token", who.token_id)] if who.token_id else []
    output.facts([("rights", rights), *subject, *token, ("told by", where.source)])


def _rights(scopes: list[str], namespaces: list[str], adapters: list[str]) -> str:
    where = "all namespaces" if "*" in namespaces else ", ".join(namespaces)
    return f"{', '.join(scopes)} in {', '.join(adapters) or where}"


# ------------------------------------------------------------------ tokens
@click.group()
def token() -> None:
    """Tokens: who may do what."""


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="Scope (repeatable).",
)
@click.option("--namespace", "namespaces", multiple=True, default=("*",), help="Where it is valid (repeatable).")
@click.option("--subject", default="", help="Subject whose roles limit the token, such as alice@example.org.")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME", help="Only this adapter (repeatable).")
@click.option("--days", type=click.FloatRange(0, 366, min_open=True), help="Lifetime in days. Default: unlimited.")
@output.json_option
def create(
    name: str,
    scopes: tuple[str, ...],
    namespaces: tuple[str, ...],
    subject: str,
    adapters: tuple[str, ...],
    days: float | None,
) -> None:
    """Create a token. Its secret is shown only now.

    \b
    adapter token create trainer-7 --scope push --namespace acme --days 90
    """
    request = TokenCreate(
        name=name,
        scopes=list(scopes),
        namespaces=list(namespaces),
        expires_in_seconds=max(1, round(days * DAY_SECONDS)) if days else None,
        subject=subject,
        adapters=list(adapters),
    )
    with session.registry() as registry:
        created = registry.create_token(request)
    output.answer(created, lambda: _print_secret(created))


def _print_secret(created: TokenCreated) -> None:
    click.echo(created.secret)
    rights = _rights(created.token.scopes, created.token.namespaces, created.token.adapters)
    until = f", until {output.moment(created.token.expires_at)}" if created.token.expires_at else ""
    output.note(f"token {created.token.id} for {created.token.subject or created.token.name}: {rights}{until}")
    output.note("the secret is shown only now")


@token.command()
@click.argument("token_id", metavar="ID", default="")
@click.option("--keep-minutes", type=click.IntRange(0, 1440), default=0, help="Minutes the old secret stays valid.")
@output.json_option
def rotate(token_id: str, keep_minutes: int) -> None:
    """Replace the secret of a token; without ID of your own, which is remembered here if the old one was."""
    _refuse_secret(token_id)
    with session.registry() as registry:
        mine = registry.whoami().token_id
        created = registry.rotate_token(token_id or mine, keep_seconds=keep_minutes * 60)
    saved_in = session.replace_token(created.secret) if created.token.id == mine else ""

    def text() -> None:
        if saved_in:
            click.echo(f"{created.token.id} ({created.token.name}) has a new secret, remembered in {saved_in}.")
        else:
            _print_secret(created)

    output.answer(created, text)


@token.command()
@click.option("--adapter", default="", metavar="NAME", help="Request the right to push this adapter only.")
@output.json_option
def exchange(adapter: str) -> None:
    """Exchange an identity token of a CI job or identity provider for a registry token of at most 15 minutes.

    It is read from ADAPTER_IDENTITY_TOKEN or a pipe. See `adapter publisher add`.

    \b
    ADAPTER_TOKEN=$(adapter token exchange --adapter acme/support < identity-token)
    """
    assertion = os.environ.get("ADAPTER_IDENTITY_TOKEN", "").strip() or _ask("Identity token")
    if not assertion:
        raise Invalid("REQUEST_INVALID", "no identity token was given", next_step="set ADAPTER_IDENTITY_TOKEN")
    with session.registry() as registry:
        created = registry.exchange_token(assertion, adapter=adapter)
    output.answer(created, lambda: _print_secret(created))


@token.command("list")
@click.option("--ended", is_flag=True, help="Include revoked and expired tokens.")
@output.json_option
def list_tokens(ended: bool) -> None:
    """List the tokens you may revoke, without their secrets."""
    with session.registry() as registry:
        every = registry.tokens().items
    items = [item for item in every if ended or not _is_over(item)]

    def text() -> None:
        _print_tokens(items)
        if len(items) < len(every):
            output.note(f"left out: {output.plural(len(every) - len(items), 'token')} that ended (--ended shows all)")

    output.answer({"items": items}, text)


def _is_over(item: TokenView) -> bool:
    return item.revoked_at is not None or (item.expires_at is not None and item.expires_at <= datetime.now(UTC))


def _print_tokens(items: list[TokenView]) -> None:
    if not items:
        click.echo("No tokens.")
        return
    rows = [
        (
            item.id,
            output.strong(output.one_line(item.name)),
            output.one_line(item.subject) or "-",
            ",".join(item.scopes),
            ",".join(item.adapters or item.namespaces),
            click.style("revoked", fg="red") if item.revoked_at else output.moment(item.expires_at) or "-",
            output.moment(item.last_used_at) or "-",
        )
        for item in items
    ]
    output.table(("id", "name", "subject", "scopes", "where", "ends", "last used"), rows)


@token.command()
@click.argument("token_id", metavar="ID")
@output.json_option
def revoke(token_id: str) -> None:
    """Revoke a token at once."""
    _refuse_secret(token_id)
    with session.registry() as registry:
        ended = registry.revoke_token(token_id)
    output.answer(ended, lambda: click.echo(f"{ended.id} ({ended.name}) is revoked."))


def _refuse_secret(token_id: str) -> None:
    if token_id.startswith(SECRETS_START):
        raise Invalid(
            "REQUEST_INVALID",
            "this is the secret of a token, not its id; it was not sent",
            next_step="`ADAPTER_TOKEN=SECRET adapter whoami` shows the id of a token, also of a leaked one",
        )
