"""Sign-in: a session has the rights of its token and no others, and no other site can use it."""

from __future__ import annotations

import base64
import html
import re
import time
import zlib
from datetime import timedelta
from urllib.parse import quote

import pytest

from registry.api.maintenance import GcRequest
from registry.server.access import one_time_links, rate_limits
from registry.server.database import db
from registry.server.database.models import TokenRow
from registry.server.database.models.sign_in import PageSessionRow
from registry.server.pages.sessions import page_sessions, visitors
from registry.server.pages.sessions.page_sessions import LINK_TOKEN
from registry.server.pages.sign_in import INVALID_TOKEN
from registry.token_secret import new_secret
from tests import raw_asgi
from tests.harness import URL, Harness, rows
from tests.pages.conftest import Browser

pytestmark = pytest.mark.security


@pytest.fixture
def long_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a few requests may take so long that a limit for a minute allows another one."""
    monkeypatch.setattr(rate_limits, "MINUTE_SECONDS", 3600.0)


def test_a_token_signs_in_and_the_sign_out_ends_the_session(registry: Harness, browser: Browser) -> None:
    response = browser.sign_in(registry.secret, next="/search?text=a")
    assert (response.status_code, response.headers["location"]) == (303, "/search?text=a")
    session = response.cookies["adapter-session"]
    assert "Sign out" in browser.get("/").text
    assert browser.submit("/", "/sign-out").status_code == 303
    browser.cookies.set("adapter-session", session, domain="registry.test")
    assert "Sign out" not in browser.get("/").text, "the server has ended it, whatever the browser still sends"


def test_after_an_expired_session_signing_in_leads_to_the_page_of_the_form(browser: Browser) -> None:
    back = f"{URL}/adapters/acme/shop/aliases/prod?version=2"
    refused = browser.post("/adapters/acme/shop/aliases/prod/promote", data={"reason": "x"}, headers={"Referer": back})
    links = set(re.findall(r'href="(/sign-in[^"]*)"', refused.text))
    assert links == {"/sign-in?next=/adapters/acme/shop/aliases/prod%3Fversion%3D2"}


def test_the_database_holds_neither_the_id_of_a_session_nor_a_secret(registry: Harness, browser: Browser) -> None:
    browser.sign_in(registry.secret)
    with registry.session() as session:
        text = "".join(row.model_dump_json() for row in rows(session, PageSessionRow))
    assert browser.cookies["adapter-session"] not in text
    assert registry.secret not in text


def test_cookies_are_out_of_reach_for_scripts_other_sites_and_plain_http(registry: Harness) -> None:
    settings = registry.app.state.settings
    with Browser(registry) as plain:
        cookies = plain.sign_in(registry.secret).headers.get_list("set-cookie")
    assert all("HttpOnly" in cookie and "SameSite=lax" in cookie for cookie in cookies)
    assert all("secure" not in cookie.lower() for cookie in cookies), "on http browsers would drop it"
    object.__setattr__(settings, "public_url", "https://registry.test")
    try:
        with Browser(registry) as client:
            client.base_url = "https://registry.test"
            cookies = client.sign_in(registry.secret, headers={"Origin": "https://registry.test"}).headers.get_list(
                "set-cookie"
            )
    finally:
        object.__setattr__(settings, "public_url", "")
    assert all(cookie.startswith("__Host-adapter-") and "Secure" in cookie for cookie in cookies)


def test_every_wrong_token_gets_the_same_response(registry: Harness, browser: Browser) -> None:
    revoked_id, revoked = registry.issue("pull")
    registry.admin.revoke_token(revoked_id)
    _, expired = registry.issue("pull", seconds=1)
    later = db.now() + timedelta(hours=1)
    responses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db, "now", lambda: later)
        for token in (new_secret(), "lra_x", "", "é" * 50, revoked, expired):
            response = browser.sign_in(token)
            assert response.status_code == 403
            responses.append(response.text)
    assert INVALID_TOKEN in responses[0]
    assert len(set(responses)) == 1
    assert "adapter-session" not in browser.cookies


@pytest.mark.usefixtures("long_minute")
def test_wrong_tokens_are_rate_limited(database_url: str) -> None:
    with Harness(database_url, failures_per_minute=3) as harness, Browser(harness) as browser:
        statuses = [browser.sign_in(new_secret()).status_code for _ in range(5)]
        assert statuses == [403, 403, 403, 429, 429]
        assert browser.sign_in(harness.secret).status_code == 303, "a valid token is never limited by it"


@pytest.mark.usefixtures("long_minute")
def test_sign_ins_count_as_requests_of_their_token(database_url: str) -> None:
    with Harness(database_url, requests_per_minute=5) as harness, Browser(harness) as browser:
        _, secret = harness.issue("pull")
        fields = {"token": secret, "form_token": visitors.form_token("x")}
        responses = [browser.post("/sign-in", data=fields, headers={"Cookie": "adapter-form=x"}) for _ in range(7)]
        assert [response.status_code for response in responses] == [303] * 5 + [429] * 2
        with harness.session() as session:
            assert len(rows(session, PageSessionRow)) == 5


@pytest.mark.usefixtures("long_minute")
def test_visitors_are_limited_by_network_and_end_no_limit_of_a_token(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits.RequestLimiter, "KEYS_LIMIT", 2)
    with Harness(database_url, requests_per_minute=5) as harness:
        bearer = [("Authorization", f"Bearer {harness.issue('pull')[1]}")]
        statuses = [raw_asgi.call(harness.app, "GET", "/api/v1/bases", bearer).status for _ in range(6)]
        assert statuses == [200] * 5 + [429]
        networks = [f"2001:db8:{number}::1" for number in range(4)]
        assert {raw_asgi.call(harness.app, "GET", "/", address=address).status for address in networks} == {200}
        assert raw_asgi.call(harness.app, "GET", "/api/v1/bases", bearer).status == 429
        hosts = [f"2001:db8::{number}" for number in range(6)]
        statuses = [raw_asgi.call(harness.app, "GET", "/", address=address).status for address in hosts]
        assert statuses == [200] * 5 + [429]


def test_a_page_with_a_long_path_leads_to_the_form(browser: Browser) -> None:
    page = browser.get("/search", params={"text": "a" * 300, "alias": "b" * 300})
    link = re.findall(r'href="(/sign-in[^"]*)"', page.text)[0]
    assert browser.get(html.unescape(link)).status_code == 200


def test_a_session_ends_with_its_token(registry: Harness, browser: Browser) -> None:
    token_id, secret = registry.issue("pull", seconds=3600)
    browser.sign_in(secret)
    assert "Sign out" in browser.get("/").text
    registry.admin.revoke_token(token_id)
    assert "Sign out" not in browser.get("/").text
    _, secret = registry.issue("pull", seconds=3600)
    browser.sign_in(secret)
    with pytest.MonkeyPatch.context() as patch:
        later = db.now() + timedelta(seconds=3601)
        patch.setattr(db, "now", lambda: later)
        assert "Sign out" not in browser.get("/").text


def test_a_session_ends_when_its_secret_is_rotated(registry: Harness, browser: Browser) -> None:
    token_id, secret = registry.issue("pull")
    browser.sign_in(secret)
    registry.admin.rotate_token(token_id)
    assert "Sign out" not in browser.get("/").text


def test_a_planted_session_id_never_becomes_signed_in(registry: Harness, browser: Browser) -> None:
    browser.cookies.set("adapter-session", "planted-by-somebody-else", domain="registry.test")
    response = browser.sign_in(registry.secret)
    assert response.cookies["adapter-session"] != "planted-by-somebody-else"
    with Browser(registry) as attacker:
        attacker.cookies.set("adapter-session", "planted-by-somebody-else", domain="registry.test")
        assert "Sign out" not in attacker.get("/").text


@pytest.mark.parametrize(
    "path",
    ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/\t/evil.example",
     "/a\r\nX: y", "evil", "/" + "a" * 600],
)  # fmt: skip
def test_a_sign_in_never_leads_to_another_site(registry: Harness, path: str) -> None:
    with Browser(registry) as browser:
        assert browser.sign_in(registry.secret, next=path).headers["location"] == "/"


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-site"}],
)  # fmt: skip
def test_a_form_of_another_site_is_refused(registry: Harness, headers: dict[str, str]) -> None:
    with Browser(registry) as browser:
        assert browser.sign_in(registry.secret, headers=headers).status_code == 403
        assert "adapter-session" not in browser.cookies


def test_a_form_needs_the_value_of_its_own_session(registry: Harness, signed_in: Browser) -> None:
    with Browser(registry) as other:
        other.sign_in(registry.secret)
        stolen = other.submit("/", "/sign-out", headers={"Sec-Fetch-Site": "cross-site"}).request.content.decode()
    token = stolen.partition("form_token=")[2]
    for value in ("", "x", "é", token):
        response = signed_in.post("/sign-out", data={"form_token": value}, headers={"Origin": URL})
        assert response.status_code == 403
    assert signed_in.post("/sign-out", json={"form_token": token}).status_code == 400
    assert "Sign out" in signed_in.get("/").text


@pytest.mark.parametrize("body", [b"form_token=a&form_token=a", b"%ff=%ff", b"\xff", b"&".join([b"a=1"] * 50)])
def test_a_form_that_cannot_be_read_is_refused(signed_in: Browser, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert signed_in.post("/sign-out", content=body, headers=headers).status_code in (400, 403)


def test_the_link_of_serve_signs_in_once(registry: Harness, browser: Browser) -> None:
    links = registry.app.state.sign_in_links
    path = f"/sign-in/{links.create()}"
    assert browser.head(path).status_code == 405, "a look at the link does not use it up"
    assert browser.get(path).status_code == 303
    assert LINK_TOKEN in browser.get("/").text
    with Browser(registry) as second:
        assert second.get(path).status_code == 403
        assert "adapter-session" not in second.cookies


@pytest.mark.security
def test_the_token_of_the_link_ends_with_its_session(registry: Harness, browser: Browser) -> None:
    def still_valid() -> set[str]:
        with registry.session() as session:
            return {row.id for row in rows(session, TokenRow) if row.name == LINK_TOKEN and row.revoked_at is None}

    def follow_link() -> set[str]:
        before = still_valid()
        assert browser.get(f"/sign-in/{registry.app.state.sign_in_links.create()}").status_code == 303
        return still_valid() - before

    first = follow_link()
    second = follow_link()
    assert (len(first), len(second)) == (1, 1)
    assert not first & still_valid(), "the browser's next session replaces it"
    assert browser.submit("/", "/sign-out").status_code == 303
    assert not second & still_valid()
    token_id, secret = registry.issue("pull", name=LINK_TOKEN)
    browser.sign_in(secret)
    assert browser.submit("/", "/sign-out").status_code == 303
    assert token_id in still_valid(), "a pasted token outlasts the session, whatever its name is"


def test_the_link_of_serve_ends_soon(registry: Harness, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/sign-in/{registry.app.state.sign_in_links.create()}"
    later = time.monotonic() + one_time_links.LINK_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert browser.get(path).status_code == 403


def test_garbage_collection_deletes_ended_sessions(database_url: str) -> None:
    with Harness(database_url) as harness, Browser(harness) as browser:
        browser.sign_in(harness.secret)
        with harness.session(write=True) as session:
            for row in rows(session, PageSessionRow):
                row.expires_at = db.now() - timedelta(seconds=page_sessions.SESSION_SECONDS)
                session.add(row)
        assert harness.admin.collect(GcRequest()).sessions_deleted == 1


def test_a_form_of_an_ended_session_waits_until_its_person_has_signed_in(registry: Harness, browser: Browser) -> None:
    registry.push("acme/waiting")
    page = "/adapters/acme/waiting/aliases/prod?version=1"
    promote = "/adapters/acme/waiting/aliases/prod/promote"
    browser.sign_in(registry.secret)
    session = browser.cookies["adapter-session"]
    token = re.search(r'name="form_token" value="([^"]+)"', browser.get(page).text)
    assert token is not None
    browser.submit("/", "/sign-out")
    browser.cookies.set("adapter-session", session, domain="registry.test")
    sent = {"form_token": token[1], "generation": "0", "version": "1", "reason": 'so "we" decided', "token": "lra_x"}
    assert "adapter-waiting-form" not in browser.post(promote, data=sent, headers={"Referer": URL + page}).cookies
    elsewhere = browser.post(promote, data=sent, headers={"Referer": URL + page, "Origin": "https://evil.example"})
    assert "adapter-waiting-form" not in elsewhere.cookies, "another site lets nothing wait"
    refused = browser.post(promote, data=sent, headers={"Referer": URL + page, "Origin": URL})
    assert refused.status_code == 404, "as for who may not see it"
    assert f"/sign-in?next={quote(page)}" in refused.text
    kept = refused.cookies["adapter-waiting-form"]
    assert b"lra_x" not in zlib.decompress(base64.urlsafe_b64decode(kept.partition(".")[0])), "no secret waits"
    assert "you were signed out" in refused.text.lower()
    assert browser.sign_in(registry.secret, next=page).headers["location"] == page
    browser.cookies.set("adapter-waiting-form", "x" + kept, domain="registry.test")
    assert "so &#34;we&#34; decided" not in browser.get(page).text, "it is not signed"
    browser.cookies.set("adapter-waiting-form", kept, domain="registry.test")
    assert "so &#34;we&#34; decided" not in browser.get("/").text
    filled = browser.get(page)
    assert 'value="so &#34;we&#34; decided"' in filled.text
    assert "It has changed nothing yet" in filled.text
    assert registry.admin.version("acme/waiting@1").aliases == ["main"]
    assert "so &#34;we&#34; decided" not in browser.get(page).text, "once"
