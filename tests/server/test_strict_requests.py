"""Every operation of the table reads its body and its query one way only: what is misspelt or doubtful is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from registry.api.operations.operation import Operation
from registry.api.operations.table import OPERATIONS
from tests.harness import URL, Harness

pytestmark = pytest.mark.security
WORDS = {"namespace": "acme", "name": "support", "selector": "1", "digest": "sha256:" + "0" * 64, "engine": "vllm"}
JSON = [row for row in OPERATIONS.values() if issubclass(row.request, BaseModel)]
OWN_QUERY = frozenset({"upload_by_link", "read_by_link"})
"""Their query is what was signed: another one is no valid link."""
WRONG: dict[str, tuple[Any, ...]] = {
    "boolean": ("yes", "true", 1, 0),
    "integer": ("3", True),
    "number": ("3", True),
    "either": ("3", "true"),
}


@pytest.fixture
def http(harness: Harness) -> httpx.Client:
    headers = {"Authorization": f"Bearer {harness.secret}"}
    return httpx.Client(transport=harness.transport, base_url=f"{URL}/api/v1", headers=headers)


def send(http: httpx.Client, row: Operation[Any, Any], body: str = "{}", **params: Any) -> dict[str, Any]:
    path = re.sub(r"{(\w+)[^}]*}", lambda match: WORDS.get(match[1], "none"), row.path)
    headers = {"Content-Type": "application/json"}
    content = body if row.method in ("POST", "PUT", "PATCH") else None
    response = http.request(row.method, path, content=content, params=params, headers=headers)
    assert response.status_code == 400, (row.id, body, response.text)
    problem = {} if row.method == "HEAD" else response.json()
    assert row.method == "HEAD" or problem["code"] == "REQUEST_INVALID"
    return problem


def leaves(schema: Any, all_: Any, parents: frozenset[str] = frozenset()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """(path, kind) of every number and boolean that a schema has; a list is entered at its first item."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in parents:
            yield from leaves(all_[name], all_, parents | {name})
    elif schema.get("type") in WRONG and "const" not in schema:  # what equals the only value is that value
        yield (), schema["type"]
    choices = schema.get("anyOf", [])
    if {"boolean", "number"} <= {choice.get("type") for choice in choices}:  # a measurement may be either
        yield (), "either"
    else:
        for choice in choices:
            yield from leaves(choice, all_, parents)
    inner = [*schema.get("properties", {}).items(), (0, (schema.get("prefixItems") or [schema.get("items")])[0])]
    for key, part in [*inner, ("key", schema.get("additionalProperties"))]:
        if isinstance(part, dict):
            yield from (((key, *rest), kind) for rest, kind in leaves(part, all_, parents))


def document(path: tuple[Any, ...], value: Any) -> Any:
    for key in reversed(path):
        value = [value] if key == 0 else {key: value}
    return value


def test_no_text_and_no_number_is_a_boolean_and_no_boolean_a_number(http: httpx.Client) -> None:
    tried = 0
    for row in JSON:
        schema = row.request.model_json_schema()
        for path, kind in leaves(schema, schema.get("$defs", {})):
            for value in WRONG[kind]:
                problem = send(http, row, json.dumps(document(path, value)))
                located = ".".join(map(str, ("body", *path))).removesuffix(".key")
                assert any(f["location"].startswith(located) for f in problem["findings"]), (
                    row.id,
                    path,
                    value,
                    problem,
                )
                tried += 1
    assert tried > 250


def test_no_key_stands_twice_in_an_object(http: httpx.Client) -> None:
    for row in JSON:
        for body in ('{"scopes": [], "scopes": []}', '{"a": [{"scopes": 1, "scopes": 2}]}'):
            assert send(http, row, body)["detail"] == "body: the key 'scopes' is written twice in one object", row.id


@pytest.mark.parametrize("operation", ["list_events", "stream_events"])
def test_no_filter_is_of_an_event_that_never_comes(http: httpx.Client, operation: str) -> None:
    problem = send(http, OPERATIONS[operation], action="alias.moved")
    assert "'alias.moved' is no type of event; the nearest is 'alias.move'" in problem["detail"]


def test_no_query_has_an_unknown_parameter(harness: Harness, http: httpx.Client) -> None:
    """A misspelled `dry_run` deleted the adapter, and a misspelled filter listed all."""
    rows = [row for row in OPERATIONS.values() if row.id not in OWN_QUERY]
    for row in rows:
        problem = send(http, row, **{"x\n": "1"})
        assert row.method == "HEAD" or problem["detail"] == r"query: this route has no parameter 'x\\n'", row.id
    problem = send(http, OPERATIONS["list_adapters"], limit="abc")
    assert problem["detail"] == "query.limit: must be a whole number, not 'abc'"
    harness.add_base()
    harness.push("acme/support")
    problem = send(http, OPERATIONS["delete_adapter"], dryrun="true")
    assert problem["next_step"] == "the nearest one is 'dry_run'"
    assert send(http, OPERATIONS["list_adapters"], targets="q")["next_step"] == "the nearest one is 'target'"
    assert http.get("/adapters/acme/support").status_code == 200


def test_every_query_value_is_written_in_one_way(http: httpx.Client) -> None:
    """`count=on` counted, `limit=1_0` was 10, and of `limit=1&limit=500` the last one won."""
    schemas = http.get(f"{URL}/openapi.json").json()["paths"]
    described = {
        operation["operationId"]: operation.get("parameters", ())
        for methods in schemas.values()
        for operation in methods.values()
    }
    tried = 0
    for row in OPERATIONS.values():
        for parameter in described.get(row.id, ()) if row.id not in OWN_QUERY else ():
            if parameter.get("in") != "query":
                continue
            schema, name = parameter["schema"], parameter["name"]
            types = {part.get("type") for part in (schema, *schema.get("anyOf", ()))}
            wrong: list[Any] = [] if "array" in types else [["1", "1"]]
            wrong += ["on", "True", "1"] if "boolean" in types else []
            wrong += ["1_0", " 1", "1.0"] if "integer" in types else []
            for value in wrong:
                problem = send(http, row, **{name: value})
                assert row.method == "HEAD" or problem["detail"].startswith(f"query.{name}: "), (row.id, problem)
                tried += 1
    assert tried > 150
    assert send(http, OPERATIONS["list_adapters"], tag="=x")["detail"].startswith("query.tag")
