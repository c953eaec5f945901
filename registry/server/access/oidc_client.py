"""`OidcClient`: the registration of this server as a client of an identity provider, read from the operator's file."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.errors import Invalid
from registry.server.access.rate_limits import ConcurrencyLimiter, SpentStates

FIELDS = frozenset(
    {
        "sign_in_name", "client_id", "client_secret_file", "client_auth", "authorization_url", "token_url", "scopes",
        "session_seconds", "token_seconds",
    }
)  # fmt: skip
SESSION_LIMIT_SECONDS = 12 * 3600
DEFAULT_SESSION_SECONDS = 3600
TOKEN_LIMIT_SECONDS = 90 * 86400
DEFAULT_TOKEN_SECONDS = 12 * 3600
"""A working day: the groups of a person are those of the sign-in for as long."""
REDEEM_LIMIT = 8
"""How many codes are exchanged at once. Anyone can come back with a code, and each takes a thread."""
REDEEMS_PER_NETWORK = REDEEM_LIMIT // 4
"""Few enough that those who have an IPv4 and an IPv6 address leave half to others."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")
_AUTH_METHODS = ("client_secret_basic", "client_secret_post", "none")


@dataclass(frozen=True, slots=True)
class OidcClient:
    """The registration of this server at one provider. `name` is in the paths and texts of its pages.

    `token_seconds`: how long a token may last that a person makes for themself.
    """

    name: str
    client_id: str
    client_secret: str = field(repr=False)
    client_auth: str
    authorization_url: str
    token_url: str
    scopes: str
    session_seconds: int
    token_seconds: int
    free: threading.BoundedSemaphore
    limiter: ConcurrencyLimiter
    spent: SpentStates

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
        name = str(config["sign_in_name"])
        if not _NAME.match(name):
            raise Invalid("SETTING_INVALID", "sign_in_name must be 1 to 40 lower-case letters, digits and hyphens")
        session_seconds = _read_seconds(config, "session_seconds", DEFAULT_SESSION_SECONDS, SESSION_LIMIT_SECONDS)
        token_seconds = _read_seconds(config, "token_seconds", DEFAULT_TOKEN_SECONDS, TOKEN_LIMIT_SECONDS)
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
            str(config.get("scopes", "openid email profile")), session_seconds, token_seconds,
            threading.BoundedSemaphore(REDEEM_LIMIT),
            ConcurrencyLimiter(REDEEMS_PER_NETWORK, f"sign-ins with {name} from your network"),
            SpentStates(),
        )  # fmt: skip


def _read_seconds(config: Mapping[str, Any], field: str, default: int, limit: int) -> int:
    seconds = config.get(field, default)
    if not isinstance(seconds, int) or not 60 <= seconds <= limit:
        raise Invalid("SETTING_INVALID", f"{field} must be from 60 to {limit}")
    return seconds
