"""`adapter login`, `logout`, `context …` and `whoami`: the registries that this machine talks to, and as whom.

A secret is never an argument, where other users of the machine could see it: it comes from a prompt, a pipe or the
environment.
"""

import os
import platform
import sys
import webbrowser
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlencode

import click

from registry import names
from registry.api.access import TokenView, Whoami
from registry.client import registries
from registry.client.registry import Registry
from registry.errors import Invalid, NotFound, Unauthenticated
from registry.roles import in_words
from registry.token_secret import command_code, new_secret, sha256_of

from .console import output, session, tables
from .console.options import Command, Group
from .console.tables import Column, Table

BROWSER_TRIES = 5


@click.command(cls=Command)
@click.argument("url")
@click.option("--paste", is_flag=True, help="Paste a token, although the registry signs people in by browser.")
@click.option("--insecure", is_flag=True, help="Send the token over plain http to another machine.")
def login(url: str, paste: bool, insecure: bool) -> None:
    """Sign in to the registry at URL: in the browser, if it has an identity provider, else with a token.

    The token is read from ADAPTER_TOKEN, a pipe or a prompt. To undo --insecure, log in again without it.
    """
    with Registry(url) as anonymous:  # a wrong URL ends here, before the prompt
        session.configure(anonymous)
        is_person = sys.stdin.isatty() and not os.environ.get("ADAPTER_TOKEN")
        by_browser = is_person and not paste and bool(anonymous.health().sign_in_with)
        page = f"{anonymous.url}/settings/tokens/own"
    secret = _make_secret_and_open(page) if by_browser else read_secret("ADAPTER_TOKEN", "token")
    who, used_url = _wait_for_browser(url, secret, insecure) if by_browser else _sign_in(url, secret, insecure=insecure)
    path = registries.write_profile(registries.read_profile().with_token(used_url, secret, insecure=insecure))

    def text() -> None:
        output.line(f"You are {output.strong(who.actor)} at {used_url}.")
        output.line(output.faint(f"  {rights_of(who)}; saved in {path}"))
        if registries.RegistryTarget(used_url, secret, "").unencrypted:
            output.note(session.UNENCRYPTED)

    output.result(who, text)


@click.command(cls=Command)
@click.argument("url", default="")
def logout(url: str) -> None:
    """Forget the token of a registry on this machine. Without URL, of the registry of the last login.

    The token stays valid until it is revoked. `adapter context delete` deletes a context.
    """
    profile = registries.read_profile()
    url = url.rstrip("/") or profile.url
    if url not in profile.tokens:
        raise NotFound("CONTEXT_UNKNOWN", f"no token of {url or 'a login'} is saved in {registries.profile_path()}")
    path = registries.write_profile(profile.without_token(url))
    text = f"The token of {url} is deleted from {path}."
    text += f" The context {profile.context} is still used, with its own token." if profile.context else ""
    output.result({"url": url}, lambda: output.line(text))


@click.group(cls=Group)
def context() -> None:
    """Registries by name, each with its own token: add, use, list, delete.

    ADAPTER_CONTEXT chooses one for a single command.
    """


@context.command("add")
@click.argument("name")
@click.argument("url", metavar="URL|embedded")
@click.option("--insecure", is_flag=True, help="Send the token over plain http to another machine.")
def add_context(name: str, url: str, insecure: bool) -> None:
    """Add or replace a context.

    The token is read from ADAPTER_TOKEN, a pipe or a prompt. The URL `embedded` stands for the registry in your data
    folder, which needs no token.
    """
    if url == registries.EMBEDDED:
        secret, who, used_url = "", None, url
    else:
        secret = read_secret("ADAPTER_TOKEN", "token")
        who, used_url = _sign_in(url, secret, insecure=insecure)
    profile = registries.read_profile()
    contexts = {**profile.contexts, names.alias(name): registries.Context(used_url, secret, insecure)}
    path = registries.write_profile(replace(profile, contexts=contexts))
    subject = f"{who.actor} at {used_url}" if who is not None else "the embedded registry"
    document = {"name": name, "url": used_url, "actor": who.actor if who is not None else ""}
    output.result(document, lambda: output.line(f"{output.strong(name)}: {subject}, saved in {path}"))


@context.command("use")
@click.argument("name", default="")
def use_context(name: str) -> None:
    """Use a context from now on. Without NAME, use the registry of the last login."""
    profile = registries.read_profile()
    url = registries.find_context(profile, name).url if name else profile.url
    registries.write_profile(replace(profile, context=name))
    where = "the embedded registry" if url in ("", registries.EMBEDDED) else url
    output.result({"name": name, "url": url}, lambda: output.line(f"Commands talk to {where}."))


CONTEXTS: Table[dict[str, object]] = Table((
    Column("name", lambda item: item["name"], lambda item: output.strong(str(item["name"]))),
    Column("url", lambda item: item["url"]),
    Column("used", lambda item: item["used"], lambda item: "used" if item["used"] else ""),
), empty="No contexts. Add one: adapter context add NAME URL")  # fmt: skip


@context.command("list")
@tables.prints(CONTEXTS)
def list_contexts() -> None:
    """List the contexts, without their tokens."""
    profile = registries.read_profile()
    in_use = os.environ.get("ADAPTER_CONTEXT", "") or profile.context
    CONTEXTS.print({"name": name, "url": c.url, "used": name == in_use} for name, c in sorted(profile.contexts.items()))


@context.command("delete")
@click.argument("name")
def delete_context(name: str) -> None:
    """Delete a context and its token from this machine. The token stays valid until it is revoked."""
    profile = registries.read_profile()
    registries.find_context(profile, name)
    contexts = {other: values for other, values in profile.contexts.items() if other != name}
    context = "" if profile.context == name else profile.context
    registries.write_profile(replace(profile, contexts=contexts, context=context))
    output.result({"name": name}, lambda: output.line(f"The context {name} is deleted."))


def _sign_in(url: str, secret: str, *, insecure: bool) -> tuple[Whoami, str]:
    """Who the token belongs to, and the URL as it is saved."""
    with Registry(url, secret, insecure=insecure) as registry:
        session.configure(registry)
        return registry.whoami(), registry.url


def _make_secret_and_open(page: str) -> str:
    """Make a secret, and open the page on which a person lets it be theirs. The page learns its SHA-256 only."""
    secret = new_secret()
    sha256 = sha256_of(secret)
    address = f"{page}?{urlencode({'sha256': sha256, 'for': f'adapter on {platform.node()}'[:80]})}"
    output.note(f"Sign in on this page, which shows the code {output.strong(command_code(sha256))}:")
    output.note(f"  {address}")
    webbrowser.open(address)
    return secret


def _wait_for_browser(url: str, secret: str, insecure: bool) -> tuple[Whoami, str]:
    """Do what `_sign_in` does, once the person has said that the page is done."""
    for _ in range(BROWSER_TRIES):
        text = "Press Enter when the page says that you are signed in"
        click.prompt(text, default="", show_default=False, prompt_suffix=" … ", err=True)
        with suppress(Unauthenticated):
            return _sign_in(url, secret, insecure=insecure)
        output.note("The page has not signed this command in yet.")
    next_step = f"run `adapter login {url}` again, or with --paste and a token"
    raise Unauthenticated("UNAUTHORIZED", "nobody has signed this command in", next_step=next_step)


def read_secret(variable: str, noun: str) -> str:
    """A secret from this environment variable, a prompt or a pipe. `Invalid` (REQUEST_INVALID) without one."""
    secret = os.environ.get(variable, "").strip()
    if not secret:
        is_person = sys.stdin.isatty()
        secret = str(click.prompt(noun.capitalize(), hide_input=True) if is_person else sys.stdin.readline()).strip()
    if not secret:
        raise Invalid("REQUEST_INVALID", f"no {noun} was given", next_step=f"set {variable} or pipe the {noun}")
    return secret


@click.command(cls=Command)
def whoami() -> None:
    """Show the registry and your identity, scopes and namespaces."""
    target = registries.target()
    session.print_response(lambda registry: registry.whoami(), lambda who: _print_whoami(target, who))


def _print_whoami(target: registries.RegistryTarget, who: Whoami) -> None:
    output.line(output.strong(who.actor) + ("" if target.embedded else f" at {target.url}"))
    expires = f"; until {output.moment(who.expires_at)}" if who.expires_at else ""
    rights = ("at most " if who.subject else "") + rights_of(who) + expires
    roles = ", ".join(f"{in_words(roles)} in {namespace}" for namespace, roles in who.roles.items()) or "none"
    subject = [("subject", f"{who.subject}; roles: {roles}")] if who.subject else []
    token = [("token", who.token_id)] if who.token_id else []
    output.facts([
        ("rights", rights), *subject, ("groups", ", ".join(who.groups)), *token, ("set by", target.source)
    ])  # fmt: skip


def rights_of(token: TokenView | Whoami) -> str:
    """What a token may do, and where."""
    limits = ", ".join(token.adapters) or ("all namespaces" if "*" in token.namespaces else ", ".join(token.namespaces))
    return f"{', '.join(token.scopes)} in {limits}" + (f", moves {', '.join(token.aliases)}" if token.aliases else "")
