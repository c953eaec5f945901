"""Many adapters at once: what is asked, what moves, and that one failure stops nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from registry.api.transfer import BULK_LIMIT
from registry.client.local.cache import Cache
from registry.client.transfer import bulk, pull, push
from registry.errors import Unavailable
from registry.names import Ref
from tests import samples
from tests.client.counting import CountingClient
from tests.harness import Harness

COUNT = 12
FLEET = 200
BATCHES = FLEET // BULK_LIMIT


def folders(harness: Harness, tmp_path: Path, count: int = COUNT) -> list[tuple[Path, str]]:
    return [(samples.write(harness.files(), tmp_path / f"a{n}"), f"acme/a{n}") for n in range(count)]


def test_a_second_push_of_a_fleet_sends_no_content_in_two_requests(
    counting_client: CountingClient, harness: Harness, tmp_path: Path
) -> None:
    fleet = folders(harness, tmp_path)
    first = push.push_all(counting_client.registry, fleet)
    assert [(r.name, r.value is not None and r.value.created) for r in first] == [(n, True) for _, n in fleet]
    counting_client.requests.clear()
    second = push.push_all(counting_client.registry, fleet)
    assert [r.value is not None and r.value.created for r in second] == [False] * COUNT
    assert counting_client.methods("PUT") == 0
    assert len(counting_client.requests) == 2


def test_one_failure_stops_nothing_and_results_keep_their_order(
    counting_client: CountingClient, harness: Harness, tmp_path: Path
) -> None:
    fleet = folders(harness, tmp_path)
    (fleet[2][0] / samples.WEIGHTS).write_bytes(b"no weights")
    fleet[5] = (fleet[5][0], "Not A Name")
    names: list[str] = []
    results = push.push_all(
        counting_client.registry, fleet, base="tiny-llama", on_result=lambda r: names.append(r.name)
    )
    codes = {n: r.error.code for n, r in enumerate(results) if r.error}
    assert codes == {2: "TENSORS_INVALID", 5: "NAME_INVALID"}
    assert sorted(names) == sorted(name for _, name in fleet)


def test_equal_small_adapters_of_one_name_do_not_fail_the_others(
    counting_client: CountingClient, harness: Harness, tmp_path: Path
) -> None:
    """Files that the commit carries do not make the second push wait for the first."""
    first, other = ((samples.write(harness.files(rank=1), tmp_path / name), f"acme/{name}") for name in ("a", "b"))
    results = push.push_all(counting_client.registry, [first, first, other])
    assert [result.value is not None and result.value.created for result in results] == [True, False, True]


@pytest.mark.parametrize("limit", [1, BULK_LIMIT])
def test_a_registry_that_is_away_is_waited_for_once(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    (first, _), *_ = folders(harness, tmp_path, 1)
    plans = list[int]()

    def refuse(items: Sequence[Any], **_kwargs: Any) -> None:
        plans.append(len(items))
        raise Unavailable("SERVER_UNREACHABLE", "connection refused")

    monkeypatch.setattr(bulk, "BULK_LIMIT", limit)
    monkeypatch.setattr(harness.admin, "plan_pushes", refuse)
    results = push.push_all(harness.admin, [(first, f"acme/same-{number}") for number in range(3)])
    assert [result.error and result.error.code for result in results] == ["SERVER_UNREACHABLE"] * 3
    assert plans == [1], "copies of one adapter are sent one after the other"


def test_an_interrupt_does_not_wait_for_a_commit(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.add_base()
    registry, release, committed, plans = harness.admin, threading.Event(), threading.Event(), list[int]()
    plan, commit = registry.plan_pushes, registry.commit_pushes

    def planning(*args: Any, **kwargs: Any) -> Any:
        plans.append(len(plans))
        if len(plans) == 2:
            raise KeyboardInterrupt
        return plan(*args, **kwargs)

    def committing(*args: Any, **kwargs: Any) -> Any:
        release.wait(10)
        results = commit(*args, **kwargs)
        committed.set()
        return results

    monkeypatch.setattr(bulk, "BULK_LIMIT", 1)
    monkeypatch.setattr(registry, "plan_pushes", planning)
    monkeypatch.setattr(registry, "commit_pushes", committing)
    with pytest.raises(KeyboardInterrupt):
        push.push_all(registry, folders(harness, tmp_path, 2))
    assert not committed.is_set()
    release.set()
    assert committed.wait(60)


def test_progress_of_many_adds_up(counting_client: CountingClient, harness: Harness, tmp_path: Path) -> None:
    fleet = folders(harness, tmp_path)
    progress = [0, 0]

    class Watch:
        def start(self, total_bytes: int) -> None:
            progress[0] = total_bytes

        def advance(self, count: int) -> None:
            progress[1] += count

    push.push_all(counting_client.registry, fleet, progress=Watch())
    # They share their configuration, which is sent once or, by those that plan at the same time, a few times.
    assert progress[0] == progress[1] >= sum((folder / samples.WEIGHTS).stat().st_size for folder, _ in fleet)


def test_the_fleet_of_a_base_is_listed_over_pages_and_pulled(
    counting_client: CountingClient, harness: Harness, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = folders(harness, tmp_path)
    push.push_all(counting_client.registry, fleet)
    monkeypatch.setattr(pull, "PAGE_LIMIT", 5)
    names = [view.name for view in pull.adapters_of(counting_client.registry, "tiny-llama")]
    assert sorted(names) == sorted(name for _, name in fleet)
    requests = [(Ref.parse(name), tmp_path / "out" / name) for name in names]
    assert all(r.value for r in pull.pull_all(counting_client.registry, requests, cache=cache))
    counting_client.requests.clear()
    again = [(ref, path.with_name(path.name + "-again")) for ref, path in requests]
    assert all(r.value for r in pull.pull_all(counting_client.registry, again, cache=cache))
    assert [path for _, path in counting_client.requests if "/files/" in path] == []
    for folder, name in fleet:
        assert (tmp_path / "out" / name / samples.WEIGHTS).read_bytes() == (folder / samples.WEIGHTS).read_bytes()


def test_two_hundred_adapters_are_pushed_and_pulled_and_nothing_of_them_moves_twice(
    counting_client: CountingClient, harness: Harness, tmp_path: Path, cache: Cache
) -> None:
    fleet = folders(harness, tmp_path, FLEET)
    size_bytes = sum((folder / samples.WEIGHTS).stat().st_size for folder, _ in fleet)
    assert all(r.value and r.value.created for r in push.push_all(counting_client.registry, fleet))
    assert sum(counting_client.contents) >= size_bytes
    counting_client.requests.clear()
    counting_client.contents.clear()
    assert [r.value is not None and r.value.created for r in push.push_all(counting_client.registry, fleet)] == [
        False
    ] * FLEET
    assert sum(counting_client.contents) == 0
    assert len(counting_client.requests) == 2 * BATCHES
    requests = [
        (Ref.parse(view.name), tmp_path / "out" / view.name)
        for view in pull.adapters_of(counting_client.registry, "tiny-llama")
    ]
    assert len(requests) == FLEET
    assert all(r.value for r in pull.pull_all(counting_client.registry, requests, cache=cache))
    counting_client.requests.clear()
    again = [(ref, path.with_name(path.name + "-again")) for ref, path in requests]
    assert all(r.value for r in pull.pull_all(counting_client.registry, again, cache=cache))
    assert len(counting_client.requests) == BATCHES, "the names are resolved; no file is asked for"
    for folder, name in fleet:
        assert (tmp_path / "out" / f"{name}-again" / samples.WEIGHTS).read_bytes() == (
            folder / samples.WEIGHTS
        ).read_bytes()
