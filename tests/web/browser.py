"""Chromium, headless, with everything recorded that a page must not do: dialogs, requests elsewhere, errors."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
TIMEOUT_MS = 120_000
"""How long a browser may take to start, to load a page, and to show what is expected: a busy machine is slow."""
expect.set_options(timeout=TIMEOUT_MS)
Scheme = Literal["light", "dark"]


@dataclass
class Watched:
    """A page, and what it did wrong."""

    page: Page
    incidents: list[str] = field(default_factory=list)


@contextmanager
def chromium(*, width: int = 1280, scheme: Scheme = "light", scripts: bool = True) -> Iterator[BrowserContext]:
    """A new browser with an empty profile."""
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as driver:
        environment: dict[str, Any] = {**os.environ, "HOME": profile}
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=FLAGS, env=environment, color_scheme=scheme,
            viewport={"width": width, "height": 900}, java_script_enabled=scripts, bypass_csp=False, timeout=TIMEOUT_MS,
        )  # fmt: skip
        context.set_default_timeout(TIMEOUT_MS)
        try:
            yield context
        finally:
            context.close()


def watch(context: BrowserContext, url: str) -> Watched:
    """A new page whose dialogs, requests to other origins and console errors are recorded."""
    watched, origin = Watched(context.new_page()), urlsplit(url).netloc
    page, incidents = watched.page, watched.incidents

    def dismiss(dialog: Any) -> None:
        incidents.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def note_request(request: Any) -> None:
        if urlsplit(request.url).netloc != origin:
            incidents.append(f"request: {request.url}")

    def note_console(message: Any) -> None:
        if message.type == "error":
            incidents.append(f"console: {message.text}")

    page.on("dialog", dismiss)
    page.on("request", note_request)
    page.on("console", note_console)
    page.on("pageerror", lambda error: incidents.append(f"error: {error}"))
    return watched
