"""Issuers: whose identity tokens are accepted, by which keys they are verified, and what a verified one says.

Issuers and their keys come from the operator's file (REGISTRY_ISSUERS, see docs/operations.md), never from a token.
Only asymmetric algorithms are accepted. Issuer, audience, expiry and issue time must be present and right; so must the
`jti` of a token that is exchanged, and the nonce of one that a browser's sign-in has brought.
"""

import hmac
import json
import logging
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import jwt

from registry.errors import Invalid, Unauthenticated, Unavailable, printable
from registry.server.access import oidc_client, outgoing
from registry.server.access.oidc_client import OidcClient
from registry.server.actors import GROUP, is_subject
from registry.server.database import db

_LOG = logging.getLogger("registry.server")
REASON_LIMIT = 500
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_SECONDS = 30
LIFETIME_LIMIT_SECONDS = 24 * 3600
REQUIRED_CLAIMS = ("iss", "aud", "exp", "iat", "sub")
KEY_CACHE_SECONDS = 600
FETCH_SECONDS = 10
FETCH_WAIT_SECONDS = 0.5
RETRY_FETCH_SECONDS = 10
JTI_LIMIT = 300
_FIELDS = {"issuer", "audience", "jwks_url", "jwks_file", "algorithms", "login_claim", "groups_claim"}
_URL_SCHEMES = ("https://", "http://127.0.0.1:", "http://localhost:")
GROUPS_LIMIT = 200


@dataclass(frozen=True, slots=True)
class IdentityToken:
    """A verified identity token. `signs_in`: its issuer has a `login_claim`, and `login` is the value of that.

    `groups`: subjects of roles, such as `group:ml-platform` for the value `ml-platform` of its `groups_claim`.
    """

    issuer: str
    claims: Mapping[str, Any]
    jti: str
    expires_at: datetime
    login: str
    signs_in: bool
    groups: tuple[str, ...] = ()


class _KeySet(jwt.PyJWKClient):
    """The keys at a URL. PyJWT's own request has no limit of bytes, and of time only for each read."""

    def fetch_data(self) -> Any:
        """Fetch the keys. `ValueError` if there are none."""
        status, keys = outgoing.request_document("GET", self.uri, seconds=FETCH_SECONDS)
        if status != 200 or not isinstance(keys, dict):
            raise ValueError(f"{self.uri} responds with status {status} and no key set")
        return keys


class Issuer:
    """One issuer and its keys, from a file or from the URL that the operator configured."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        unknown = sorted(set(config) - _FIELDS - oidc_client.FIELDS)
        if unknown:
            raise _setting_error(f"an issuer has no field {', '.join(unknown)}")
        if not all(isinstance(config.get(key), str) and config[key] for key in ("issuer", "audience")):
            raise _setting_error("an issuer needs 'issuer' and 'audience'")
        self.name: str = config["issuer"]
        self.audience: str = config["audience"]
        self.login_claim = str(config.get("login_claim", ""))
        self.groups_claim = str(config.get("groups_claim", ""))
        if self.groups_claim and not self.login_claim:
            raise _setting_error(f"{self.name}: groups_claim is for people and needs login_claim")
        self.algorithms = list(config.get("algorithms", ["RS256", "ES256"]))
        if not self.algorithms or not set(self.algorithms) <= set(ALGORITHMS):
            raise _setting_error(f"{self.name}: choose algorithms from {', '.join(ALGORITHMS)}")
        self._file = folder / config["jwks_file"] if config.get("jwks_file") else None
        url = str(config.get("jwks_url", ""))
        if (self._file is None) == (not url):
            raise _setting_error(f"{self.name}: set exactly one of jwks_url and jwks_file")
        for key in ("jwks_url", "authorization_url", "token_url"):
            if config.get(key) and not str(config[key]).startswith(_URL_SCHEMES):
                raise _setting_error(f"{self.name}: {key} must begin with https://")
        try:
            self.client = OidcClient.parse(config, folder)
        except Invalid as e:
            raise _setting_error(f"{self.name}: {e.detail}") from e
        self._client = _KeySet(url, lifespan=KEY_CACHE_SECONDS) if url else None
        self._fetching = threading.Lock()
        self._fetch_again_at = 0.0
        self._fetched = False
        """Whether the last attempt to fetch the keys succeeded."""

    def key_of(self, assertion: str) -> Any:
        """Return the public key for the token's `kid`. `Unavailable` if the keys cannot be fetched."""
        try:
            kid = jwt.get_unverified_header(assertion).get("kid")
            if self._client is not None:
                key = self._find_cached_key(self._client, kid) or self._fetch_key(self._client, kid)
                if key is None:
                    raise rejection(f"{self.name} has no key {kid!r}")
                return key
            keys = jwt.PyJWKSet.from_dict(json.loads((self._file or Path()).read_bytes())).keys
            return next(key.key for key in keys if key.key_id == kid)
        except OSError as e:
            raise self._unavailable() from e
        except (jwt.PyJWTError, ValueError, StopIteration) as e:
            raise rejection(f"{self.name} has no key for it: {e}") from e

    def _find_cached_key(self, client: jwt.PyJWKClient, kid: Any) -> Any:
        cached = client.jwk_set_cache.get() if client.jwk_set_cache is not None else None
        keys = [key for key in cached.keys if key.public_key_use in ("sig", None)] if cached is not None else []
        return next((key.key for key in keys if key.key_id == kid), None)

    def _fetch_key(self, client: jwt.PyJWKClient, kid: Any) -> Any:
        """Fetch the keys. One request does so at a time, and none soon after another: any client may name any key.

        A key set that cannot be read is `Unavailable`; an unknown key is None.
        """
        if not self._fetching.acquire(timeout=FETCH_WAIT_SECONDS):
            raise self._unavailable()
        try:
            if time.monotonic() >= self._fetch_again_at:
                self._fetch_again_at = time.monotonic() + RETRY_FETCH_SECONDS
                self._fetched = False
                client.get_signing_keys(refresh=True)
                self._fetched = True
            if not self._fetched:
                raise self._unavailable()
            return self._find_cached_key(client, kid)
        except (jwt.PyJWTError, ValueError) as e:
            raise self._unavailable() from e
        finally:
            self._fetching.release()

    def _unavailable(self) -> Unavailable:
        return Unavailable("TRY_LATER", f"the keys of {self.name} cannot be read now", retry_after_seconds=5)


class Issuers:
    """The issuers of one file, by name."""

    def __init__(self, issuers: Mapping[str, Issuer]) -> None:
        self._issuers = dict(issuers)

    @classmethod
    def read(cls, path: str) -> Self:
        """Read a file of issuers; an empty path means none. `Invalid` (SETTING_INVALID) says what is wrong."""
        if not path:
            return cls({})
        try:
            document = tomllib.loads(Path(path).read_text())
        except (OSError, ValueError) as e:
            raise _setting_error(f"{path} cannot be read: {e}") from e
        configs = document.get("issuer", [])
        if set(document) - {"issuer"} or not isinstance(configs, list) or not all(isinstance(i, dict) for i in configs):
            raise _setting_error(f"{path} may only hold tables [[issuer]]")
        issuers = cls({issuer.name: issuer for issuer in (Issuer(config, Path(path).parent) for config in configs)})
        if len(issuers.login_issuers) > 1:  # each could name the people of the other
            raise _setting_error(f"{path} has login_claim in two issuers, and only one may say who people are")
        return issuers

    def __contains__(self, name: str) -> bool:
        return name in self._issuers

    @property
    def login_issuers(self) -> frozenset[str]:
        """The issuers by which people sign in."""
        return frozenset(name for name, issuer in self._issuers.items() if issuer.login_claim)

    @property
    def publishing(self) -> list[str]:
        """The issuers whose identity tokens can be trusted to push."""
        return sorted(self._issuers.keys() - self.login_issuers)

    @property
    def clients(self) -> dict[str, Issuer]:
        """The issuers by which browsers sign in, by the name of their client."""
        return {issuer.client.name: issuer for issuer in self._issuers.values() if issuer.client is not None}

    def verify(self, assertion: str) -> IdentityToken:
        """Verify an identity token. `Unauthenticated` with one text, whatever is wrong with it but too many groups."""
        unverified: Mapping[str, Any] = {}
        try:
            unverified = jwt.decode(assertion, options={"verify_signature": False})
            if unverified["iss"] not in self._issuers:
                raise KeyError("no such issuer in REGISTRY_ISSUERS")
            issuer = self._issuers[unverified["iss"]]
            identity = _verify(issuer, assertion, issuer.audience, ("jti",))
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError) as e:
            claims = f"iss {unverified.get('iss')!r}, aud {unverified.get('aud')!r}, sub {unverified.get('sub')!r}"
            raise rejection(f"{claims}: {type(e).__name__}: {e}") from e
        if not 0 < len(identity.jti) <= JTI_LIMIT:
            raise rejection(f"its jti is empty or over {JTI_LIMIT} characters")
        return identity


def verify_sign_in(issuer: Issuer, client: OidcClient, assertion: str, nonce: str) -> IdentityToken:
    """Verify the identity token that a sign-in with this nonce has brought. `Unauthenticated`."""
    try:
        identity = _verify(issuer, assertion, client.client_id, ("nonce",))
    except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError) as e:
        raise rejection(f"sign-in at {issuer.name}: {type(e).__name__}: {e}") from e
    audience, party = identity.claims["aud"], identity.claims.get("azp", client.client_id)
    is_for_others = isinstance(audience, list) and len(audience) > 1 and "azp" not in identity.claims
    if party != client.client_id or is_for_others:
        raise rejection(f"sign-in at {issuer.name}: it is for {party!r}")
    if not hmac.compare_digest(str(identity.claims["nonce"]).encode(), nonce.encode()):
        raise rejection(f"sign-in at {issuer.name}: its nonce is that of another sign-in")
    return identity


def _verify(issuer: Issuer, assertion: str, audience: str, also_required: tuple[str, ...]) -> IdentityToken:
    claims = jwt.decode(
        assertion,
        issuer.key_of(assertion),
        algorithms=issuer.algorithms,
        audience=audience,
        issuer=issuer.name,
        leeway=LEEWAY_SECONDS,
        options={"require": [*REQUIRED_CLAIMS, *also_required]},
    )
    return _identity_token(issuer, claims)


def _identity_token(issuer: Issuer, claims: Mapping[str, Any]) -> IdentityToken:
    jti, lifetime = claims.get("jti", ""), claims["exp"] - claims["iat"]
    if not isinstance(jti, str) or not 0 < lifetime <= LIFETIME_LIMIT_SECONDS:
        raise rejection(f"{issuer.name}: its jti is no text, or it is valid for {lifetime} seconds")
    login = claims.get(issuer.login_claim, "") if issuer.login_claim else ""
    if issuer.login_claim == "email" and claims.get("email_verified") is not True:
        login = ""
    expires_at = datetime.fromtimestamp(claims["exp"], UTC)
    if expires_at + timedelta(seconds=LEEWAY_SECONDS) <= db.now():  # by the clock that also forgets its `jti`
        raise rejection(f"{issuer.name}: it ended at {expires_at}")
    subject = login if isinstance(login, str) else ""
    groups = claims.get(issuer.groups_claim) if issuer.groups_claim else None
    names = {f"{GROUP}{name}" for name in groups if isinstance(name, str)} if isinstance(groups, list) else set()
    if len(names) > GROUPS_LIMIT:  # a part of them could hold another right at each sign-in
        raise Unauthenticated(
            "UNAUTHORIZED",
            f"the identity token lists {len(names)} groups, more than {GROUPS_LIMIT}",
            next_step="let the identity provider send only the groups that have roles here",
        )
    subjects = tuple(sorted(filter(is_subject, names)))
    return IdentityToken(issuer.name, claims, jti, expires_at, subject, bool(issuer.login_claim), subjects)


def rejection(reason: str) -> Unauthenticated:
    """The one error for an identity token that is not accepted. Both logs say what is wrong with it."""
    reason = printable(reason, REASON_LIMIT)
    _LOG.warning("an identity token was refused: %s", reason)
    return Unauthenticated(
        "UNAUTHORIZED",
        "this identity token is expired, already used, for another audience, from an issuer that is not trusted, of a "
        "job that is no trusted publisher of the adapter, or without `jti`",
        next_step="request a fresh one with this registry as its audience, and see `adapter publisher list NAME`",
        operator_detail=reason,
    )


def _setting_error(message: str) -> Invalid:
    return Invalid("SETTING_INVALID", f"REGISTRY_ISSUERS: {message}")
