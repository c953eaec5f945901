"""Access tokens of Xet uploads: for one repository and a short time, instead of the secret of the client's token.

    xet_<until>_<SHA-256 of the secret>_<signature>

The rights are those that the token itself has at each request. All servers of a registry sign with the same key.
"""

from __future__ import annotations

import hmac
import re
import time
from datetime import datetime

from registry.names import AdapterName
from registry.server.storage.signed_links import LIMIT_SECONDS, LinkSigner

PREFIX = "xet_"
_TOKEN = re.compile(r"xet_(?P<until>[0-9]{1,12})_(?P<sha256>[0-9a-f]{64}|)_(?P<signature>[0-9a-f]{64})\Z")
_PURPOSE = "XET"


def issue(signer: LinkSigner, name: AdapterName, secret_sha256: str, expires_at: datetime | None) -> tuple[str, int]:
    """Return a token and the second at which it ends, not after `expires_at`.

    `secret_sha256` is empty for the trusted actor, which has no secret.
    """
    until = int(time.time()) + LIMIT_SECONDS
    if expires_at is not None:
        until = min(until, int(expires_at.timestamp()))
    signed = f"{until}_{secret_sha256}"
    return f"{PREFIX}{signed}_{signer.sign_text(_PURPOSE, f'{signed} {name}')}", until


def find_secret(signer: LinkSigner, name: AdapterName, token: str) -> tuple[str, bool] | None:
    """Return the SHA-256 of the secret that a token stands for, and whether it has expired; None if it is forged."""
    match = _TOKEN.match(token)
    if match is None:
        return None
    signature = signer.sign_text(_PURPOSE, f"{match['until']}_{match['sha256']} {name}")
    if not hmac.compare_digest(signature, match["signature"]):
        return None
    return match["sha256"], time.time() >= int(match["until"])
