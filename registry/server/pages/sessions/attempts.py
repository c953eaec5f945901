"""`SignInAttempt`: what a browser keeps while it is at its identity provider, in one cookie that scripts cannot read.

State, nonce and code verifier derive from that cookie, so the server stores nothing, any server of a registry can
response, and a callback counts only in the browser that began the sign-in.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Self

from registry.server.pages.sessions.visitors import local_path


@dataclass(frozen=True, slots=True)
class SignInAttempt:
    """`secret` is random. `confirms`: the provider must ask the person again. `path`: where to go afterwards."""

    secret: str = field(repr=False)
    provider: str
    confirms: bool
    path: str

    @classmethod
    def begin(cls, provider: str, path: str, *, confirms: bool) -> Self:
        """Start an attempt. A path of another site becomes `/`."""
        return cls(secrets.token_urlsafe(32), provider, confirms, local_path(path))

    @classmethod
    def read(cls, cookie: str) -> Self | None:
        """Return the attempt in a cookie; None if there is none."""
        try:
            secret, provider, confirms, path = cookie.split(".")
            decoded = base64.urlsafe_b64decode(path).decode()
        except ValueError:
            return None
        return cls(secret, provider, confirms == "again", local_path(decoded)) if secret else None

    @property
    def cookie(self) -> str:
        """The value of the cookie."""
        path = base64.urlsafe_b64encode(self.path.encode()).decode()
        return f"{self.secret}.{self.provider}.{'again' if self.confirms else 'once'}.{path}"

    @property
    def state(self) -> str:
        """What the provider sends back unchanged."""
        return self._derive("state")

    @property
    def nonce(self) -> str:
        """What the identity token must contain."""
        return self._derive("nonce")

    @property
    def verifier(self) -> str:
        """What proves to the provider that the code was requested by this browser (RFC 7636)."""
        return self._derive("verifier")

    def matches(self, state: str) -> bool:
        """Whether a callback with this state belongs to this attempt."""
        return hmac.compare_digest(self.state.encode(), state.encode())

    def _derive(self, purpose: str) -> str:
        return hashlib.sha256(f"{purpose}:{self.cookie}".encode()).hexdigest()
