"""Pages show what REST shows the same actor: without sign-in only public namespaces, and private ones do not exist."""

from __future__ import annotations

import dataclasses
import re

import pytest

from registry.api.access import NamespaceSet
from registry.client.audit import Audit
from registry.evaluation.gates import Gate
from registry.evaluation.reports import Answer
from registry.events import describe
from registry.server.app import create_app
from registry.server.audit import audit_log
from registry.server.settings import Settings
from tests.access.tenants import Tenants
from tests.harness import Harness
from tests.pages.conftest import Browser

pytestmark = pytest.mark.security

PAGES = ("", "/versions/1", "/versions/main", "/versions/1/lineage", "/nothing")


@pytest.fixture(scope="module", autouse=True)
def filled(registry: Harness) -> Harness:
    registry.push("acme/support", message="words of acme")
    registry.push("library/hello")
    registry.admin.change_namespace("library", NamespaceSet(public=True))
    return registry


def test_an_anonymous_client_sees_public_namespaces_only(browser: Browser) -> None:
    page = browser.get("/")
    assert page.status_code == 200
    assert "hello" in page.text
    assert "support" not in page.text
    assert browser.get("/adapters/library/hello").status_code == 200
    assert browser.get("/adapters/acme/support").status_code == 404


def test_a_private_adapter_looks_like_an_absent_one(filled: Harness, browser: Browser) -> None:
    outsider = filled.issue("pull", namespaces=["library"])[1]
    for sign_in in (False, True):
        if sign_in:
            browser.sign_in(outsider)
        for rest in PAGES:
            with filled.statements() as of_private:
                private = browser.get(f"/adapters/acme/support{rest}")
            with filled.statements() as of_absent:
                absent = browser.get(f"/adapters/acme/missing{rest}")
            assert private.status_code == absent.status_code == 404
            assert _without_names(private.text) == _without_names(absent.text).replace("missing", "support")
            assert [len(of_private), of_private] == [len(of_absent), of_absent]


def _without_names(text: str) -> str:
    return re.sub(r"[0-9a-f]{24}", "", text)


def test_names_of_people_reasons_and_gates_are_shown_after_signing_in(filled: Harness, browser: Browser) -> None:
    person = filled.actor("admin", name="dora-the-owner")
    for _ in range(2):
        filled.push("library/named", by=person, message="words for readers")
    person.promote("library/named", "canary", "1", generation=0, reason="a plan of the team")
    person.set_gate("library/named", "canary", Gate(approvals=1, approvers=("dora-the-owner",)))
    person.delete_version("library/named@2", "a plan of the team")
    paths = ("", "/versions/1", "/versions/2", "/aliases/canary", "/aliases/canary?at=2099-01-01T00:00")
    for name, is_shown in (("anonymous", False), ("signed in", True)):
        if is_shown:
            browser.sign_in(filled.issue("pull", namespaces=["library"])[1])
        for path in paths:
            text = browser.get(f"/adapters/library/named{path}").text
            assert ("dora-the-owner" in text, name) == (is_shown, name), path
            assert is_shown or "a plan of the team" not in text, path
    assert "words for readers" in browser.get("/adapters/library/named/versions/1").text


def test_a_page_with_bytes_of_a_version_is_in_the_audit_log_once(
    filled: Harness, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads() -> list[tuple[str, str, str]]:
        events = Audit(filled.admin).events(action=["bytes.read", "page.read"])
        return [(e.action, e.actor, e.object) for e in events if "/read" in e.object]

    filled.push("library/read", filled.files() | {"README.md": b"# Words\n"})
    assert ">Words</h3>" in browser.get("/adapters/library/read").text
    assert reads() == []
    browser.sign_in(filled.issue("pull", namespaces=["library"], name="page-reader")[1])
    filled.validate("library/read@1", answers=(Answer(prompt="p", base="b", adapter="a"),))
    once = [("page.read", "token:page-reader", "library/read@1")]
    for path in ("", "", "/versions/1"):
        browser.get(f"/adapters/library/read{path}")
        assert reads() == once, "one event for what someone sees of a version"
    monkeypatch.setattr(audit_log, "PAGE_READ_SECONDS", 0)
    browser.get("/adapters/library/read")
    assert reads() == once * 2
    assert describe(*once[0][::2], {}).message == "saw files of library/read@1 on a page"


def test_an_unknown_address_is_a_page_in_a_browser_and_json_for_programs(filled: Harness, signed_in: Browser) -> None:
    html = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path in ("/nothing", "/adapters/acme/support/", "/adapters/acme/support/x", "/<script>"):
        page = signed_in.get(path, headers=html)
        assert page.status_code == 404, path
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"]
        assert "Sign out" in page.text
        assert "<script>" not in page.text
        assert "Sign out" not in page_without_session(filled, path)
        assert signed_in.get(path).headers["content-type"] == "application/problem+json"
    refused = signed_in.get("/%00", headers=html)
    assert (refused.status_code, refused.headers["content-type"]) == (400, "text/html; charset=utf-8")
    assert "U+0000" in refused.text
    for path in ("/api/v1/nothing", "/api/nothing"):
        assert signed_in.get(path, headers=html).headers["content-type"] == "application/problem+json", path


def page_without_session(harness: Harness, path: str) -> str:
    """What a browser without a session gets for an unknown address."""
    with Browser(harness) as nobody:
        return nobody.get(path, headers={"Accept": "text/html"}).text


def test_a_search_shows_no_other_tenant(filled: Harness, browser: Browser) -> None:
    browser.sign_in(filled.issue("pull", namespaces=["library"])[1])
    for query in ("text=acme", "text=support", "base=tiny-llama", "owner=token:admin", "alias=main", "check=compat"):
        assert "acme/<b>support" not in browser.get(f"/search?{query}").text, query


def test_pages_can_be_private_or_off(filled: Harness) -> None:
    settings = filled.app.state.settings
    with Browser(filled) as browser:
        object.__setattr__(settings, "pages", "private")
        try:
            assert browser.get("/adapters/library/hello").status_code == 404
        finally:
            object.__setattr__(settings, "pages", "on")
    off = create_app(_changed(settings, "off"), engine=filled.engine, blobs=filled.blobs)
    paths = {getattr(route, "path", "") for route in off.routes}
    assert "/sign-in" not in paths
    assert "/api/v1/adapters" in paths


def _changed(settings: Settings, pages: str) -> Settings:
    return dataclasses.replace(settings, pages=pages)


def test_each_role_sees_its_own_namespace_and_no_other(database_url: str) -> None:
    with Harness(database_url) as harness:
        tenants = Tenants(harness)
        for who in ("reader", "owner"):
            with Browser(harness) as browser:
                browser.sign_in(tenants.secret(who))
                assert browser.get("/adapters/acme/support").status_code == 200
                assert browser.get("/adapters/globex/secret").status_code == 404
                assert "globex" not in browser.get("/").text


def test_no_cache_keeps_a_page_and_no_site_frames_it(browser: Browser) -> None:
    for path in ("/", "/adapters/library/hello", "/adapters/acme/support", "/sign-in"):
        headers = browser.get(path).headers
        assert headers["cache-control"] == "private, no-store"
        assert "Cookie" in headers["vary"]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src" not in policy
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"


def test_the_style_sheet_is_kept_for_good_and_is_all_that_a_page_needs(browser: Browser) -> None:
    page = browser.get("/adapters/library/hello").text
    assert len(page.encode()) < 150_000
    assert "<script" not in page
    assert " style=" not in page
    loaded = set(re.findall(r'(?:href|src)="(/assets/[^"]+)"', page))
    assert len(loaded) == 2, "a style sheet and an icon"
    for path in loaded:
        assert "immutable" in browser.get(path).headers["cache-control"]
    assert browser.get("/assets/style-0.css").status_code == 404


@pytest.mark.parametrize("cursor", ["\N{SUPERSCRIPT TWO}", "9" * 30, "x"])
def test_a_cursor_of_no_page_is_refused(signed_in: Browser, cursor: str) -> None:
    assert signed_in.get("/audit", params={"object": "acme", "before": cursor}).status_code == 400
