"""`move_repo`: of a repository that is only a draft, and of an adapter with drafts."""

from __future__ import annotations

import httpx
import pytest

from registry.errors import NotFound
from registry.hub import commit_id
from registry.server.database.models.hub import DraftRow
from tests import samples
from tests.harness import Harness, rows
from tests.hub.commits import Pusher, add, delete

CARD = "README.md"


def move(pusher: Pusher, to: str) -> httpx.Response:
    return pusher.send("POST", "/api/repos/move", json={"fromRepo": pusher.name, "toRepo": to, "type": "model"})


def test_a_draft_is_moved_with_its_files(harness: Harness) -> None:
    """Its pusher goes on under the new name, also in another namespace, and sends nothing again."""
    pusher = Pusher(harness, harness.issue("push")[1])
    files = harness.files()
    weights = files.pop(samples.WEIGHTS)
    pusher.create()
    draft = pusher.commit(add(samples.WEIGHTS, weights)).json()["commitOid"]
    moved = Pusher(harness, pusher.secret, "globex/moved")
    assert move(pusher, moved.name).status_code == 200
    assert (pusher.info().status_code, moved.info(draft).json()["sha"]) == (404, draft)
    response = moved.push(files)
    assert (response.status_code, harness.admin.version("globex/moved@1").base) == (200, "tiny-llama")
    harness.transport.settle()
    with harness.session() as session:
        assert rows(session, DraftRow) == []
    assert list(harness.blobs.list("staging/")) == []


def test_a_draft_is_not_moved_to_a_name_that_is_taken(harness: Harness, pusher: Pusher) -> None:
    harness.push("acme/taken")
    for name in ("acme/support", "acme/draft"):
        Pusher(harness, pusher.secret, name).create()
    assert pusher.commit(add(CARD)).status_code == 200
    for name, status in {"acme/taken": 409, "acme/draft": 409, "globex/other": 404, "acme/a b": 422}.items():
        assert move(pusher, name).status_code == status, name
    assert pusher.files() == [CARD]


def test_the_drafts_of_a_renamed_adapter_go_along(harness: Harness) -> None:
    pusher = Pusher(harness, harness.issue("push", "admin", namespaces=["acme"])[1])
    version = harness.push("acme/support").version
    assert pusher.commit(delete(samples.WEIGHTS)).status_code == 200
    assert move(pusher, "acme/renamed").status_code == 200
    renamed = Pusher(harness, pusher.secret, "acme/renamed")
    assert samples.WEIGHTS not in renamed.files()
    assert renamed.info("v1").json()["sha"] == commit_id(version.digest)


def test_a_former_name_leads_to_the_adapter(harness: Harness) -> None:
    pusher = Pusher(harness, harness.issue("push", "admin", namespaces=["acme"])[1])
    version = harness.push("acme/support").version
    other = Pusher(harness, harness.issue("pull", namespaces=["globex"])[1])
    assert move(pusher, "acme/better").status_code == 200
    assert move(Pusher(harness, pusher.secret, "acme/better"), "acme/best").status_code == 200
    config = pusher.send("GET", f"/acme/support/resolve/main/{samples.CONFIG}?download=1")
    assert (config.status_code, config.headers["location"]) == (
        307, f"/acme/best/resolve/main/{samples.CONFIG}?download=1"
    )  # fmt: skip
    assert pusher.send("GET", pusher.info().headers["location"]).json()["sha"] == commit_id(version.digest)
    with pytest.raises(NotFound, match="adapter 'acme/support' was renamed to 'acme/best'") as caught:
        harness.admin.resolve("acme/support:main")
    assert caught.value.next_step == "use its new name, acme/best"
    assert other.send("GET", "/api/models/acme/support").status_code == 404, "another tenant learns no name"


def test_an_adapter_does_not_move_to_a_namespace_that_does_not_exist(harness: Harness) -> None:
    """A typo would create it, and end the old name for good."""
    pusher = Pusher(harness, harness.secret)
    harness.push(pusher.name)
    refused = move(pusher, "nowhere/support")
    assert (refused.status_code, refused.json()["code"]) == (404, "NAMESPACE_UNKNOWN")
    with pytest.raises(NotFound, match="no namespace 'nowhere'"):
        harness.admin.rename(pusher.name, "nowhere/support")
    assert pusher.info().status_code == 200
    harness.admin.create_namespace("nowhere")
    assert move(pusher, "nowhere/support").status_code == 200
