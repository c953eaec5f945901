"""Errors of a hostile registry end a command soon, with one line."""

from __future__ import annotations

import httpx
import pytest

from registry.api.audit import EventProof
from registry.client.registry import Registry
from registry.client.transport.connection import Connection
from registry.errors import Corrupt, RegistryError
from tests.harness import URL
from tests.httpx_transports import MockTransport

pytestmark = pytest.mark.security


@pytest.mark.parametrize("status", [400, 413, 500, 503])
def test_an_error_without_a_readable_problem_is_none_of_this_program(status: int) -> None:
    deep = httpx.Response(status, content=b"[" * 1_000_000)
    opened = Connection(URL, "", transport=MockTransport(lambda _: deep), wait=lambda _: None)
    with pytest.raises(RegistryError, match=str(status)):
        Registry(URL, connection=opened).resolve("acme/support@2")


def test_an_entry_of_the_log_that_is_nested_too_deep_is_no_json() -> None:
    with pytest.raises(ValueError, match="too deep"):
        EventProof(seq=1, entry="[" * 1_000_000, proof="").event()


def test_the_request_that_an_error_names_is_cut() -> None:
    problem = {"code": "FROM_THE_FUTURE", "detail": "it is new", "request_id": "x" * 1_000_000}
    response = httpx.Response(500, json=problem)
    with pytest.raises(Corrupt) as caught:
        Registry(URL, "", MockTransport(lambda _: response)).resolve("acme/support@2")
    assert len(caught.value.detail) < 1000
