"""Live pages: the stream shows what a reload would show, when something was committed, and ends with the session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from registry.server.http.changes.freshness import Freshness
from registry.server.pages.operations import live
from tests.harness import Harness
from tests.pages.conftest import Browser
from tests.raw_asgi import call_in_loop

pytestmark = pytest.mark.security


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, registry: Harness) -> None:
    """Look often; the stamp of SQLite belongs to the thread of the loop, which is the one of the tests here."""
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.01)
    registry.app.state.freshness = Freshness(registry.engine)


@asynccontextmanager
async def stream(harness: Harness, cookies: str, query: str) -> AsyncIterator[Callable[[], Any]]:
    """The next event of a stream, each time that the result is awaited."""
    messages: asyncio.Queue[Any] = asyncio.Queue(1)  # a slow browser: one message is under way
    closed = asyncio.Event()
    text = ""

    async def receive() -> Any:
        await closed.wait()
        return {"type": "http.disconnect"}

    async def next_event() -> tuple[str, str]:
        nonlocal text
        while "\n\n" not in text or text.startswith((":", "retry")):
            if text.startswith((":", "retry")) and "\n\n" in text:
                text = text.partition("\n\n")[2]
                continue
            text += (await asyncio.wait_for(messages.get(), 120)).get("body", b"").decode()
        event, _, text = text.partition("\n\n")
        name, _, data = event.partition("\n")
        return name.removeprefix("event: "), data

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": "/live", "raw_path": b"/live", "query_string": query.encode(), "root_path": "",
        "headers": [(b"host", b"registry.test"), (b"cookie", cookies.encode())], "server": ("registry.test", 80),
        "client": ("192.0.2.1", 1),
    }  # fmt: skip
    task = asyncio.create_task(harness.app(scope, receive, messages.put))
    try:
        yield next_event
    finally:
        closed.set()
        task.cancel()


def cookies_of(browser: Browser) -> str:
    return f"adapter-session={browser.cookies['adapter-session']}"


def test_a_stream_shows_what_changes_and_ends_with_the_session(registry: Harness, browser: Browser) -> None:
    token_id, secret = registry.issue("push", namespaces=["acme"])
    browser.sign_in(secret)

    async def follow() -> None:
        async with stream(registry, cookies_of(browser), "page=/jobs") as next_event:
            name, first = await next_event()
            assert name == "page"
            assert 'id="rows" data-live' in first
            assert "acme/live@1" not in first
            await asyncio.to_thread(registry.push, "library/unseen")
            await asyncio.to_thread(registry.push, "acme/live")
            name, second = await next_event()
            assert "acme/live@1" in second, "and what others do sends nothing"
            assert "library/unseen" not in second
            await asyncio.to_thread(registry.admin.revoke_token, token_id)
            assert (await next_event())[0] == "end"

    asyncio.run(follow())


def test_streams_are_limited_and_only_of_live_pages(
    registry: Harness, browser: Browser, signed_in: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert browser is signed_in
    headers = [("Cookie", cookies_of(signed_in))]
    for page in (
        "//[x",
        "http://[",
        "/",
        "/search",
        "/jobsx",
        "https://evil.example/jobs",
        "//evil.example/jobs",
        "/sign-in/x",
        "",
    ):
        assert signed_in.get("/live", params={"page": page}).status_code == 400
    with Browser(registry) as anonymous:
        assert anonymous.get("/live?page=/jobs").status_code == 401
    monkeypatch.setattr(registry.app.state.stream_limiter, "_limit", 1)

    async def open_two() -> int:
        async with stream(registry, cookies_of(signed_in), "page=/fleet") as next_event:
            await next_event()
            return (await call_in_loop(registry.app, "GET", "/live?page=/jobs", headers)).status

    assert asyncio.run(open_two()) == 429


def test_only_live_pages_have_a_script_and_it_is_of_this_server(registry: Harness, signed_in: Browser) -> None:
    registry.push("acme/still")
    for path, is_live in (("/jobs", True), ("/fleet", True), ("/", False), ("/adapters/acme/still", False)):
        page = signed_in.get(path)
        policy = page.headers["content-security-policy"]
        assert ("script-src 'self'" in policy, page.text.count("<script")) == (is_live, int(is_live)), path
        assert "unsafe" not in policy
        assert "script-src *" not in policy
