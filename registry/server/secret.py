"""The secret of a token: how it is made, told from a mistyped one, and hashed.

    secret = "lra_" + 32 base62 characters (190 bits) + 6 base62 characters of CRC-32, which secret scanners check

Invariants
- Only the hash is ever stored. 190 random bits cannot be guessed, so a fast hash is the right one.

Example
    >>> well_formed(new_secret())
    True
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

STARTS = "lra_"
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_GRAMMAR = re.compile(r"lra_[0-9A-Za-z]{38}\Z")

_ANYWHERE = re.compile(r"(lra|whsec)_[0-9A-Za-z+/=]+")


def new_secret() -> str:
    text = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    return f"{STARTS}{text}{_checksum(text)}"


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def well_formed(secret: str) -> bool:
    """Grammar and checksum: a mistyped secret is told apart from a revoked one without asking the database."""
    return bool(_GRAMMAR.match(secret)) and _checksum(secret[4:36]) == secret[36:]


def masked(text: str) -> str:
    """The same text without secrets: somebody may have put one where the id of its token or webhook belongs."""
    return _ANYWHERE.sub(r"\1_…", text)


def sha256_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
