"""Which registry a command talks to: that of the environment, the one of `adapter login`, or the embedded one.

- ADAPTER_REGISTRY and ADAPTER_TOKEN win over contexts, and those over the last login. Without a URL in any of them, the
  embedded registry is used.
- A token of the profile is used only for its own URL. Only its owner can read the file, and it is replaced as a whole.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from registry import lazy
from registry.client import response_checks
from registry.client.core import Versions
from registry.client.registry import Registry
from registry.client.trusted_checkpoints import TrustedCheckpoints
from registry.errors import Invalid, LocalFault, NotFound, Unavailable
from registry.filesystem import replace_file, user_folder

from . import output

Routes = TypeVar("Routes", bound=Versions)
Response = TypeVar("Response")

PAGE_LIMIT = 200
UNENCRYPTED = "the token is sent unencrypted, and anyone on the network path can read it: use https"
EMBEDDED = "embedded"
"""Value of ADAPTER_REGISTRY, and URL of a context, for the registry in this process."""
FULL_BYTES = 2**20
"""SQLite cannot work with less free space than this."""
EMBEDDED_URL = "http://registry.embedded"
"""Stands for the registry in this process. It is never looked up."""


@dataclass(frozen=True, slots=True)
class Context:
    """A registry with a token of its own, which a name stands for."""

    url: str
    token: str = field(repr=False)
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class LoginProfile:
    """What `adapter login` remembers: the registry in use, and a token for each URL."""

    url: str = ""
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    insecure: tuple[str, ...] = ()
    """URLs whose tokens may go over plain http, by `adapter login --insecure`."""
    contexts: dict[str, Context] = field(default_factory=dict)
    """Registries by the names that `adapter context add` gave them."""
    context: str = ""
    """The context in use; empty for the registry of the last login."""

    def with_token(self, url: str, token: str, *, insecure: bool) -> LoginProfile:
        """The profile after a login at a URL, which becomes the registry in use."""
        others = tuple(other for other in self.insecure if other != url)
        insecure_urls = (*others, url) if insecure else others
        return replace(self, url=url, tokens={**self.tokens, url: token}, insecure=insecure_urls, context="")

    def without_token(self, url: str) -> LoginProfile:
        """The profile after a logout from a URL, which is not in use any more."""
        tokens = {other: token for other, token in self.tokens.items() if other != url}
        insecure = tuple(other for other in self.insecure if other != url)
        return replace(self, url="" if self.url == url else self.url, tokens=tokens, insecure=insecure)


@dataclass(frozen=True, slots=True)
class RegistryTarget:
    """The registry that commands talk to. `source` says where the URL comes from."""

    url: str
    token: str = field(repr=False)
    source: str
    insecure: bool = False
    context: str = ""

    @property
    def embedded(self) -> bool:
        """Whether it is the registry in the data folder."""
        return self.url == EMBEDDED_URL

    @property
    def unencrypted(self) -> bool:
        """Whether the token goes over a network unencrypted."""
        url = urlsplit(self.url)
        return not self.embedded and url.scheme == "http" and url.hostname not in ("localhost", "127.0.0.1", "::1")


def profile_path() -> Path:
    """Where `adapter login` and `adapter context` store URLs and tokens: ADAPTER_CONFIG, else in the user's folder."""
    path = os.environ.get("ADAPTER_CONFIG", "")
    return Path(path).expanduser() if path else user_folder("config") / "profile.json"


def read_profile() -> LoginProfile:
    """The profile, or an empty one. `Invalid` (SETTING_INVALID) for a file that is not a profile."""
    path = profile_path()
    try:
        profile = json.loads(path.read_bytes())
        tokens = {str(url): str(token) for url, token in profile["tokens"].items()}
        contexts = {
            str(name): Context(str(values["url"]), str(values["token"]), bool(values.get("insecure")))
            for name, values in profile.get("contexts", {}).items()
        }
        insecure = tuple(map(str, profile.get("insecure", ())))
        return LoginProfile(str(profile["url"]), tokens, insecure, contexts, str(profile.get("context", "")))
    except FileNotFoundError:
        return LoginProfile()
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Invalid(
            "SETTING_INVALID", f"{path} is not a profile: {e}", next_step="delete it and run `adapter login URL`"
        ) from e


def write_profile(profile: LoginProfile) -> Path:
    """Store the profile, readable by its owner alone. Returns its path."""
    path = profile_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = json.dumps(asdict(profile), indent=2)
    replace_file(path, text.encode(), mode=0o600)
    return path


def find_context(profile: LoginProfile, name: str) -> Context:
    """The context of this name. `NotFound` (CONTEXT_UNKNOWN) lists those that there are."""
    if name not in profile.contexts:
        raise NotFound(
            "CONTEXT_UNKNOWN",
            f"there is no context {name[:60]!r}; there are: {', '.join(sorted(profile.contexts)) or 'none'}",
            next_step="add one: adapter context add NAME URL",
        )
    return profile.contexts[name]


def replace_token(secret: str) -> str:
    """Save a new secret for the registry in use. Returns the profile's path; empty if the token is not from there."""
    location = target()
    if location.embedded or os.environ.get("ADAPTER_TOKEN"):
        return ""
    profile = read_profile()
    if location.context:
        context = replace(profile.contexts[location.context], token=secret)
        return str(write_profile(replace(profile, contexts={**profile.contexts, location.context: context})))
    return str(write_profile(replace(profile, tokens={**profile.tokens, location.url: secret})))


def target() -> RegistryTarget:
    """The registry of the environment, else of the context, else of the last login, else the embedded one.

    `NotFound` (CONTEXT_UNKNOWN) for an unknown ADAPTER_CONTEXT.
    """
    from_environment = os.environ.get("ADAPTER_REGISTRY", "").rstrip("/")
    if from_environment == EMBEDDED:
        return RegistryTarget(EMBEDDED_URL, "", "ADAPTER_REGISTRY")
    profile = LoginProfile() if from_environment and os.environ.get("ADAPTER_TOKEN") else read_profile()
    name = os.environ.get("ADAPTER_CONTEXT", "") or profile.context
    if name and not from_environment:
        context = find_context(profile, name)
        source = "ADAPTER_CONTEXT" if os.environ.get("ADAPTER_CONTEXT") else f"context {name} in {profile_path()}"
        token = os.environ.get("ADAPTER_TOKEN") or context.token
        context_url = EMBEDDED_URL if context.url == EMBEDDED else context.url
        return RegistryTarget(context_url, token, source, context.insecure, name)
    url = from_environment or profile.url
    if not url:
        return RegistryTarget(EMBEDDED_URL, "", "your data folder, without ADAPTER_REGISTRY and without a login")
    token = os.environ.get("ADAPTER_TOKEN") or profile.tokens.get(url, "")
    source = "ADAPTER_REGISTRY" if from_environment else str(profile_path())
    return RegistryTarget(url, token, source, insecure=url in profile.insecure)


def data_folder() -> Path:
    """Where the embedded registry keeps its database and its bytes, unless the environment names other places."""
    return Path(os.environ.get("REGISTRY_DATA") or user_folder("data")).expanduser()


def about_embedded() -> str:
    """A sentence for whoever finds nothing and may have meant a registry elsewhere; empty if one is set."""
    location = target()
    is_default = location.embedded and not location.context and not os.environ.get("ADAPTER_REGISTRY")
    return "This is the embedded registry, because no other is set. " if is_default else ""


def has_embedded() -> bool:
    """Whether the embedded registry was used before: asking it would create it."""
    return "REGISTRY_DATABASE_URL" in os.environ or (data_folder() / "registry.db").exists()


def registry(*, patient: bool = False) -> AbstractContextManager[Registry]:
    """A client of `target()` with all routes.

    `patient`: of a command that pushes, pulls or waits: each of its requests waits for a registry that restarts.
    """
    return opened(Registry, patient=patient)


def versions(*, patient: bool = False) -> AbstractContextManager[Versions]:
    """A client with only the routes of a push and a pull, which takes less time to import."""
    return opened(Versions, patient=patient)


def print_response(request: Callable[[Registry], Response], text: Callable[[Response], None]) -> None:
    """Print the registry's response to one request, as JSON or by `text`."""
    with registry() as opened:
        value = request(opened)
    output.result(value, lambda: text(value))


def first_items(fetch: Callable[..., Any], limit: int | None) -> tuple[list[Any], int | None]:
    """The first `limit` items of a list, and how many it has; None without a limit, where all are read."""
    items: list[Any] = []
    total, page_limit = None, min(limit or PAGE_LIMIT, PAGE_LIMIT)
    for page in response_checks.all_pages(
        lambda cursor: fetch(cursor=cursor, limit=page_limit, count=True if limit and not cursor else None)
    ):
        items += page.items
        total = page.total if total is None else total
        if limit is not None and len(items) >= limit:
            break
    return items[:limit], total


@contextmanager
def opened(routes: type[Routes], *, patient: bool = False) -> Iterator[Routes]:
    """A client of `target()` with these routes."""
    location = target()
    remote = partial(routes, location.url, location.token, insecure=location.insecure)
    with embedded(routes) if location.embedded else remote() as opened:
        configure(opened)
        opened.connection.patient = patient
        trusted = trusted_checkpoints()
        trusted.watch(opened)
        opened.connection.has_responded = trusted.remembers(opened)
        yield opened


def configure(client: Versions) -> None:
    """Apply --timeout, --quiet and --verbose. Read here, because other threads have no click context."""

    def say(line: str) -> None:
        if sys.stderr.isatty():
            click.echo(output.CLEAR_LINE, nl=False, err=True)  # a progress line, which is drawn again
        output.line(output.faint(line), err=True)

    connection = client.connection
    if seconds := output.setting("timeout"):
        connection.timeout_seconds = float(seconds)
    if output.is_text() and not output.setting("quiet"):
        connection.on_wait = say
    if output.setting("verbose"):
        connection.log_requests(say)


def trusted_checkpoints() -> TrustedCheckpoints:
    """The checkpoints of audit logs that this machine trusts, beside the profile."""
    return TrustedCheckpoints(profile_path().parent / "checkpoints", by_origin=target().embedded)


@contextmanager
def embedded(routes: type[Routes]) -> Iterator[Routes]:
    """A client of the registry in the data folder (REGISTRY_DATA), run in this process without a socket.

    `Invalid` (EXTRA_MISSING): the server is not installed.
    """
    try:
        open_client = lazy.load(f"{__package__}.embedded:open_client", "server", "the embedded registry")
    except Invalid as e:
        e.next_step = f"set ADAPTER_REGISTRY, or run `adapter login URL`, or {e.next_step}"
        raise
    try:
        with open_client(routes, EMBEDDED_URL) as client:
            client.connection.has_own_disk = "REGISTRY_BLOBS" not in os.environ
            yield client
    except Unavailable as e:
        if not _is_own_disk(e):
            raise
        next_step = f"free space on the disk of {data_folder()}, or set REGISTRY_DATA to a folder on another one"
        raise LocalFault("LOCAL_FAULT", f"the embedded registry cannot write: {e.detail}", next_step=next_step) from e


def _is_own_disk(error: Unavailable) -> bool:
    """Whether the embedded registry failed because of the disk of its data folder."""
    if error.code == "STORE_UNAVAILABLE":
        return "REGISTRY_BLOBS" not in os.environ
    return error.code == "DATABASE_UNAVAILABLE" and free_bytes(data_folder()) < FULL_BYTES


def free_bytes(folder: Path) -> int:
    """The free space on the disk of a folder, which may not be there yet."""
    return shutil.disk_usage(next(path for path in [folder, *folder.parents] if path.is_dir())).free
