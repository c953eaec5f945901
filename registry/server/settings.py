"""`Settings`: built from the environment and a file in one function. Nothing else reads the server's environment."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from registry.errors import Invalid
from registry.filesystem import user_folder

PREFIX = "REGISTRY_"
_KUBERNETES = re.compile(r"REGISTRY_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)?)")
"""Variables that Kubernetes sets in every pod beside a service called `registry`."""


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """What a server is started with. The variable of a field is `REGISTRY_` and its name in upper case."""

    data: str = ""
    """Data folder: SQLite file and blobs. Default: `adapter-registry` in the user's data folder."""
    database_url: str = ""
    """SQLAlchemy URL: `sqlite:///…` for one server process, `postgresql+psycopg://…` for any number.
    Default: `registry.db` in the data folder."""
    blobs: str = ""
    """Blob store: `file:///…` or `s3://bucket/prefix`. Default: `blobs` in the data folder."""
    s3_endpoint: str = ""
    """URL at which the server reaches the S3 store. Default: AWS."""
    s3_public_endpoint: str = ""
    """URL at which clients reach the same store; used in presigned links. Default: `REGISTRY_S3_ENDPOINT`."""
    parts_from_bytes: int = 0
    """Size from which blobs are uploaded to an S3 store in resumable parts of 16 MiB; 0: 1 GiB."""
    public_url: str = ""
    """URL at which clients reach this server, for absolute links. Default: links are relative."""
    push_hold_seconds: int = 24 * 3600
    """Seconds after which an unfinished push expires."""
    draft_seconds: int = 7 * 24 * 3600
    """Seconds after its last commit at which a draft of a Hub client ends (`adapter gc` deletes it); at least
    `REGISTRY_PUSH_HOLD_SECONDS`, since a draft's files are those of an open push."""
    gc_grace_seconds: int = 7 * 24 * 3600
    """Seconds for which `adapter gc` keeps unreferenced blobs."""
    delete_grace_seconds: int = 30 * 24 * 3600
    """Seconds for which a deleted version can be restored. Then `adapter gc` erases its files."""
    second_copy: str = ""
    """Replica of the blob store (`file:///…` or `s3://…`) from which `adapter fsck --deep` restores damaged blobs."""
    link_seconds: int = 3600
    """Lifetime of presigned links in seconds. Links to a folder live 900 seconds at most."""
    engines: str = ""
    """Engine profiles, separated by spaces, whose verdicts are stored at push and renewed when rules change:
    `vllm==0.33.0,max_lora_rank=32 sglang==0.5.23`."""
    issuers: str = ""
    """TOML file of the issuers whose identity tokens can be exchanged."""
    requests_per_minute: int = 0
    """Requests per minute and token, for each server process. 0: unlimited."""
    failures_per_minute: int = 10
    """Invalid secrets per minute, for each server process, after which a network, or a series of secrets with the
    same first letters, is rate-limited. Valid tokens are never affected. 0: never."""
    streams_per_token: int = 64
    """Event streams and waiting event requests of one token, for each server process. 0: unlimited."""
    waits_per_token: int = 1000
    """Serving nodes of one token that wait for a change, for each server process. 0: unlimited."""
    trusted_proxies: str = ""
    """Networks (CIDR, separated by spaces) of proxies that are believed about a client: its address and whether it uses
    https (X-Forwarded-For, X-Forwarded-Proto). Default: none, and all clients of a proxy count as one network."""
    stall_seconds: int = 60
    """Seconds after which a request body that brings less than 16 KiB per second is aborted."""
    failpoints: str = ""
    """For crash tests only: points in the code at which the server dies, fails or waits."""
    admin_token_sha256: str = ""
    """SHA-256 in hex of the first administrator's token, which is created at the first start. `adapter token generate`
    prints a token with its hash. Default: `adapter serve` creates a token and prints it."""
    audit_key: str = ""
    """File with the keys that sign the audit log and attestations; the same for all servers of a registry.
    It must exist. Default: `audit.key` in the data folder, created when first needed."""
    trusted_roots: str = ""
    """Trusted roots of signers' certificates: a PEM file, Sigstore's `trusted_root.json`, or a folder of them."""
    webhook_private: str = ""
    """Private networks (CIDR, separated by spaces) that webhooks may call, also by http. Default: public https only."""
    pages: str = "on"
    """Web pages: `on`; `private`, which shows nothing before sign-in, not even public namespaces; or `off`."""
    log: str = "text"
    """Log lines on standard error, one for each request: `text` or `json`."""
    log_level: str = "info"
    """Lowest level that is logged: `debug`, `info`, `warning`, which leaves out completed requests, or `error`."""
    database_pool: int = 8
    """PostgreSQL connections per server process."""

    config: str = ""
    """TOML file of these settings, named without `REGISTRY_` in lower case (`database_url = "…"`). Variables win."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings from variables and the file, defaults filled in. `Invalid` names one that is wrong or unknown."""
        values: dict[str, str | int] = {}
        sources = read_sources(env)
        for field in fields(cls):
            if (source := sources.get(field.name)) is not None:
                is_number = isinstance(field.default, int)
                values[field.name] = _whole_number(source.origin, source.text) if is_number else source.text
                if field.name in URLS:
                    _check_url(source)
                if field.name in NETWORKS:
                    _check_networks(source)
                if source.text not in (choices := CHOICES.get(field.name, (source.text,))):
                    problem = f"{source.origin}: {source.text[:40]!r} is not one of {', '.join(choices)}"
                    raise Invalid("SETTING_INVALID", problem)
        settings = cls(**values).with_defaults()  # type: ignore[arg-type]
        if "draft_seconds" in sources and settings.draft_seconds < settings.push_hold_seconds:
            problem = f"{sources['draft_seconds'].origin}: {settings.draft_seconds} is below push_hold_seconds"
            raise Invalid("SETTING_INVALID", f"{problem} ({settings.push_hold_seconds})", next_step="lower that, too")
        return settings

    def with_defaults(self) -> Settings:
        """The same with `data`, `database_url`, `blobs` and `s3_public_endpoint` derived where they are empty."""
        data = Path(self.data).expanduser().absolute() if self.data else user_folder("data")
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["data"] = str(data)
        values["database_url"] = self.database_url or f"sqlite:///{data / 'registry.db'}"
        values["blobs"] = self.blobs or (data / "blobs").as_uri()
        values["s3_public_endpoint"] = self.s3_public_endpoint or self.s3_endpoint
        return Settings(**values)

    def __repr__(self) -> str:
        values = (f"{field.name}={hide_secrets(str(getattr(self, field.name)))!r}" for field in fields(self))
        return f"Settings({', '.join(values)})"


FILE_ENDING = "_file"
URLS = ("blobs", "public_url", "s3_endpoint", "s3_public_endpoint", "second_copy")
NETWORKS = ("trusted_proxies", "webhook_private")
CHOICES = {
    "pages": ("on", "private", "off"), "log": ("text", "json"), "log_level": ("debug", "info", "warning", "error"),
}  # fmt: skip
SECRETS = ("database_url",)
"""Settings that may hold a password. Each can be in a file of its own, which `REGISTRY_…_FILE` or `…_file` names."""


_FIELDS = tuple(field.name for field in fields(Settings))


def hide_secrets(text: str) -> str:
    """Return the text of a setting for people: without passwords and queries of URLs.

    >>> hide_secrets("postgresql://app:a@db/registry?sslpassword=b")
    'postgresql://app:…@db/registry?…'
    >>> hide_secrets("postgresql://app:a?b@db/registry")
    'postgresql://app:…@…'
    """
    if re.search(r"\?.*@", text, re.DOTALL):  # where the password ends is not certain
        text = f"{text.partition('?')[0]}@…"
    without_password = re.sub(r"((?:^|[:/])[^:/?#@\s]*):(?!//).*@", r"\1:…@", text, flags=re.DOTALL)
    without_query = re.sub(r"(://[^?\s]*)\?.+", r"\1?…", without_password, flags=re.DOTALL)
    return re.sub(r"(password\s*=).*", r"\1…", without_query, flags=re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SettingSource:
    """The text of a setting, and where it comes from: a variable, or a file and its key."""

    text: str
    origin: str


def read_sources(env: Mapping[str, str] | None = None) -> dict[str, SettingSource]:
    """Field → its source, of the settings that are set. `Invalid` (SETTING_INVALID) names one that is wrong or unknown.

    A variable wins over the file of `REGISTRY_CONFIG`.
    """
    variables = {
        name.removeprefix(PREFIX).lower(): SettingSource(text, name)
        for name, text in (os.environ if env is None else env).items()
        if name.startswith(PREFIX) and not _KUBERNETES.fullmatch(name)
    }
    path = variables["config"].text if "config" in variables else ""
    sources: dict[str, SettingSource] = {}
    for source_by_name in (_read_file(Path(path)) if path else {}, variables):
        for name, source in source_by_name.items():
            field = name.removesuffix(FILE_ENDING)
            if name in _FIELDS:
                sources |= {name: source} if source.text else {}
            elif name.endswith(FILE_ENDING) and field in SECRETS:
                sources[field] = SettingSource(_text_of(Path(source.text), source.origin).strip(), source.origin)
            else:
                _refuse_unknown(name, source.origin)
    return sources


def _read_file(path: Path) -> dict[str, SettingSource]:
    try:
        values = tomllib.loads(_text_of(path, "REGISTRY_CONFIG"))
    except tomllib.TOMLDecodeError as e:
        raise Invalid("SETTING_INVALID", f"{path} is not TOML: {e}") from e
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise Invalid("SETTING_INVALID", f"{path}: {name} is neither a text nor a whole number")
    return {name: SettingSource(str(value), f"{path}: {name}") for name, value in values.items()}


def _text_of(path: Path, origin: str) -> str:
    try:
        return path.expanduser().read_text("utf-8")
    except (OSError, ValueError) as e:
        raise Invalid("SETTING_INVALID", f"{origin}: {path} cannot be read: {e}") from e


def _refuse_unknown(name: str, origin: str) -> None:
    """`Invalid` (SETTING_INVALID) for a setting that does not exist: a mistyped one would be ignored in silence."""
    is_variable = origin.startswith(PREFIX)
    nearest = difflib.get_close_matches(name, _FIELDS, n=1)
    suggestion = f"{PREFIX}{nearest[0].upper()}" if nearest and is_variable else "".join(nearest)
    step = f"the nearest setting is {suggestion}" if nearest else "docs/reference/settings.md lists the settings"
    raise Invalid("SETTING_INVALID", f"{origin} is not a setting", next_step=f"remove or rename it: {step}")


def _check_url(source: SettingSource) -> None:
    """Raise `Invalid` (SETTING_INVALID) without a quote: keys in a URL may look like a port, a path or a fragment."""
    try:
        parts = urlsplit(source.text)
        _ = parts.port
    except ValueError:
        raise Invalid("SETTING_INVALID", f"{source.origin} is not a URL: its host or its port is malformed") from None
    # It would be in links, messages and logs. A secret with a slash stands behind the host; a folder may hold an @.
    if parts.username is not None or (parts.scheme != "file" and "@" in source.text):
        problem = f"{source.origin} holds a user name or a password"
        raise Invalid("SETTING_INVALID", problem, next_step="set the keys of a store by AWS_… variables")


def _check_networks(source: SettingSource) -> None:
    for network in source.text.split():
        try:
            ipaddress.ip_network(network)
        except ValueError as e:
            raise Invalid("SETTING_INVALID", f"{source.origin}: {e}", next_step="such as 10.1.0.0/16") from e


def _whole_number(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise Invalid("SETTING_INVALID", f"{variable}: {text[:40]!r} is not a whole number")
    return int(text)
