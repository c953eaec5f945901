"""Descriptions, tags and links: they change after the push, and neither digest nor manifest does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry.api.catalog import TAGS_LIMIT, MetadataChange
from registry.client.audit import Audit
from registry.errors import Denied, NotFound, Refused, TooLarge
from tests.access.tenants import send
from tests.harness import Harness

URL = "https://wandb.example/acme/run-7"


@pytest.fixture
def harness(harness: Harness) -> Harness:
    harness.add_base()
    return harness


def names(harness: Harness, **query: Any) -> list[str]:
    return [item.name for item in harness.admin.adapters(**query).items]


def test_metadata_of_a_version_changes_without_its_digest(harness: Harness) -> None:
    pushed = harness.push("acme/support", annotations={"seed": "7"}).version
    change = MetadataChange(
        description="Responses about returns", tags={"team": "nlp", "tier": "1"}, links={"run": URL}
    )
    harness.admin.describe("acme/support@1", change)
    harness.admin.describe("acme/support@1", MetadataChange(tags={"tier": None, "reviewed": ""}))
    view = harness.admin.version("acme/support@1")
    assert (view.digest, view.annotations) == (pushed.digest, {"seed": "7"})
    assert (view.description, view.tags) == ("Responses about returns", {"team": "nlp", "reviewed": ""})
    assert view.links == {"run": URL}
    cleared = harness.admin.describe("acme/support@1", MetadataChange(description="", links={"run": None}))
    assert (cleared.description, cleared.links) == ("", {})
    events = [event for event in Audit(harness.admin).events(0) if event.action == "version.describe"]
    assert [event.detail.get("removed") for event in events] == [None, ["tag tier"], ["description", "link run"]]
    assert events[0].detail["tags"] == {"team": "nlp", "tier": "1"}


def test_metadata_of_an_adapter_outlives_versions_and_names(harness: Harness) -> None:
    harness.push("acme/support")
    change = MetadataChange(description="Support of ACME", tags={"team": "nlp"}, links={"owner": URL})
    view = harness.admin.describe_adapter("acme/support", change)
    assert (view.description, view.tags, view.links) == ("Support of ACME", {"team": "nlp"}, {"owner": URL})
    harness.push("acme/support")
    assert harness.admin.rename("acme/support", "acme/helper").tags == {"team": "nlp"}
    assert harness.admin.adapters().items[0].description == "Support of ACME"
    assert harness.admin.version("acme/helper").tags == {}
    harness.admin.delete_adapter("acme/helper")


def test_search_finds_tags_of_adapters_and_newest_versions_and_words_of_descriptions(harness: Harness) -> None:
    for name in ("acme/a", "acme/b", "acme/c"):
        harness.push(name, annotations={"team": "sealed"})
    harness.admin.describe_adapter("acme/a", MetadataChange(tags={"team": "nlp"}, description="About Returns_100%"))
    harness.admin.describe("acme/b@1", MetadataChange(tags={"team": "vision"}))
    assert names(harness, tag=["team"]) == ["acme/a", "acme/b"]
    assert names(harness, tag=["team=vision"]) == ["acme/b"]
    assert names(harness, tag=["team=sealed"]) == []
    assert names(harness, annotation=["team=sealed"], tag=["team=nlp"]) == ["acme/a"]
    assert names(harness, text="returns_") == names(harness, text="RETURN 100") == ["acme/a"]
    assert names(harness, text="eturns") == []
    harness.push("acme/b")
    assert names(harness, tag=["team=vision"]) == []


def test_who_may_push_may_describe(harness: Harness) -> None:
    harness.push("acme/support")
    change = MetadataChange(tags={"team": "nlp"})
    assert harness.actor("push", "pull", name="trainer").describe("acme/support@1", change).tags == {"team": "nlp"}
    with pytest.raises(Denied):
        harness.actor("pull", name="reader").describe("acme/support@1", change)
    with pytest.raises(NotFound):
        harness.actor("push", "pull", namespaces=["globex"], name="other").describe_adapter("acme/support", change)


def test_a_version_in_quarantine_keeps_its_metadata(harness: Harness) -> None:
    harness.push("acme/support")
    harness.admin.quarantine("acme/support@1", "an alarm")
    with pytest.raises(Refused, match="quarantine"):
        harness.admin.describe("acme/support@1", MetadataChange(tags={"team": "nlp"}))


@pytest.mark.security
@pytest.mark.parametrize(
    "body",
    [
        {"links": {"x": "javascript:alert(1)"}}, {"links": {"x": "data:text/html,x"}}, {"links": {"x": "https://"}},
        {"links": {"x": "https://user:secret@host/"}}, {"links": {"x": "https://host/ x"}},
        {"tags": {"fact:target:q_proj": ""}}, {"tags": {"": "x"}}, {"tags": {"x": "\u202egnp"}},
        {"tags": {"x": "y" * 201}}, {"description": "x" * 2001}, {"description": "a\u0000"}, {"unknown": 1},
        {"tags": {"team\n": "x"}}, {"links": {"run\n": URL}}, {"description": "\ud800"},
    ],
)  # fmt: skip
def test_metadata_that_could_mislead_is_refused(harness: Harness, body: dict[str, object]) -> None:
    harness.push("acme/support")
    sent = {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}}
    response = send(harness, "PATCH", "/api/v1/adapters/acme/support/metadata", harness.secret, **sent)
    assert response.status_code == 422 or response.status_code == 400, response.text


@pytest.mark.security
@pytest.mark.parametrize("at", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:00", "2026-01-01T00:00:00"])
def test_an_expiry_that_no_clock_shows_is_refused(harness: Harness, at: str) -> None:
    harness.push("acme/support")
    body = {"expires_at": at}
    response = send(harness, "PATCH", "/api/v1/adapters/acme/support/versions/1/metadata", harness.secret, json=body)
    assert (response.status_code, response.json()["findings"][0]["location"]) == (400, "expires_at"), response.text


def test_tags_are_limited(harness: Harness) -> None:
    harness.push("acme/support")
    for start in (0, TAGS_LIMIT // 2):
        tags: dict[str, str | None] = {f"t{n}": "" for n in range(start, start + TAGS_LIMIT // 2)}
        harness.admin.describe_adapter("acme/support", MetadataChange(tags=tags))
    with pytest.raises(TooLarge, match=f"tags: {TAGS_LIMIT + 1} are over the limit of {TAGS_LIMIT}"):
        harness.admin.describe_adapter("acme/support", MetadataChange(tags={"more": ""}))
    many = {"tags": {f"t{n}": "" for n in range(TAGS_LIMIT + 1)}}
    response = send(harness, "PATCH", "/api/v1/adapters/acme/support/metadata", harness.secret, json=many)
    assert (response.status_code, response.json()["findings"][0]["location"]) == (400, "body.tags"), response.text
