"""`make bench-resolve`: the hot look-up by alias, with a token and its rights, beside the distribution registry's tag.

    median_time_1conn_vs_distribution   median latency on one kept-alive connection, ours / theirs      (goal ≤ 0.6)
    p99_time_1conn_vs_distribution      the 99th percentile of the same                                  (goal ≤ 1.0)
    throughput_16conn_vs_distribution   requests per second of one process at 16 connections   (goal ≥ 6, PostgreSQL 4)
    median_time_100k_vs_1k              the median with 100,000 adapters / with 1,000                    (goal ≤ 1.2)

each for SQLite and for PostgreSQL. A serving node resolves its adapters again and again: 200 in turn, out of 1,000
or 100,000. The figures hold the 304 path, and look-ups all over the registry, which mostly find nothing kept.

What wrk calls p99 is a share of time and not of requests: it adds to a slow response those that would have been asked
meanwhile. One pause of 15 ms in 300 ms makes a p99 of 12 ms, though 4,000 responses of 4,001 came at once. So there is
`bare`, the floor: an application of two ASGI messages on the same server, whose p99 is Python's and the machine's.

Needs wrk and docker-registry (Debian's packages); without them it says so, and the ratios are null. Where there is an
`mlflow` command, its server is asked for a model's version by alias, and its figures stand beside ours.
Contenders take turns in short rounds, medians. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks._mlflow import mlflow
from benchmarks._registries import Target, bare, distribution, installed, ours

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "7"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "2"))
SMALL, LARGE = 1_000, int(os.environ.get("BENCH_ADAPTERS", "100000"))
SCRIPT = """
local paths = {%s}
local n = 0
request = function()
  n = n %% #paths + 1
  return wrk.format("GET", paths[n])
end
done = function(summary, latency, requests)
  local wrong = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  io.write(string.format("\\nJSON {\\"rate\\": %%f, \\"median_us\\": %%f, \\"p99_us\\": %%f, \\"wrong\\": %%d}\\n",
    summary.requests / (summary.duration / 1e6), latency:percentile(50), latency:percentile(99), wrong))
end
"""


@dataclass(frozen=True)
class Run:
    rate: float
    median_us: float
    p99_us: float


def ask(scratch: Path, target: Target, connections: int) -> Run:
    """One run of wrk. A single wrong response ends the benchmark: fast refusals prove nothing."""
    script = scratch / "paths.lua"
    script.write_text(SCRIPT % ", ".join(f'"{path}"' for path in target.paths))
    headers = [word for name, value in target.headers.items() for word in ("-H", f"{name}: {value}")]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "-s", str(script), *headers, target.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.rpartition("JSON ")[2])
    if result.pop("wrong"):
        raise RuntimeError(f"wrong responses from {target.url}: {done.stdout}")
    return Run(**result)


def measure(scratch: Path, targets: dict[str, Target], connections: int) -> dict[str, Run]:
    """Each target in turn, ROUNDS times; the median of each number. They stand in turn in each place of a round."""
    for target in targets.values():
        ask(scratch, target, 16)  # warm
    runs = {name: [] for name in targets}  # type: dict[str, list[Run]]
    turns = list(targets.items())
    for _ in range(ROUNDS):
        turns = [*turns[1:], turns[0]]
        for name, target in turns:
            runs[name].append(ask(scratch, target, connections))
    return {
        name: Run(
            *(statistics.median(getattr(run, field) for run in rounds) for field in ("rate", "median_us", "p99_us"))
        )
        for name, rounds in runs.items()
    }


def revalidating(target: Target) -> Target:
    """The same look-ups of one path, by a client that has the bytes already."""
    request = urllib.request.Request(target.url + target.paths[0], headers=target.headers)
    with urllib.request.urlopen(request) as response:
        etag = response.headers["ETag"]
    return replace(target, paths=target.paths[:1], headers=target.headers | {"If-None-Match": etag})


def _body_of(target: Target) -> bytes:
    request = urllib.request.Request(target.url + target.paths[0], headers=target.headers)
    with urllib.request.urlopen(request) as response:
        return bytes(response.read())


def compare(
    scratch: Path, database: str, peers: dict[str, Target], ratios: dict[str, Any], figures: dict[str, Any]
) -> None:
    with ExitStack() as stack:
        say(f"{database}: filling {SMALL:,} and {LARGE:,} adapters")
        small = stack.enter_context(ours(scratch, database, SMALL))
        large = stack.enter_context(ours(scratch, database, LARGE))
        floor = stack.enter_context(bare(_body_of(small)))
        targets = {"small": small, "large": large, "not modified": revalidating(small), "bare": floor}
        targets |= peers
        say(f"{database}: one connection")
        alone = measure(scratch, targets, 1)
        say(f"{database}: 16 connections")
        targets["everywhere"] = replace(large, paths=large.all_paths[:: max(1, LARGE // 20_000)])
        many = measure(scratch, targets, 16)
    theirs = alone.get("distribution")

    def ratio(value: float, other: float | None) -> float | None:
        return round(value / other, 3) if other else None

    own = alone["small"]
    ratios[f"median_time_1conn_vs_distribution_{database}"] = ratio(own.median_us, theirs.median_us if theirs else None)
    ratios[f"p99_time_1conn_vs_distribution_{database}"] = ratio(own.p99_us, theirs.p99_us if theirs else None)
    ratios[f"throughput_16conn_vs_distribution_{database}"] = ratio(
        many["small"].rate, many["distribution"].rate if "distribution" in peers else None
    )
    ratios[f"median_time_100k_vs_1k_{database}"] = ratio(alone["large"].median_us, own.median_us)
    for name in targets:
        if name in alone:
            figures[f"{database}, {name}, 1 connection, median us"] = round(alone[name].median_us)
            figures[f"{database}, {name}, 1 connection, p99 us"] = round(alone[name].p99_us)
        figures[f"{database}, {name}, 16 connections, requests per second"] = round(many[name].rate)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    ratios: dict[str, Any] = {}
    figures: dict[str, Any] = {"adapters": [SMALL, LARGE], "seconds": SECONDS, "rounds": ROUNDS}
    if not installed("wrk"):
        say("wrk is not installed (Debian: apt-get install wrk): nothing was measured")
    else:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-resolve-")))
            started = {"distribution": distribution, "mlflow": mlflow}
            targets = {name: stack.enter_context(start(folder)) for name, start in started.items()}
            peers = {name: target for name, target in targets.items() if target is not None}
            if "distribution" not in peers:
                say("docker-registry is not installed: the ratios against it are null")
            for database in ("sqlite", "postgres"):
                compare(folder, database, peers, ratios, figures)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    print(json.dumps({"bench": "resolve", "ratios": ratios, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
