"""In Chromium: nothing of hostile content runs or loads, a day by keyboard alone, and axe-core in light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.harness import Harness
from tests.import_table import ROOT
from tests.web import hostile, layout, screenshots
from tests.web.browser import chromium, watch
from tests.web.site import Site, serve

AXE = "axe-core@4.14.1"
AXE_FOLDER = ROOT / ".cache" / "web"
SPACING = "* { line-height: 1.5 !important; letter-spacing: .12em !important; word-spacing: .16em !important }"
"""What a reader may set by WCAG 1.4.12 without losing anything."""
RULES: dict[str, object] = {
    "type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}  # fmt: skip
RULES_OF_COLORS: dict[str, object] = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}


@pytest.fixture(scope="module")
def hostile_site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder, Harness(f"sqlite:///{folder}/registry.db") as harness:
        hostile.fill(harness)
        with serve(harness) as running:
            yield running


@pytest.mark.security
def test_hostile_content_opens_no_dialog_sends_no_request_and_breaks_no_layout(hostile_site: Site) -> None:
    with chromium(width=390) as context:
        watched = watch(context, hostile_site.url)
        page = watched.page
        page.goto(hostile_site.sign_in_link())
        for path in hostile.PATHS:
            response = page.goto(hostile_site.url + quote(hostile.path_of(hostile_site.harness, path), safe="/?&=@:%#"))
            assert response is not None
            if "html" not in response.headers["content-type"]:
                continue
            for width in (1920, 1280, 700, 390, 320):  # tables of rows are tables only on the first three
                page.set_viewport_size({"width": width, "height": 900})
                assert layout.measure(page, is_cut_allowed=True) == [], f"{path} at {width} px"
            assert page.locator("main").count() == 1
            assert page.locator("h1").count() == 1
            closed = page.locator("details:not([open]) > summary:visible")
            for summary in closed.element_handles()[:20]:  # of this moment: a live page may replace them
                summary.evaluate("summary => summary.click()")
        # A page of an error has its status in the console: that is the browser's, not the page's.
        assert [i for i in watched.incidents if "Failed to load resource" not in i] == []


@pytest.mark.security
def test_every_label_of_a_lineage_is_within_its_node(hostile_site: Site) -> None:
    outside = """nodes => nodes.flatMap(node => {
        const frame = node.querySelector("rect").getBoundingClientRect();
        return [...node.querySelectorAll("text")].filter(text => {
            const area = text.getBoundingClientRect();
            return area.x < frame.x || area.x + area.width > frame.x + frame.width;
        }).map(text => text.textContent);
    })"""
    with chromium() as context:
        page = context.new_page()
        page.goto(hostile_site.sign_in_link())
        page.goto(f"{hostile_site.url}/adapters/{hostile.REF}/versions/1/lineage")
        assert page.locator(".graph g").count() > 4
        assert page.locator(".graph g").evaluate_all(outside) == []


@pytest.mark.security
def test_another_site_cannot_frame_a_page(site: Site) -> None:
    with chromium() as context:
        page = context.new_page()
        page.route("https://evil.example/", lambda route: route.fulfill(
            content_type="text/html", body=f'<iframe src="{site.url}/search"></iframe>'
        ))  # fmt: skip
        with page.expect_event("requestfailed", lambda request: request.url == f"{site.url}/search"):
            page.goto("https://evil.example/")
        assert len(page.frames) == 2
        assert all("Adapters" not in frame.content() for frame in page.frames)


def test_a_day_of_a_merchant_by_keyboard_alone(site: Site) -> None:
    """Sign in at the identity provider, find the adapter, promote, roll back, give a role, make a token, sign out."""
    with chromium() as context:
        watched = watch(context, site.url)
        page = watched.page
        page.goto(f"{site.url}/adapters/acme/support/aliases/canary")
        follow(page, "Sign in", "**/sign-in?**")
        follow(page, "Sign in with acme-login", f"{site.url}/adapters/acme/support/aliases/canary")
        expect(page.locator(".account span")).to_have_text("alice@acme.example")
        press_until_focused(page, "header input")
        page.keyboard.type("support")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search?text=support")
        follow(page, "acme/support", "**/adapters/acme/support")
        follow(page, "canary", "**/aliases/canary")
        promote_and_roll_back(page)
        follow(page, "Settings", "**/settings")
        follow(page, "acme", "**/namespaces/acme")
        sign_in_again(page)
        press_until_focused(page, "#subject")
        page.keyboard.type("dave@acme.example")
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_contain_text("dave@acme.example")
        page.wait_for_load_state()
        follow(page, "Settings", "**/settings")
        follow(page, "Tokens", "**/tokens")
        press_until_focused(page, "#name")
        page.keyboard.type("notebook")
        press_until_focused(page, "[name=scope_pull]")
        page.keyboard.press("Space")
        press_until_focused(page, "#namespaces")
        page.keyboard.type("acme")
        page.keyboard.press("Enter")
        expect(page.locator(".secret")).to_have_text(re.compile("^lra_"))
        page.wait_for_load_state()
        press_until(page, "Sign out")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{site.url}/")
        expect(page.locator("text=Sign out")).to_have_count(0)
        not_found = "console: Failed to load resource: the server responded with a status of 404 (Not Found)"
        assert watched.incidents.count(not_found) == 1, "the page of the alias, before signing in"
        sign_in = f"request: {site.provider.url}/authorize"
        assert [i for i in watched.incidents if i != not_found and not i.startswith(sign_in)] == []


def promote_and_roll_back(page: Page) -> None:
    """On the page of canary, which points at version 3: promote version 2, and go back."""
    expect(page.locator("main")).to_contain_text("version 3")
    press_until_focused(page, "#version")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    follow(page, "Check", "**version=2")
    press_until_focused(page, "#reason")
    page.keyboard.type("back to the old answers")
    page.keyboard.press("Enter")
    page.wait_for_url("**/aliases/canary")
    expect(page.locator("main")).to_contain_text("Points at version 2 since")
    press_until_focused(page, "#why")
    page.keyboard.type("too early")
    page.keyboard.press("Enter")  # back to the same address
    expect(page.locator("main")).to_contain_text("Points at version 3 since")
    page.wait_for_load_state()


def test_a_live_page_shows_new_jobs_and_keeps_what_has_the_focus(site: Site) -> None:
    with chromium() as context:
        watched = watch(context, site.url)
        page = watched.page
        page.goto(site.sign_in_link())
        page.goto(f"{site.url}/jobs?ref=acme/live")
        # Not wait_for_function: from its second try on, the content security policy refuses what it evaluates.
        expect(page.locator("#live-state")).to_have_text("live")
        page.focus("#ref")
        site.harness.push("acme/live")
        expect(page.locator("main")).to_contain_text("acme/live@1")
        expect(page.locator("#ref")).to_be_focused()
        page.focus("[data-live] a")
        site.harness.push("acme/live")
        expect(page.locator("#live-state")).to_contain_text("an update waits")
        page.focus("#ref")
        expect(page.locator("main")).to_contain_text("acme/live@2")
        assert watched.incidents == []


def sign_in_again(page: Page) -> None:
    """Sign in at the provider a second time, as a page asks before it gives a role; this counts for minutes."""
    path = urlsplit(page.url).path
    again = "Sign in with acme-login again"
    press_until(page, again)
    with page.expect_response(lambda response: urlsplit(response.url).path == path and response.status == 200):
        page.keyboard.press("Enter")
    expect(page.get_by_text(again)).to_have_count(0)
    page.wait_for_url(f"**{path}")


def press_until(page: Page, text: str) -> None:
    """Press Tab until the element with this text has the focus, which can be seen."""
    _press(page, f"document.activeElement.innerText === {json.dumps(text)}", text)


def follow(page: Page, text: str, url: str) -> None:
    """Follow the link or button with this text by the keyboard, to a page whose URL matches this pattern."""
    press_until(page, text)
    page.keyboard.press("Enter")
    page.wait_for_url(url)


def press_until_focused(page: Page, selector: str) -> None:
    """Press Tab until the element with this selector has the focus, which can be seen."""
    _press(page, f"document.activeElement.matches({json.dumps(selector)})", selector)


def _press(page: Page, condition: str, target: str) -> None:
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate(condition):
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            return
    raise AssertionError(f"no Tab reaches {target}")


def test_a_page_is_read_without_javascript_and_needs_two_requests_after_the_first_visit(site: Site) -> None:
    with chromium(scripts=False) as context:
        page = context.new_page()
        page.goto(site.sign_in_link())
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        for path in ("/adapters/acme/support/versions/2", "/search?text=support"):
            requests.clear()
            page.goto(site.url + path)
            expect(page.locator("h1")).to_have_text(re.compile("^(acme/support@2|Adapters)"))
            assert [url for url in requests if "/assets/" not in url] == [page.url], "the browser keeps the assets"


@pytest.fixture(scope="session")
def axe_source() -> str:
    """The source of axe-core, from npm's cache of this checkout."""
    file = AXE_FOLDER / "node_modules" / "axe-core" / "axe.min.js"
    if not file.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("axe-core needs npm once")
        AXE_FOLDER.mkdir(parents=True, exist_ok=True)
        command: list[str | Path] = [
            npm,
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
            AXE_FOLDER,
            AXE,
        ]
        subprocess.run(command, check=True)
    return Path(file).read_text()


@pytest.mark.parametrize("width", [320, 1280])
def test_axe_finds_nothing_on_any_page(site: Site, axe_source: str, width: int) -> None:
    """All rules on the light page; the dark one differs by its colours only."""
    with chromium(width=width) as context:
        page = context.new_page()
        problems: dict[str, list[str]] = {}
        for name, url in screenshots.addresses(site).items():
            page.emulate_media(color_scheme="light")
            page.goto(url)
            page.evaluate(axe_source)
            page_problems = violations(page, RULES)
            page.emulate_media(color_scheme="dark")
            page_problems += [f"dark: {problem}" for problem in violations(page, RULES_OF_COLORS)]
            page.evaluate("document.adoptedStyleSheets = [new CSSStyleSheet()]")
            for spacing in ("", SPACING):
                page.evaluate("css => document.adoptedStyleSheets[0].replaceSync(css)", spacing)
                page_problems += [f"{problem} with {spacing!r}" for problem in layout.measure(page)]
            if page_problems:
                problems[name] = page_problems
        assert problems == {}


def violations(page: Page, rules: dict[str, object]) -> list[str]:
    options = {"runOnly": rules, "resultTypes": ["violations"]}
    broken = page.evaluate("options => axe.run(document, options).then(results => results.violations)", options)
    return [f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:160]}" for v in broken]
