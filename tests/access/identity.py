"""An identity provider for tests, with its JWKS in a file. It creates valid and forged identity tokens."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER, AUDIENCE = "https://ci.example.org", "https://adapters.example.org"
LOGIN_ISSUER = "https://login.example.org"


class Provider:
    """Signs with ES256 and the key id `k1`. `settings` is the path of an issuers file that trusts it."""

    def __init__(self, folder: Path, issuer: str = ISSUER, **config: str) -> None:
        self.issuer = issuer
        self.key = ec.generate_private_key(ec.SECP256R1())
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key())) | {"kid": "k1", "use": "sig"}
        (folder / "keys.json").write_text(json.dumps({"keys": [public]}))
        self.public = public
        fields = {"issuer": issuer, "audience": AUDIENCE, "jwks_file": str(folder / "keys.json"), **config}
        lines = [f'{key} = "{value}"' for key, value in fields.items()] + ['algorithms = ["ES256"]']
        self.settings = str(folder / "issuers.toml")
        Path(self.settings).write_text("[[issuer]]\n" + "\n".join(lines) + "\n")

    def also_trust(self, other: Provider) -> None:
        """Add another provider to the issuers file of this one."""
        Path(self.settings).write_text(Path(self.settings).read_text() + Path(other.settings).read_text())

    def claims(self, **changed: Any) -> dict[str, Any]:
        """The claims of a job of acme/train. A claim that is changed to None is left out."""
        moment = int(time.time())
        claims = {
            "iss": self.issuer, "aud": AUDIENCE, "sub": "repo:acme/train:ref:refs/heads/main", "iat": moment,
            "exp": moment + 300, "jti": secrets.token_hex(8), "repository": "acme/train", "ref": "refs/heads/main",
            **changed,
        }  # fmt: skip
        return {key: value for key, value in claims.items() if value is not None}

    def sign(self, *, key: Any = None, algorithm: str = "ES256", kid: str = "k1", **changed: Any) -> str:
        return jwt.encode(self.claims(**changed), key or self.key, algorithm, {"kid": kid})


def other_key() -> Any:
    return ec.generate_private_key(ec.SECP256R1())


def rsa_key() -> Any:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)
