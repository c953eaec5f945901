"""What the OpenAPI document allows is sent (schemathesis): no server error, and no status that the document lacks.

SCHEMA_EXAMPLES asks for more requests than the quick run makes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, strategies
from schemathesis.core.result import Ok

from registry.api import PREFIX
from registry.server.database.models.jobs import JobRow
from registry.server.routes.openapi.document import document as openapi_document
from tests.access.tenants import Tenants, send
from tests.harness import Harness, rows

EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "330"))
ENDLESS = frozenset({"/events", "/events/stream", "/gc", "/fsck", "/reindex", "/verdicts/recheck-engines"})
"""Routes that wait or work for seconds on purpose."""


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def tenants(harness: Harness) -> Iterator[Tenants]:
    tenants = Tenants(harness)
    yield tenants
    with harness.session() as session:
        harness.give_back([row.id for row in rows(session, JobRow) if row.state == "running"])


def test_no_request_that_the_document_allows_makes_a_server_error_or_an_undocumented_status(tenants: Tenants) -> None:
    document = openapi_document(tenants.harness.app.routes)
    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    operations = [o for o in operations if o.path.removeprefix(PREFIX) not in ENDLESS]
    secrets = [tenants.harness.secret, tenants.secret("owner"), tenants.secret("reader"), ""]
    values = {"namespace": "acme", "name": "support", "selector": "1", "alias": "main", "base": "tiny-llama"}
    wrong: list[tuple[str, int, str]] = []

    @hypothesis.settings(
        max_examples=max(1, EXAMPLES // len(operations)),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @hypothesis.given(data=strategies.data())
    def ask(operation: Any, data: Any) -> None:
        case = data.draw(operation.as_strategy())
        path = dict(case.path_parameters or {})
        ends = operation.method.lower() == "delete"  # what is there stays, or there would be nothing left to ask about
        if data.draw(strategies.booleans()) and not ends:  # half of the requests are about something that is there
            path |= {key: value for key, value in values.items() if key in path}
        case.path_parameters = path
        sent = case.as_transport_kwargs(base_url="http://registry.test")
        arguments = {key: sent[key] for key in ("params", "json", "data") if sent.get(key) is not None}
        arguments["content"] = arguments.pop("data", None)
        headers = {name: str(value) for name, value in dict(sent.get("headers") or {}).items() if _is_plain(str(value))}
        if not isinstance(arguments["content"], bytes | str | None):
            arguments["content"] = None
        secret = data.draw(strategies.sampled_from(secrets))
        response = send(tenants.harness, sent["method"], sent["url"], secret, headers=headers, **arguments)
        responses = document["paths"][operation.path][operation.method.lower()]["responses"]
        if (response.status_code >= 500 and response.status_code != 503) or str(response.status_code) not in responses:
            wrong.append((operation.label, response.status_code, response.text[:300]))

    for operation in operations:
        ask(operation)
    assert wrong == []
    assert tenants.harness.admin.namespace("acme").name == "acme"


def _is_plain(value: str) -> bool:
    """Whether an HTTP client would send it at all."""
    return value.isascii() and value.isprintable()
