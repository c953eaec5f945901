"""The event stream of a real server over restarts and revoked tokens."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from registry.api.access import TokenCreate
from registry.client.audit import Audit
from registry.client.registry import Registry
from tests.cli.runner import served


@contextmanager
def stream(url: str, token: str, last: int) -> Iterator[Iterator[dict[str, str]]]:
    """Messages of the stream that follow this event."""
    headers = {"Authorization": f"Bearer {token}", "Last-Event-ID": str(last)}
    with httpx.stream("GET", f"{url}/api/v1/events/stream", headers=headers, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield _messages(response.iter_lines())


def _messages(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    message: dict[str, str] = {}
    for line in lines:
        if not line and message:
            yield message
            message = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            message[name] = value


def make(url: str, token: str, name: str) -> None:
    with Registry(url, token) as registry:
        registry.create_token(TokenCreate(name=name, scopes=["pull"]))


def test_after_a_restart_a_stream_resumes_without_gaps_and_the_first_token_is_valid(tmp_path: Path) -> None:
    heard: list[dict[str, str]] = []
    with served(tmp_path / "data") as (process, server):
        url, token = server["url"], server["token"]
        with stream(url, token, 0) as messages:
            heard.append(next(messages))
            make(url, token, "one")
            heard.append(next(messages))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert list(messages) == [], "the stream ends with the server"
    with served(tmp_path / "data") as (process, server):
        url = server["url"]
        assert server["token"] == "", "only the first start prints a token"
        make(url, token, "two")
        make(url, token, "three")
        with stream(url, token, int(heard[-1]["id"])) as messages:
            heard += [next(messages), next(messages)]
        with Registry(url, token) as registry:
            log = Audit(registry)
            events = [event for event in log.events() if event.action == "token.issue"]
            with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=60) as raw:
                response = raw.get(f"{url}/api/v1/whoami")
            assert response.status_code == 200
    assert [int(message["id"]) for message in heard] == [event.seq for event in events]
    assert [json.loads(message["data"])["detail"]["name"] for message in heard] == ["admin", "one", "two", "three"]
    assert {message["event"] for message in heard} == {"token.issue"}


def test_a_stream_ends_cleanly_when_its_token_is_revoked(server: dict[str, str]) -> None:
    with Registry(server["url"], server["token"]) as registry:
        created = registry.create_token(TokenCreate(name="ends", scopes=["admin"]))
        with stream(server["url"], created.secret, 0) as messages:
            while json.loads(next(messages)["data"])["object"] != created.token.id:
                pass
            registry.revoke_token(created.token.id)
            assert list(messages) == [], "not the event of its own end, and no broken connection"
