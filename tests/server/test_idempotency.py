"""Twice means once: a response that was lost on its way, a key that comes again, equal requests that race."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from registry.api.access import TokenCreate
from registry.api.aliases import PromoteRequest
from registry.api.bases import BaseAdd
from registry.api.jobs import Claimed, ClaimRequest, FailRequest, JobSubmit
from registry.api.operations.table import OPERATIONS
from registry.api.transfer import PushRequest
from registry.client.registry import Registry
from registry.client.transport.connection import Connection
from registry.errors import Conflict, Invalid
from registry.jobs import Kind
from registry.server.database.models import AliasMoveRow, EventRow, IdempotencyRow, TokenRow, VersionRow
from tests import samples
from tests.base_specs import spec_of
from tests.bulk import commit_push, plan_push
from tests.harness import URL, Harness, rows, upload
from tests.httpx_transports import HttpxTransport


class Losing(HttpxTransport):
    """The server acts, and the responses to some requests never arrive."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner
        self.lose = 0
        self.responses: list[httpx.Response] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self.inner.handle_request(request)
        response.read()
        if request.method not in ("GET", "HEAD"):
            self.responses.append(response)
            if self.lose:
                self.lose -= 1
                raise httpx.ReadError("the response was lost", request=request)
        return response


@pytest.fixture
def losing(harness: Harness) -> Losing:
    return Losing(harness.transport)


@pytest.fixture
def client(harness: Harness, losing: Losing) -> Registry:
    return Registry(URL, connection=Connection(URL, harness.secret, transport=losing, wait=lambda _: None))


def events(harness: Harness) -> list[str]:
    with harness.session() as session:
        return [row.action for row in rows(session, EventRow)]


def promote(harness: Harness, client: Registry) -> Any:
    harness.push("acme/support")
    harness.validate("acme/support@1")
    return lambda: client.promote("acme/support", "prod", "1", generation=0)


def roll_back(harness: Harness, client: Registry) -> Any:
    for number in (1, 2):
        harness.push("acme/support")
        harness.validate(f"acme/support@{number}")
        harness.admin.promote("acme/support", "prod", str(number), generation=number - 1)
    return lambda: client.rollback("acme/support", "prod")


def yank(harness: Harness, client: Registry) -> Any:
    harness.push("acme/support")
    return lambda: client.yank("acme/support@1", "broken")


def claim(harness: Harness, client: Registry) -> Any:
    harness.push("acme/support")
    return lambda: client.claim(ClaimRequest(worker="w"))


def fail(harness: Harness, client: Registry) -> Any:
    harness.push("acme/support")
    claimed = harness.admin.claim(ClaimRequest(worker="w"))
    assert claimed is not None
    request = FailRequest(lease_token=claimed.lease.token, error="no memory")
    return lambda: client.fail(claimed.job.id, request)


def submit(harness: Harness, client: Registry) -> Any:
    harness.push("acme/support")
    harness.validate("acme/support@1")
    return lambda: client.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref="acme/support@1"))


def cancel(harness: Harness, client: Registry) -> Any:
    job_id = harness.push("acme/support").job_id
    return lambda: client.cancel(job_id)


def add_base(_harness: Harness, client: Registry) -> Any:
    spec = spec_of(samples.llama(name="another"))
    return lambda: client.add_base(BaseAdd(spec=spec, source=""))


def revoke(harness: Harness, client: Registry) -> Any:
    token_id, _ = harness.issue("pull")
    return lambda: client.revoke_token(token_id)


def commit(harness: Harness, client: Registry) -> Any:
    files = harness.files()
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(files)))
    upload(harness.admin, plan, files)
    return lambda: commit_push(client, plan.push_id)


MUTATIONS = [promote, roll_back, yank, claim, fail, submit, cancel, add_base, revoke, commit]


@pytest.mark.parametrize("prepare", MUTATIONS, ids=lambda f: f.__name__)
def test_a_repeated_mutation_acts_once_and_gets_the_same_response(
    harness: Harness, client: Registry, losing: Losing, prepare: Callable[[Harness, Registry], Any]
) -> None:
    harness.add_base()
    act = prepare(harness, client)
    before = len(events(harness))
    losing.lose = 2
    response = act()
    first, *again = losing.responses
    assert len(again) == 2
    for response_again in again:
        assert response_again.status_code == first.status_code
        assert response_again.json() == first.json()
        assert response_again.headers.get("etag") == first.headers.get("etag")
        assert response_again.headers["idempotency-replayed"] == "true"
    assert response is not None
    if isinstance(response, Claimed):
        harness.give_back([response.job.id])
    new_events = events(harness)[before:]
    assert len(new_events) == len(set(new_events))


def test_a_repeated_commit_is_still_reported_as_created(harness: Harness, client: Registry, losing: Losing) -> None:
    harness.add_base()
    act = commit(harness, client)
    losing.lose = 1
    pushed = act()
    assert (pushed.created, pushed.version.number, bool(pushed.job_id)) == (True, 1, True)
    with harness.session() as session:
        assert len(rows(session, VersionRow)) == 1


def test_a_repeated_commit_of_refused_files_is_refused_for_the_same_reason(
    harness: Harness, client: Registry, losing: Losing
) -> None:
    """It was PUSH_UNKNOWN, and whoever pushed again sent all bytes again to learn why."""
    harness.add_base()
    files = {**harness.files(), samples.WEIGHTS: b"no tensors"}
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(files)))
    upload(harness.admin, plan, files)
    losing.lose = 2
    with pytest.raises(Invalid) as refused:
        commit_push(client, plan.push_id)
    assert (refused.value.code, refused.value.findings[0].location) == ("TENSORS_INVALID", samples.WEIGHTS)
    first, *repeated = [response.json()["items"][0]["problem"] for response in losing.responses]
    assert [{**problem, "request_id": first["request_id"]} for problem in repeated] == [first] * 2


def test_one_key_with_two_requests_is_a_conflict_and_acts_once(harness: Harness) -> None:
    harness.add_base()
    promote(harness, harness.admin)
    key = {"Idempotency-Key": "k1", "Authorization": f"Bearer {harness.secret}", "If-Match": '"0"'}
    path = "/api/v1/adapters/acme/support/aliases/{}"
    with httpx.Client(transport=harness.transport, base_url=URL, headers=key) as raw:
        body = PromoteRequest(version="1").model_dump()
        assert raw.put(path.format("prod"), json=body).status_code == 200
        for other in (
            raw.put(path.format("canary"), json=body),
            raw.put(path.format("prod"), json=body | {"reason": "other"}),
            raw.put(path.format("prod"), json=body, headers={"If-Match": '"1"'}),
        ):
            assert (other.status_code, other.json()["code"]) == (409, "IDEMPOTENCY_REUSED")
        assert raw.put(path.format("prod"), json=body).json()["generation"] == 1
    with harness.session() as session:
        assert [row.alias for row in rows(session, AliasMoveRow)] == ["main", "prod"]


def test_a_key_belongs_to_its_token(harness: Harness) -> None:
    harness.add_base()
    key = {"Idempotency-Key": "k1"}
    with httpx.Client(transport=harness.transport, base_url=URL, headers=key) as raw:
        for name in ("one", "two"):
            token = {"Authorization": f"Bearer {harness.issue('admin', name=name)[1]}"}
            body = TokenCreate(name=f"by-{name}", scopes=["pull"]).model_dump(mode="json")
            assert raw.post("/api/v1/tokens", json=body, headers=token).status_code == 201


def test_a_response_with_a_secret_is_not_stored_and_not_repeated(
    harness: Harness, client: Registry, losing: Losing
) -> None:
    losing.lose = 1
    with pytest.raises(Conflict, match="secret that is shown once"):
        client.create_token(TokenCreate(name="ci", scopes=["push"]))
    secret = losing.responses[0].json()["secret"]
    with harness.session() as session:
        assert [row.name for row in rows(session, TokenRow)] == ["admin", "ci"]
        assert all(secret not in row.response for row in rows(session, IdempotencyRow))


def test_a_failed_mutation_frees_its_key(harness: Harness) -> None:
    headers = {"Idempotency-Key": "k1", "Authorization": f"Bearer {harness.secret}"}
    with httpx.Client(transport=harness.transport, base_url=URL, headers=headers) as raw:
        assert raw.post("/api/v1/jobs/none/cancel").status_code == 404
        assert raw.post("/api/v1/jobs/claim", json={"worker": "w"}).status_code == 204
    with harness.session() as session:
        assert rows(session, IdempotencyRow) == []


@pytest.mark.parametrize("key", ["", "two words", "é", "x" * 201])
def test_an_invalid_key_is_rejected(harness: Harness, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode(), b"Authorization": f"Bearer {harness.secret}".encode()}
    with httpx.Client(transport=harness.transport, base_url=URL) as raw:
        response = raw.post("/api/v1/jobs/claim", json={"worker": "w"}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, Invalid("REQUEST_INVALID", "").code)


def test_equal_requests_with_one_key_that_race_act_once_and_have_one_response(harness: Harness) -> None:
    harness.add_base()
    promote(harness, harness.admin)
    headers = {"Idempotency-Key": "k1", "Authorization": f"Bearer {harness.secret}", "If-Match": '"0"'}
    path, body = "/api/v1/adapters/acme/support/aliases/prod", {"version": "1"}
    with httpx.Client(transport=harness.transport, base_url=URL, headers=headers) as raw, ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: raw.put(path, json=body), range(16)))
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1
    with harness.session() as session:
        assert [row.generation for row in rows(session, AliasMoveRow) if row.alias == "prod"] == [1]


def test_every_mutation_takes_a_key_except_repeatable_ones() -> None:
    unkeyed = {row.route for row in OPERATIONS.values() if row.method not in ("GET", "HEAD") and not row.takes_key}
    assert unkeyed <= {
        "POST /pushes",  # takes up the push that is open
        "PUT /links/{key:path}",  # the same bytes under the same key
        "POST /pulls",  # changes nothing
        "POST /tokens/exchange",  # takes an identity token once, and its response is a secret
        "POST /gc",
        "POST /fsck",
        "POST /reindex",
        "POST /check",  # stores nothing
        "POST /verdicts/recheck-engines",  # what is renewed already is not renewed again
    }
