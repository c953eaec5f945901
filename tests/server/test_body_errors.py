"""A body with many wrong values is refused for the first ones: pydantic keeps some 400 bytes for each error."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from registry.api.operations.operation import VALUES_LIMIT
from registry.server import app as server_app
from registry.server.http.routing import SingleThreadRoute
from tests.harness import Harness
from tests.raw_asgi import call

pytestmark = pytest.mark.security
DIGEST = "sha256:" + "1" * 64
VALUES = 50_000
OBJECTS: dict[str, Any] = {
    "many objects": {f"{n:06}": {"": 0} for n in range(VALUES // 2)},
    "an object of many fields": {"first": {f"{n:06}": 0 for n in range(VALUES)}},
}
REPORT = {"check": "smoke", "subject": DIGEST, "base": "tiny", "base_fingerprint": DIGEST}
SPEC = {"name": "tiny", "fingerprints": {"architecture": DIGEST}}
IDENTITY = {"exact": DIGEST, "tensors": 3}
ROUTES: dict[tuple[str, str], tuple[str, str, dict[str, Any]]] = {
    ("POST", "/pushes"): ("push", "items", {}),
    ("POST", "/pushes/commit"): ("push", "items", {}),
    ("POST", "/moves"): ("promote", "items", {}),
    ("POST", "/approvals"): ("promote", "items", {}),
    ("POST", "/metadata"): ("push", "items", {}),
    ("PUT", "/fleet/nodes/{node}/{engine}"): ("pull", "slots", {"base": "tiny", "alias": "prod"}),
    ("POST", "/bases"): ("push", "spec.modules", {"spec": SPEC}),
    ("PUT", "/bases/{base:path}/identity"): ("work", "identity.marks", {"identity": IDENTITY}),
    ("POST", "/bases/{base:path}/similarity"): ("pull", "identity.marks", {"identity": IDENTITY}),
    ("PUT", "/bases/{base:path}/modules"): ("work", "modules.modules", {"modules": {"library": "transformers 5.1"}}),
    ("POST", "/jobs/{job_id}/finish"): ("work", "report.module_norms", {"lease_token": "x", "report": REPORT}),
}
"""Route → its scope, where a collection is in its body, and the rest of the body."""


def post(harness: Harness, method: str, path: str, scope: str, document: Any) -> Any:
    headers = [("content-type", "application/json"), ("authorization", f"Bearer {harness.issue(scope)[1]}")]
    url = f"/api/v1{re.sub(r'{[^}]*}', 'vllm', path)}"
    response = call(harness.app, method, url, headers, [json.dumps(document).encode()])
    assert response.status == 400, response.json()
    return response.json()


def put_at(document: dict[str, Any], location: str, value: Any) -> dict[str, Any]:
    name, _, rest = location.partition(".")
    return document | {name: put_at(document.get(name, {}), rest, value) if rest else value}


def test_every_route_with_a_high_limit_of_values_is_tried() -> None:
    routes = [route for router in server_app.ROUTERS for route in router.routes if isinstance(route, SingleThreadRoute)]
    high = {
        (method, route.path.removeprefix("/api/v1"))
        for route in routes
        for method in route.methods or ()
        if route.values_limit > VALUES_LIMIT
    }
    assert high == ROUTES.keys()


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_many_wrong_values_make_few_errors(harness: Harness, route: tuple[str, str], kind: str) -> None:
    scope, location, rest = ROUTES[route]
    objects = OBJECTS[kind] if location not in ("items", "slots") else list(OBJECTS[kind].values())
    problem = post(harness, *route, scope, put_at(rest, location, objects))
    more = re.search(r"\(and (\d+) more\)", problem["detail"])
    assert int(more[1] if more else 0) < 10
    assert problem["findings"][0]["location"].startswith(f"body.{location}"), problem
