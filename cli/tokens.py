"""`adapter login`, `logout`, `context …`, `whoami` and `token …`.

A secret is never an argument, where other users of the machine could see it: it comes from a prompt, a pipe or the
environment. A new secret is printed once.
"""

import hashlib
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime

import click

from registry import names
from registry.api.access import TokenCreate, TokenCreated, TokenView, Whoami
from registry.client.registry import Registry
from registry.errors import Invalid, NotFound
from registry.roles import Scope

from . import main
from .console import output, session, tables
from .console.tables import Column, Table

DAY_SECONDS = 86400
SECRET_PREFIX = "lra_"  # noqa: S105 - no secret


@click.command()
@click.argument("url")
@click.option("--insecure", is_flag=True, help="Send the token over plain http to another machine.")
def login(url: str, insecure: bool) -> None:
    """Remember the registry at URL and your token, read from ADAPTER_TOKEN, a pipe or a prompt.

    To undo --insecure, log in again without it.
    """
    Registry(url).close()  # a wrong URL ends here, before the prompt
    secret = os.environ.get("ADAPTER_TOKEN", "").strip() or _read_secret()
    if not secret:
        raise Invalid("REQUEST_INVALID", "no token was given", next_step="set ADAPTER_TOKEN or pipe the token")
    who, used_url = _sign_in(url, secret, insecure=insecure)
    path = session.write_profile(session.read_profile().with_token(used_url, secret, insecure=insecure))

    def text() -> None:
        output.line(f"You are {output.strong(who.actor)} at {used_url}.")
        output.line(output.faint(f"  {_rights(who.scopes, who.namespaces, who.adapters)}; saved in {path}"))
        if session.RegistryTarget(used_url, secret, "").unencrypted:
            output.note(session.UNENCRYPTED)

    output.answer(who, text)


@click.command()
@click.argument("url", default="")
def logout(url: str) -> None:
    """Forget the token of a registry on this machine. Without URL, of the registry of the last login.

    The token stays valid until it is revoked. Contexts are removed with `adapter context remove`.
    """
    profile = session.read_profile()
    url = url.rstrip("/") or profile.url
    if url not in profile.tokens:
        raise NotFound("CONTEXT_UNKNOWN", f"no token of {url or 'a login'} is saved in {session.profile_path()}")
    path = session.write_profile(profile.without_token(url))
    output.answer({"url": url}, lambda: output.line(f"The token of {url} is removed from {path}."))


# ------------------------------------------------------------------ contexts
@click.group()
def context() -> None:
    """Registries by name, each with its own token: add, use, list, remove.

    ADAPTER_CONTEXT chooses one for a single command.
    """


@context.command("add")
@click.argument("name")
@click.argument("url")
@click.option("--insecure", is_flag=True, help="Send the token over plain http to another machine.")
def add_context(name: str, url: str, insecure: bool) -> None:
    """Add or replace a context.

    The token is read from ADAPTER_TOKEN, a pipe or a prompt.
    """
    secret = os.environ.get("ADAPTER_TOKEN", "").strip() or _read_secret()
    if not secret:
        raise Invalid("REQUEST_INVALID", "no token was given", next_step="set ADAPTER_TOKEN or pipe the token")
    who, used_url = _sign_in(url, secret, insecure=insecure)
    profile = session.read_profile()
    contexts = {**profile.contexts, names.alias(name): session.Context(used_url, secret, insecure)}
    path = session.write_profile(replace(profile, contexts=contexts))
    document = {"name": name, "url": used_url, "actor": who.actor}
    output.answer(document, lambda: output.line(f"{output.strong(name)}: {who.actor} at {used_url}, saved in {path}"))


@context.command("use")
@click.argument("name", default="")
def use_context(name: str) -> None:
    """Use a context from now on. Without NAME, use the registry of the last login."""
    profile = session.read_profile()
    url = session.find_context(profile, name).url if name else profile.url
    session.write_profile(replace(profile, context=name))
    output.answer(
        {"name": name, "url": url}, lambda: output.line(f"Commands talk to {url or 'the embedded registry'}.")
    )


CONTEXTS: Table[dict[str, object]] = Table((
    Column("name", lambda item: item["name"], lambda item: output.strong(str(item["name"]))),
    Column("url", lambda item: item["url"]),
    Column("used", lambda item: item["used"], lambda item: "used" if item["used"] else ""),
), empty="No contexts. Add one: adapter context add NAME URL")  # fmt: skip


@context.command("list")
@tables.prints(CONTEXTS)
def list_contexts() -> None:
    """List the contexts, without their tokens."""
    profile = session.read_profile()
    used = os.environ.get("ADAPTER_CONTEXT", "") or profile.context
    CONTEXTS.print({"name": name, "url": c.url, "used": name == used} for name, c in sorted(profile.contexts.items()))


@context.command("remove")
@click.argument("name")
def remove_context(name: str) -> None:
    """Remove a context and its token from this machine. The token stays valid until it is revoked."""
    profile = session.read_profile()
    session.find_context(profile, name)
    contexts = {other: values for other, values in profile.contexts.items() if other != name}
    used = "" if profile.context == name else profile.context
    session.write_profile(replace(profile, contexts=contexts, context=used))
    output.answer({"name": name}, lambda: output.line(f"The context {name} is removed."))


def _sign_in(url: str, secret: str, *, insecure: bool) -> tuple[Whoami, str]:
    """Who the token belongs to, and the URL as it is saved."""
    with Registry(url, secret, insecure=insecure) as registry:
        session.configure(registry)
        return registry.whoami(), registry.url


def _read_secret(label: str = "Token") -> str:
    if sys.stdin.isatty():
        secret: str = click.prompt(label, hide_input=True)
        return secret.strip()
    return sys.stdin.readline().strip()


@click.command()
def whoami() -> None:
    """Show the registry and your identity, scopes and namespaces."""
    used = session.target()
    session.answer(lambda registry: registry.whoami(), lambda who: _print_whoami(used, who))


def _print_whoami(used: session.RegistryTarget, who: Whoami) -> None:
    output.line(output.strong(who.actor) + ("" if used.embedded else f" at {used.url}"))
    expires = f"; until {output.moment(who.expires_at)}" if who.expires_at else ""
    rights = _rights(who.scopes, who.namespaces, who.adapters) + expires
    roles = ", ".join(f"{role} in {namespace}" for namespace, role in who.roles.items()) or "none"
    subject = [("subject", f"{who.subject}; roles: {roles}")] if who.subject else []
    token = [("token", who.token_id)] if who.token_id else []
    output.facts([("rights", rights), *subject, *token, ("set by", used.source)])


def _rights(scopes: list[str], namespaces: list[str], adapters: list[str]) -> str:
    limits = ", ".join(adapters) or ("all namespaces" if "*" in namespaces else ", ".join(namespaces))
    return f"{', '.join(scopes)} in {limits}"


# ------------------------------------------------------------------ tokens
@click.group()
def token() -> None:
    """Tokens: create, rotate, exchange, list, revoke, generate."""


@token.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice([scope.value for scope in Scope]),
              help="Scope (repeatable).")  # fmt: skip
@click.option("--namespace", "namespaces", multiple=True, default=("*",), help="Where it is valid (repeatable).")
@click.option("--subject", default="", help="Subject whose roles limit the token, such as alice@example.org.")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME", help="Only this adapter (repeatable).")
@click.option("--days", type=click.FloatRange(0, 366, min_open=True), help="Lifetime in days. Default: unlimited.")
def create(
    name: str, scopes: tuple[str, ...], namespaces: tuple[str, ...], subject: str, adapters: tuple[str, ...],
    days: float | None,
) -> None:  # fmt: skip
    """Create a token. Its secret is shown only now."""
    seconds = max(1, round(days * DAY_SECONDS)) if days else None
    request = TokenCreate(
        name=name, scopes=list(scopes), namespaces=list(namespaces), expires_in_seconds=seconds, subject=subject,
        adapters=list(adapters),
    )  # fmt: skip
    session.answer(lambda registry: registry.create_token(request), _print_secret)


def _print_secret(created: TokenCreated) -> None:
    output.line(created.secret)
    rights = _rights(created.token.scopes, created.token.namespaces, created.token.adapters)
    until = f", until {output.moment(created.token.expires_at)}" if created.token.expires_at else ""
    output.note(f"token {created.token.id} for {created.token.subject or created.token.name}: {rights}{until}")
    output.note("the secret is shown only now")


@token.command()
def generate() -> None:
    """Print a random secret and its SHA-256, offline.

    The SHA-256 is for REGISTRY_ADMIN_TOKEN_SHA256. Nothing is stored.
    """
    secret = main.load("registry.server.secret", "new_secret", "server", "adapter token generate")()
    sha256 = hashlib.sha256(secret.encode()).hexdigest()
    output.answer({"secret": secret, "sha256": sha256}, lambda: output.facts([("secret", secret), ("sha256", sha256)]))


@token.command()
@click.argument("token_id", metavar="ID", default="")
@click.option("--keep-minutes", type=click.IntRange(0, 1440), default=0, help="Minutes the old secret stays valid.")
def rotate(token_id: str, keep_minutes: int) -> None:
    """Replace the secret of a token; without ID, of your own.

    The new secret is saved if the old one was.
    """
    _refuse_secret(token_id)
    with session.registry() as registry:
        mine = registry.whoami().token_id
        created = registry.rotate_token(token_id or mine, keep_seconds=keep_minutes * 60)
    saved_in = session.replace_token(created.secret) if created.token.id == mine else ""

    def text() -> None:
        if saved_in:
            output.line(f"{created.token.id} ({created.token.name}) has a new secret, saved in {saved_in}.")
        else:
            _print_secret(created)

    output.answer(created, text)


@token.command()
@click.option("--adapter", default="", metavar="NAME", help="Adapter to push; required for a CI job.")
def exchange(adapter: str) -> None:
    """Exchange an identity token for a registry token.

    A CI job or an identity provider issued the identity token; it is read from ADAPTER_IDENTITY_TOKEN or a pipe. The
    registry token expires within minutes. See `adapter publisher add`.
    """
    assertion = os.environ.get("ADAPTER_IDENTITY_TOKEN", "").strip() or _read_secret("Identity token")
    if not assertion:
        raise Invalid("REQUEST_INVALID", "no identity token was given", next_step="set ADAPTER_IDENTITY_TOKEN")
    session.answer(lambda registry: registry.exchange_token(assertion, adapter=adapter), _print_secret)


def _end_of(item: TokenView) -> str:
    return output.styled("revoked", "red") if item.revoked_at else output.relative(item.expires_at)


TOKENS: Table[TokenView] = Table((
    Column("id", lambda item: item.id),
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
    """List the tokens you may revoke, and when each was last used."""
    with session.registry() as registry:
        tokens = [item for item in registry.tokens().items if not (service_accounts and item.subject)]
    items = [item for item in tokens if ended or not _has_ended(item)]
    TOKENS.print(items)
    if len(items) < len(tokens):
        output.note(f"not shown: {output.plural(len(tokens) - len(items), 'ended token')} (--ended shows all)")


def _has_ended(item: TokenView) -> bool:
    return item.revoked_at is not None or (item.expires_at is not None and item.expires_at <= datetime.now(UTC))


@token.command()
@click.argument("token_id", metavar="ID")
def revoke(token_id: str) -> None:
    """Revoke a token at once."""
    _refuse_secret(token_id)
    session.answer(
        lambda registry: registry.revoke_token(token_id),
        lambda revoked: output.line(f"{revoked.id} ({revoked.name}) is revoked."),
    )


def _refuse_secret(token_id: str) -> None:
    if token_id.startswith(SECRET_PREFIX):
        raise Invalid(
            "REQUEST_INVALID",
            "this is a token's secret, not its id; it was not sent",
            next_step="`ADAPTER_TOKEN=SECRET adapter whoami` shows the id of a token, even of a leaked one",
        )
