"""The desired state of a base: one response with everything that a serving node needs, and word of every change."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from registry.api.serving import DesiredState
from registry.client.registry import Registry
from registry.digest import Digest
from registry.engines import rulebook
from registry.errors import Corrupt, TooLarge, Unavailable
from registry.events import EventType
from registry.names import AdapterName, served_name
from registry.server import audit
from registry.server.access.rate_limits import WAITS_FOR_DIFFERENT
from registry.server.actors import TRUSTED
from registry.server.serving import desired as desired_states
from registry.serving import desired_state
from tests.harness import URL, Harness

BASE = "tiny-llama"
DESIRED_STATE = f"/api/v1/bases/{BASE}/adapters"


def http(harness: Harness, secret: str = "") -> httpx.Client:
    authorization = {"Authorization": f"Bearer {secret or harness.secret}"}
    return httpx.Client(transport=harness.transport, base_url=URL, headers=authorization, timeout=90)


def desired(client: httpx.Client, **params: str | int) -> DesiredState:
    response = client.get(DESIRED_STATE, params={"alias": "canary", **params})
    assert response.status_code == 200, response.text
    state = DesiredState.model_validate_json(response.content)
    assert response.headers["etag"] == f'"{state.cursor}"'
    return state


def fill(harness: Harness, *names: str) -> None:
    harness.add_base()
    for name in names:
        harness.push(name)
        harness.admin.promote(name, "canary", "1", generation=0)


def test_the_desired_state_lists_the_versions_of_the_alias_with_their_files(harness: Harness) -> None:
    fill(harness, "acme/support", "bolt/sales")
    harness.push("acme/other")  # on no alias
    harness.push("acme/support")
    state = desired(http(harness), engine="vllm==0.33.0,max_lora_rank=16")
    assert [(e.name, e.served_name, e.number) for e in state.adapters] == [
        ("acme/support", "acme-support-v1", 1),
        ("bolt/sales", "bolt-sales-v1", 1),
    ]
    first = state.adapters[0]
    named = (
        harness.admin.resolve("acme/support:canary").served_name,
        harness.admin.version("acme/support@1").served_name,
    )
    assert set(named) == {first.served_name}
    assert {f.path for f in first.files} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert (first.verdicts["compat"], first.engine_outcome, first.findings) == ("pass", "pass", [])
    assert sum(f.size_bytes for f in first.files) == first.size_bytes
    assert state.ranks == {str(first.rank): 2}
    assert state.settings is not None
    assert state.settings.bytes_per_slot > 0
    for file in first.files:
        assert len(http(harness).get(file.url, follow_redirects=True).content) == file.size_bytes


def test_the_desired_state_takes_as_many_statements_for_two_adapters_as_for_ten(harness: Harness) -> None:
    fill(harness, "acme/a0", "acme/a1")
    client = http(harness)
    with harness.statements() as few:
        desired(client)
    for number in range(2, 10):
        harness.push(f"acme/a{number}")
        harness.admin.promote(f"acme/a{number}", "canary", "1", generation=0)
    with harness.statements() as many:
        assert len(desired(client).adapters) == 10
    ours = [
        [s for s in sent if "FROM adapter" in s or "version_file" in s or "FROM verdict" in s] for sent in (few, many)
    ]
    assert len(ours[0]) == len(ours[1]) <= 6, ours


def test_the_cursor_changes_with_the_rules_of_the_engine(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(harness, "acme/support")
    client = http(harness)
    before = [desired(client, engine=engine).cursor for engine in ("vllm==0.33.0", "sglang==0.5.23")]
    digest = rulebook.digest
    monkeypatch.setattr(rulebook, "digest", lambda name: Digest.of(b"new") if name == "vllm" else digest(name))
    after = [desired(client, engine=engine).cursor for engine in ("vllm==0.33.0", "sglang==0.5.23")]
    assert (after[0] != before[0], after[1]) == (True, before[1])


def test_the_cursor_changes_with_moves_verdicts_and_yanks_only(harness: Harness) -> None:
    fill(harness, "acme/support")
    client = http(harness)
    cursors = [desired(client).cursor]
    harness.push("acme/support")
    assert desired(client).cursor == cursors[0]
    harness.admin.promote("acme/support", "canary", "2", generation=1)
    cursors.append(desired(client).cursor)
    harness.validate("acme/support@2")
    cursors.append(desired(client).cursor)
    harness.admin.yank("acme/support@2", "bad data")
    last = desired(client)
    assert (last.adapters, len({*cursors, last.cursor})) == ([], 4)


def test_a_matching_cursor_gives_304_without_a_body(harness: Harness) -> None:
    fill(harness, "acme/support")
    client = http(harness)
    request = {"params": {"alias": "canary"}, "headers": {"If-None-Match": f'"x", W/"{desired(client).cursor}"'}}
    same = client.get(DESIRED_STATE, **request)  # type: ignore[arg-type]
    assert (same.status_code, same.content) == (304, b"")
    harness.push("acme/support")
    harness.admin.promote("acme/support", "canary", "2", generation=1)
    assert client.get(DESIRED_STATE, **request).json()["adapters"][0]["number"] == 2  # type: ignore[arg-type]


def test_a_waiting_request_returns_after_a_promotion(harness: Harness) -> None:
    fill(harness, "acme/support")
    client = http(harness)
    cursor = desired(client).cursor
    states: list[DesiredState] = []
    waiting = threading.Thread(target=lambda: states.append(desired(http(harness), since=cursor, wait=60)))
    waiting.start()
    harness.push("acme/support")
    harness.admin.promote("acme/support", "canary", "2", generation=1)
    waiting.join(60)
    assert [entry.number for entry in states[0].adapters] == [2]
    assert desired(client, since="of another time", wait=60).cursor == states[0].cursor


def test_requests_cost_nothing_while_nothing_changes(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cursor is read once, and a wait that ends without a change has no body."""
    fill(harness, "acme/support")
    cursor = desired(http(harness)).cursor
    monkeypatch.setattr(desired_states, "state_cursor", None)
    monkeypatch.setattr(desired_states, "load", None)
    response = http(harness).get(DESIRED_STATE, params={"alias": "canary", "since": cursor, "wait": 1})
    assert (response.status_code, response.content, response.headers["etag"]) == (204, b"", f'"{cursor}"')
    assert desired_state.read_next(harness.admin, BASE, "canary", since=cursor, wait=1) is None


@pytest.mark.security
def test_a_waiting_request_ends_when_its_token_is_revoked(harness: Harness) -> None:
    fill(harness, "acme/support")
    token_id, secret = harness.issue("pull", namespaces=["acme"])
    cursor = desired(http(harness, secret)).cursor
    waiting_query = {"alias": "canary", "since": cursor, "wait": 60}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http(harness, secret).get, DESIRED_STATE, params=waiting_query)  # type: ignore[arg-type]
        harness.admin.revoke_token(token_id)
        assert waiting.result(50).status_code == 401


def test_a_desired_state_shows_only_what_the_actor_may_see(harness: Harness) -> None:
    fill(harness, "acme/support", "bolt/sales")
    _, secret = harness.issue("pull", namespaces=["bolt"])
    assert [entry.name for entry in desired(http(harness, secret)).adapters] == ["bolt/sales"]
    assert http(harness).get("/api/v1/bases/none/adapters").json()["code"] == "BASE_UNKNOWN"


def test_equal_served_names_are_made_unique(harness: Harness) -> None:
    fill(harness, "a-b/c", "a/b-c")
    served = [entry.served_name for entry in desired(http(harness)).adapters]
    assert len(set(served)) == 2
    assert all(name.startswith("a-b-c-v1-") for name in served)
    assert len(served_name(AdapterName("a" * 64, "b" * 64), 10**8)) <= 100


def test_a_rename_changes_the_cursor(harness: Harness) -> None:
    """Nodes pull by this name. On pages an adapter can go to one that is read already: only the cursor says so."""
    fill(harness, "acme/support")
    before = harness.admin.desired_state(BASE, "canary")
    harness.admin.rename("acme/support", "acme/help")
    after = harness.admin.desired_state(BASE, "canary")
    assert [entry.name for entry in after.adapters] == ["acme/help"]
    assert after.cursor != before.cursor


@pytest.mark.parametrize("size", [1, 2, 3, 500])
def test_the_pages_of_a_desired_state_add_up_to_the_whole(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(desired_state, "PAGE_ADAPTERS", size)
    fill(harness, "a-b/c", "a-b/d")
    for name, rank in (("a/b-c", 8), ("a/b-d", 16), ("z/last", 4)):
        harness.push(name, harness.files(rank=rank))
        harness.admin.promote(name, "canary", "1", generation=0)
    whole = harness.admin.desired_state(BASE, "canary", engine="vllm==0.33.0")
    assert len({entry.served_name for entry in whole.adapters}) == 5
    assert desired_state.read(harness.admin, BASE, "canary", engine="vllm==0.33.0") == whole


def test_a_desired_state_of_many_adapters_is_read_page_by_page_only(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(harness, "acme/a", "acme/b", "acme/c")
    monkeypatch.setattr(desired_states, "WHOLE_LIMIT", 2)
    with pytest.raises(TooLarge, match="by the alias 'canary' has more than 2 adapters or 8388608 characters"):
        harness.admin.desired_state(BASE, "canary")
    first = harness.admin.desired_state(BASE, "canary", limit=2)
    last = harness.admin.desired_state(BASE, "canary", limit=2, after=first.next_after)
    assert ([entry.name for entry in last.adapters], last.next_after, last.cursor) == (["acme/c"], "", "")
    assert first.cursor
    monkeypatch.setattr(Registry, "desired_state", lambda *_, **__: first)
    with pytest.raises(Corrupt, match="continues at 'acme/b' again"):
        desired_state.read(harness.admin, BASE, "canary")
    fresh = (first.model_copy(update={"next_after": f"acme/{number}"}) for number in itertools.count())
    monkeypatch.setattr(Registry, "desired_state", lambda *_, **__: next(fresh))
    with pytest.raises(Corrupt, match=f"goes on after {desired_state.PAGES_LIMIT} pages"):
        desired_state.read(harness.admin, BASE, "canary")
    assert next(fresh).next_after == f"acme/{desired_state.PAGES_LIMIT}"
    without_pages = last.model_copy(update={"adapters": [*first.adapters, *last.adapters]})
    monkeypatch.setattr(Registry, "desired_state", lambda *_, after="", **__: without_pages if after else first)
    with pytest.raises(Corrupt, match="two pages of the desired state list 'acme/a'"):
        desired_state.read(harness.admin, BASE, "canary")


@pytest.mark.parametrize("database_kind", ["postgres"])  # SQLite has one writer
def test_an_alias_that_moves_while_a_page_is_read_hides_no_adapter(harness: Harness) -> None:
    fill(harness, "acme/a", "acme/b")
    harness.push("acme/b")
    moved = list[str]()

    def move(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM adapter" in statement and "ANY" in statement and not moved:
            moved.append("now")
            harness.admin.promote("acme/b", "canary", "2", generation=1)

    event.listen(harness.engine, "before_cursor_execute", move)
    try:
        state = harness.admin.desired_state(BASE, "canary")
    finally:
        event.remove(harness.engine, "before_cursor_execute", move)
    assert (moved, [(entry.name, entry.number) for entry in state.adapters]) == (
        ["now"],
        [("acme/a", 1), ("acme/b", 2)],
    )


@pytest.mark.security
def test_many_waiting_nodes_cost_one_read_for_each_change(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(harness, "acme/support")
    secrets = [harness.issue("pull", namespaces=["acme"])[1] for _ in range(2)]
    cursor = desired(http(harness, secrets[0])).cursor
    counter, state_cursor = harness.app.state.change_counter, desired_states.state_cursor
    query, counts, read = counter._query, set(), threading.Semaphore(0)
    calls = Counter[str]()

    def count_reads(*args: Any) -> Any:
        calls["cursor"] += 1
        read.release()
        return state_cursor(*args)

    def record_counts() -> Any:
        counts.add(latest := query())
        return latest

    monkeypatch.setattr(desired_states, "state_cursor", count_reads)
    monkeypatch.setattr(counter, "_query", record_counts)
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(desired, http(harness, secrets[n % 2]), since=cursor, wait=60) for n in range(20)]
        with harness.session(write=True) as session:
            audit.append(session, TRUSTED, EventType.ALIAS_MOVE, "globex/other:prod")
        assert read.acquire(timeout=60)
        harness.push("acme/support")
        harness.admin.promote("acme/support", "canary", "2", generation=1)
        states = [future.result(60) for future in waiting]
    assert {state.adapters[0].number for state in states} == {2}
    assert 1 <= calls["cursor"] <= len(counts)


@pytest.mark.security
def test_a_token_has_a_limit_of_waiting_requests(database_url: str) -> None:
    with Harness(database_url, waits_per_token=1) as harness:
        fill(harness, "acme/support")
        token_id, secret = harness.issue("pull")
        cursor = desired(http(harness, secret)).cursor
        with harness.app.state.waits_limiter.hold(token_id):
            refused = http(harness, secret).get(DESIRED_STATE, params={"since": cursor, "wait": 60, "alias": "canary"})
            assert (refused.status_code, refused.json()["code"]) == (429, "RATE_LIMITED")
            assert int(refused.headers["Retry-After"]) > 0
            assert desired(http(harness, secret)).cursor == cursor, "others get a response"
            assert desired(http(harness), since="another", wait=60).cursor == cursor


@pytest.mark.security
def test_a_tenant_waits_for_few_different_states_and_for_one_as_often_as_it_likes(harness: Harness) -> None:
    fill(harness, "acme/support")
    secret = harness.issue("pull", name="nodes")[1]
    cursor = desired(http(harness, secret)).cursor
    limiter, tenant = harness.app.state.waited_limiter, harness.app.state.actor_cache.get(secret).tenant
    with ExitStack() as stack:
        for n in range(WAITS_FOR_DIFFERENT):
            stack.enter_context(limiter.hold(tenant, n))
        stack.enter_context(limiter.hold(tenant, 0))
        refused = http(harness, secret).get(DESIRED_STATE, params={"since": cursor, "wait": 60})
        assert (refused.status_code, refused.json()["code"]) == (429, "RATE_LIMITED")
        assert desired(http(harness), since="another", wait=60).cursor == cursor, "others wait as before"
    query: dict[str, str | int] = {"since": cursor, "wait": 1, "alias": "canary"}
    assert http(harness, secret).get(DESIRED_STATE, params=query).status_code == 204


def test_waiting_requests_learn_that_the_database_is_away(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(harness, "acme/support")
    cursor = desired(http(harness)).cursor
    watcher = harness.app.state.change_watcher

    def hang() -> object:
        raise Unavailable("DATABASE_UNAVAILABLE", "the database cannot be reached", retry_after_seconds=2)

    with ThreadPoolExecutor(2) as pool:
        query: dict[str, str | int] = {"since": cursor, "wait": 60, "alias": "canary"}
        waiting = [pool.submit(http(harness).get, DESIRED_STATE, params=query) for _ in range(2)]
        while watcher._waiting < len(waiting):
            assert not any(future.done() for future in waiting)
            time.sleep(0.01)  # no event tells that both wait
        with monkeypatch.context() as patch:
            patch.setattr(watcher._freshness, "stamp", hang)
            assert [response.result(50).status_code for response in waiting] == [503, 503]
    assert desired(http(harness), since="another", wait=60).cursor == cursor
