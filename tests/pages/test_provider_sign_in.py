"""Sign-in at an identity provider: authorization code with PKCE, and what each forged response gets."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from registry.errors import Invalid
from registry.evaluation.gates import Gate
from registry.server.access.issuers import Issuers
from registry.server.access.oidc_client import REDEEMS_PER_NETWORK
from registry.server.database import db
from registry.server.database.models import TokenRow
from registry.server.database.models.sign_in import PageSessionRow
from registry.server.pages.sessions import authorization_code
from registry.server.pages.sessions.attempts import SignInAttempt
from tests import raw_asgi
from tests.access.identity import CLIENT, LoginServer, other_key
from tests.harness import Harness, rows
from tests.pages.conftest import Browser

pytestmark = pytest.mark.security
WITH = "/sign-in/with/acme-login"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoginServer]:
    with LoginServer(tmp_path_factory.mktemp("provider"), session_seconds=600).running() as provider:
        yield provider


@pytest.fixture(scope="module")
def registry(registry: Harness, provider: LoginServer) -> Harness:
    registry.app.state.issuers = Issuers.read(provider.settings)
    registry.push("acme/private", alias="canary")
    registry.admin.grant_role("acme", "alice@acme.example", "owner")
    registry.admin.grant_role("acme", "group:readers", "reader")
    return registry


@pytest.fixture(autouse=True)
def alice(provider: LoginServer) -> dict[str, Any]:
    provider.person = {"email": "alice@acme.example", "email_verified": True}
    return provider.person


def leave(browser: Browser, **parameters: str) -> httpx.URL:
    """The callback of a browser that went to the provider and was signed in there."""
    response = browser.get(WITH, params=parameters)
    assert response.status_code == 303
    return httpx.URL(httpx.get(response.headers["location"]).headers["location"])


def return_to(browser: Browser, callback: httpx.URL, **changes: str) -> httpx.Response:
    return browser.get(callback.path, params=dict(callback.params) | changes)


def test_a_person_signs_in_with_the_rights_of_their_roles(registry: Harness, browser: Browser) -> None:
    form = browser.get("/sign-in?next=/search%3Ftext%3Da").text
    assert f'href="{WITH}?next=/search%3Ftext%3Da"' in form
    callback = leave(browser, next="/search?text=a")
    response = return_to(browser, callback)
    assert (response.status_code, response.headers["location"]) == (303, "/search?text=a")
    assert "alice@acme.example" in browser.get("/").text
    assert browser.get("/adapters/acme/private").status_code == 200
    tokens = browser.get("/settings/tokens").text
    assert ("a session, begun by signing in" in tokens, "Rotate" in tokens) == (True, False)
    with registry.session() as session:
        token = next(row for row in rows(session, TokenRow) if row.subject == "alice@acme.example")
        assert token.expires_at is not None
        assert token.expires_at - token.created_at == timedelta(seconds=600)
    assert browser.submit("/", "/sign-out").status_code == 303
    with registry.session() as session:
        assert session.get_one(TokenRow, token.id).revoked_at is not None, "nothing of the session is left"


def test_what_the_provider_learns_is_bound_to_the_browser(provider: LoginServer, browser: Browser) -> None:
    leave(browser)
    first, cookie = provider.requests[-1], browser.cookies["adapter-attempt"]
    assert (first["response_type"], first["client_id"], first["scope"]) == ("code", CLIENT, "openid email profile")
    assert first["redirect_uri"] == f"http://registry.test{WITH}/callback"
    assert first["code_challenge_method"] == "S256"
    assert cookie not in str(first)
    leave(browser)
    second = provider.requests[-1]
    assert all(first[key] != second[key] for key in ("state", "nonce", "code_challenge"))


def test_a_callback_counts_once_and_only_in_the_browser_that_began(registry: Harness, browser: Browser) -> None:
    callback = leave(browser)
    with Browser(registry) as victim:
        assert return_to(victim, callback).status_code == 403, "the attacker's own code in another browser"
        leave(victim)
        assert return_to(victim, callback).status_code == 403
        assert "adapter-session" not in victim.cookies
    for change in ({"state": ""}, {"state": "0" * 64}, {"code": ""}, {"iss": "https://evil.example"},
                   {"error": "access_denied"}):  # fmt: skip
        again = leave(browser)
        assert return_to(browser, again, **change).status_code == 403
        assert return_to(browser, again).status_code == 403, "the attempt has ended"
    callback = leave(browser)
    attempt = browser.cookies["adapter-attempt"]
    assert return_to(browser, callback).status_code == 303
    browser.cookies.set("adapter-attempt", attempt, domain="registry.test")
    assert return_to(browser, callback).status_code == 403, "the provider accepts a code once"


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "0" * 64}, {"aud": "another-client"}, {"aud": [CLIENT, "other"]}, {"azp": "other"},
        {"iss": "https://evil.example"}, {"exp": int(time.time()) - 60}, {"email_verified": False}, {"email": None},
        {"email": "group:owners"}, {"email": "*"}, {"email": "a b"}, {"sub": None}, {"iat": None}, {"nonce": None},
    ],
)  # fmt: skip
def test_an_identity_token_that_is_not_for_this_sign_in_begins_no_session(
    registry: Harness, browser: Browser, alice: dict[str, Any], change: dict[str, Any]
) -> None:
    alice |= change
    with registry.session() as session:
        before = len(rows(session, PageSessionRow))
    response = return_to(browser, leave(browser))
    registry.app.state.failure_limiter.__init__(0)
    assert response.status_code == 403
    assert "acme-login says about you is not accepted" in response.text
    with registry.session() as session:
        assert len(rows(session, PageSessionRow)) == before


def test_a_token_of_another_key_begins_no_session(
    browser: Browser, provider: LoginServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "key", other_key())
    assert return_to(browser, leave(browser)).status_code == 403


def test_a_session_that_was_there_before_is_not_continued(registry: Harness, browser: Browser) -> None:
    browser.sign_in(registry.secret)
    old = browser.cookies["adapter-session"]
    assert return_to(browser, leave(browser)).status_code == 303
    assert browser.cookies["adapter-session"] != old
    with Browser(registry) as attacker:
        attacker.cookies.set("adapter-session", old, domain="registry.test")
        assert "Sign out" not in attacker.get("/").text


@pytest.mark.parametrize("path", ["https://evil.example", "//evil.example", "/\\evil.example", "/" + "a" * 600])
def test_a_sign_in_at_a_provider_never_leads_to_another_site(browser: Browser, path: str) -> None:
    assert return_to(browser, leave(browser, next=path)).headers["location"] == "/"


def test_the_rights_of_groups_and_roles_end_with_them(
    registry: Harness, browser: Browser, alice: dict[str, Any]
) -> None:
    alice |= {"email": "bob@acme.example", "groups": ["readers"]}
    return_to(browser, leave(browser))
    assert browser.get("/adapters/acme/private").status_code == 200
    registry.admin.revoke_role("acme", "group:readers")
    try:
        assert browser.get("/adapters/acme/private").status_code == 404
    finally:
        registry.admin.grant_role("acme", "group:readers", "reader")
    assert "Your roles say what you may do. Scopes" in browser.get("/settings").text
    with pytest.MonkeyPatch.context() as patch:
        later = db.now() + timedelta(seconds=601)
        patch.setattr(db, "now", lambda: later)
        assert "Sign out" not in browser.get("/").text, "groups are read again"


def test_a_closed_gate_needs_a_new_password_at_the_provider(
    registry: Harness, browser: Browser, alice: dict[str, Any]
) -> None:
    registry.push("acme/gated", alias="canary")
    registry.admin.set_gate("acme", "prod", Gate(approvals=2))
    page = "/adapters/acme/gated/aliases/prod"
    return_to(browser, leave(browser))

    def promote() -> httpx.Response:
        return browser.submit(page, f"{page}/promote", version="1", reason="r", break_glass="yes", generation="0")

    assert promote().status_code == 403, "a session alone is not enough"
    assert f'href="{WITH}?next={page.replace("/", "%2F")}&amp;again=yes"' in browser.get(page).text
    assert "<summary>Past the closed gate" in browser.get(page).text
    assert return_to(browser, leave(browser, again="yes", next=page)).headers["location"] == page
    alice["auth_time"] = int(time.time()) - 3600
    with Browser(registry) as other:
        assert return_to(other, leave(other, again="yes")).status_code == 403, "the provider has not asked again"
    past_the_gate = "<details open><summary>Past the closed gate"
    assert past_the_gate in browser.get(page).text, "and the reason is asked for only now"
    assert 'name="token"' not in browser.get(page).text
    assert promote().status_code == 303
    assert registry.admin.version("acme/gated:prod").number == 1
    with pytest.MonkeyPatch.context() as patch:
        later = db.now() + timedelta(seconds=301)
        patch.setattr(db, "now", lambda: later)
        assert 'name="token"' in browser.get(page.replace("gated", "private")).text, "it counts for minutes"


def test_to_give_a_role_a_person_signs_in_at_the_provider_again(registry: Harness, browser: Browser) -> None:
    page = "/settings/namespaces/acme"
    return_to(browser, leave(browser))

    def give() -> httpx.Response:
        return browser.submit(page, f"{page}/members", subject="carol@acme.example", role="reader")

    assert give().status_code == 403, "a session alone is not enough"
    assert f'href="{WITH}?next={page.replace("/", "%2F")}&amp;again=yes"' in browser.get(page).text
    return_to(browser, leave(browser, again="yes", next=page))
    assert give().status_code == 303
    assert [*map(str, (registry.admin.namespace("acme").roles or {})["carol@acme.example"])] == ["reader"]


def test_a_provider_that_does_not_respond_is_said_to_be_unavailable(
    browser: Browser, provider: LoginServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = leave(browser)
    responses: list[Callable[..., Any]] = [lambda *_: {}, lambda *_: {"id_token": 1}]
    for response in responses:
        monkeypatch.setattr(provider, "redeem", response)
        assert return_to(browser, callback).status_code == 403
        callback = leave(browser)
    monkeypatch.setattr(provider, "redeem", _break_off)
    response_of_page = return_to(browser, callback)
    assert response_of_page.status_code == 503
    assert "acme-login cannot be reached now" in response_of_page.text


def test_wrong_codes_of_one_network_do_not_keep_others_from_signing_in(
    registry: Harness, browser: Browser, provider: LoginServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone can begin an attempt. A code over the share of its network is refused before the provider is asked."""
    waiting, released, redeem = threading.Semaphore(0), threading.Event(), provider.redeem

    def wait_and_redeem(fields: dict[str, str], authorization: str) -> dict[str, Any]:
        if fields["code"] == "wrong":
            waiting.release()
            released.wait(60)
        return redeem(fields, authorization)

    monkeypatch.setattr(provider, "redeem", wait_and_redeem)
    monkeypatch.setattr(authorization_code, "REDEEM_SECONDS", 120)
    attempts = [SignInAttempt.begin("acme-login", "/", confirms=False) for _ in range(REDEEMS_PER_NETWORK + 1)]

    def send_code(host: int) -> raw_asgi.RawResponse:
        path, cookie = f"{WITH}/callback?code=wrong&state={attempts[host].state}", attempts[host].cookie
        cookie = f"adapter-attempt={cookie}"
        return raw_asgi.call(registry.app, "GET", path, [("Cookie", cookie)], address=f"2001:db8::{host}")

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(send_code, host) for host in range(REDEEMS_PER_NETWORK)]
        try:
            assert all(waiting.acquire(timeout=60) for _ in futures)
            refused = send_code(REDEEMS_PER_NETWORK)
            assert (refused.status, "set-cookie" in refused.headers) == (429, False), "the attempt goes on"
            assert [send_code(0).status for _ in range(20)] == [403] * 20, "a state that came back costs nothing more"
            assert return_to(browser, leave(browser)).status_code == 303
        finally:
            released.set()
    assert {future.result().status for future in futures} == {403}
    assert not waiting.acquire(blocking=False), "the provider was not asked"
    assert send_code(REDEEMS_PER_NETWORK).status == 403, "and the network has its share again"


def _break_off(*_: Any) -> dict[str, Any]:
    """End the connection without a response: `socketserver` closes it when its handler raises."""
    raise ConnectionError


def test_an_unknown_provider_has_no_page(browser: Browser) -> None:
    for path in ("/sign-in/with/other", "/sign-in/with/other/callback"):
        assert browser.get(path).status_code == 404


@pytest.mark.parametrize("cookie", ["", "a", "a.b.c", ".b.once.Lw==", "a.b.once.8J-", "a.b.once.gA=="])
def test_a_cookie_that_cannot_be_read_is_no_attempt(cookie: str) -> None:
    assert SignInAttempt.read(cookie) is None


def test_an_attempt_leads_to_no_other_site_whatever_its_cookie_says() -> None:
    attempt = SignInAttempt("a", "b", False, "//evil.example")
    read = SignInAttempt.read(attempt.cookie)
    assert read is not None
    assert read.path == "/"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"sign_in_name": "A b"}, "sign_in_name"), ({"token_url": "http://evil.example/"}, "token_url"),
        ({"token_url": ""}, "token_url"), ({"authorization_url": "javascript:x"}, "authorization_url"),
        ({"client_secret_file": "nothing"}, "client_secret_file"), ({"client_auth": "none"}, "client_auth"),
        ({"session_seconds": 10**6}, "session_seconds"), ({"client_id": ""}, "client_id"),
        ({"login_claim": "", "groups_claim": ""}, "login_claim"),
    ],
)  # fmt: skip
def test_a_wrong_client_of_an_issuer_is_refused_at_start(
    tmp_path: Path, provider: LoginServer, change: dict[str, Any], problem: str
) -> None:
    lines = Path(provider.settings).read_text().splitlines()
    keep = [line for line in lines if line.partition(" = ")[0] not in change]
    changed = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in change.items()]
    (tmp_path / "client-secret").write_text("x")
    (tmp_path / "issuers.toml").write_text("\n".join(keep + changed))
    with pytest.raises(Invalid, match=problem):
        Issuers.read(str(tmp_path / "issuers.toml"))
    (tmp_path / "issuers.toml").write_text("\n".join([*lines, *lines]).replace("login.example", "other.example", 1))
    with pytest.raises(Invalid, match="login_claim in two issuers"):
        Issuers.read(str(tmp_path / "issuers.toml"))


def test_the_query_to_a_provider_keeps_its_own(tmp_path: Path, provider: LoginServer) -> None:
    text = Path(provider.settings).read_text().replace("/authorize", "/authorize?tenant=a")
    (tmp_path / "client-secret").write_text("x")
    (tmp_path / "issuers.toml").write_text(text)
    client = Issuers.read(str(tmp_path / "issuers.toml")).clients["acme-login"].client
    assert client is not None
    attempt = SignInAttempt.begin("acme-login", "/", confirms=False)
    url = authorization_code.build_authorization_url(client, attempt, "r")
    assert dict(parse_qsl(urlsplit(url).query))["tenant"] == "a"


def test_a_person_makes_a_token_for_themself_that_outlasts_the_session(
    registry: Harness, browser: Browser, alice: dict[str, Any]
) -> None:
    alice["groups"] = ["readers"]
    return_to(browser, leave(browser))
    own = "/settings/tokens/own"
    assert f'<a href="{own}">' in browser.get("/settings/tokens").text
    assert "<form" not in browser.get(own).text.partition("<main")[2], "a session alone gives no secret"
    return_to(browser, leave(browser, again="yes", next=own))
    for field, value in (("name", ""), ("sha256", "0"), ("lifetime", "never")):
        fields = {"name": "laptop", "lifetime": "8h", field: value}
        assert browser.submit(own, own, None, **fields).status_code == 400
    response = browser.submit(own, own, name="laptop", lifetime="8h")
    secret = re.search(r"lra_\w{38}", response.text)
    assert secret is not None
    who = registry.client(secret[0]).whoami()
    assert (who.actor, who.groups) == ("alice@acme.example", ["group:readers"])
    assert who.expires_at is not None
    assert who.expires_at > db.now() + timedelta(hours=7), "not only the ten minutes of the session"
    longest = browser.submit(own, own, name="laptop", lifetime="9d").text
    secret = re.search(r"lra_\w{38}", longest)
    assert secret is not None
    assert (registry.client(secret[0]).whoami().expires_at or db.now()) < db.now() + timedelta(hours=13)


def test_a_pasted_token_makes_no_token_of_a_person(registry: Harness, browser: Browser) -> None:
    browser.sign_in(registry.issue("admin")[1])
    page = browser.get("/settings/tokens/own").text
    assert "Only who signed in at an identity provider" in page
