"""The OpenAPI document describes every route of the REST API, and its page needs no other host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from registry.api import PREFIX
from registry.api.models import Problem
from registry.api.operations.table import OPERATIONS, TAGS
from registry.server import app
from registry.server.routes.openapi.descriptions import PARAMETERS
from registry.server.routes.openapi.routes import document_of
from scripts.reference import rest
from tests.access.tenants import send
from tests.harness import Harness


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document, built once; a test compares it with the one that a server sends."""
    content: dict[str, Any] = json.loads(json.dumps(rest.document()))
    return content


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_every_route_of_the_rest_api_is_in_the_document_with_its_scope(document: dict[str, Any]) -> None:
    security = {(method, path): operation["security"] for method, path, operation in operations(document)}
    expected = {
        (method, path.replace(":path}", "}")): [] if scope == "open" else [{"bearer": [scope] if scope else []}]
        for (method, path), scope in app.declared_scopes().items()
        if path.startswith(PREFIX)
    }
    assert security == expected


def test_an_operation_is_named_once_and_described_with_its_parameters(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for *_, operation in operations(document)]
    assert len(names) == len(set(names))
    for _, _, operation in operations(document):
        assert operation["description"].endswith("."), operation["operationId"]
        assert set(operation["tags"]) <= {tag.name for tag in TAGS}, operation["operationId"]
        for parameter in operation.get("parameters", ()):
            assert "$ref" in parameter or parameter["description"].endswith("."), operation["operationId"]
    used = {tag for *_, operation in operations(document) for tag in operation["tags"]}
    assert used == {tag.name for tag in TAGS}


def test_every_described_parameter_exists(document: dict[str, Any]) -> None:
    names = {"idempotency-key"}
    for *_, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            own = f"{operation['operationId']}.{parameter.get('name')}"
            names.add(own if own in PARAMETERS else parameter.get("name"))
    assert set(PARAMETERS) - names == set()


def words(text: str) -> set[str]:
    """The words of a name or a description, without those that say nothing."""
    filler = {"a", "an", "and", "by", "for", "in", "its", "of", "on", "the", "this", "to", "whether", "with"}
    return {word.removesuffix("s") for word in re.findall("[a-z]+", text.lower())} - filler


def test_every_schema_and_field_is_described_and_no_description_repeats_the_name(document: dict[str, Any]) -> None:
    described = {f"operation {o['summary']}": o["description"] for *_, o in operations(document)}
    for name, schema in document["components"]["schemas"].items():
        described[f"schema {name}"] = schema["description"]
        described |= {
            f"{name} {field}": content["description"] for field, content in schema.get("properties", {}).items()
        }
    assert len(described) > 850
    for name, text in described.items():
        assert text.rstrip().endswith((".", ":", "…")), name
        assert words(text) - words(re.sub("(?<=[a-z])(?=[A-Z])", " ", name)), f"{name} is only repeated: {text}"


def test_every_error_names_its_codes_and_every_security_scheme_says_how_it_is_used(document: dict[str, Any]) -> None:
    for name, response in document["components"]["responses"].items():
        assert re.search(r"Codes: `[A-Z_]+`", response["description"]), name
    for name, scheme in document["components"]["securitySchemes"].items():
        assert len(scheme["description"]) > 80, name


def test_every_reference_of_the_document_is_in_it_and_every_component_is_used(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": "#/components/([^"]+)"', json.dumps(document)))
    components = {
        f"{kind}/{name}"
        for kind, named in document["components"].items()
        for name in named
        if kind != "securitySchemes"
    }
    assert references == components


def test_bodies_that_are_not_json_have_their_media_type(document: dict[str, Any]) -> None:
    raw = {
        operation["operationId"]: media
        for *_, operation in operations(document)
        for declared in (operation.get("requestBody", {}), *operation["responses"].values())
        for media in declared.get("content", {})
        if "json" not in media
    }
    octets = "application/octet-stream"
    assert raw == {
        "upload_by_link": octets, "read_by_link": octets,
        "read_file": octets, "head_file": octets, "read_report": octets,
        "read_log_entries": octets, "read_log_tile": octets, "read_checkpoint": "text/plain",
        "read_metrics": "text/plain", "stream_events": "text/event-stream",
    }  # fmt: skip


def test_every_json_body_has_an_example_that_its_route_accepts() -> None:
    without = set()
    for row in OPERATIONS.values():
        if row.example is not None:
            row.request.model_validate(row.example)
        elif issubclass(row.request, BaseModel):
            without.add(row.id)
    assert without == {"add_base"}, "the facts of a base model are long"


def test_an_error_is_the_problem_that_the_document_describes(harness: Harness, document: dict[str, Any]) -> None:
    response = send(harness, "GET", f"{PREFIX}/adapters/acme/nothing", harness.secret)
    Problem.model_validate(response.json())
    described = document["components"]["schemas"]["Problem"]["properties"]
    assert set(response.json()) <= set(described)
    shown = document["paths"][f"{PREFIX}/adapters/{{namespace}}/{{name}}"]["get"]["responses"]
    assert shown["404"] == {"$ref": "#/components/responses/NotFound"}
    assert "`ADAPTER_UNKNOWN`" in document["components"]["responses"]["NotFound"]["description"]


def test_the_document_is_built_on_request_and_does_not_describe_this_server(harness: Harness) -> None:
    assert "content" not in vars(document_of(harness.app))
    harness.add_base()
    harness.push("acme/canary-of-the-document")
    text = send(harness, "GET", "/openapi.json").text + send(harness, "GET", "/docs").text
    assert "content" in vars(document_of(harness.app))
    for own in ("canary-of-the-document", "tiny-llama", str(harness.settings.data), harness.settings.database_url):
        assert own not in text


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_an_unchanged_document_is_not_sent_twice(harness: Harness, path: str, document: dict[str, Any]) -> None:
    first = send(harness, "GET", path)
    assert path == "/docs" or first.json() == document
    again = send(harness, "GET", path, headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


def test_the_page_shows_every_operation_and_schema_without_other_hosts(
    harness: Harness, document: dict[str, Any]
) -> None:
    response: httpx.Response = send(harness, "GET", "/docs")
    page, policy = response.text, response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert not re.search(
        r"<script|<link|<img|<iframe|@import|url\(|\son\w+=|(?:src|href|action)=\"(?!#|/openapi)", page
    )
    anchors = set(re.findall(r'id="([^"]+)"', page))
    links = set(re.findall(r'href="([^"]+)"', page))
    assert {link for link in links if link.removeprefix("#") not in anchors} == {"/openapi.json"}
    assert {operation["operationId"] for *_, operation in operations(document)} <= anchors
    assert {f"schema-{name}" for name in document["components"]["schemas"]} <= anchors


def test_schemas_of_responses_may_gain_fields_and_those_of_requests_may_not(document: dict[str, Any]) -> None:
    closed = {
        name for name, schema in document["components"]["schemas"].items()
        if schema.get("additionalProperties") is False
    }  # fmt: skip
    assert not closed & {"Verdict", "Job", "Lease", "Problem", "VersionView", "Similarity", "EngineSettings"}
    assert closed >= {"Manifest", "ManifestDraft", "Descriptor", "Gate", "BaseSpec", "JobSubmit", "BulkPushRequest"}
