"""Client and server read the documents of a transfer by one definition: the same ones, and the same errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry.api import PREFIX
from registry.api.models import Request, Response
from registry.api.transfer import (
    BULK_LIMIT,
    BulkCommitRequest,
    BulkPullPlan,
    BulkPullRequest,
    BulkPushPlan,
    BulkPushRequest,
    BulkPushResult,
)
from registry.validation import first_problem
from tests.access.tenants import send
from tests.bulk import plan_push
from tests.harness import Harness

ROUTES: dict[str, tuple[type[Request], type[Response]]] = {
    "/pushes": (BulkPushRequest, BulkPushPlan),
    "/pushes/commit": (BulkCommitRequest, BulkPushResult),
    "/pulls": (BulkPullRequest, BulkPullPlan),
}


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


def push_item(harness: Harness) -> dict[str, Any]:
    return {"name": "acme/support", "manifest": harness.manifest(harness.files()).model_dump(mode="json")}


def test_both_sides_refuse_the_same_documents_with_the_same_error(harness: Harness) -> None:
    harness.add_base()
    item = push_item(harness)
    base = item["manifest"]["base"]
    wrong: list[tuple[str, Any]] = [
        ("/pushes", {}),
        ("/pushes", {"items": []}),
        ("/pushes", {"items": [item] * (BULK_LIMIT + 1)}),
        ("/pushes", {"items": [item | {"more": 1}]}),
        ("/pushes", {"items": [item | {"name": "n" * 301}]}),
        ("/pushes", {"items": [{"name": "acme/support"}]}),
        ("/pushes", {"items": [item | {"manifest": item["manifest"] | {"schema_version": 2}}]}),
        ("/pushes", {"items": [item | {"manifest": item["manifest"] | {"base": base | {"fingerprint": "sha256:0"}}}]}),
        ("/pushes", {"items": [item | {"manifest": item["manifest"] | {"parents": [{"relation": "sibling"}]}}]}),
        ("/pushes/commit", {"items": [{"push_id": 7}]}),
        ("/pushes/commit", {"items": [{"push_id": "p", "small": [{"digest": base["fingerprint"]}]}]}),
        ("/pushes/commit", {"items": [{"push_id": "p"}], "atomic": "some"}),
        ("/pulls", {"refs": ["acme/support", 1]}),
        ("/pulls", []),
    ]
    for path, document in wrong:
        request, _ = ROUTES[path]
        body = json.dumps(document).encode()
        with pytest.raises(ValueError) as refused:
            request.model_validate_json(body)
        location, message = first_problem(refused.value, "")
        response = send(harness, "POST", PREFIX + path, harness.secret, json=document)
        finding, *_ = response.json()["findings"]
        assert (response.status_code, response.json()["code"]) == (400, "REQUEST_INVALID"), response.text
        assert finding["location"] == f"body.{location}".rstrip("."), document
        assert finding["message"] == message


def test_both_sides_read_the_same_documents_alike(harness: Harness) -> None:
    harness.add_base()
    planned = send(harness, "POST", f"{PREFIX}/pushes", harness.secret, json={"items": [push_item(harness)]})
    harness.push("acme/support")
    pulled = send(harness, "POST", f"{PREFIX}/pulls", harness.secret, json={"refs": ["acme/support", "acme/none"]})
    repeated = plan_push(harness.admin, "acme/support", BulkPushRequest.model_validate(
        {"items": [push_item(harness)]}
    ).items[0])  # fmt: skip
    commit = {"items": [{"push_id": repeated.push_id}]}
    committed = send(harness, "POST", f"{PREFIX}/pushes/commit", harness.secret, json=commit)
    for path, response in (("/pushes", planned), ("/pulls", pulled), ("/pushes/commit", committed)):
        _, shape = ROUTES[path]
        assert response.status_code == 200, response.text
        read = shape.model_validate_json(response.content)
        assert read.model_dump_json().encode() == response.content
        assert shape.model_validate(read.model_dump()) == read


@pytest.mark.security
def test_a_text_that_cannot_be_stored_is_refused_before_anything_is_planned(harness: Harness) -> None:
    harness.add_base()
    for text in ("a\0b", "a\ud800b"):
        body = json.dumps({"items": [push_item(harness) | {"message": text}]}).encode()
        response = send(harness, "POST", f"{PREFIX}/pushes", harness.secret, content=body)
        assert (response.status_code, response.json()["code"]) == (400, "REQUEST_INVALID"), response.text
    response = send(
        harness, "POST", f"{PREFIX}/pulls", harness.secret, content=b'{"refs":["a/b"]}',
        headers={"Content-Type": "text/plain"},
    )  # fmt: skip
    assert (response.status_code, response.json()["code"]) == (400, "REQUEST_INVALID"), response.text
