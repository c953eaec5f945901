"""The key file: the one place where the registry's private keys are, outside the database.

    PRIVATE+KEY+registry.example.org/3f9c61d2+1a2b3c4d+AYEK…      the first line signs
    PRIVATE+KEY+registry.example.org/3f9c61d2+…                   older ones still vouch for what they signed

Invariants
- The file that nobody named (REGISTRY_AUDIT_KEY is empty) is made at the first need, readable by its owner alone.
- A file that somebody named is never made: a wrong path must not become a second key.
- Webhook secrets are derived from the first key; nothing is kept about them.

Example
    >>> keys.load(settings).signer.name
    'registry.local/3f9c61d2'
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from registry.errors import Invalid, Unavailable
from registry.server.settings import Settings
from registry.tlog.notes import Signer, Verifier

FILE = "audit.key"
LIMIT_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one registry: the one that signs, and all that verify."""

    signers: tuple[Signer, ...]

    @property
    def signer(self) -> Signer:
        return self.signers[0]

    @property
    def verifiers(self) -> tuple[Verifier, ...]:
        return tuple(signer.verifier for signer in self.signers)

    def derived(self, purpose: str) -> str:
        """A secret for one purpose: 256 bits in hex, the same as long as the first key is."""
        return hmac.new(self.signer.seed, purpose.encode(), hashlib.sha256).hexdigest()


def path_of(settings: Settings) -> Path:
    return Path(settings.audit_key) if settings.audit_key else Path(settings.data) / FILE


def load(settings: Settings) -> Keys:
    """The keys of the file. `Invalid` (SETTING_INVALID) for a file that is not there or holds something else."""
    path = path_of(settings)
    if not settings.audit_key and not path.exists():
        _make(path, _origin(settings))
    try:
        with path.open() as file:
            text = file.read(LIMIT_BYTES)
    except (OSError, UnicodeDecodeError) as e:
        raise Invalid(
            "SETTING_INVALID",
            f"REGISTRY_AUDIT_KEY: {path} cannot be read",
            next_step="bring back the file that this registry was started with; without it the log cannot go on",
        ) from e
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise Invalid("SETTING_INVALID", f"REGISTRY_AUDIT_KEY: {path} holds no key")
    return Keys(tuple(Signer.parse(line) for line in lines))


def _origin(settings: Settings) -> str:
    host = urlsplit(settings.public_url).hostname or "registry.local"
    return f"{host}/{secrets.token_hex(4)}"


def _make(path: Path, origin: str) -> None:
    """Write a new key whole, and lose the race against another process that did."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(Signer.make(origin).text + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    except OSError as e:
        raise Unavailable("STORE_UNAVAILABLE", f"the audit key cannot be written to {path}: {e.strerror}") from e
