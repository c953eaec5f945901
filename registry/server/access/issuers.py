"""Issuers: whose identity tokens we take, with which keys, and what an identity token says once it is believed.

    [[issuer]]
    issuer = "https://token.actions.githubusercontent.com"
    audience = "https://registry.example.org"
    jwks_url = "https://token.actions.githubusercontent.com/.well-known/jwks"    # or jwks_file = "keys.json"
    algorithms = ["RS256"]
    login_claim = "email"                                                         # only to sign people in by it

Invariants
- Issuers and their keys are what the operator's file (REGISTRY_ISSUERS) says; a token never says where keys are.
- Only signatures of public keys, by the algorithms listed, are believed: never `none`, never a shared secret.
- Issuer, audience, expiry, issue time and `jti` must be there and right; clocks may differ by `LEEWAY_SECONDS`.

Example
    >>> Issuers.read("/etc/adapter-registry/issuers.toml").believe(assertion).claims["repository"]
    'acme/train'
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt

from registry.errors import Invalid, Unauthenticated, Unavailable

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_SECONDS = 30
LIFETIME_LIMIT_SECONDS = 24 * 3600
REQUIRED = ("iss", "aud", "exp", "iat", "sub", "jti")
KEYS_KEPT_SECONDS = 600
FETCH_SECONDS = 10
JTI_LIMIT = 300
_FIELDS = {"issuer", "audience", "jwks_url", "jwks_file", "algorithms", "login_claim"}


@dataclass(frozen=True, slots=True)
class Believed:
    """An identity token whose signature and times are right."""

    issuer: str
    claims: Mapping[str, Any]
    jti: str
    expires_at: datetime
    login: str
    """The value of the issuer's `login_claim`, to sign a person in; empty where that is not configured."""


class Issuer:
    """One issuer: its keys, read from a file or fetched from the one URL that the operator named."""

    def __init__(self, told: Mapping[str, Any], folder: Path) -> None:
        unknown = sorted(set(told) - _FIELDS)
        if unknown or not all(isinstance(told.get(key), str) and told[key] for key in ("issuer", "audience")):
            raise _wrong(f"an issuer has 'issuer', 'audience' and keys; {', '.join(unknown) or 'one of them'} is wrong")
        self.name: str = told["issuer"]
        self.audience: str = told["audience"]
        self.login_claim = str(told.get("login_claim", ""))
        self.algorithms = list(told.get("algorithms", ["RS256", "ES256"]))
        if not self.algorithms or not set(self.algorithms) <= set(ALGORITHMS):
            raise _wrong(f"{self.name}: algorithms are some of {', '.join(ALGORITHMS)}")
        self._file = folder / told["jwks_file"] if told.get("jwks_file") else None
        url = str(told.get("jwks_url", ""))
        if (self._file is None) == (not url):
            raise _wrong(f"{self.name}: exactly one of jwks_url and jwks_file")
        if url and not url.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
            raise _wrong(f"{self.name}: jwks_url must begin with https://")
        self._client = jwt.PyJWKClient(url, lifespan=KEYS_KEPT_SECONDS, timeout=FETCH_SECONDS) if url else None

    def key(self, assertion: str) -> Any:
        """The public key that the token names by its `kid`. `Unavailable` when the keys cannot be fetched."""
        try:
            if self._client is not None:
                return self._client.get_signing_key_from_jwt(assertion).key
            kid = jwt.get_unverified_header(assertion).get("kid")
            keys = jwt.PyJWKSet.from_dict(json.loads((self._file or Path()).read_bytes())).keys
            return next(key.key for key in keys if key.key_id == kid)
        except (jwt.PyJWKClientConnectionError, OSError) as e:
            raise Unavailable("TRY_LATER", f"the keys of {self.name} cannot be read now", retry_after_seconds=5) from e
        except (jwt.PyJWTError, ValueError, StopIteration) as e:
            raise refused() from e


class Issuers:
    """The issuers of one file, by name."""

    def __init__(self, issuers: Mapping[str, Issuer]) -> None:
        self._issuers = dict(issuers)

    @classmethod
    def read(cls, path: str) -> Issuers:
        """Those of the file; none without one. `Invalid` (SETTING_INVALID) names what is wrong."""
        if not path:
            return cls({})
        try:
            told = tomllib.loads(Path(path).read_text())
        except (OSError, ValueError) as e:
            raise _wrong(f"{path} cannot be read: {e}") from e
        listed = told.get("issuer", [])
        if set(told) - {"issuer"} or not isinstance(listed, list) or not all(isinstance(i, dict) for i in listed):
            raise _wrong(f"{path} holds tables [[issuer]] and nothing else")
        found = [Issuer(item, Path(path).parent) for item in listed]
        return cls({issuer.name: issuer for issuer in found})

    def believe(self, assertion: str) -> Believed:
        """What a token says, if all is right. `Unauthenticated` in one and the same sentence if anything is not."""
        try:
            unverified = jwt.decode(assertion, options={"verify_signature": False})
            issuer = self._issuers[unverified["iss"]]
            claims = jwt.decode(
                assertion,
                issuer.key(assertion),
                algorithms=issuer.algorithms,
                audience=issuer.audience,
                issuer=issuer.name,
                leeway=LEEWAY_SECONDS,
                options={"require": list(REQUIRED)},
            )
            return _believed(issuer, claims)
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError) as e:
            raise refused() from e


def _believed(issuer: Issuer, claims: Mapping[str, Any]) -> Believed:
    jti, lasts = claims["jti"], claims["exp"] - claims["iat"]
    if not isinstance(jti, str) or not 0 < len(jti) <= JTI_LIMIT or not 0 < lasts <= LIFETIME_LIMIT_SECONDS:
        raise refused()
    login = claims.get(issuer.login_claim, "") if issuer.login_claim else ""
    if issuer.login_claim == "email" and claims.get("email_verified") is not True:
        login = ""
    expires_at = datetime.fromtimestamp(claims["exp"], UTC)
    return Believed(issuer.name, claims, jti, expires_at, login if isinstance(login, str) else "")


def refused() -> Unauthenticated:
    """The one answer to an identity token that is not taken, whatever is wrong with it."""
    return Unauthenticated(
        "UNAUTHORIZED",
        "this identity token is not of a trusted issuer, not for this registry, over, used before, or not trusted",
        next_step="ask for a fresh one with this registry as its audience, and see `adapter publisher list NAME`",
    )


def _wrong(message: str) -> Invalid:
    return Invalid("SETTING_INVALID", f"REGISTRY_ISSUERS: {message}")
