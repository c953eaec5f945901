"""Which thread handles the requests with signed links that follow each other on one connection, and what it logs."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.errors import Unavailable
from registry.server.local_links import listener
from registry.server.local_links.request import LinkRequest
from tests.link_server import RunningServer
from tests.server.test_local_links import ask

DATA = random.Random(3).randbytes(2**20 + 321)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path, run=asyncio.run) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[http.client.HTTPConnection]:
    created = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    yield created
    created.close()


@pytest.mark.parametrize(("kept_slots", "threads"), [(1, 1), (0, 3)])
def test_a_thread_responds_what_follows_at_once_unless_others_need_it(
    server: RunningServer, client: http.client.HTTPConnection, monkeypatch: pytest.MonkeyPatch, kept_slots: int,
    threads: int,
) -> None:  # fmt: skip
    begun: list[LinkRequest] = []
    exchange = listener.LinkListener._exchange

    def note(self: listener.LinkListener, connection: Any, request: LinkRequest) -> None:
        begun.append(request)
        exchange(self, connection, request)

    monkeypatch.setattr(listener.LinkListener, "_exchange", note)
    monkeypatch.setattr(listener, "KEPT_SLOTS", kept_slots)
    monkeypatch.setattr(listener, "NEXT_SECONDS", 60.0)
    for n in range(2):
        assert ask(client, "PUT", server.write_link(DATA, f"psh_{n}"), DATA) == (204, b"")
    assert ask(client, "GET", server.read_link(DATA, owner="tok_1")) == (200, DATA)
    assert len(begun) == threads
    assert ask(client, "GET", server.read_link(DATA, owner="tok_2")) == (200, DATA), "counts for another person"
    assert [request.link.owner for request in begun] == ["tok_1"] * threads + ["tok_2"]


def test_a_link_that_fails_with_the_store_is_logged_and_counted_as_a_fault_of_the_store(
    server: RunningServer, client: http.client.HTTPConnection, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuse = Unavailable("STORE_UNAVAILABLE", "the bucket is away")
    status, body = ask(client, "PUT", server.write_link(DATA, "psh_1"), DATA)
    assert (status, json.loads(body)["code"]) == (503, "STORE_UNAVAILABLE")
    server.stop()  # the line follows the response
    [record] = [record for record in caplog.records if record.name == "registry.server.requests"]
    fields = record.fields  # type: ignore[attr-defined]
    assert (record.levelno, fields["problem"], fields["detail"]) == (
        logging.ERROR, "STORE_UNAVAILABLE", "the bucket is away"
    )  # fmt: skip
    assert (fields["out"], server.requests.store_errors) == (len(body), 1)
