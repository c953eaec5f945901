"""kill -9 of a real server at every failpoint: it comes back, the client succeeds by itself, and nothing is wrong."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from registry.errors import Invalid
from registry.server import failpoints
from tests import import_table
from tests.faults import crash_points
from tests.faults.deployment import Deployment
from tests.faults.environments import KINDS

DeploymentOn = Callable[[str, str], Deployment]


def runs(names: dict[str, int]) -> list[tuple[str, str, str]]:
    """Each point on the smallest setup and, in turn, on one of the others. `make soak` runs all of them with seeds."""
    chosen = []
    for turn, point in enumerate(names):
        first, *others = [kind for kind in KINDS if crash_points.is_reached(point, kind[1])]
        chosen += [(point, *first), (point, *others[turn % len(others)])] if others else [(point, *first)]
    return chosen


@contextmanager
def killed_once(deployment: Deployment) -> Iterator[int]:
    """Yield a seed for names that are not used yet. The server must have been killed once at the end."""
    deaths = deployment.server.deaths
    yield len(deployment.acknowledged)
    assert deployment.server.deaths == deaths + 1


@pytest.mark.parametrize(("point", "database", "store"), runs(crash_points.PUSH))
def test_a_push_survives_a_kill(deployment_on: DeploymentOn, point: str, database: str, store: str) -> None:
    deployment = deployment_on(database, store)
    with killed_once(deployment) as seed:
        deployment.push_through(f"acme/p{seed}", seed, failpoints=crash_points.kill_at(point, seed // 2))  # two a run


@pytest.mark.parametrize(("point", "database", "store"), runs(crash_points.GC))
def test_garbage_collection_survives_a_kill(deployment_on: DeploymentOn, point: str, database: str, store: str) -> None:
    deployment = deployment_on(database, store)
    with killed_once(deployment) as seed:
        deployment.collect_through(f"acme/g{seed}", seed, failpoints=crash_points.kill_at(point, seed))


@pytest.mark.parametrize(("point", "database", "store"), runs(crash_points.RETENTION))
def test_retention_survives_a_kill(deployment_on: DeploymentOn, point: str, database: str, store: str) -> None:
    deployment = deployment_on(database, store)
    with killed_once(deployment) as seed:
        deployment.retain_through(f"acme/r{seed}", seed, failpoints=crash_points.kill_at(point, seed))


@pytest.mark.parametrize("point", crash_points.HUB)
def test_a_push_of_a_hub_client_survives_a_kill(deployment_on: DeploymentOn, point: str) -> None:
    deployment = deployment_on(*KINDS[0])
    with killed_once(deployment) as seed:
        deployment.commit_through(f"acme/h{seed}", seed, failpoints=crash_points.kill_at(point, seed))


@pytest.mark.parametrize(("point", "database", "store"), runs(crash_points.AUDIT))
def test_the_audit_log_survives_a_kill(deployment_on: DeploymentOn, point: str, database: str, store: str) -> None:
    deployment = deployment_on(database, store)
    with killed_once(deployment) as seed:
        deployment.log_through(f"acme/l{seed}", seed, failpoints=crash_points.kill_at(point, seed))


def test_at_the_end_every_acknowledged_push_is_intact(deployment_on: DeploymentOn) -> None:
    for kind in KINDS:
        deployment = deployment_on(*kind)
        with deployment.server.running(), deployment.client() as client:
            assert deployment.all_violations(client) == []


# ------------------------------------------------------------------ the points themselves
def test_every_failpoint_of_the_code_is_one_that_these_tests_kill_at() -> None:
    names = set()
    for module, source in import_table.sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.reach":
                argument = node.args[0]
                assert isinstance(argument, ast.Constant), f"{module}:{node.lineno}: the name is not a literal"
                names.add(argument.value)
    assert names == set(
        crash_points.PUSH | crash_points.RETENTION | crash_points.GC | crash_points.HUB | crash_points.AUDIT
    )


@pytest.mark.parametrize("word", ["push", "push.x=die", "push.x=raise", "push.x=raise:Foo", "x=kill@0", "x=sleep:long"])
def test_an_invalid_failpoint_stops_the_start(word: str) -> None:
    with pytest.raises(Invalid, match="REGISTRY_FAILPOINTS"):
        failpoints.arm(word)


def test_a_failpoint_acts_only_at_its_count_and_only_while_armed() -> None:
    failpoints.arm("a.b=raise:OSError@2")
    try:
        failpoints.reach("a.b")
        failpoints.reach("c.d")
        with pytest.raises(OSError, match="a failpoint"):
            failpoints.reach("a.b")
        failpoints.reach("a.b")
    finally:
        failpoints.arm("")
    failpoints.reach("a.b")
