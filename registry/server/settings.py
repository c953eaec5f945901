"""One frozen `Settings`, built from the environment in one function; every default is documented here.

Invariants
- Nothing else in the code base reads the environment of the server.
- A setting that cannot be read is `Invalid` (SETTING_INVALID) and names the variable, before anything starts.

Example
    >>> Settings.from_env({"REGISTRY_DATA": "/srv/adapters"}).database_url
    'sqlite:////srv/adapters/registry.db'
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from registry.errors import Invalid


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server is started with. The variable of a field is `REGISTRY_` and its name in upper case."""

    data: str = ""
    """Folder of the embedded registry: SQLite file and blobs. Default: the user's data folder."""
    database_url: str = ""
    """SQLAlchemy URL. Default: `sqlite:///DATA/registry.db`."""
    blobs: str = ""
    """`file:///…` or `s3://bucket/prefix`. Default: `file://DATA/blobs`."""
    s3_endpoint: str = ""
    """URL at which the server reaches the S3 store. Empty: AWS's own."""
    s3_public_endpoint: str = ""
    """URL at which clients reach the same store, put into presigned links. Default: `s3_endpoint`."""
    parts_from_bytes: int = 0
    """From this size on, a blob goes to an S3 store in parts of 32 MiB that a killed client need not send again.
    0: 1 GiB where the store checks the SHA-256 of a single part (`bound_parts`), else 64 MiB."""
    public_url: str = ""
    """URL at which clients reach this server, for absolute links. Empty: links are relative."""
    push_hold_seconds: int = 24 * 3600
    """How long a planned push holds its blobs and its staging keys before it expires."""
    gc_grace_seconds: int = 7 * 24 * 3600
    """How long `adapter gc` keeps a blob that nobody needs, unless it is told otherwise."""
    second_copy: str = ""
    """A store with the same keys (`file:///…` or `s3://…`), from which `adapter fsck --deep` restores damaged blobs."""
    link_seconds: int = 3600
    """How long a presigned link to a blob lasts."""
    engines: str = ""
    """Serving engines, as profiles with spaces between (`vllm==0.33.0,max_lora_rank=32 sglang==0.5.23`), whose verdicts
    `engine` are stored at push and renewed when the rules change."""
    issuers: str = ""
    """A file that names the issuers of identity tokens that may be exchanged; see `access.issuers`."""
    requests_per_minute: int = 0
    """How many requests each token may make in a minute, for each server process. 0: any number."""
    failures_per_minute: int = 10
    """After so many wrong tokens in a minute, an address is told to wait, and whoever tries others that begin like them
    from anywhere. 0: never."""
    stall_seconds: int = 60
    """A request whose body brings less than 1 KiB a second for so long is ended."""
    failpoints: str = ""
    """For tests of crashes only: see `failpoints`."""
    audit_key: str = ""
    """File with the keys that sign the audit log and attestations. Default: `DATA/audit.key`, made when needed."""
    trusted_roots: str = ""
    """Who vouches for certificates of signers: a PEM file, Sigstore's `trusted_root.json`, a folder of such."""
    webhook_private: str = ""
    """Private networks (CIDR, spaces between) to which webhooks may be sent, by http too. Empty: public https only."""
    hub_upstream: str = ""
    """Another Hub (`https://huggingface.co`) that is asked for repositories which are not here. Empty: nobody is."""
    database_pool: int = 8
    """Connections that one process keeps to PostgreSQL."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings from `REGISTRY_*` variables, defaults filled in. `Invalid` names a variable that is wrong."""
        env = os.environ if env is None else env
        given: dict[str, str | int] = {}
        for field in fields(cls):
            variable = f"REGISTRY_{field.name.upper()}"
            text = env.get(variable, "")
            if text:
                given[field.name] = _whole_number(variable, text) if isinstance(field.default, int) else text
        return cls(**given).filled()  # type: ignore[arg-type]

    def filled(self) -> Settings:
        """The same with `data`, `database_url`, `blobs` and `s3_public_endpoint` derived where they are empty."""
        data = Path(self.data).expanduser().absolute() if self.data else user_data()
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given["data"] = str(data)
        given["database_url"] = self.database_url or f"sqlite:///{data / 'registry.db'}"
        given["blobs"] = self.blobs or (data / "blobs").as_uri()
        given["s3_public_endpoint"] = self.s3_public_endpoint or self.s3_endpoint
        return Settings(**given)


def user_data() -> Path:
    """`$XDG_DATA_HOME/adapter-registry`, else `~/.local/share/adapter-registry`."""
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "adapter-registry"


def _whole_number(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise Invalid("SETTING_INVALID", f"{variable}: {text[:40]!r} is not a whole number")
    return int(text)
