"""A page sends a fixed number of statements, however much it shows."""

from __future__ import annotations

from tests.access.tenants import send
from tests.harness import Harness
from tests.pages.conftest import Browser

STATEMENTS = {
    "/search": 6,
    "/search?text=counted": 7,
    "/search?base=tiny-llama&alias=canary": 9,
    "/adapters/acme/counted": 21,
    "/adapters/acme/counted/versions/1": 22,
    "/adapters/acme/counted/versions/1/lineage": 8,
    "/adapters/acme/counted/aliases/canary": 27,
    "/compare?first=acme/counted@1&second=acme/counted@1": 30,
    "/namespaces/acme": 11,
    "/bases": 8,
    "/bases/tiny-llama": 18,
    "/fleet": 9,
    "/jobs": 5,
    "/audit": 5,
    "/audit/1": 9,
    "/settings": 6,
    "/settings/namespaces/acme": 12,
    "/settings/adapters/acme/counted": 23,
    "/settings/tokens": 4,
    "/settings/webhooks": 4,
    "/status": 9,
}
"""Path → how many statements it sends at most, two of them for the session."""


def test_a_page_sends_few_statements_and_no_more_for_many_rows(registry: Harness, signed_in: Browser) -> None:
    registry.push("acme/counted", alias="canary")
    send(registry, "GET", "/api/v1/events", registry.secret)  # numbers and signs the events
    few = {path: count(registry, signed_in, path) for path in STATEMENTS}
    for number in range(3):
        registry.push("acme/counted", alias=f"other-{number}")
        registry.push(f"acme/counted-{number}", alias="canary")
    assert {path: count(registry, signed_in, path) for path in STATEMENTS} == few
    assert {path: sent for path, sent in few.items() if sent > STATEMENTS[path]} == {}


def count(harness: Harness, browser: Browser, path: str) -> int:
    """The statements of a page, without what a process reads once."""
    browser.get(path)
    with harness.statements() as sent:
        assert browser.get(path).status_code == 200
    return len(sent)
