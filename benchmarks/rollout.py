"""`make bench-rollout`: one node, 20 adapters: how long from a promotion or a rollback until it is converged.

    promote_time_vs_floor     first promotion sent → the registry shows all 20 in their new version / floor
    rollback_time_vs_floor    the same for 20 rollbacks; what they lead to was unloaded and lies on the node's disk

The goal is 5 s for both. The floor is what a rollout cannot do without, measured in the same run: the same versions
pulled, verified and loaded into another engine of the same sort, four at once, over real HTTP; for a rollback only
loaded. `adapter serve` and `adapter agent` are processes of their own. Each version is checked against its reference
before the switch, which the floor leaves out. The engine's stand-in takes BENCH_LOAD_MS for a load and answers a
prompt by a digest of the weights. Medians of three rounds; the last line is one JSON object.

    BENCH_ADAPTERS=20 BENCH_MB=4 BENCH_LOAD_MS=50
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import _adapters, _contenders
from registry.api.bases import BaseAdd, BaseView
from registry.api.jobs import ClaimRequest, FinishRequest
from registry.client.local import base_folder
from registry.client.registry import Registry
from registry.client.transfer import push
from registry.digest import Digest
from registry.errors import RegistryError
from registry.evaluation.reference_logprobs import Prompt, ReferenceLogprobs
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check
from registry.names import AdapterName
from registry.serving.agent.reconciler import AT_ONCE
from registry.serving.engines.openai import VLLM
from registry.serving.store.local_store import LocalStore
from tests.samples import WEIGHTS
from tests.serving.fake_engines import VLLMServer, answers

ADAPTERS = int(os.environ.get("BENCH_ADAPTERS", "20"))
SIZE_BYTES = int(float(os.environ.get("BENCH_MB", "4")) * 10**6)
LOAD_SECONDS = float(os.environ.get("BENCH_LOAD_MS", "50")) / 1000
ROUNDS = 3
GOAL_SECONDS = 5.0
LIMIT_SECONDS = 120.0
LOOK_SECONDS = 0.01
TOKENS = (1, 2, 3, 4)
NAMES = [f"bench/m{number}" for number in range(ADAPTERS)]


class FilledRegistry:
    """The registry, filled; `versions[n]` are the digests of all adapters at number n + 1."""

    def __init__(self, registry: Registry, scratch: Path) -> None:
        self.registry, self.fleet = registry, registry
        spec = base_folder.base_spec_from(_adapters.write_base(scratch / "base"), _adapters.BASE)
        self.base = registry.add_base(BaseAdd(spec=spec[0] if isinstance(spec, tuple) else spec))
        self.versions = [self._fill(scratch / f"v{number}", number) for number in range(ROUNDS + 1)]

    def _fill(self, folder: Path, number: int) -> list[Digest]:
        digests = []
        for seed, name in enumerate(NAMES):
            target = folder / name
            _adapters.make(target, SIZE_BYTES, seed=1000 * number + seed)
            _make_finite(target / WEIGHTS)
            version = push.push_folder(self.registry, target, AdapterName.parse(name), base=_adapters.BASE).version
            self._try(version.digest, (target / WEIGHTS).read_bytes(), self.base)
            digests.append(version.digest)
        return digests

    def _try(self, digest: Digest, weights: bytes, base: BaseView) -> None:
        """What a worker's smoke test leaves behind."""
        claimed = self.registry.claim(ClaimRequest(worker="bench"))
        if claimed is None or claimed.job.subject_digest != digest:
            raise RuntimeError(f"no job for {digest}")
        prompt = Prompt(tokens=TOKENS, adapter=tuple(answers(weights)), base=tuple(answers(b"")))
        report = Report(
            check=Check.SMOKE, subject=digest, base=base.name, base_fingerprint=base.fingerprint, findings=(),
            measurements={"largest_difference": 0.25}, made_by={"worker": "bench"},
            reference_logprobs=ReferenceLogprobs(prompts=(prompt,)),
        )  # fmt: skip
        self.registry.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))

    def promote(self, number: int) -> None:
        for name in NAMES:
            try:
                generation = self.registry.alias(name, "prod").generation
            except RegistryError:
                generation = 0
            self.registry.promote(name, "prod", str(number), generation=generation)

    def rollback(self) -> None:
        for name in NAMES:
            self.registry.rollback(name, "prod")

    def wait_until_converged(self, number: int) -> None:
        """The registry shows every adapter served in this version by every node."""
        until = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < until:
            convergence = self.fleet.nodes(base=_adapters.BASE).convergence
            done = [c for c in convergence if c.number == number and c.serving == c.nodes == 1]
            if len(done) == len(convergence) == ADAPTERS:
                return
            time.sleep(LOOK_SECONDS)
        raise RuntimeError(f"not converged at version {number} after {LIMIT_SECONDS} s: {convergence}")


def _make_finite(file: Path) -> None:
    """Random bits hold NaN, which no gate lets pass: every number becomes one below 2⁻⁷."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    file.write_bytes(data[:start] + (np.frombuffer(data[start:], "<u2") & 0x9FFF).astype("<u2").tobytes())


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[Registry, str, int]]:
    command = [*_contenders.ADAPTER, "serve", "--port", "0", "--json"]
    environment = os.environ | {"REGISTRY_DATA": str(folder)}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        announced = json.loads(server.stdout.readline())  # type: ignore[union-attr]
        with Registry(announced["url"], announced["token"]) as registry:
            yield registry, announced["token"], server.pid
    finally:
        _contenders._end(server)


@contextlib.contextmanager
def running_agent(registry: Registry, token: str, engine: VLLMServer, store: Path) -> Iterator[int]:
    command = [
        *_contenders.ADAPTER, "agent", "--sync", f"vllm={engine.url}", "--base", _adapters.BASE, "--dir", str(store),
        "--drain", "0s", "--node", "bench", "--json",
    ]  # fmt: skip
    environment = os.environ | {"ADAPTER_REGISTRY": registry.url, "ADAPTER_TOKEN": token}
    agent = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield agent.pid
    finally:
        _contenders._end(agent)


def wait_until_drained(engine: VLLMServer) -> None:
    """Nothing of the version before is loaded any more, so that a rollback has all to load."""
    until = time.monotonic() + LIMIT_SECONDS
    while len(engine.loaded) > ADAPTERS:
        if time.monotonic() > until:
            raise RuntimeError(f"still loaded: {sorted(engine.loaded)}")
        time.sleep(LOOK_SECONDS)


def floor(registry: Registry, digests: list[Digest], folder: Path) -> tuple[float, float]:
    """Seconds to pull and load these versions, and to load them when they lie there; four at once, nothing else."""
    store, spent = LocalStore(folder), list[float]()

    def fetch(driver: VLLM, name: str, digest: Digest) -> None:
        driver.load(name.replace("/", "-"), store.fetch(registry, AdapterName.parse(name), digest))

    for _ in range(2):
        with VLLMServer(load_seconds=LOAD_SECONDS) as engine, ThreadPoolExecutor(AT_ONCE) as pool:
            began = time.perf_counter()
            list(pool.map(fetch, [VLLM(engine.url)] * len(NAMES), NAMES, digests))
            spent.append(time.perf_counter() - began)
    return spent[0], spent[1]


def measure(filled: FilledRegistry, engine: VLLMServer, scratch: Path, agent: int) -> dict[str, list[float]]:
    timings: dict[str, list[float]] = {
        key: []
        for key in ("promote", "rollback", "promote_moves", "rollback_moves", "pull_and_load", "load", "agent_cpu")
    }
    for number in range(2, ROUNDS + 2):
        before = _contenders.cpu_of([agent])
        for label, act, final_number in (("promote", lambda n=number: filled.promote(n), number),
                                  ("rollback", filled.rollback, number - 1),
                                  ("", lambda n=number: filled.promote(n), number)):  # fmt: skip
            began = time.perf_counter()
            act()
            moved = time.perf_counter() - began
            filled.wait_until_converged(final_number)
            if label:
                timings[label].append(time.perf_counter() - began)
                timings[f"{label}_moves"].append(moved)
            wait_until_drained(engine)
        timings["agent_cpu"].append(_contenders.cpu_of([agent]) - before)
        pull_and_load, load = floor(filled.registry, filled.versions[number - 1], scratch / f"floor-{number}")
        timings["pull_and_load"].append(pull_and_load)
        timings["load"].append(load)
        print(
            f"round {number - 1}: " + ", ".join(f"{key} {values[-1]:.2f} s" for key, values in timings.items()),
            file=sys.stderr,
        )
    return timings


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, VLLMServer(load_seconds=LOAD_SECONDS) as engine:
        scratch = Path(folder)
        with serving(scratch / "data") as (registry, token, server):
            filled = FilledRegistry(registry, scratch)
            filled.promote(1)
            with running_agent(registry, token, engine, scratch / "store") as agent:
                filled.wait_until_converged(1)
                served = _contenders.cpu_of([server])
                timings = measure(filled, engine, scratch, agent)
                served = _contenders.cpu_of([server]) - served
    middle = {key: statistics.median(values) for key, values in timings.items()}
    ratios = {
        "promote_time_vs_floor": round(middle["promote"] / middle["pull_and_load"], 3),
        "rollback_time_vs_floor": round(middle["rollback"] / middle["load"], 3),
    }
    figures = {
        "adapters": ADAPTERS, "bytes_each": SIZE_BYTES, "load_seconds_each": LOAD_SECONDS, "goal_seconds": GOAL_SECONDS,
        "promote_seconds": round(middle["promote"], 3),
        "promote_seconds_until_the_last_alias_was_moved": round(middle["promote_moves"], 3),
        "rollback_seconds": round(middle["rollback"], 3),
        "rollback_seconds_until_the_last_alias_was_moved": round(middle["rollback_moves"], 3),
        "floor_pull_and_load_seconds": round(middle["pull_and_load"], 3),
        "floor_load_seconds": round(middle["load"], 3),
        "slowest_promote_seconds": round(max(timings["promote"]), 3),
        "agent_cpu_seconds_a_round": round(middle["agent_cpu"], 3), "server_cpu_seconds": round(served, 3),
    }  # fmt: skip
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"bench": "rollout", "ratios": ratios, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
