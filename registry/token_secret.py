"""Secrets of tokens: create, check the form, hash.

    secret = "lra_" + 32 base62 characters (190 random bits) + 6 base62 characters of CRC-32, for secret scanners

Only the hash is stored. 190 random bits cannot be guessed, so a fast hash is the right one.
"""

import hashlib
import re
import secrets
import string
import zlib

PREFIX = "lra_"
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET = re.compile(r"lra_[0-9A-Za-z]{38}\Z")
_ANY_SECRET = re.compile(r"(lra|whsec)_[0-9A-Za-z+/=]+")


def new_secret() -> str:
    """Create a random secret."""
    text = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    return f"{PREFIX}{text}{_checksum(text)}"


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def is_well_formed(secret: str) -> bool:
    """Whether form and checksum are right. A mistyped secret is found without a database query.

    >>> is_well_formed(new_secret())
    True
    """
    return bool(_SECRET.match(secret)) and _checksum(secret[4:36]) == secret[36:]


def mask_secrets(text: str) -> str:
    """Replace each secret in a text, such as one that was used by mistake as the id of its token or webhook.

    >>> mask_secrets("/tokens/lra_secret")
    '/tokens/lra_…'
    """
    return _ANY_SECRET.sub(r"\1_…", text)


def sha256_of(secret: str) -> str:
    """Return the SHA-256 of a secret in hex."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def command_code(sha256: str) -> str:
    """What a command and the page that signs it in both show, for the person to compare.

    >>> command_code("9f3a77c1" + "0" * 56)
    '9F3A-77C1'
    """
    return f"{sha256[:4]}-{sha256[4:8]}".upper()
