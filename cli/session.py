"""Which registry a command talks to: the environment's, the one you logged in to, or the embedded one.

Invariants
- ADAPTER_REGISTRY and ADAPTER_TOKEN win over the profile file; with neither URL the embedded registry is used.
- A token of the profile is only used for the URL that it was given for.
- The profile file is readable by its owner alone, and replaced as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from registry.client.core import Versions
from registry.client.trusted_checkpoints import TrustedCheckpoints
from registry.durable import replace_file
from registry.errors import Invalid

from . import main

if TYPE_CHECKING:
    from registry.client.registry import Registry

Routes = TypeVar("Routes", bound=Versions)

IN_THE_CLEAR = "the token goes there unencrypted, for everybody on the way to read: use https"
EMBEDDED_URL = "http://registry.embedded"
"""The name that the registry in this process goes by; nothing is ever looked up under it."""


@dataclass(frozen=True, slots=True)
class LoginProfile:
    """What `adapter login` remembers: the registry in use, and a token for each URL."""

    url: str = ""
    tokens: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RegistryTarget:
    """The registry that commands go to. `source` says where the URL comes from, for people."""

    url: str
    token: str
    source: str

    @property
    def embedded(self) -> bool:
        return self.url == EMBEDDED_URL

    @property
    def readable(self) -> bool:
        """Whether the token goes over a network that others may listen to."""
        url = urlsplit(self.url)
        return not self.embedded and url.scheme == "http" and url.hostname not in ("localhost", "127.0.0.1", "::1")


def profile_path() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "adapter-registry" / "profile.json"


def read_profile() -> LoginProfile:
    """The profile, or an empty one. `Invalid` (SETTING_INVALID) for a file that is not a profile."""
    path = profile_path()
    try:
        profile = json.loads(path.read_bytes())
        return LoginProfile(str(profile["url"]), {str(url): str(token) for url, token in profile["tokens"].items()})
    except FileNotFoundError:
        return LoginProfile()
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Invalid(
            "SETTING_INVALID", f"{path} is not a profile: {e}", next_step="delete it and run `adapter login URL`"
        ) from e


def write_profile(profile: LoginProfile) -> Path:
    path = profile_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = json.dumps({"url": profile.url, "tokens": profile.tokens}, indent=2)
    replace_file(path, text.encode(), mode=0o600)
    return path


def replace_token(secret: str) -> str:
    """Remember a new secret for the registry in use, if its old one is remembered; where, or nothing."""
    where = target()
    if where.embedded or os.environ.get("ADAPTER_TOKEN"):
        return ""
    profile = read_profile()
    return str(write_profile(LoginProfile(profile.url, {**profile.tokens, where.url: secret})))


def target() -> RegistryTarget:
    """The registry that the environment, the profile or nothing at all names."""
    from_environment = os.environ.get("ADAPTER_REGISTRY", "").rstrip("/")
    profile = LoginProfile() if from_environment and os.environ.get("ADAPTER_TOKEN") else read_profile()
    url = from_environment or profile.url
    if not url:
        return RegistryTarget(EMBEDDED_URL, "", "no ADAPTER_REGISTRY and no login: the registry in your data folder")
    token = os.environ.get("ADAPTER_TOKEN") or profile.tokens.get(url, "")
    return RegistryTarget(url, token, "ADAPTER_REGISTRY" if from_environment else str(profile_path()))


def registry() -> AbstractContextManager[Registry]:
    """The registry of `target()` with all of its routes, closed at the end."""
    return _opened(main.load("registry.client.registry", "Registry"))


def versions() -> AbstractContextManager[Versions]:
    """The same with the routes that a push and a pull take: it is there sooner, because the others are not loaded."""
    return _opened(Versions)


@contextmanager
def _opened(routes: type[Routes]) -> Iterator[Routes]:
    """The embedded registry runs in this process, without a socket."""
    where = target()
    with embedded(routes) if where.embedded else routes(where.url, where.token) as opened:
        trusted_checkpoints().watch(opened, by_origin=where.embedded)
        yield opened


def trusted_checkpoints() -> TrustedCheckpoints:
    """What this machine remembers of the audit logs of registries, beside the profile."""
    return TrustedCheckpoints(profile_path().parent / "checkpoints")


@contextmanager
def embedded(routes: type[Routes]) -> Iterator[Routes]:
    """The registry in the user's data folder (REGISTRY_DATA). `Invalid` if the server is not installed."""
    try:
        application = main.load(".serve", "embedded", "server", "the embedded registry")
    except main.MissingExtra as e:
        raise Invalid(
            "SETTING_INVALID",
            "no registry is set, and the embedded one needs the extra 'server'",
            next_step="set ADAPTER_REGISTRY, or run `adapter login URL`, or pip install 'adapter-registry[server]'",
        ) from e
    transport = main.load("registry.client.transport.in_process", "InProcess")
    with application() as app, routes(EMBEDDED_URL, transport=transport(app)) as opened:
        yield opened
