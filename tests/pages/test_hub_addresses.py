"""What Hub clients print as the address of a repository or a commit, opened in a browser."""

from __future__ import annotations

import pytest

from registry.hub import commit_id
from tests.harness import Harness
from tests.pages.conftest import Browser

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_addresses_that_hub_clients_print_open_pages(registry: Harness, signed_in: Browser) -> None:
    commit = commit_id(registry.push("acme/printed").version.digest)
    for address, shown in {
        "/acme/printed": "acme/printed",
        f"/acme/printed/commit/{commit}": "acme/printed@1",
        "/acme/printed/tree/main/": "acme/printed@1",
        "/acme/printed/blob/v1/README.md": "acme/printed@1",
        "/acme/printed/tree/refs%2Fheads%2Fmain": "acme/printed@1",
    }.items():
        page = signed_in.get(address, headers=HTML, follow_redirects=True)
        assert (page.status_code, f"<h1>{shown}" in page.text) == (200, True), address


@pytest.mark.security
def test_an_address_says_nothing_before_sign_in(registry: Harness, browser: Browser) -> None:
    registry.push("acme/hidden")
    for name in ("acme/hidden", "acme/absent"):
        led = browser.get(f"/{name}/commit/main", headers=HTML)
        assert (led.status_code, led.headers["location"]) == (303, f"/adapters/{name}/versions/main")
        assert browser.get(led.headers["location"]).status_code == 404


def test_clients_get_responses_of_the_hub_at_the_same_addresses(registry: Harness, browser: Browser) -> None:
    registry.push("acme/asked")
    bearer = {"Authorization": f"Bearer {registry.secret}"}
    for headers, status in ((bearer, 307), (HTML | bearer, 307), ({"Accept": "*/*"}, 401)):
        assert browser.get("/acme/asked/commit/main", headers=headers).status_code == status
    assert browser.get("/api/models", headers=HTML).status_code == 401
    assert browser.get("/acme/asked/resolve/main/adapter_config.json", headers=HTML).status_code == 401
