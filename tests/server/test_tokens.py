"""Tokens and scopes: every route needs a token unless it declares that it does not."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from registry import token_secret
from registry.api.access import TokenCreate
from registry.client.audit import Audit
from registry.errors import Denied, Invalid, NotFound, Unauthenticated
from registry.server import app
from registry.server.access import tokens
from registry.server.access.rate_limits import FailureLimiter
from registry.server.database import db
from registry.server.database.models import EventRow, TokenRow
from tests.harness import URL, Harness, rows


def request(harness: Harness, method: str, path: str, *, secret: str = "", **rest: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    with httpx.Client(transport=_UnclosedTransport(harness), base_url=URL) as client:
        return client.request(method, path, headers=headers, **rest)  # type: ignore[arg-type]


class _UnclosedTransport(httpx.BaseTransport):
    """The harness's transport, which stays open when one client closes."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    def handle_request(self, sent: httpx.Request) -> httpx.Response:
        return self._harness.transport.handle_request(sent)


PAGES = {
    ("GET", "/"): 200,
    ("GET", "/search"): 200,
    ("GET", "/adapters"): 303,
    ("GET", "/namespaces"): 303,
    ("GET", "/adapters/{namespace}"): 303,
    ("GET", "/adapters/{namespace}/{name}@{selector}"): 404,
    ("GET", "/adapters/{namespace}/{name}:{selector}"): 404,
    ("GET", "/adapters/{namespace}/{name}"): 404,
    ("GET", "/adapters/{namespace}/{name}/versions/{selector}"): 404,
    ("GET", "/adapters/{namespace}/{name}/versions/{selector}/files/{path:path}"): 404,
    ("GET", "/adapters/{namespace}/{name}/versions/{selector}/lineage"): 404,
    ("GET", "/adapters/{namespace}/{name}/versions/{selector}/lineage.{ending}"): 404,
    ("GET", "/adapters/{namespace}/{name}/versions/{selector}/reports/{digest}/{image}.png"): 400,
    ("GET", "/adapters/{namespace}/{name}/aliases"): 404,
    ("GET", "/adapters/{namespace}/{name}/aliases/{alias}"): 404,
    ("POST", "/adapters/{namespace}/{name}/aliases/{alias}/approve"): 400,
    ("POST", "/adapters/{namespace}/{name}/aliases/{alias}/promote"): 400,
    ("POST", "/adapters/{namespace}/{name}/aliases/{alias}/rollback"): 400,
    ("POST", "/adapters/{namespace}/{name}/aliases/{alias}/delete"): 400,
    ("POST", "/adapters/{namespace}/{name}/versions/{selector}/withdrawal/{change}"): 400,
    ("POST", "/namespaces/{namespace}/releases"): 401,
    ("GET", "/namespaces/{namespace}"): 404,
    ("GET", "/bases"): 401,
    ("GET", "/bases/{base:path}"): 401,
    ("GET", "/fleet"): 401,
    ("GET", "/fleet/{node}"): 401,
    ("GET", "/jobs"): 401,
    ("GET", "/jobs/{job_id}"): 401,
    ("POST", "/jobs/cancel"): 401,
    ("POST", "/jobs/{job_id}/cancel"): 401,
    ("POST", "/jobs/{job_id}/repeat"): 401,
    ("GET", "/campaigns/{campaign_id}"): 401,
    ("GET", "/audit"): 401,
    ("GET", "/audit/export"): 401,
    ("GET", "/audit/{seq}"): 401,
    ("GET", "/status"): 401,
    ("GET", "/compare"): 200,
    ("GET", "/{namespace}/{name}"): 404,
    ("GET", "/{namespace}/{name}/{view}/{revision:path}"): 404,
    ("GET", "/sign-in"): 200,
    ("GET", "/sign-in/{code}"): 403,
    ("GET", "/sign-in/with/{provider}"): 404,
    ("GET", "/sign-in/with/{provider}/callback"): 404,
    ("GET", "/live"): 401,
    ("GET", "/settings"): 401,
    ("POST", "/settings/namespaces"): 401,
    ("GET", "/settings/namespaces/{namespace}"): 401,
    ("POST", "/settings/namespaces/{namespace}"): 401,
    ("POST", "/settings/namespaces/{namespace}/members"): 401,
    ("POST", "/settings/namespaces/{namespace}/retention"): 401,
    ("GET", "/settings/adapters/{namespace}/{name}"): 401,
    ("POST", "/settings/adapters/{namespace}/{name}/publishers"): 401,
    ("POST", "/settings/adapters/{namespace}/{name}/publishers/{publisher_id}/delete"): 401,
    ("POST", "/settings/adapters/{namespace}/{name}/retention"): 401,
    ("GET", "/settings/tokens"): 401,
    ("POST", "/settings/tokens"): 401,
    ("GET", "/settings/tokens/own"): 401,
    ("POST", "/settings/tokens/own"): 401,
    ("POST", "/settings/tokens/{token_id}/revoke"): 401,
    ("POST", "/settings/tokens/{token_id}/rotate"): 401,
    ("GET", "/settings/webhooks"): 401,
    ("POST", "/settings/webhooks"): 401,
    ("GET", "/settings/webhooks/{webhook_id}"): 401,
    ("POST", "/settings/webhooks/{webhook_id}/delete"): 401,
    ("POST", "/settings/webhooks/{webhook_id}/deliveries/{delivery_id}/retry"): 401,
    ("POST", "/sign-in"): 400,
    ("POST", "/sign-out"): 400,
    ("GET", "/assets/{file}"): 404,
}
"""Pages of public namespaces, and those for signing in."""
OPEN = {
    ("GET", "/api/v1/health"): 200,
    ("POST", "/api/v1/tokens/exchange"): 400,
    ("POST", "/api/validate-yaml"): 422,
    ("GET", "/api/v1/links/{key:path}"): 403,
    ("PUT", "/api/v1/links/{key:path}"): 403,
    ("GET", "/openapi.json"): 200,
    ("GET", "/docs"): 200,
    ("GET", "/livez"): 200,
    ("GET", "/readyz"): 200,
    **PAGES,
}
"""The routes that need no token, and what they respond to an empty request."""


def test_every_route_declares_a_scope_and_only_health_the_exchange_links_and_the_document_are_open() -> None:
    scopes = app.declared_scopes()
    assert None not in scopes.values()
    assert {route for route, scope in scopes.items() if scope == "open"} == set(OPEN)


def test_a_token_is_stored_as_a_hash_and_works(harness: Harness) -> None:
    created = harness.admin.create_token(TokenCreate(name="ci", scopes=["push"], namespaces=["acme"]))
    assert token_secret.is_well_formed(created.secret)
    with harness.session() as session:
        stored = session.get(TokenRow, created.token.id)
    assert created.secret not in stored.model_dump_json()
    assert stored.secret_sha256 == token_secret.sha256_of(created.secret)
    who = harness.client(created.secret).whoami()
    assert (who.actor, who.scopes, who.namespaces) == ("token:ci", ["push"], ["acme"])


def test_a_revoked_token_is_refused_at_once(harness: Harness) -> None:
    token_id, secret = harness.issue("pull")
    client = harness.client(secret)
    client.whoami()
    assert harness.admin.revoke_token(token_id).revoked_at is not None
    with pytest.raises(Unauthenticated):
        client.whoami()
    first = harness.admin.revoke_token(token_id).revoked_at
    assert harness.admin.revoke_token(token_id).revoked_at == first


def test_unknown_and_mistyped_tokens_get_the_same_response(harness: Harness) -> None:
    token_id, expired = harness.issue("pull", seconds=1)
    with harness.session(write=True) as session:
        row = session.get_one(TokenRow, token_id)
        row.expires_at = row.created_at
        session.add(row)
    responses = [
        request(harness, "GET", "/api/v1/whoami", secret=secret)
        for secret in (token_secret.new_secret(), expired[:-1] + "!", "x")
    ]
    assert {response.status_code for response in responses} == {401}
    assert len({response.json()["detail"] for response in responses}) == 1
    assert {response.headers["www-authenticate"] for response in responses} == {"Bearer"}


def test_a_token_cannot_give_a_right_that_it_does_not_hold(harness: Harness) -> None:
    narrow = harness.actor("admin", namespaces=["acme"])
    created = narrow.create_token(TokenCreate(name="mine", scopes=["push"], namespaces=["acme"]))
    assert created.token.namespaces == ["acme"]
    with pytest.raises(Denied):
        narrow.create_token(TokenCreate(name="wide", scopes=["pull"], namespaces=["*"]))
    with pytest.raises(Denied):
        narrow.create_token(TokenCreate(name="other", scopes=["pull"], namespaces=["globex"]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": ["root"]},
        {"scopes": []},
        {"scopes": ["pull"], "namespaces": []},
        {"scopes": ["pull"], "namespaces": ["../x"]},
    ],
)
def test_a_token_with_unknown_rights_is_refused(harness: Harness, wrong: dict[str, list[str]]) -> None:
    with pytest.raises(Invalid):
        harness.admin.create_token(TokenCreate(name="x", **wrong))


def test_the_last_use_of_a_token_is_recorded(harness: Harness) -> None:
    token_id, secret = harness.issue("pull")
    harness.client(secret).whoami()
    used = next(token for token in harness.admin.tokens().items if token.id == token_id).last_used_at
    assert used is not None
    harness.client(secret).whoami()
    assert next(token for token in harness.admin.tokens().items if token.id == token_id).last_used_at == used


def test_revoking_an_absent_token_is_not_found(harness: Harness) -> None:
    with pytest.raises(NotFound) as caught:
        harness.admin.revoke_token("tok_nothing")
    assert caught.value.code == "TOKEN_UNKNOWN"


def test_the_first_token_is_created_once(harness: Harness) -> None:
    assert not tokens.create_first_token(harness.engine, "0" * 64)
    with harness.session() as session:
        assert [row.id for row in rows(session, TokenRow)] == [tokens.FIRST_TOKEN]


def test_every_change_of_a_token_is_an_event_without_its_secret(harness: Harness) -> None:
    created = harness.admin.create_token(TokenCreate(name="ci", scopes=["push"]))
    harness.admin.revoke_token(created.token.id)
    with harness.session() as session:
        events = [row for row in rows(session, EventRow) if row.object == created.token.id]
    assert [row.action for row in events] == ["token.issue", "token.revoke"]
    assert all(row.request_id for row in events)
    assert all(created.secret not in row.model_dump_json() for row in events)
    page = Audit(harness.admin).page(limit=1)
    assert page.next_cursor == str(page.items[0].seq)


@pytest.mark.security
def test_only_the_holder_of_a_secret_learns_why_it_is_invalid(harness: Harness) -> None:
    harness.app.state.trusted = None
    harness.app.state.failure_limiter = FailureLimiter(0)
    secrets = {}
    for name, seconds in (("expired", 60), ("revoked", None), ("rotated", None)):
        token_id, secrets[name] = harness.issue("pull", name=name, seconds=seconds)
        if name == "expired":
            with harness.session(write=True) as session:
                session.get_one(TokenRow, token_id).expires_at = db.now() - timedelta(seconds=1)
        elif name == "revoked":
            harness.admin.revoke_token(token_id)
        else:
            harness.admin.rotate_token(token_id)
            harness.admin.rotate_token(token_id, keep_seconds=1)

    def told(secret: str) -> str:
        with pytest.raises(Unauthenticated) as refused:
            harness.client(secret).whoami()
        return refused.value.detail

    assert told(secrets["expired"]) == "this token has expired"
    assert told(secrets["revoked"]) == "this token was revoked"
    guesses = [secret[:-1] + ("A" if secret[-1] != "A" else "B") for secret in secrets.values()]
    guesses += [secret.lower() for secret in secrets.values()] + ["lra_" + "0" * 38, "x", secrets["rotated"]]
    assert {told(guess) for guess in guesses} == {"this token is unknown"}


@pytest.mark.security
def test_a_rotated_secret_is_recognized_after_its_days_of_grace(harness: Harness) -> None:
    harness.app.state.trusted = None
    token_id, secret = harness.issue("pull")
    harness.admin.rotate_token(token_id, keep_seconds=60)
    assert harness.client(secret).whoami().token_id == token_id
    with harness.session(write=True) as session:
        session.get_one(TokenRow, token_id).previous_until = db.now() - timedelta(seconds=1)
    with pytest.raises(Unauthenticated, match="was rotated"):
        harness.client(secret).whoami()
