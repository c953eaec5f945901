"""Hostile content (tests/web/hostile.py) stays text on every page: no element, attribute or link of it is HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from registry.server.pages import readme
from tests import effort
from tests.harness import Harness
from tests.pages.conftest import ENGINES, Browser
from tests.web import hostile

pytestmark = pytest.mark.security

ANCHORS = {"#main", "#card", "#versions"}
NEVER = {"script", "style", "iframe", "object", "embed", "base", "math", "animate", "frame", "video", "audio", "area"}
ONCE = {"html", "head", "body", "main", "h1", "title"}
IN_FORMS = {"input", "button", "select", "textarea", "fieldset"}
VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta", "rect", "path"}


class Page(HTMLParser):
    """Checks each tag of a page, and that all are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.tags.append(f"{tag} of a drawing" if tag == "title" and "svg" in self.open else tag)
        is_ours = (
            tag == "script" and values.get("src", "").startswith("/assets/live-") and self.open == ["html", "head"]
        )
        if (tag in NEVER and not is_ours) or (self.tags[-1] in ONCE and self.tags.count(tag) > 1):
            self.problems.append(f"<{tag}>")
        self.problems += [f"{tag} {name}" for name in values if name.startswith("on") or name in ("style", "srcdoc")]
        for name in ("href", "src", "action", "formaction", "xlink:href"):
            if not self._is_allowed(tag, name, values):
                self.problems.append(f"{tag} {name}={values[name]}")
        if tag in IN_FORMS and "form" not in self.open:
            self.problems.append(f"<{tag}> outside of a form")
        if tag == "meta" and "http-equiv" in values:
            self.problems.append("meta http-equiv")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.problems.append(f"</{tag}> is not the one that is open")

    def _is_allowed(self, tag: str, name: str, values: dict[str, str]) -> bool:
        value = values.get(name)
        if value is None or (value.startswith("/") and not value.startswith("//")) or value in ANCHORS:
            return True
        absolute = tag == "a" and name == "href" and urlsplit(value).scheme in ("http", "https", "mailto")
        return absolute and "noopener" in values.get("rel", "")


@pytest.fixture(scope="module")
def hostile_harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    path: Path = tmp_path_factory.mktemp("hostile") / "registry.db"
    with Harness(f"sqlite:///{path}", engines=ENGINES) as harness:
        hostile.fill(harness)
        yield harness


@pytest.mark.parametrize("path", hostile.PATHS)
def test_no_page_contains_markup_of_others(hostile_harness: Harness, path: str) -> None:
    with Browser(hostile_harness) as browser:
        browser.sign_in(hostile_harness.secret)
        response = browser.get(hostile.path_of(hostile_harness, path))
    assert response.status_code < 500
    if response.headers["content-type"] == "application/problem+json":  # the path leads to no page
        return
    page = Page()
    page.feed(response.text)
    page.close()
    assert page.problems == []
    assert page.open == []
    assert len(response.content) < 150_000
    assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_an_image_of_a_report_is_a_png_or_does_not_exist(hostile_harness: Harness) -> None:
    verdicts = hostile_harness.admin.version(f"{hostile.REF}@2").verdicts
    report = next(verdict.report for verdict in verdicts if verdict.report)
    with Browser(hostile_harness) as browser:
        browser.sign_in(hostile_harness.secret)
        for image in ("before", "after"):
            path = f"/adapters/{hostile.REF}/versions/2/reports/{report}/{image}.png"
            assert browser.get(path).status_code == 404
        assert browser.get(f"/adapters/{hostile.REF}/versions/2/reports/{report}/x.png").status_code == 400


@pytest.mark.parametrize("part", [b"[", b"*a_ ", b"> ", b"[a](b", b"<b>", b"![a"])
def test_a_readme_costs_work_that_does_not_explode(part: bytes) -> None:
    def render(size: int) -> None:
        readme.render_readme.__wrapped__(part * (size // len(part)))

    small = effort.lines(lambda: render(2**9))
    assert effort.lines(lambda: render(2**11)) < 10 * small + 50_000


@pytest.mark.parametrize("head", ["|a" * 4000, "> " + "a|" * 100])
def test_a_readme_with_a_huge_table_is_plain_text(head: str) -> None:
    start = head[: len(head) - len(head.lstrip("> "))]
    text = f"{head}\n{start}{'|-' * head.count('|')}|\n" + f"{start}|\n" * 200
    assert readme.render_readme(text.encode()).startswith("<pre>")
    assert '<table tabindex="0">' in readme.render_readme(b"|a|b|\n|-|-|\n" + b"|1|2|\n" * 1000)


def test_a_readme_keeps_its_formatting_and_loses_the_rest() -> None:
    html = readme.render_readme(b"---\na: 1\n---\n# A\n\n**b** [c](https://x.org) ![d](e.png) <kbd>f</kbd>\n\n1. g\n")
    assert html == (
        '<h3 id="readme-a">A</h3>\n'
        '<p><strong>b</strong> <a href="https://x.org" rel="noopener noreferrer nofollow">c</a> '
        "<span>[image: d]</span> <kbd>f</kbd></p>\n<ol>\n<li>g</li>\n</ol>\n"
    )
    assert readme.render_readme(b"<" * readme.READ_LIMIT_BYTES).startswith("<pre>")
    assert readme.render_readme("# a\u202ex &#x202E;".encode()) == '<h3 id="readme-ax-x202e">a[U+202E]x [U+202E]</h3>\n'


@pytest.mark.parametrize("part", ["![", "[", "*_", ">\n- ", "- a\n", "`"])
def test_a_readme_of_nothing_but_markers_is_plain_text(part: str) -> None:
    assert readme.render_readme((part * readme.READ_LIMIT_BYTES).encode()).startswith("<pre>")


def test_a_readme_leads_to_its_headings_and_to_files_of_its_version_only() -> None:
    text = "# Use it\n[a](#Use-it) [b](LICENSE) [c](./LICENSE) [d](../../x) [e](other) <h3 id='main'>f</h3>\n"
    html = readme.render_readme(text.encode(), frozenset({"LICENSE"}), "/adapters/a/b/versions/1/files")
    links = re.findall('<a(?: href="([^"]*)")?', html)
    own = "/adapters/a/b/versions/1/files/LICENSE"
    assert links == ["#readme-use-it", own, own, "", ""]
    assert re.findall('id="([^"]*)"', html) == ["readme-use-it"]
