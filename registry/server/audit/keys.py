"""The key file: the only place where the registry's private keys are stored, outside the database.

    PRIVATE+KEY+registry.example.org/3f9c61d2+1a2b3c4d+AYEK…      the first line signs, older keys below only verify

An older key also vouches for the one above it (`registry.tlog.notes`), so clients follow a rotation.
A file that REGISTRY_AUDIT_KEY names is never created: a wrong path must not lead to a second key.
"""

import contextlib
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from registry.errors import Invalid, Unavailable
from registry.filesystem import replace_file
from registry.server.settings import Settings
from registry.tlog import notes
from registry.tlog.notes import Signer, Verifier

FILE_NAME = "audit.key"
LIMIT_BYTES = 64 * 2**10
NEXT_STEP = (
    "give every server of this registry the key file that it was started with; "
    "if that is lost, run `adapter audit-key replace`"
)
NEXT_STEP_OF_NEW = (
    "start the first server of a new registry without REGISTRY_AUDIT_KEY: it creates audit.key in its data folder. "
    "Then set REGISTRY_AUDIT_KEY to that file or a copy"
)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one registry: the first signs, all of them verify."""

    signers: tuple[Signer, ...]

    @property
    def signer(self) -> Signer:
        """The key that signs now."""
        return self.signers[0]

    @property
    def verifiers(self) -> tuple[Verifier, ...]:
        """The public keys, also of older keys."""
        return tuple(signer.verifier for signer in self.signers)

    @property
    def successions(self) -> list[str]:
        """The notes in which each older key names the one that followed it, newest first."""
        pairs = zip(self.signers[1:], self.signers, strict=False)
        return [notes.endorse(old, new) for old, new in pairs if old.name == new.name]

    def derive_secret(self, purpose: str, key: str) -> str:
        """Derive a secret of 256 bits in hex from a key of the file, the oldest if `key` is empty.

        `key` is a verifier's text, and remembered: a rotation changes no secret, and an older key tells no later one.
        `Invalid` (SETTING_INVALID) if the file does not have it: another one's secret would be another secret.
        """
        signers = [signer for signer in self.signers if key in ("", signer.verifier.text)]
        if not signers:
            raise Invalid("SETTING_INVALID", "the key file has lost the key of its secret: create it again")
        return _derive(signers[-1], purpose)

    def derive_current_secret(self, purpose: str) -> str:
        """Derive a secret of 256 bits in hex from the key that signs now; a rotation replaces it."""
        return _derive(self.signer, purpose)


def _derive(signer: Signer, purpose: str) -> str:
    return hmac.new(signer.seed, purpose.encode(), hashlib.sha256).hexdigest()


def key_path(settings: Settings) -> Path:
    """Return the path of the key file."""
    return Path(settings.audit_key) if settings.audit_key else Path(settings.data) / FILE_NAME


def load_keys(settings: Settings, *, may_create: bool = True) -> Keys:
    """Read the key file, or create the default one. `Invalid` (SETTING_INVALID) if it is absent or malformed.

    `may_create`: nothing is signed yet, so there is no key that could be lost.
    """
    path = key_path(settings)
    if may_create and not settings.audit_key and not path.exists():
        _write(path, (Signer.make(_new_origin(settings)),), keep_existing=True)
    try:
        with path.open() as file:
            text = file.read(LIMIT_BYTES)
    except (OSError, UnicodeDecodeError) as e:
        next_step = NEXT_STEP_OF_NEW if may_create else NEXT_STEP
        raise Invalid("SETTING_INVALID", f"REGISTRY_AUDIT_KEY: {path} cannot be read", next_step=next_step) from e
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise Invalid("SETTING_INVALID", f"REGISTRY_AUDIT_KEY: {path} holds no key")
    return Keys(tuple(Signer.parse(line) for line in lines))


def rotate_key(settings: Settings) -> Signer:
    """Put a new key of the same log on top of the key file, and return it. Servers sign with it once they read it."""
    keys = load_keys(settings, may_create=False)
    if len(keys.signers) >= notes.NOTES_LIMIT:
        raise Invalid("SETTING_INVALID", f"{key_path(settings)} holds {len(keys.signers)} keys, and that is the limit")
    new = Signer.make(keys.signer.name)
    _write(key_path(settings), (new, *keys.signers))
    return new


def replace_key(settings: Settings, origin: str) -> Signer:
    """Write a key file with one new key of this log. A file that is there is kept under another name."""
    path = key_path(settings)
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_name(f"{path.name}.replaced-{secrets.token_hex(4)}"))
    new = Signer.make(origin)
    _write(path, (new,))
    return new


def _write(path: Path, signers: tuple[Signer, ...], *, keep_existing: bool = False) -> None:
    data = "".join(f"{signer.text}\n" for signer in signers).encode()
    try:
        replace_file(path, data, mode=0o600, keep_existing=keep_existing)
    except OSError as e:
        raise Unavailable("STORE_UNAVAILABLE", f"the audit key cannot be written to {path}: {e.strerror}") from e


def _new_origin(settings: Settings) -> str:
    host = urlsplit(settings.public_url).hostname or "registry.local"
    return f"{host}/{secrets.token_hex(4)}"
