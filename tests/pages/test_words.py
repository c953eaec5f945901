"""What pages say: errors where they are seen, next steps as code, numbers as on the other pages."""

from __future__ import annotations

import html
import re

import pytest

from registry.server.catalog.search import adapters, candidates
from registry.server.pages import ROUTERS
from registry.server.pages.rendering import DONE, PageRoute
from tests.harness import Harness
from tests.pages.conftest import Browser


def test_the_error_of_a_filter_is_shown_before_the_filters(signed_in: Browser) -> None:
    page = signed_in.get("/search?base=a+b")
    assert page.status_code == 422
    assert page.text.index("Base name &#39;a b&#39; must be letters") < page.text.index("<form class=")


def test_what_stands_in_backticks_is_code_and_stays_text(signed_in: Browser) -> None:
    page = signed_in.get("/adapters/acme/nothing").text
    assert "<code>adapter list --namespace acme</code> lists those that you may see." in page
    hostile = signed_in.get("/compare?first=acme/<b>x`y`&second=acme/x").text
    assert "<b>" not in hostile
    assert "&lt;b&gt;" in hostile


def test_a_comparison_formats_numbers_as_the_page_of_a_version(registry: Harness, signed_in: Browser) -> None:
    registry.push("acme/numbers")
    registry.push("acme/numbers")
    page = signed_in.get("/compare?first=acme/numbers@1&second=acme/numbers@2").text
    version = signed_in.get("/adapters/acme/numbers/versions/1").text
    for number in ("16", "7,168"):
        assert f'<td data-label="first">{number}</td>' in page
        assert f"<dd>{number}</dd>" in version


def test_a_search_that_stops_before_the_end_says_so_and_goes_on(
    registry: Harness, signed_in: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rank in (("rare-a", 8), ("rare-b", 8), ("rare-c", 4)):
        registry.push(f"acme/{name}", registry.files(rank=rank))
    for module, name in (
        (candidates, "CANDIDATES_LIMIT"), (candidates, "MORE_CANDIDATES_LIMIT"),
        (adapters, "WINDOW"), (adapters, "WIDE_WINDOW"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 1 if module is adapters else 0)
    page = signed_in.get("/search?text=rare&rank_max=4").text
    assert "No match yet" in page
    assert "only those up to <b>acme/" in page
    while "rare-c" not in page:
        [further] = re.findall(r'href="(/search[^"]*)">Search further</a>', page)
        page = signed_in.get(html.unescape(further)).text
    assert "acme/<b>rare-c</b>" in page


def test_a_search_says_why_an_outcome_or_a_check_does_not_filter(registry: Harness, signed_in: Browser) -> None:
    registry.push("acme/passing")
    for query, why in (
        ("outcome=fail", "choose the check that must have the outcome fail"),
        ("check=nonsense", "this server searches compat, weights, smoke, vllm==0.33.0,max_lora_rank=32"),
        ("check=compat&outcome=nonsense", "must be one of pass, warn, fail"),
        ("rank_min=abc", "Must be a number of at most 9 digits"),
        ("rank_max=-1", "Must be a number of at most 9 digits"),
    ):
        page = signed_in.get(f"/search?{query}")
        assert page.status_code == 422, query
        assert why in page.text, query
        assert "passing" not in page.text, query
    assert "passing" in signed_in.get("/search?check=compat").text
    assert "passing" not in signed_in.get("/search?check=compat&outcome=fail").text


def test_a_page_shows_few_combining_marks_a_character(registry: Harness, signed_in: Browser) -> None:
    stack = "\u0301\u20dd\u0489\u1dff\u0338\ufe0f"
    registry.push("acme/marks")
    registry.admin.promote("acme/marks", "trial", "1", generation=0, reason="Z" + stack * 300 + "Y\u0301\u0301")
    page = signed_in.get("/adapters/acme/marks/aliases/trial").text
    assert f"Z{stack}Y\u0301\u0301" in page
    assert stack + stack[0] not in page


def test_every_form_that_leads_to_a_page_says_there_what_it_did() -> None:
    answer_themselves = {"create_token", "create_own_token", "rotate_token", "create_webhook", "sign_in", "sign_out"}
    forms = {
        route.name
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, PageRoute) and "POST" in (route.methods or ())
    }
    assert forms == set(DONE) | answer_themselves
