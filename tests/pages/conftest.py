"""Browsers without a browser: HTTP clients that keep cookies, on one registry for a whole module."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.access.tenants import UnclosedTransport
from tests.harness import URL, Harness

ENGINES = "vllm==0.33.0,max_lora_rank=32"


class Browser(httpx.Client):
    """Sends forms as a browser does: with the hidden fields of the page, and with its origin."""

    def __init__(self, harness: Harness) -> None:
        super().__init__(transport=UnclosedTransport(harness), base_url=URL)

    def submit(self, path: str, action: str, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
        """Fill in and send the form with this action of the page at `path`."""
        page = self.get(path).text
        form = re.search(rf'<form[^>]*action="{re.escape(action)}".*?</form>', page, re.DOTALL)
        assert form is not None, f"no form for {action} at {path}"
        hidden = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form[0]))
        data = {name: html.unescape(value) for name, value in hidden.items()} | fields
        return self.post(action, data=data, headers={"Origin": URL, "Sec-Fetch-Site": "same-origin"} | (headers or {}))

    def sign_in(self, secret: str, **rest: Any) -> httpx.Response:
        return self.submit("/sign-in", "/sign-in", token=secret, **rest)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    path: Path = tmp_path_factory.mktemp("pages") / "registry.db"
    with Harness(f"sqlite:///{path}", engines=ENGINES) as harness:
        harness.add_base()
        harness.admin.create_namespace("acme", owner="alice")
        harness.admin.create_namespace("library", owner="carol")
        yield harness


@pytest.fixture
def browser(registry: Harness) -> Iterator[Browser]:
    with Browser(registry) as client:
        yield client


@pytest.fixture
def signed_in(registry: Harness, browser: Browser) -> Browser:
    """A browser with the administrator's rights."""
    assert browser.sign_in(registry.secret).status_code == 303
    return browser
