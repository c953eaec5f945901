"""`make bench-requests`: CPU of the server and of its database for a list, a show and a promote, on both databases.

    list       GET of 50 adapters, newest versions and verdicts included
    show       GET of one version with aliases, verdicts and facts, each of 50 adapters in turn
    promote    PUT that moves the alias of an adapter without a gate between two versions
    whoami     GET that reads nothing but the token: what HTTP, routing and sign-in cost

Each is asked COUNT times on one connection, in turn for ROUNDS rounds; medians of the rounds. Ratio: CPU over that of
`whoami`, in the same run. The last line is one JSON object.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks._contenders import cpu_of
from registry.api.bases import BaseAdd
from registry.client.registry import Registry
from registry.client.transfer import push
from tests import samples, services
from tests.base_specs import spec_of
from tests.faults.servers import Server

ADAPTERS, COUNT = 50, 200
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
ROOT, ALIAS = "/api/v1", "live"


def fill(server: Server, folder: Path) -> None:
    """Push two versions of each adapter, with an alias that has no gate."""
    base = samples.llama()
    with Registry(server.url, server.token) as registry:
        registry.add_base(BaseAdd(spec=spec_of(base)))
        for revision in range(2):
            names = [f"bench/a{number}" for number in range(ADAPTERS)]
            folders = [folder / f"{revision}-{number}" for number in range(ADAPTERS)]
            for number, path in enumerate(folders):
                samples.write(samples.lora(base, seed=ADAPTERS * revision + number), path)
            outcomes = push.push_all(registry, list(zip(folders, names, strict=True)))
            if any(outcome.value is None for outcome in outcomes):
                raise RuntimeError(f"a push was refused: {outcomes}")
        for name in names:
            registry.promote(name, ALIAS, "1", generation=0)


class Connection:
    """Requests of one client on one kept connection. `RuntimeError` for a response that is none of success."""

    def __init__(self, server: Server) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", server.port)
        self._headers = {"Authorization": f"Bearer {server.token}"}

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        data = None if body is None else json.dumps(body)
        headers = self._headers | {"Content-Type": "application/json"} | headers
        self._http.request(method, ROOT + path, data, headers)
        response = self._http.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status} {content[:300]!r}")


def steps_of(connection: Connection) -> dict[str, Callable[[int], None]]:
    """Each request by name; it gets the number of times that it was sent before."""

    def promote(number: int) -> None:
        generation, adapter = divmod(number, ADAPTERS)
        body = {"version": str(2 - generation % 2)}
        match = {"If-Match": str(generation + 1)}
        connection.send("PUT", f"/adapters/bench/a{adapter}/aliases/{ALIAS}", body, **match)

    return {
        "whoami": lambda _: connection.send("GET", "/whoami"),
        "list": lambda _: connection.send("GET", f"/adapters?limit={ADAPTERS}"),
        "show": lambda number: connection.send("GET", f"/adapters/bench/a{number % ADAPTERS}/versions/2"),
        "promote": promote,
    }


@contextmanager
def serving(database: str, folder: Path) -> Iterator[tuple[Server, Callable[[], list[int]]]]:
    """A server over the adapters, and what returns the processes whose CPU counts."""
    with ExitStack() as stack:
        url, parent = f"sqlite:///{folder}/registry.db", 0
        if database == "postgres":
            url = stack.enter_context(services.fresh_database(stack.enter_context(services.postgres_url())))
            with psycopg.connect(url.replace("+psycopg", "", 1)) as connection:
                parent = _parent_of(connection.info.backend_pid)
        server = Server({"REGISTRY_DATA": str(folder), "REGISTRY_DATABASE_URL": url, "REGISTRY_LOG_LEVEL": "warning"})
        stack.enter_context(server.running())
        fill(server, folder)
        yield server, lambda: [server.pid, *(_children_of(parent) if parent else [])]


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _children_of(parent: int) -> list[int]:
    """The processes of this PostgreSQL. Each connection has one, which lives as long as the server's pool keeps it."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def measure(database: str, folder: Path) -> dict[str, float]:
    """Milliseconds of CPU for a request, by name."""
    with serving(database, folder) as (server, processes):
        steps = steps_of(Connection(server))
        sent = dict.fromkeys(steps, 0)
        spent: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS + 1):  # the first warms
            for name, step in steps.items():
                pids = processes()
                before = cpu_of(pids)
                for number in range(sent[name], sent[name] + COUNT):
                    step(number)
                spent[name].append(1000 * (cpu_of(pids) - before) / COUNT)
                sent[name] += COUNT
    return {name: statistics.median(values[1:]) for name, values in spent.items()}


def main() -> None:
    figures: dict[str, Any] = {"adapters": ADAPTERS, "count": COUNT, "rounds": ROUNDS}
    ratios: dict[str, float] = {}
    for database in ("sqlite", "postgres"):
        with tempfile.TemporaryDirectory(prefix="bench-requests-") as folder:
            spent = measure(database, Path(folder))
        for name, milliseconds in spent.items():
            figures[f"{database}_{name}_cpu_ms"] = round(milliseconds, 2)
            ratios[f"{database}_{name}_cpu_vs_whoami"] = round(milliseconds / spent["whoami"], 2)
            print(f"{database:9} {name:8} {milliseconds:6.2f} ms of CPU")
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    print(json.dumps({"bench": "requests", "ratios": ratios, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
