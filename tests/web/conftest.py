"""The browser tier (`make test-web`): one registry and one Chromium for all tests of a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.harness import Harness
from tests.web import browser
from tests.web.site import ENGINES, Site, fill, serve

REASON = "" if os.environ.get("WEB_TESTS") else "the browser tier runs with `make test-web`"
if not REASON and not browser.CHROMIUM:
    REASON = "there is no Chromium here (Debian: apt-get install chromium)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if REASON and "tests/web/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The registry of the screenshots."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Harness(f"sqlite:///{folder}/registry.db", engines=ENGINES) as harness,
    ):
        fill(harness)
        with serve(harness) as running:
            yield running
