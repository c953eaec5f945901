"""The authorization code flow of OpenID Connect with PKCE: where a browser is sent, and what its code is exchanged for.

A browser goes to the provider with a state, a nonce and a code challenge, and comes back with a code. The server
exchanges the code for an identity token, which `registry/server/access/issuers.py` verifies. Sources: RFC 6749, RFC
7636, RFC 9207 and OpenID Connect Core 1.0. URLs come from the operator's file and never from a request.
"""

from urllib.parse import parse_qsl

from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from registry.errors import Unauthenticated, Unavailable
from registry.server.access import outgoing
from registry.server.access.oidc_client import OidcClient
from registry.server.pages.sessions.attempts import SignInAttempt

REDEEM_SECONDS = 10


def build_authorization_url(client: OidcClient, attempt: SignInAttempt, redirect_uri: str) -> str:
    """Return where the browser goes. If the attempt confirms, a session at the provider is not enough."""
    again = {"prompt": "login", "max_age": "0"} if attempt.confirms else {}
    url: str = prepare_grant_uri(
        client.authorization_url, client.client_id, "code", redirect_uri, client.scopes, attempt.state,
        nonce=attempt.nonce, code_challenge=create_s256_code_challenge(attempt.verifier), code_challenge_method="S256",
        **again,
    )  # fmt: skip
    return url


def redeem_code(client: OidcClient, attempt: SignInAttempt, code: str, redirect_uri: str) -> str:
    """Exchange a code for an identity token, which is not verified yet.

    `Unauthenticated` for a code that the provider refuses, `Unavailable` if it cannot be reached.
    """
    body = prepare_token_request("authorization_code", "", redirect_uri, code=code, code_verifier=attempt.verifier)
    auth = ClientAuth(client.client_id, client.client_secret, client.client_auth)
    url, headers, body = auth.prepare("POST", client.token_url, {"Accept": "application/json"}, body)
    if not client.free.acquire(timeout=1):
        raise _unavailable(client)
    try:
        status, document = outgoing.request_document(
            "POST", url, headers=headers, form=dict(parse_qsl(body)), seconds=REDEEM_SECONDS
        )
    except ValueError as e:
        raise _unavailable(client) from e
    finally:
        client.free.release()
    if status >= 500:
        raise _unavailable(client)
    token = document.get("id_token") if status == 200 and isinstance(document, dict) else None
    if not isinstance(token, str):
        raise Unauthenticated("UNAUTHORIZED", f"{client.name} did not accept the code of this sign-in")
    return token


def _unavailable(client: OidcClient) -> Unavailable:
    return Unavailable("TRY_LATER", f"{client.name} cannot be reached now", retry_after_seconds=5)
