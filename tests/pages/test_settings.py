"""The pages of settings: each form does what the REST route does, for those who may, and secrets are shown once."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest

from registry.api.access import NamespaceSet
from registry.client.audit import Audit
from registry.server.access.issuers import Issuers
from registry.versions.retention import RetentionRule
from tests.access.identity import ISSUER, Provider
from tests.harness import URL, Harness
from tests.pages.conftest import Browser

NAMESPACE = "/settings/namespaces/acme"
ADAPTER = "/settings/adapters/acme/shop"


@pytest.fixture(scope="module")
def registry(registry: Harness, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    registry.app.state.issuers = Issuers.read(Provider(tmp_path_factory.mktemp("ci")).settings)
    registry.push("acme/shop")
    return registry


@pytest.fixture
def own(registry: Harness) -> str:
    """The secret of an owner of acme."""
    return registry.issue("admin", namespaces=["acme"], name="owner-of-acme")[1]


@pytest.fixture
def owner(registry: Harness, own: str) -> Iterator[Browser]:
    """A browser with the rights of an owner of acme."""
    with Browser(registry) as client:
        client.sign_in(own)
        yield client


def secret_on(page: httpx.Response) -> str:
    assert page.headers["cache-control"] == "private, no-store"
    return html.unescape(re.findall(r'class="wrap secret">([^<]*)<', page.text)[0])


def test_an_administrator_creates_a_namespace_and_limits_it(registry: Harness, signed_in: Browser) -> None:
    response = signed_in.submit("/settings", "/settings/namespaces", name="globex", owner="bob@globex.example")
    assert response.headers["location"] == "/settings/namespaces/globex"
    fields: Any = {"quota_bytes": "2097152", "quota_versions": "5", "pushes_per_hour": ""}
    path = "/settings/namespaces/globex"
    assert signed_in.submit(path, path, public="yes", strict="yes", unregistered_bases="yes").status_code == 303
    assert signed_in.submit(path, path, **fields).status_code == 303
    view = registry.admin.namespace("globex")
    assert (view.public, view.strict, view.unregistered_bases) == (True, True, True)
    assert (view.quota_bytes, view.quota_versions, view.pushes_per_hour) == (2 * 2**20, 5, None)
    assert "bob@globex.example" in signed_in.get(path).text
    assert signed_in.submit(path, path, quota_bytes="-1").status_code == 400
    assert "globex" in signed_in.get("/settings").text


@pytest.mark.parametrize("quota_bytes", [1, 900_000, 1_572_864, 7 * 2**50 + 1])
def test_saving_a_limit_changes_no_other(registry: Harness, signed_in: Browser, quota_bytes: int) -> None:
    path = "/settings/namespaces/library"
    registry.admin.change_namespace("library", NamespaceSet(quota_bytes=quota_bytes))
    page = signed_in.get(path).text
    field = re.findall(r'id="quota_bytes"[^>]* value="([^"]*)"', page)[0]
    assert field == str(quota_bytes)
    fields: Any = {"quota_bytes": field, "pushes_per_hour": ""}
    assert signed_in.submit(path, path, **fields, quota_versions=str(quota_bytes % 89 + 1)).status_code == 303
    view = registry.admin.namespace("library")
    assert (view.quota_bytes, view.quota_versions, view.pushes_per_hour) == (quota_bytes, quota_bytes % 89 + 1, None)


def test_a_form_keeps_what_changed_after_its_page_was_read(registry: Harness, signed_in: Browser) -> None:
    path = "/settings/namespaces/initech"
    registry.admin.create_namespace("initech")
    registry.admin.change_namespace("initech", NamespaceSet(quota_bytes=5, public=False, strict=False))
    limits: Any = {"quota_bytes": "5", "shown_quota_bytes": "5"}
    access: Any = {"public": "no", "shown_public": "no"}
    registry.admin.change_namespace("initech", NamespaceSet(quota_bytes=900_000, public=True))
    assert signed_in.submit(path, path, **limits, quota_versions="7").status_code == 303
    assert signed_in.submit(path, path, **access, strict="yes").status_code == 303
    view = registry.admin.namespace("initech")
    assert (view.quota_bytes, view.quota_versions, view.public, view.strict) == (900_000, 7, True, True)


def test_an_owner_gives_and_takes_roles(registry: Harness, owner: Browser, own: str) -> None:
    members = f"{NAMESPACE}/members"
    for role, aliases, shown in (("pusher", "canary, beta", "pusher (moves beta, canary)"), ("owner", "", "owner")):
        page = owner.get(NAMESPACE).text
        token = re.findall(r'name="form_token" value="([^"]*)"', page)[0]
        data = {"form_token": token, "subject": "group:ml", "role": role, "aliases": aliases, "token": own}
        assert owner.post(members, data=data, headers={"Origin": URL}).status_code == 303
        assert shown in map(str, (registry.admin.namespace("acme").roles or {})["group:ml"])
        assert f'data-label="Role">{shown}<' in owner.get(NAMESPACE).text
    assert 'aria-label="Remove pusher of group:ml"' in owner.get(NAMESPACE).text
    assert owner.post(members, data=data | {"role": "king"}, headers={"Origin": URL}).status_code == 400
    gone = {"form_token": token, "subject": "group:ml", "remove": "pusher"}
    assert owner.post(members, data=gone, headers={"Origin": URL}).status_code == 303
    assert [*map(str, (registry.admin.namespace("acme").roles or {})["group:ml"])] == ["owner"]


def test_an_owner_sets_retention_rules_and_sees_what_they_do(registry: Harness, owner: Browser) -> None:
    assert owner.submit(NAMESPACE, f"{NAMESPACE}/retention", keep_newest="3", keep_age="").status_code == 303
    assert "Keep the newest 3." in owner.get(NAMESPACE).text
    assert "by the rule of acme" in owner.get(ADAPTER).text
    assert owner.submit(ADAPTER, f"{ADAPTER}/retention", keep_newest="1", keep_age="2w").status_code == 303
    assert registry.admin.retention("acme/shop").rule == RetentionRule(keep_newest=1, keep_seconds=1_209_600)
    page = owner.get(ADAPTER).text
    assert 'value="2w"' in page
    assert ">stays<" in page
    assert re.search(r"Deletes 0 of \d+ at the next collection</b>", page)
    assert owner.submit(ADAPTER, f"{ADAPTER}/retention", keep_newest="1", keep_age="soon").status_code == 400
    for path in (ADAPTER, NAMESPACE):
        assert owner.submit(path, f"{path}/retention", keep_newest="", keep_age="").status_code == 303
    assert "Everything is kept" in owner.get(ADAPTER).text


def test_an_owner_trusts_ci_jobs_and_stops_trusting_them(registry: Harness, owner: Browser, own: str) -> None:
    fields: Any = {"issuer": ISSUER, "token": own}
    claims = "repository=acme/train\r\n\r\nref = refs/heads/*"
    assert owner.submit(ADAPTER, f"{ADAPTER}/publishers", claims=claims, **fields).status_code == 303
    publisher = registry.admin.publishers("acme/shop").items[0]
    assert publisher.claims == {"repository": "acme/train", "ref": "refs/heads/*"}
    for wrong in ("repository", "a=b\na=c", ""):
        assert owner.submit(ADAPTER, f"{ADAPTER}/publishers", claims=wrong, **fields).status_code == 400
    assert owner.submit(ADAPTER, f"{ADAPTER}/publishers/{publisher.id}/delete").status_code == 303
    assert registry.admin.publishers("acme/shop").items == []


@pytest.mark.security
def test_the_secret_of_a_token_is_on_one_page_only(registry: Harness, owner: Browser, own: str) -> None:
    fields: Any = {"name": "<i>ci</i>", "scope_push": "yes", "namespaces": "acme", "lifetime": "1h"}
    page = owner.submit("/settings/tokens", "/settings/tokens", token=own, **fields)
    secret = secret_on(page)
    assert page.status_code == 200
    assert "<i>ci" not in page.text
    assert secret not in owner.get("/settings/tokens").text
    caller = registry.client(secret).whoami()
    assert (caller.scopes, caller.namespaces) == (["push"], ["acme"])
    rotated = owner.submit("/settings/tokens", f"/settings/tokens/{caller.token_id}/rotate", token=own)
    assert registry.client(secret_on(rotated)).whoami().token_id == caller.token_id
    assert owner.submit("/settings/tokens", f"/settings/tokens/{caller.token_id}/revoke").status_code == 303
    assert f"/settings/tokens/{caller.token_id}/revoke" not in owner.get("/settings/tokens").text
    assert secret not in "".join(str(event) for event in Audit(registry.admin).events())


@pytest.mark.security
def test_a_reloaded_page_of_a_secret_makes_no_second_one(registry: Harness, owner: Browser, own: str) -> None:
    """A browser sends the form again."""
    token_id = registry.issue("pull", namespaces=["acme"], name="to rotate")[0]
    forms: Any = (
        ("/settings/tokens", {"name": "reloaded", "scope_pull": "yes", "namespaces": "acme"}),
        (f"/settings/tokens/{token_id}/rotate", {}),
        ("/settings/webhooks", {"url": "https://hooks.example.org/r", "namespace": "acme", "actions": "version.push"}),
    )
    for action, fields in forms:
        page = "/settings/webhooks" if "webhooks" in action else "/settings/tokens"
        wrong = owner.submit(page, action, **fields, token=own, once="")
        assert (wrong.status_code, "secret" in wrong.text) == (400, False)
        created = owner.submit(page, action, **fields, token=own)
        secret = secret_on(created)
        sent = dict(parse_qsl(created.request.content.decode(), keep_blank_values=True))
        again = owner.post(action, data=sent, headers={"Origin": URL})
        assert (again.status_code, 'class="wrap secret"' in again.text) == (409, False), action
        opened = owner.get(action)
        assert (opened.status_code, "Sign out" in opened.text) == (405 if "rotate" in action else 200, True)
        assert "was shown then" in again.text
        if secret.startswith("lra_"):
            assert registry.client(secret).whoami().token_id, "the first secret stays"
    assert [view.name for view in registry.admin.tokens().items].count("reloaded") == 1
    urls = [item.url for item in Audit(registry.admin).webhooks().items]
    assert urls.count("https://hooks.example.org/r") == 1


def test_a_form_of_a_secret_that_was_refused_may_be_sent_again(owner: Browser, own: str) -> None:
    fields: Any = {"scope_pull": "yes", "namespaces": "acme", "token": own, "once": "the-same-text"}
    for name in ("   ", "\N{NO-BREAK SPACE}\N{EM SPACE}"):
        assert owner.submit("/settings/tokens", "/settings/tokens", **fields, name=name).status_code == 400, name
    assert secret_on(owner.submit("/settings/tokens", "/settings/tokens", **fields, name="seen"))


@pytest.mark.security
def test_no_one_gives_rights_that_they_do_not_hold(owner: Browser, own: str) -> None:
    cases: Any = (
        ({"namespaces": "library", "scope_pull": "yes"}, 403),
        ({"namespaces": "*", "scope_admin": "yes"}, 403),
        ({"namespaces": "acme"}, 400),
        ({"namespaces": "acme", "scope_pull": "yes", "subject": "bob@globex.example"}, 403),
        ({"namespaces": "acme", "scope_pull": "yes", "lifetime": "-1d"}, 400),
    )
    for fields, status in cases:
        response = owner.submit("/settings/tokens", "/settings/tokens", name="n", token=own, **fields)
        assert response.status_code == status, fields


@pytest.mark.security
def test_a_session_alone_gets_no_secret(registry: Harness, owner: Browser, own: str) -> None:
    """It would outlast the session, and confirm who someone is where a page asks again."""
    token_id = registry.client(own).whoami().token_id
    before = len(registry.admin.tokens().items)
    for token in ("", "lra_wrong", registry.secret):
        fields: Any = {"name": "n", "namespaces": "acme", "scope_pull": "yes", "token": token}
        assert owner.submit("/settings/tokens", "/settings/tokens", **fields).status_code == 403
        assert owner.submit("/settings/tokens", f"/settings/tokens/{token_id}/rotate", token=token).status_code == 403
    assert len(registry.admin.tokens().items) == before
    assert registry.client(own).whoami().token_id == token_id


def test_who_signed_in_by_the_link_is_told_to_sign_in_with_a_token_first(registry: Harness, browser: Browser) -> None:
    """The link's own token is known to no one, so there is none to paste."""
    fields: Any = {"name": "first", "namespaces": "acme", "scope_pull": "yes", "token": registry.secret}
    browser.get(f"/sign-in/{registry.app.state.sign_in_links.create()}")
    assert "by the link of adapter serve" in browser.get("/settings").text
    page = browser.get("/settings/tokens").text
    assert '<a href="/sign-in?next=%2Fsettings%2Ftokens">sign in with one</a>' in page
    assert 'name="token"' not in page
    assert "<button disabled>Create token</button>" in page
    refused = browser.submit("/settings/tokens", "/settings/tokens", **fields)
    assert refused.status_code == 403
    assert "sign in with this one" in refused.text
    browser.submit("/", "/sign-out")
    browser.sign_in(registry.secret)
    assert secret_on(browser.submit("/settings/tokens", "/settings/tokens", **fields)).startswith("lra_")


@pytest.mark.security
def test_a_session_alone_lets_no_one_in(registry: Harness, owner: Browser) -> None:
    """What it grants would outlast it: a role, a trusted publisher, and a webhook that hears of everything."""
    webhook: Any = {"url": "https://hooks.example.org/", "namespace": "acme", "actions": "version.push"}
    for page, action, token, fields in (
        (NAMESPACE, f"{NAMESPACE}/members", registry.secret, {"subject": "eve@globex.example", "role": "owner"}),
        (ADAPTER, f"{ADAPTER}/publishers", "lra_wrong", {"issuer": ISSUER, "claims": "repository=eve/train"}),
        ("/settings/webhooks", "/settings/webhooks", "", webhook),
    ):
        assert owner.submit(page, action, **fields, token=token).status_code == 403, action
    assert "eve@globex.example" not in (registry.admin.namespace("acme").roles or {})
    assert registry.admin.publishers("acme/shop").items == []
    assert webhook["url"] not in [item.url for item in Audit(registry.admin).webhooks().items]


def test_an_owner_creates_a_webhook_and_sends_a_delivery_again(registry: Harness, owner: Browser, own: str) -> None:
    url = "https://hooks.example.org/a?secret=1"
    fields: Any = {"url": url, "namespace": "acme", "actions": "version.push alias.move", "token": own}
    page = owner.submit("/settings/webhooks", "/settings/webhooks", **fields)
    assert secret_on(page).startswith("whsec_")
    webhook = next(item for item in Audit(registry.admin).webhooks().items if item.url == url)
    path = f"/settings/webhooks/{webhook.id}"
    assert "None." in owner.get(f"{path}?state=dead").text
    assert owner.get(f"{path}?state=other").status_code == 400
    refused = owner.submit("/settings/webhooks", "/settings/webhooks", **fields | {"url": "http://127.0.0.1/"})
    assert refused.status_code == 422
    assert owner.submit("/settings/webhooks", "/settings/webhooks", **fields | {"namespace": "*"}).status_code == 403
    assert owner.submit(path, f"{path}/delete").status_code == 303
    assert owner.get(path).status_code == 404


@pytest.mark.security
def test_forms_of_settings_are_shown_to_and_accepted_from_those_who_may(registry: Harness, browser: Browser) -> None:
    for path in ("/settings", NAMESPACE, ADAPTER, "/settings/tokens", "/settings/webhooks"):
        assert browser.get(path).status_code == 401
    browser.sign_in(registry.issue("push", namespaces=["acme"])[1])
    assert 'action="/settings/namespaces' not in browser.get("/settings").text + browser.get(NAMESPACE).text
    assert browser.get(ADAPTER).status_code == 403
    assert browser.get("/settings/webhooks").status_code == 403
    for path in ("/settings/namespaces/library", "/settings/adapters/library/x"):
        private, absent = browser.get(path), browser.get(path.replace("library", "absent"))
        assert private.status_code == absent.status_code == 404
        assert private.text == absent.text.replace("absent", "library")
    token = re.findall(r'name="form_token" value="([^"]*)"', browser.get("/settings").text)[0]
    webhook = "/settings/webhooks/whk_0"
    fields = {
        "name": "n", "namespaces": "acme", "scope_pull": "yes", "subject": "s", "role": "owner", "public": "yes",
        "namespace": "acme", "url": URL, "actions": "version.push", "claims": "a=b", "issuer": ISSUER,
    }  # fmt: skip
    for action, status in (
        ("/settings/namespaces", 403), (NAMESPACE, 403), (f"{NAMESPACE}/members", 403),
        (f"{NAMESPACE}/retention", 403),
        (f"{ADAPTER}/publishers", 403), (f"{ADAPTER}/publishers/pub_0/delete", 403), (f"{ADAPTER}/retention", 403),
        ("/settings/tokens", 403), ("/settings/tokens/first-admin/revoke", 404),
        ("/settings/tokens/first-admin/rotate", 403), ("/settings/webhooks", 403), (f"{webhook}/delete", 404),
        (f"{webhook}/deliveries/1/retry", 404),
    ):  # fmt: skip
        response = browser.post(action, data=fields | {"form_token": token}, headers={"Origin": URL})
        assert response.status_code == status, (action, response.text)
        forged = browser.post(action, data=fields | {"form_token": token}, headers={"Origin": "https://evil.example"})
        assert forged.status_code == 403, action
