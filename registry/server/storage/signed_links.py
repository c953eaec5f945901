"""`LinkSigner`: signs and checks links that this server handles, as S3 signs links to the objects of a bucket.

    /api/v1/links/staging/psh_1f/<hex>?size=31457280&until=1795779000&owner=tok_9&signature=<hex>

- The signature is an HMAC-SHA256 over the method and everything before it. The key ends in the digest of the bytes, and
  a staging key names the push, so a link reads or writes one blob, and for a PUT in one push.
- The holder of a link may use it until it expires. Only a plan makes one, after it has checked the rights of the actor.
- All servers of a registry agree on the secret, which is derived from the audit key and never leaves the server.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from registry.api import LINKS
from registry.errors import Unavailable

LIMIT_SECONDS = 15 * 60
"""A link lives no longer, whatever REGISTRY_LINK_SECONDS says."""
SECRET_PURPOSE = "links of the local store"  # noqa: S105 - a name, no secret
METHODS = frozenset({"GET", "PUT"})
_TARGET = re.compile(
    re.escape(LINKS) + r"(?P<key>[a-zA-Z0-9_/-]{64,200})\?size=(?P<size>[0-9]{1,15})&until=(?P<until>[0-9]{1,12})"
    r"&owner=(?P<owner>[A-Za-z0-9_-]{0,80})&signature=(?P<signature>[0-9a-f]{64})\Z"
)


@dataclass(frozen=True, slots=True)
class SignedLink:
    """What a valid link allows: to read or to write the `size_bytes` of one blob."""

    key: str
    size_bytes: int
    owner: str
    """Id of the token that the plan was made for."""


class LinkSigner:
    """`secret` is called for each link, so that a server follows a replaced audit key. Thread-safe."""

    def __init__(self, secret: Callable[[], str]) -> None:
        self._secret = secret

    def sign(self, method: str, key: str, size_bytes: int, *, seconds: int, owner: str) -> str:
        """Return the relative URL of a link. `owner`: the id of a token."""
        until = int(time.time()) + min(seconds, LIMIT_SECONDS)
        target = f"{LINKS}{key}?size={size_bytes}&until={until}&owner={owner}"
        return f"{target}&signature={self.sign_text(method, target)}"

    def check(self, method: str, target: str) -> SignedLink:
        """Return what the path and query of a request allow. `Unavailable` (LINK_INVALID) for nothing."""
        link = self.find(method, target)
        if link is None:
            raise Unavailable(
                "LINK_INVALID",
                "the link has expired, or this registry did not sign it for this request",
                next_step="request a new plan",
            )
        return link

    def find(self, method: str, target: str) -> SignedLink | None:
        """Return what the path and query of a request allow; None for nothing."""
        match = _TARGET.match(target)
        if match is None or method not in METHODS:
            return None
        signature = self.sign_text(method, target.rpartition("&signature=")[0])
        if not hmac.compare_digest(signature, match["signature"]) or time.time() >= int(match["until"]):
            return None
        return SignedLink(match["key"], int(match["size"]), match["owner"])

    def sign_text(self, purpose: str, text: str) -> str:
        """Return the signature of a text. `purpose` is one word: the method of a link, or what else the text is for."""
        return hmac.digest(self._secret().encode(), f"{purpose} {text}".encode(), hashlib.sha256).hex()
