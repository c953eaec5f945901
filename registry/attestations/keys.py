"""Keys that sign versions: Ed25519 and the elliptic curves that OpenSSF model signing uses, from PEM or OpenSSH files.

A key's identity is `key:` and the SHA-256 of its public key in DER, the same for every file format. The curve decides
the hash (ECDSA: SHA-256, -384, -512); no bundle chooses one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from registry.errors import Invalid

KEY_LIMIT_BYTES = 16 * 2**10
_HASHES: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
_Public = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
_Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    key: _Public

    @classmethod
    def parse(cls, data: bytes) -> PublicKey:
        """From PEM or a line of OpenSSH. `Invalid` (SIGNATURE_INVALID) for another kind of key."""
        if len(data) > KEY_LIMIT_BYTES:
            raise Invalid("SIGNATURE_INVALID", f"the public key is over {KEY_LIMIT_BYTES} bytes")
        try:
            ssh = data.lstrip().startswith((b"ssh-", b"ecdsa-"))
            key = (serialization.load_ssh_public_key if ssh else serialization.load_pem_public_key)(data)
        except (ValueError, UnsupportedAlgorithm) as e:
            raise Invalid("SIGNATURE_INVALID", "the public key is neither PEM nor an OpenSSH line") from e
        if not _is_known(key):
            raise _unknown()
        return cls(key)  # type: ignore[arg-type]

    @property
    def identity(self) -> str:
        """`key:` and the SHA-256 of the key in DER."""
        der = self.key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return f"key:{hashlib.sha256(der).hexdigest()}"

    @property
    def pem(self) -> str:
        """The key as PEM, SubjectPublicKeyInfo."""
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return self.key.public_bytes(encoding, form).decode()

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether this key made the signature of the message."""
        try:
            if isinstance(self.key, ed25519.Ed25519PublicKey):
                self.key.verify(signature, message)
            else:
                self.key.verify(signature, message, ec.ECDSA(_HASHES[self.key.curve.key_size]))
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class PrivateKey:
    key: _Private = field(repr=False)

    @classmethod
    def parse(cls, data: bytes, password: bytes | None = None) -> PrivateKey:
        """From PEM or OpenSSH. `Invalid` (SIGNATURE_INVALID), without a word of what is in it."""
        ssh = b"OPENSSH PRIVATE KEY" in data[:200]
        try:
            key = (serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key)(data, password)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise Invalid(
                "SIGNATURE_INVALID",
                "the private key cannot be read: not PEM or OpenSSH, or it needs a password",
                next_step="set ADAPTER_SIGN_PASSWORD if it has one",
            ) from None
        if not _is_known(key):
            raise _unknown()
        return cls(key)  # type: ignore[arg-type]

    @classmethod
    def of_seed(cls, seed: bytes) -> PrivateKey:
        """An Ed25519 key from the 32 bytes of its seed."""
        return cls(ed25519.Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.key.public_key())

    def sign(self, message: bytes) -> bytes:
        """The signature of a message."""
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(message)
        return self.key.sign(message, ec.ECDSA(_HASHES[self.key.curve.key_size]))


def of_raw(public: bytes) -> PublicKey:
    """An Ed25519 key from its 32 bytes, as verifier keys of the log have it."""
    return PublicKey(ed25519.Ed25519PublicKey.from_public_bytes(public))


def _is_known(key: object) -> bool:
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return True
    return isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) and key.curve.key_size in _HASHES


def _unknown() -> Invalid:
    return Invalid("SIGNATURE_INVALID", "the key is neither Ed25519 nor ECDSA on P-256, P-384 or P-521")
