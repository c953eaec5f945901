"""An identity provider for tests, with its JWKS in a file. It creates valid and forged identity tokens.

`LoginServer` also responses the two requests of a browser's sign-in (OpenID Connect Core 1.0, section 3.1).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER, AUDIENCE = "https://ci.example.org", "https://adapters.example.org"
LOGIN_ISSUER = "https://login.example.org"


class Provider:
    """Signs with ES256 and the key id `k1`. `settings` is the path of an issuers file that trusts it."""

    def __init__(self, folder: Path, issuer: str = ISSUER, **config: str | int) -> None:
        self.issuer = issuer
        self.key = ec.generate_private_key(ec.SECP256R1())
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key())) | {"kid": "k1", "use": "sig"}
        (folder / "keys.json").write_text(json.dumps({"keys": [public]}))
        self.public = public
        fields = {"issuer": issuer, "audience": AUDIENCE, "jwks_file": str(folder / "keys.json"), **config}
        lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()] + ['algorithms = ["ES256"]']
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


CLIENT, CLIENT_SECRET = "adapter-registry", "a secret: +/%"


class LoginServer(Provider):
    """Whoever comes to it is signed in as `person`, whose claims a test changes. `requests` are those for a code."""

    def __init__(self, folder: Path, **config: str | int) -> None:
        (folder / "client-secret").write_text(CLIENT_SECRET + "\n")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _login_handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.person: dict[str, Any] = {"email": "alice@acme.example", "email_verified": True}
        self.codes: dict[str, dict[str, str]] = {}
        self.requests: list[dict[str, str]] = []
        values = {
            "login_claim": "email", "groups_claim": "groups", "sign_in_name": "acme-login", "client_id": CLIENT,
            "client_secret_file": "client-secret", "authorization_url": f"{self.url}/authorize",
            "token_url": f"{self.url}/token",
        }  # fmt: skip
        super().__init__(folder, LOGIN_ISSUER, **values, **config)

    @contextmanager
    def running(self) -> Iterator[LoginServer]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join(10)

    def authorize(self, query: dict[str, str]) -> str:
        """Where a browser goes that came with this query."""
        self.requests.append(query)
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state'], 'iss': self.issuer})}"

    def redeem(self, fields: dict[str, str], authorization: str) -> dict[str, Any]:
        """The response to a code: each is valid once, for this client, its redirect and its verifier."""
        query = self.codes.pop(fields.get("code", ""), None)
        own = base64.b64encode(f"{CLIENT}:{CLIENT_SECRET}".encode()).decode()
        digest = hashlib.sha256(fields.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if query is None or authorization != f"Basic {own}" or fields["redirect_uri"] != query["redirect_uri"]:
            return {"error": "invalid_grant"}
        if query["code_challenge_method"] != "S256" or challenge != query["code_challenge"]:
            return {"error": "invalid_grant"}
        asked_again = {"auth_time": int(time.time())} if query.get("prompt") == "login" else {}
        claims = {"aud": CLIENT, "sub": "1", "jti": None, "nonce": query["nonce"], **asked_again, **self.person}
        return {"access_token": "unused", "token_type": "Bearer", "id_token": self.sign(**claims)}


def _login_handler(provider: LoginServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", provider.authorize(dict(parse_qsl(urlsplit(self.path).query))))
            self.end_headers()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            response = provider.redeem(dict(parse_qsl(body)), self.headers.get("Authorization", ""))
            self.send_response(400 if "error" in response else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(response).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Be silent."""

    return Handler


def other_key() -> Any:
    return ec.generate_private_key(ec.SECP256R1())


def rsa_key() -> Any:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)
