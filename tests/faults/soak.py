"""`make soak`: the fault tests for as long as SOAK_SECONDS says (600), over all points, seeds, databases and stores.

Prints a table of runs and violations, how often each invariant was checked, and one JSON object on the last line;
exits with 1 if there is a violation. It ends early after SOAK_KILLS kills, if that is set.

- What a run draws follows from SOAK_SEED (0) and its number, so that it can be repeated.
- SOAK_AT_ONCE runs (1) are under way at a time, never two of them on the same registry.
- SOAK_JOURNAL names a file with a line for each run. A later call makes the runs that it does not have, with empty
  registries, and its table adds all parts up.
- SOAK_REPORT names a Markdown file to write the table to.

Example
    $ SOAK_SECONDS=14400 SOAK_KILLS=700 SOAK_JOURNAL=/tmp/soak.jsonl SOAK_REPORT=/tmp/soak.md make soak
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from registry.errors import Corrupt, Invalid, RegistryError
from tests.faults import crash_points, races
from tests.faults.deployment import Deployment
from tests.faults.environments import KINDS, Environments
from tests.faults.journal import END, KILL, Journal
from tests.faults.proxy import ACTS, FaultProxy

CLIENTS = 64
CHURN_SECONDS = 20.0
OPERATIONS = ("put", "head", "get", "copy", "create", "part", "complete", "parts", "list", "delete")
LATE = {"copy", "complete"}
"""What S3 may respond with status 200 and an error."""
FAULTS = [(o, act) for o in OPERATIONS for act in ACTS if act != "error_in_200" or o in LATE]
OTHERS = 5
"""Kinds of runs that kill nothing; each wave has one."""
ADAPTERS_LIMIT = 16
"""Acknowledged pushes of one registry, before an empty one: each check reads all of its bytes again."""
POINTS = crash_points.PUSH | crash_points.GC | crash_points.AUDIT
Kind = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Run:
    """One run on the registry of a kind: what it is called, and what it does with its number and what it draws."""

    name: str
    kind: Kind
    act: Callable[[int, random.Random], list[str]]


class Soak:
    def __init__(self, environments: Environments, seed: int, journal: Journal, *, at_once: int = 1) -> None:
        self._environments = environments
        self._seed = seed
        self._at_once = at_once
        self._deployments: dict[Kind, Deployment] = {}
        self._in_use: dict[Kind, threading.Lock] = defaultdict(threading.Lock)
        self._checked: dict[Kind, Counter[str]] = defaultdict(Counter)
        self._lock = threading.Lock()
        self.journal = journal

    def go(self, seconds: float, kills: float) -> None:
        until = time.monotonic() + seconds
        numbered = enumerate(self._forever(), 1)
        recorded = frozenset(self.journal.numbers)

        def work() -> None:
            while time.monotonic() < until and self._kills() < kills:
                with self._lock:
                    number, run = next(each for each in numbered if each[0] not in recorded)
                self._count(number, run)

        with ThreadPoolExecutor(self._at_once) as pool:
            for future in [pool.submit(work) for _ in range(self._at_once)]:
                future.result()
        for kind in list(self._deployments):
            end = Run(f"{END}{'+'.join(kind)}", kind, lambda _number, _random, kind=kind: self._end(kind))  # type: ignore[misc]
            self._count(self.journal.last, end)

    def _kills(self) -> int:
        return sum(count for name, count in list(self.journal.runs.items()) if name.startswith(KILL))

    def _count(self, number: int, run: Run) -> None:
        with self._in_use[run.kind]:
            try:
                problems = run.act(number, random.Random(f"{self._seed} {number}"))
            except Exception as e:
                traceback.print_exc()
                problems = [f"{type(e).__name__}: {e}"]
            checked = self._checked[run.kind].copy()
            self._checked[run.kind].clear()
        if problems:
            print(f"VIOLATION {run.name}: {problems[:3]}", file=sys.stderr, flush=True)
        with self._lock:
            restart = max((d.server.restart_seconds for d in list(self._deployments.values())), default=0.0)
            self.journal.add(number, run.name, problems, restart, checked)

    def _forever(self) -> Iterator[Run]:
        """Each round kills once at each point on each kind. It goes in waves, of one point of each class on every kind
        and one of everything else, so that a run of some minutes has seen all of it."""
        for turn, wave in enumerate(wave for _ in itertools.count() for wave in waves()):
            for point, kind in itertools.product(wave, KINDS):
                if crash_points.is_reached(point, kind[1]):
                    yield Run(f"{KILL}{class_of(point)}, {'+'.join(kind)}", kind, partial(self._kill, kind, point))
            kind = KINDS[turn // OTHERS % len(KINDS)]
            seconds = f"{CHURN_SECONDS:.0f} s"
            others = [
                Run("a store that fails, sqlite+s3", ("sqlite", "s3"), self._store_fails),
                Run(f"{CLIENTS} equal pushes", kind, partial(self._race, races.equal, kind, CLIENTS)),
                Run(f"{CLIENTS} different pushes", kind, partial(self._race, races.different, kind, CLIENTS)),
                Run(
                    f"collection under pushes and pulls, {seconds}",
                    kind, partial(self._race, races.churn, kind, CHURN_SECONDS),
                ),
                Run(
                    "memory and descriptors after load",
                    kind, partial(self._race, races.churn_twice, kind, CHURN_SECONDS),
                ),
            ]  # fmt: skip
            yield others[turn % OTHERS]

    # ------------------------------------------------------------ runs
    def _kill(self, kind: Kind, point: str, number: int, drawing: random.Random) -> list[str]:
        deployment = self._deployment(kind)
        deaths = deployment.server.deaths
        through = deployment.push_through
        if point in crash_points.GC | crash_points.AUDIT:
            through = deployment.collect_through if point in crash_points.GC else deployment.log_through
        through(f"acme/k{number}", drawing.randrange(10**6), failpoints=crash_points.kill_at(point, number))
        died = deployment.server.deaths == deaths + 1
        problems = list(deployment.invariants.held("I17", [] if died else [f"{point} was not reached"]))
        return problems + (self._end(kind) if len(deployment.acknowledged) >= ADAPTERS_LIMIT else [])

    def _end(self, kind: Kind) -> list[str]:
        """Check every acknowledged push of a registry, and go on with an empty one."""
        deployment = self._deployments.pop(kind)
        with deployment.server.running(), deployment.client() as client:
            problems = deployment.all_violations(client)
        for folder in (deployment.folder, deployment.environment["REGISTRY_DATA"]):
            shutil.rmtree(folder)
        return problems

    def _store_fails(self, _number: int, drawing: random.Random) -> list[str]:
        """Some operations fail in some way now and then, for several pushes; then all must be well."""
        with self._lock:
            store = self._environments.object_store()
        with FaultProxy(store.endpoint, seed=drawing.randrange(10**6)) as proxy:
            environment = self._environments.environment("sqlite", "s3", endpoint=proxy.endpoint)
            environment["REGISTRY_PARTS_FROM_BYTES"] = str(2**20)
            folder = Path(tempfile.mkdtemp(dir=self._environments.folder))
            deployment = Deployment(environment, folder)
            with deployment.server.running(), deployment.client(patient=False) as client:
                client.health()
                drawn = dict(drawing.sample(FAULTS, 3))
                for operation, act in drawn.items():
                    proxy.fail(operation, act, share=0.3, times=6)
                try:
                    for number in range(4):
                        name = f"acme/s{number}"
                        deployment.push(client, deployment.adapter(name, number), name, also=(Invalid, Corrupt))
                except RegistryError as e:
                    return [f"{drawn}: {e.code}: {e.detail}"]
                proxy.heal()
                deployment.expire_pushes()
                deployment.collect(client)
                return [f"{drawn}: {problem}" for problem in deployment.all_violations(client)]

    def _race(
        self, race: Callable[..., list[str]], kind: Kind, amount: float, number: int, _drawing: random.Random
    ) -> list[str]:
        deployment = self._deployment(kind)
        if race is races.churn_twice:
            deployment.invariants.checked["I18"] += 1
        return race(deployment, f"acme/{race.__name__}-{number}", amount)

    def _deployment(self, kind: Kind) -> Deployment:
        with self._lock:
            if kind not in self._deployments:
                self._deployments[kind] = Deployment(
                    self._environments.environment(*kind), Path(tempfile.mkdtemp(dir=self._environments.folder))
                )
                self._deployments[kind].invariants.checked = self._checked[kind]
            return self._deployments[kind]


def class_of(point: str) -> str:
    """What is under way at this failpoint: plan, upload, commit, request, alias, gc or audit."""
    if point.startswith("push."):
        return "plan" if point.startswith("push.plan.") else "commit"
    return "audit" if point in crash_points.AUDIT else point.partition(".")[0]


def waves() -> list[list[str]]:
    """All points, the first of each class before the second of any."""
    by_class = [
        [p for p in POINTS if class_of(p) == point_class] for point_class in dict.fromkeys(map(class_of, POINTS))
    ]
    return [[point for point in wave if point] for wave in itertools.zip_longest(*by_class)]


def main() -> int:
    logging.disable(logging.ERROR)
    seconds, seed = float(os.environ.get("SOAK_SECONDS", "600")), int(os.environ.get("SOAK_SEED", "0"))
    kills, at_once = float(os.environ.get("SOAK_KILLS", "inf")), int(os.environ.get("SOAK_AT_ONCE", "1"))
    journal = Journal(os.environ.get("SOAK_JOURNAL", ""), seed)
    stopped = False
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, Environments(Path(folder)) as environments:
        environments.postgres()  # services end with the thread that started them
        environments.object_store()
        try:
            Soak(environments, seed, journal, at_once=at_once).go(seconds, kills)
        except (KeyboardInterrupt, RegistryError) as e:
            print(f"stopped: {e!r}", file=sys.stderr)
            stopped = isinstance(e, RegistryError)
    print(journal.table([class_of(point) for point in POINTS]))
    for problem in journal.problems[:20]:
        print(problem)
    if report := os.environ.get("SOAK_REPORT"):
        Path(report).write_text(journal.report([class_of(point) for point in POINTS]))
    total = {"runs": journal.runs.total(), "violations": journal.violations.total()}
    print(json.dumps({"soak": total, "seconds": round(journal.seconds), "seed": seed, "by": dict(journal.runs)}))
    return 1 if journal.violations.total() or stopped else 0


if __name__ == "__main__":
    sys.exit(main())
