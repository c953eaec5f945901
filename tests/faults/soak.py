"""`make soak`: the fault tests for as long as SOAK_SECONDS says (600), over all points, seeds, databases and stores.

Prints a table of runs and violations, how often each invariant was checked, and one JSON object on the last line;
exits with 1 if there is a violation. It ends early after SOAK_KILLS kills, if that is set.
What it draws follows from SOAK_SEED (0), so that a run can be repeated.

Example
    $ SOAK_SECONDS=14400 SOAK_KILLS=700 make soak
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from registry.errors import Corrupt, Invalid, RegistryError
from tests.faults import crash_points, races
from tests.faults.deployment import Deployment
from tests.faults.environments import KINDS, Environments
from tests.faults.invariants import INVARIANTS
from tests.faults.proxy import ACTS, FaultProxy

CLIENTS = 64
CHURN_SECONDS = 20.0
OPERATIONS = ("put", "head", "get", "copy", "create", "part", "complete", "parts", "list", "delete")
LATE = {"copy", "complete"}
"""What S3 may answer with status 200 and an error."""
FAULTS = [(o, act) for o in OPERATIONS for act in ACTS if act != "error_in_200" or o in LATE]
KILL = "kill at "
POINTS = crash_points.PUSH | crash_points.GC | crash_points.AUDIT
Run = tuple[str, Callable[[], list[str]]]


class Soak:
    def __init__(self, environments: Environments, seed: int) -> None:
        self._environments = environments
        self._random = random.Random(seed)
        self._deployments: dict[tuple[str, str], Deployment] = {}
        self._numbers = itertools.count(1)
        self.runs: Counter[str] = Counter()
        self.violations: Counter[str] = Counter()
        self.problems: list[str] = []

    def go(self, seconds: float, kills: float) -> None:
        until = time.monotonic() + seconds
        for name, run in self._forever():
            if time.monotonic() > until or self._kills() >= kills:
                break
            self._count(name, run)
        for kind, deployment in self._deployments.items():
            with deployment.server.running(), deployment.client() as client:
                self._count(
                    f"at the end: every acknowledged push, {'+'.join(kind)}", partial(deployment.all_violations, client)
                )

    def _kills(self) -> int:
        return sum(count for name, count in self.runs.items() if name.startswith(KILL))

    def _count(self, name: str, run: Callable[[], list[str]]) -> None:
        self.runs[name] += 1
        try:
            problems = run()
        except Exception as e:
            traceback.print_exc()
            problems = [f"{type(e).__name__}: {e}"]
        if problems:
            self.violations[name] += len(problems)
            self.problems += [f"{name}: {problem}" for problem in problems]
            print(f"VIOLATION {name}: {problems[:3]}", file=sys.stderr, flush=True)

    def _forever(self) -> Iterator[Run]:
        """Each round kills once at each point on each kind. It goes in waves, of one point of each class on every kind
        and some of everything else, so that a run of some minutes has seen all of it."""
        for turn, wave in enumerate(wave for _ in itertools.count() for wave in waves()):
            for point, kind in itertools.product(wave, KINDS):
                if crash_points.is_reached(point, kind[1]):
                    yield f"{KILL}{class_of(point)}, {'+'.join(kind)}", partial(self._kill, kind, point)
            yield "a store that fails, sqlite+s3", self._store_fails
            kind = KINDS[turn % len(KINDS)]
            yield f"{CLIENTS} equal pushes", partial(self._race, races.equal, kind, CLIENTS)
            yield f"{CLIENTS} different pushes", partial(self._race, races.different, kind, CLIENTS)
            name = f"collection under pushes and pulls, {CHURN_SECONDS:.0f} s"
            yield name, partial(self._race, races.churn, kind, CHURN_SECONDS)
            yield "memory and descriptors after load", partial(self._race, races.churn_twice, kind, CHURN_SECONDS)

    # ------------------------------------------------------------ runs
    def _kill(self, kind: tuple[str, str], point: str) -> list[str]:
        deployment, number = self._deployment(kind), next(self._numbers)
        deaths = deployment.server.deaths
        through = deployment.push_through
        if point in crash_points.GC | crash_points.AUDIT:
            through = deployment.collect_through if point in crash_points.GC else deployment.log_through
        through(f"acme/k{number}", self._random.randrange(10**6), failpoints=crash_points.kill_at(point, number))
        died = deployment.server.deaths == deaths + 1
        return list(deployment.invariants.held("I17", [] if died else [f"{point} was not reached"]))

    def _store_fails(self) -> list[str]:
        """Some operations fail in some way now and then, for several pushes; then all must be well."""
        store = self._environments.object_store()
        with FaultProxy(store.endpoint, seed=self._random.randrange(10**6)) as proxy:
            environment = self._environments.environment("sqlite", "s3", endpoint=proxy.endpoint)
            environment["REGISTRY_PARTS_FROM_BYTES"] = str(2**20)
            folder = Path(tempfile.mkdtemp(dir=self._environments.folder))
            deployment = Deployment(environment, folder)
            with deployment.server.running(), deployment.client(patient=False) as client:
                client.health()
                drawn = dict(self._random.sample(FAULTS, 3))
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

    def _race(self, race: Callable[..., list[str]], kind: tuple[str, str], amount: float) -> list[str]:
        deployment = self._deployment(kind)
        if race is races.churn_twice:
            deployment.invariants.checked["I18"] += 1
        return race(deployment, f"acme/{race.__name__}-{next(self._numbers)}", amount)

    def _deployment(self, kind: tuple[str, str]) -> Deployment:
        if kind not in self._deployments:
            self._deployments[kind] = Deployment(
                self._environments.environment(*kind), Path(tempfile.mkdtemp(dir=self._environments.folder))
            )
        return self._deployments[kind]

    def table(self) -> str:
        """Kills by class of failpoint and by kind of server, then everything else; each as runs and violations."""
        kinds, classes = ["+".join(kind) for kind in KINDS], dict.fromkeys(map(class_of, POINTS))
        lines = ["kill -9 (runs/violations)" + "".join(f"{kind:>16}" for kind in kinds)]
        for one in classes:
            names = [f"{KILL}{one}, {kind}" for kind in kinds]
            lines.append(f"{one:25}" + "".join(f"{f'{self.runs[n]}/{self.violations[n]}':>16}" for n in names))
        rest = {name: count for name, count in self.runs.items() if not name.startswith(KILL)}
        lines += ["", f"{'everything else':40}{'runs':>6}{'violations':>12}"]
        lines += [f"{name:40}{count:>6}{self.violations[name]:>12}" for name, count in sorted(rest.items())]
        checked: Counter[str] = Counter()
        for deployment in self._deployments.values():
            checked += deployment.invariants.checked
        lines += ["", "checks of each invariant: " + ", ".join(f"{name} {checked[name]}" for name in INVARIANTS)]
        restart = max((d.server.restart_seconds for d in self._deployments.values()), default=0.0)
        return "\n".join([*lines, f"longest restart after a kill: {restart:.1f} s"])


def class_of(point: str) -> str:
    """What is under way at this failpoint: plan, upload, commit, request, alias, gc or audit."""
    if point.startswith("push."):
        return "plan" if point.startswith("push.plan.") else "commit"
    return "audit" if point in crash_points.AUDIT else point.partition(".")[0]


def waves() -> list[list[str]]:
    """All points, the first of each class before the second of any."""
    by_class = [[p for p in POINTS if class_of(p) == one] for one in dict.fromkeys(map(class_of, POINTS))]
    return [[point for point in wave if point] for wave in itertools.zip_longest(*by_class)]


def main() -> int:
    logging.disable(logging.ERROR)
    seconds, seed = float(os.environ.get("SOAK_SECONDS", "600")), int(os.environ.get("SOAK_SEED", "0"))
    kills = float(os.environ.get("SOAK_KILLS", "inf"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, Environments(Path(folder)) as environments:
        soak = Soak(environments, seed)
        try:
            soak.go(seconds, kills)
        except (KeyboardInterrupt, RegistryError) as e:
            print(f"stopped: {e!r}", file=sys.stderr)
            soak.violations["stopped"] += isinstance(e, RegistryError)
        print(soak.table())
        for problem in soak.problems[:20]:
            print(problem)
    total = {"runs": soak.runs.total(), "violations": soak.violations.total()}
    print(json.dumps({"soak": total, "seconds": round(time.monotonic() - began), "seed": seed, "by": dict(soak.runs)}))
    return 1 if soak.violations.total() else 0


if __name__ == "__main__":
    sys.exit(main())
