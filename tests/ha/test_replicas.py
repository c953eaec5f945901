"""Replicas behind haproxy: one is killed, restarted, frozen with locks in its hands, or has a wrong clock."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from registry.api.access import TokenCreate
from registry.api.jobs import ClaimRequest
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.errors import RegistryError
from tests.faults.environments import Environments
from tests.ha import cluster as clusters
from tests.ha.cluster import Cluster, Replica
from tests.ha.traffic import ALIAS, NAME, Traffic

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(shutil.which("haproxy", path="/usr/sbin:" + os.defpath) is None, reason="haproxy is missing"),
]
PROMOTES = 20
LIMIT_SECONDS = 120


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environments]:
    with Environments(tmp_path_factory.mktemp("ha")) as environments:
        yield environments


@pytest.fixture(scope="module")
def cluster(environments: Environments, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with clusters.running(environments, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def traffic(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    traffic = Traffic(cluster, tmp_path_factory.mktemp("adapters"))
    traffic.prepare()
    return traffic


@pytest.fixture(autouse=True)
def _restore(cluster: Cluster) -> Iterator[None]:
    """Every server runs again after a test."""
    yield
    for replica in cluster.replicas:
        if replica.process is None:
            replica.start()


def test_a_killed_replica_loses_nothing_that_was_acknowledged(cluster: Cluster, traffic: Traffic) -> None:
    with traffic.running():
        traffic.wait_for_promotes(PROMOTES)
        cluster.replicas[1].stop(signal.SIGKILL)
        traffic.push("acme/after-kill", 10)
        traffic.wait_for_promotes(PROMOTES)
    assert traffic.violations() == []


def test_a_rolling_restart_shows_no_error_to_clients(cluster: Cluster, traffic: Traffic) -> None:
    traffic.errors.clear()
    with traffic.running():
        for replica in cluster.replicas:
            traffic.wait_for_promotes(PROMOTES)
            assert replica.stop(signal.SIGTERM) == 0
            replica.start()
        traffic.wait_for_promotes(PROMOTES)
    assert traffic.errors == []
    assert traffic.violations() == []


def test_clients_wait_for_a_database_that_restarts(cluster: Cluster, traffic: Traffic) -> None:
    with traffic.running():
        traffic.wait_for_promotes(PROMOTES)
        address = cluster.database_url.replace("postgresql+psycopg://", "postgresql://", 1)
        with psycopg.connect(address) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)  # PostgreSQL then ends all connections and recovers
        traffic.push("acme/after-crash", 11)
        traffic.wait_for_promotes(PROMOTES)
    assert traffic.violations() == []


def test_a_replica_that_freezes_inside_a_promote_does_not_stop_the_others(
    cluster: Cluster, traffic: Traffic, tmp_path: Path
) -> None:
    replica = _restart_with(cluster.replicas[0], f"alias.swapped=wait:{tmp_path / 'go'}")
    thread = _promote_in_background(cluster, replica)
    _wait_for(tmp_path / "go.reached")  # the row of the alias is locked now
    with replica.frozen(), traffic.running():
        traffic.wait_for_promotes(PROMOTES)
    (tmp_path / "go").touch()  # it goes on where it was, and the database has ended its transaction
    thread.join()
    assert traffic.violations() == []


def test_a_replica_that_freezes_with_the_audit_lock_does_not_stop_the_log(
    cluster: Cluster, traffic: Traffic, tmp_path: Path
) -> None:
    for other in cluster.replicas[1:]:  # so that it is this server that numbers the event
        other.stop()
    replica = _restart_with(cluster.replicas[0], f"audit.numbered=wait:{tmp_path / 'go'}")
    thread = _promote_in_background(cluster, replica)
    _wait_for(tmp_path / "go.reached")
    with replica.frozen():
        for other in cluster.replicas[1:]:
            other.start()
        with cluster.client(cluster.replicas[1]) as client:
            before = _log_size(client)
            traffic.push("acme/while-frozen", 12)
            _wait_until(lambda: _log_size(client) > before + 1)
    (tmp_path / "go").touch()  # it goes on with a lock that another server has taken over
    thread.join()
    with cluster.client(replica) as client:
        _wait_until(lambda: _log_size(client) > before + 1)
    assert traffic.violations() == []


@pytest.mark.skipif(clusters.FAKETIME is None, reason="libfaketime is missing")
def test_a_wrong_clock_takes_no_lease_and_ends_no_token(environments: Environments, tmp_path: Path) -> None:
    with clusters.running(environments, tmp_path, skews=("", "+120s")) as skewed:
        traffic = Traffic(skewed, tmp_path)
        traffic.prepare()
        with skewed.client(skewed.replicas[0]) as first, skewed.client(skewed.replicas[1]) as second:
            claimed = [first.claim(ClaimRequest(worker="first")) for _ in range(2)]
            assert None not in claimed
            assert second.claim(ClaimRequest(worker="second")) is None, "a lease was taken away"
            request = TokenCreate(name="short", scopes=["pull"], namespaces=["acme"], expires_in_seconds=90)
            secret = first.create_token(request).secret
        with Registry(skewed.replicas[1].url, secret) as short:
            assert short.alias(NAME, ALIAS).generation == 1


# ------------------------------------------------------------------ helpers
def _restart_with(replica: Replica, failpoints: str) -> Replica:
    replica.stop()
    replica.start(failpoints=failpoints)
    return replica


def _promote_in_background(cluster: Cluster, replica: Replica) -> threading.Thread:
    def promote() -> None:
        with cluster.client(replica) as client:
            try:
                generation = client.alias(NAME, ALIAS).generation
                client.promote(NAME, ALIAS, str(1 + generation % 2), generation=generation)
            except RegistryError:
                return  # the server dies in the middle of it

    thread = threading.Thread(target=promote)
    thread.start()
    return thread


def _log_size(client: Registry) -> int:
    """The size that the newest checkpoint says."""
    return int(Audit(client).checkpoint().splitlines()[1])


def _wait_for(path: Path) -> None:
    _wait_until(path.exists)


def _wait_until(condition: Callable[[], bool]) -> None:
    """Ask again until it holds: what another machine does is no event that this process could wait for."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
