"""`OidcClient`: this server as a client of an identity provider (OpenID Connect authorization code flow with PKCE).

A browser is sent to the provider with a state, a nonce and a code challenge, and comes back with a code. The server
exchanges the code for an identity token, which `issuers.py` verifies. Sources: RFC 6749, RFC 7636, RFC 9207 and OpenID
Connect Core 1.0. URLs come from the operator's file and never from a request.
"""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from registry.errors import Invalid, Unauthenticated, Unavailable

FIELDS = frozenset(
    {
        "sign_in_name", "client_id", "client_secret_file", "client_auth", "authorization_url", "token_url", "scopes",
        "session_seconds",
    }
)  # fmt: skip
SESSION_LIMIT_SECONDS = 12 * 3600
DEFAULT_SESSION_SECONDS = 3600
REDEEM_SECONDS = 10
REDEEM_LIMIT = 8
"""How many codes are exchanged at once. Anyone can come back with a code, and each takes a thread."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")
_AUTH_METHODS = ("client_secret_basic", "client_secret_post", "none")


@dataclass(frozen=True, slots=True)
class OidcClient:
    """The registration of this server at one provider. `name` is in the paths and texts of its pages."""

    name: str
    client_id: str
    client_secret: str
    client_auth: str
    authorization_url: str
    token_url: str
    scopes: str
    session_seconds: int
    free: threading.BoundedSemaphore

    @classmethod
    def parse(cls, config: Mapping[str, Any], folder: Path) -> "OidcClient | None":
        """Read the fields of an issuer's table; None without `client_id`. `Invalid` says what is wrong."""
        if not config.get("client_id"):
            unused = sorted(FIELDS & set(config))
            if unused:
                raise Invalid("SETTING_INVALID", f"{unused[0]} needs client_id")
            return None
        missing = [key for key in ("sign_in_name", "authorization_url", "token_url") if not config.get(key)]
        if missing or not config.get("login_claim"):
            raise Invalid("SETTING_INVALID", f"client_id needs {', '.join(missing) or 'login_claim'}")
        name, seconds = str(config["sign_in_name"]), config.get("session_seconds", DEFAULT_SESSION_SECONDS)
        if not _NAME.match(name):
            raise Invalid("SETTING_INVALID", "sign_in_name must be 1 to 40 lower-case letters, digits and hyphens")
        if not isinstance(seconds, int) or not 60 <= seconds <= SESSION_LIMIT_SECONDS:
            raise Invalid("SETTING_INVALID", f"session_seconds must be from 60 to {SESSION_LIMIT_SECONDS}")
        try:
            path = config.get("client_secret_file")
            secret = (folder / str(path)).read_text().strip() if path else ""
        except (OSError, ValueError) as e:
            raise Invalid("SETTING_INVALID", f"client_secret_file cannot be read: {e}") from e
        method = str(config.get("client_auth", _AUTH_METHODS[0] if secret else "none"))
        if method not in _AUTH_METHODS or (method == "none") != (not secret):
            raise Invalid(
                "SETTING_INVALID", f"client_auth must be one of {', '.join(_AUTH_METHODS)} and suit the secret"
            )
        return cls(
            name, str(config["client_id"]), secret, method, str(config["authorization_url"]), str(config["token_url"]),
            str(config.get("scopes", "openid email profile")), seconds, threading.BoundedSemaphore(REDEEM_LIMIT),
        )  # fmt: skip

    def build_authorization_url(
        self, redirect_uri: str, *, state: str, nonce: str, verifier: str, authenticate_again: bool
    ) -> str:
        """Return where the browser goes. `authenticate_again`: a session at the provider is not enough."""
        again = {"prompt": "login", "max_age": "0"} if authenticate_again else {}
        url: str = prepare_grant_uri(
            self.authorization_url, self.client_id, "code", redirect_uri, self.scopes, state, nonce=nonce,
            code_challenge=create_s256_code_challenge(verifier), code_challenge_method="S256", **again,
        )  # fmt: skip
        return url

    def redeem(self, code: str, redirect_uri: str, verifier: str) -> str:
        """Exchange a code for an identity token, which is not verified yet.

        `Unauthenticated` for a code that the provider refuses, `Unavailable` if it cannot be reached.
        """
        body = prepare_token_request("authorization_code", "", redirect_uri, code=code, code_verifier=verifier)
        auth = ClientAuth(self.client_id, self.client_secret, self.client_auth)
        url, headers, body = auth.prepare("POST", self.token_url, {"Accept": "application/json"}, body)
        if not self.free.acquire(timeout=1):
            raise self._unavailable()
        try:
            response = httpx.post(url, data=dict(parse_qsl(body)), headers=headers, timeout=REDEEM_SECONDS)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as e:
            raise self._unavailable() from e
        finally:
            self.free.release()
        if response.status_code >= 500:
            raise self._unavailable()
        token = answer.get("id_token") if response.status_code == 200 and isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise Unauthenticated("UNAUTHORIZED", f"{self.name} did not accept the code of this sign-in")
        return token

    def _unavailable(self) -> Unavailable:
        return Unavailable("TRY_LATER", f"{self.name} cannot be reached now", retry_after_seconds=5)
