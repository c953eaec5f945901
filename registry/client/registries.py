"""Which registry the commands and programs of this machine talk to, and the profile of `adapter login`.

It is the registry of the environment, the one of `adapter login`, or the embedded one.

- ADAPTER_REGISTRY and ADAPTER_TOKEN win over contexts, and those over the last login. Without a URL in any of them, the
  embedded registry is used.
- A token of the profile is used only for its own URL. Only its owner can read the file, and it is replaced as a whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from registry.errors import Invalid, NotFound
from registry.filesystem import replace_file, user_folder

EMBEDDED = "embedded"
"""Value of ADAPTER_REGISTRY, and URL of a context, for the registry in this process."""
EMBEDDED_URL = "http://registry.embedded"
"""Stands for the registry in this process. It is never looked up."""
UNSET = "your data folder, without ADAPTER_REGISTRY and without a login"
"""Source of the registry that is used because none is set."""


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
    def is_set(self) -> bool:
        """Whether somebody chose it."""
        return self.source != UNSET

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


def named(name: str) -> RegistryTarget:
    """The registry that a program names: by its URL, by a context, or as `embedded`. `NotFound` (CONTEXT_UNKNOWN)."""
    if name == EMBEDDED:
        return RegistryTarget(EMBEDDED_URL, "", "the program")
    profile = read_profile()
    if "://" in name:
        url = name.rstrip("/")
        token = os.environ.get("ADAPTER_TOKEN") or profile.tokens.get(url, "")
        return RegistryTarget(url, token, "the program", insecure=url in profile.insecure)
    return _of_context(name, find_context(profile, name), "the program")


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
        return _of_context(name, context, source)
    url = from_environment or profile.url
    if not url:
        return RegistryTarget(EMBEDDED_URL, "", UNSET)
    token = os.environ.get("ADAPTER_TOKEN") or profile.tokens.get(url, "")
    source = "ADAPTER_REGISTRY" if from_environment else str(profile_path())
    return RegistryTarget(url, token, source, insecure=url in profile.insecure)


def _of_context(name: str, context: Context, source: str) -> RegistryTarget:
    token = os.environ.get("ADAPTER_TOKEN") or context.token
    url = EMBEDDED_URL if context.url == EMBEDDED else context.url
    return RegistryTarget(url, token, source, context.insecure, name)
