"""Lists are paged, filters are limited, and unusual names and numbers in requests never cause a server error."""

from __future__ import annotations

from typing import Any

import pytest

from registry.api import PAGE_DEFAULT
from registry.events import EventType
from registry.server import audit
from registry.server.actors import TRUSTED
from registry.server.database import db
from registry.server.database.models import TokenRow
from registry.server.storage.blobs import attachment
from tests.harness import Harness
from tests.raw_asgi import RawResponse, call

pytestmark = pytest.mark.security
TOKENS = 130


def get(harness: Harness, path: str, *headers: tuple[str, str], secret: str = "") -> RawResponse:
    return call(harness.app, "GET", path, [("authorization", f"Bearer {secret or harness.secret}"), *headers])


@pytest.fixture
def tokens(harness: Harness) -> Harness:
    with harness.session(write=True) as session:
        for n in range(TOKENS):
            namespaces = [["acme"], ["globex"], ["acme", "globex"]][n % 3]
            row = TokenRow(
                id=f"tok_{n:04}", name="ci", secret_sha256=str(n), scopes=["pull"], namespaces=namespaces,
                created_at=db.now(), created_by="ann",
            )  # fmt: skip
            session.add(row)
    return harness


def pages(harness: Harness, path: str, secret: str = "") -> list[list[Any]]:
    result, cursor = [], ""
    while True:
        page = get(harness, f"{path}?cursor={cursor}", secret=secret).json()
        result.append([item.get("id") or item["name"] for item in page["items"]])
        if not (cursor := page["next_cursor"]):
            return result


def test_tokens_are_paged_and_each_actor_pages_through_its_own(tokens: Harness) -> None:
    every = pages(tokens, "/api/v1/tokens")
    assert max(map(len, every)) == PAGE_DEFAULT
    assert len({token for page in every for token in page}) == sum(map(len, every)) == TOKENS + 1
    own_id, secret = tokens.issue("admin", namespaces=["acme"])
    shown = [token for page in pages(tokens, "/api/v1/tokens", secret) for token in page]
    assert sorted(shown) == sorted([own_id, *(f"tok_{n:04}" for n in range(0, TOKENS, 3))])
    reader_id, reader = tokens.issue("pull", namespaces=["acme"])
    assert pages(tokens, "/api/v1/tokens", reader) == [[reader_id]]
    assert {token.id for token in tokens.admin.tokens().items} >= set(shown)
    for cursor in ("tok_0001", "tok_none", "%ff", "x" * 300):
        response = get(tokens, f"/api/v1/tokens?cursor={cursor}", secret=secret)
        assert (response.status, response.json()["code"]) == (400, "REQUEST_INVALID"), cursor


def test_events_about_an_object_are_read_in_bounded_steps(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "INDEXED_SCAN_LIMIT", 5)
    with harness.session(write=True) as session:
        for n in range(40):
            audit.append(session, TRUSTED, EventType.ALIAS_MOVE, "acme/a:prod" if n in (3, 37) else "acme/b:prod")
    path, count, steps, after = "/api/v1/events?object=acme/a&limit=2", 0, 0, 0
    while True:
        page = get(harness, f"{path}&after={after}").json()
        count, steps, after = count + len(page["items"]), steps + 1, page["last"]
        if not page["next_cursor"]:
            break
    assert (count, steps >= 8) == (2, True)


@pytest.mark.parametrize("value", ["99999999999999999999", "9" * 16, "-1", "1e3", "²"])
def test_an_impossible_last_event_id_is_refused(harness: Harness, value: str) -> None:
    response = call(
        harness.app, "GET", "/api/v1/events/stream",
        [("authorization", f"Bearer {harness.secret}"), ("last-event-id", value.encode().decode("latin-1"))],
    )  # fmt: skip
    assert (response.status, response.json()["code"]) == (400, "REQUEST_INVALID")


def test_the_hub_list_takes_a_limited_number_of_filters_however_they_are_written(harness: Harness) -> None:
    words = ",".join(f"w{n}" for n in range(33))
    response = get(harness, f"/api/models?filter={words}")
    assert response.status == 400
    assert "at most 32" in response.json()["detail"]
    assert get(harness, "/api/models?filter=" + ",".join(["lora"] * 32)).status == 200


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/adapter_model.safetensors", 'attachment; filename="adapter_model.safetensors"'),
        (
            "a\"; filename*=UTF-8''evil.hta; x=\".safetensors",
            'attachment; filename="a___filename__UTF-8__evil',
        ),
        ("größe.json", "attachment; filename=\"gr__e.json\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.json"),
        ("a\r\nb.json", 'attachment; filename="a__b.json"'),
    ],
)
def test_a_file_name_stays_within_its_quotes(path: str, expected: str) -> None:
    header = attachment(path)
    assert header.startswith(expected)
    assert header.isascii()
    assert header.count('"') == 2
