"""How fast adapters move, beside what else could move them: one run, interleaved, ratios of medians.

    make bench-transfer            everything that is installed (oras and docker-registry are Debian packages)
    ROUNDS=1 make bench-transfer   quicker and noisier
    PARTS=local make bench-transfer   only a part of memory, local and s3; the ratios of the others are null
    CONTENDERS=local,floor STEPS=push make bench-transfer   only these contenders and steps

- Local store: push-all and pull-all of 10 × 30 MB and of 200 × 1 MB (adapters of one training script, with one
  configuration), push and pull of 1 × 1 GB, against oras with docker-registry. oras
  has no command for many adapters: it runs once for each (ratios `…_vs_oras`), and four at once (`…_vs_oras_at_once`).
- S3 (SeaweedFS): the same, against the fastest of obstore, boto3 and boto3 tuned, which check nothing, and against
  obstore with a checksum that the store checks, and with hashing and sync on the way back (`…_vs_obstore_hashing…`).
- Memory: the largest resident size of client and server for 1 GB over that for 100 MB.
- Every contender is a process from start to end, on the same files, which change before every round. Contenders take
  turns at each step; before it files are written back, and as much is passed through the page cache as the step moves.
  What the step costs in CPU, its servers included, is a ratio of its own (`…_cpu_vs_…`, theirs over ours): on a busy
  machine it says more than time does.
- After each step everyone waits until its servers are idle: ours measures pushed weights when pushes pause. What
  that takes is in no speed; it is a figure of its own, `…_afterwards_cpu_s` and `…_afterwards_s`.
- Figures: MB/s by the median, CPU seconds, and `spread`, the slowest time over the quickest.
- The floor (benchmarks/_floor.py): two bare processes that hash on both sides and do nothing else, four files at once
  as ours, forcing files to disk (`floor`) and not (`floor_nosync`). `…_local_speed_vs_floor` is how near ours comes;
  `floor_…_speed_vs_oras` is about what a registry in Python that cost nothing would reach on this machine.
- What is not installed is null. The last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _adapters, _contenders
from tests import services

ROUNDS = int(os.environ.get("ROUNDS", "3"))
PARTS = os.environ.get("PARTS", "memory,local,s3").split(",")
FLEET = 10
FLEET_BYTES = 30 * 10**6
ONE_BYTES = 10**9
SMALL_BYTES = 10**8
MERCHANTS = 200
MERCHANT_BYTES = 1_070_000
CONTENDERS = os.environ.get("CONTENDERS", "").split(",")
PLAIN = ("obstore", "boto3", "boto3-tuned")
HASHING = "obstore-hashing"
STEPS = tuple(os.environ.get("STEPS", "push,pull,push_many,pull_many,push_one,pull_one").split(","))
FLEETS = {"": "10x30mb", "_many": "200x1mb"}
"""End of a step → the name of its fleet in `push_fleet_…` and `pull_fleet_…`."""
AFTERWARDS = "_afterwards"
Times = dict[str, list[_contenders.Timed]]


@dataclass
class Floor:
    """Bare processes (benchmarks/_floor.py)."""

    port: int
    sync: str
    scratch: Path
    servers: tuple[int, ...]

    def push_fleet(self, folders: list[Path]) -> _contenders.Timed:
        return self._run("put", str(self.port), *map(str, folders))

    def pull_fleet(self, folders: list[Path]) -> _contenders.Timed:
        dest = self.scratch / uuid.uuid4().hex
        names = [f"{folder.name}/{path.name}" for folder in folders for path in sorted(folder.iterdir())]
        try:
            return self._run("get", str(self.port), str(dest), self.sync, *names)
        finally:
            shutil.rmtree(dest)

    def push(self, folder: Path) -> _contenders.Timed:
        return self.push_fleet([folder])

    def pull(self, folder: Path) -> _contenders.Timed:
        return self.pull_fleet([folder])

    def _run(self, *arguments: str) -> _contenders.Timed:
        command = [sys.executable, "-m", "benchmarks._floor", *arguments]
        return _contenders.timed([command], self.servers, env=_contenders.python_env(self.scratch))


@contextlib.contextmanager
def floor(scratch: Path, sync: str) -> Iterator[Floor]:
    folder = scratch / f"floor-{sync}"
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks._floor", "serve", str(folder), sync]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Floor(int(server.stdout.readline()), sync, scratch, (server.pid,))  # type: ignore[union-attr]
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)


class Files:
    """The adapters that move."""

    def __init__(self, root: Path) -> None:
        self.fleet = [root / "fleet" / f"a{n}" for n in range(FLEET)]
        self.large_file, self.small = root / "big" / "one", root / "big" / "small"
        self.merchants = [root / "merchants" / f"m{n}" for n in range(MERCHANTS)]
        for n, folder in enumerate(self.fleet):
            _adapters.make(folder, FLEET_BYTES, seed=n)
        for n, folder in enumerate(self.merchants):
            _adapters.make(folder, MERCHANT_BYTES, seed=1000 + n, revision="main")
        _adapters.make(self.large_file, ONE_BYTES, seed=100)
        _adapters.make(self.small, SMALL_BYTES, seed=101)

    def change(self) -> None:
        for folder in (*self.fleet, *self.merchants, self.large_file, self.small):
            _adapters.stamp(folder)
        os.sync()

    def of(self, step: str) -> list[Path]:
        """The adapters that a step moves."""
        return {"many": self.merchants, "one": [self.large_file]}.get(step.partition("_")[2], self.fleet)

    def sizes(self) -> dict[str, int]:
        """Step → bytes that it moves."""
        return {step: sum(p.stat().st_size for folder in self.of(step) for p in folder.iterdir()) for step in STEPS}


def measure(times: Times, contenders: list[tuple[str, Any]], files: Files, scratch: Path) -> None:
    """One round: each step by each contender, one after the other."""
    for step in STEPS:
        folders = files.of(step)
        for name, contender in contenders:
            if CONTENDERS != [""] and name not in CONTENDERS:
                continue
            _contenders.settle(scratch, 2 * sum(p.stat().st_size for folder in folders for p in folder.iterdir()))
            verb = step.partition("_")[0]
            is_one = step.endswith("one")
            took = getattr(contender, verb if is_one else f"{verb}_fleet")(files.large_file if is_one else folders)
            times[f"{name}.{step}"].append(took)
            later = _contenders.wait_until_idle(contender.servers)
            times[f"{name}.{step}{AFTERWARDS}"].append(later)
            client, server, after = took.cpu_seconds, took.server_cpu_seconds, later.server_cpu_seconds
            say(
                f"    {name:16} {step:9} {took.seconds:7.2f} s  CPU {client:6.2f} + {server:6.2f} s, "
                f"afterwards {after:.2f}, load {os.getloadavg()[0]:.1f}"
            )


def local(scratch: Path, files: Files, times: Times) -> bool:
    """Rounds on local files. Whether oras took part."""
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(_contenders.distribution(scratch))
        contenders: list[tuple[str, Any]] = [("local", stack.enter_context(_contenders.ours(scratch, {})))]
        for name, sync in (("floor", "sync"), ("floor_nosync", "nosync")):
            contenders.append((name, stack.enter_context(floor(scratch, sync))))
        if registry:
            address, process = registry
            contenders.append(("oras", _contenders.Oras(address, scratch, (process,))))
        for n in range(ROUNDS):
            say(f"local round {n + 1} of {ROUNDS}")
            files.change()  # a registry that has seen the bytes would not take them again
            measure(times, contenders[:: -1 if n % 2 else 1], files, scratch)
            if registry:
                files.change()
                measure(
                    times, [("oras_at_once", _contenders.Oras(address, scratch, (process,), at_once=4))], files, scratch
                )
            plain_limits(scratch, files, times)
    return registry is not None


def plain_limits(scratch: Path, files: Files, times: Times) -> None:
    """What the machine itself does with the same files: copy them to disk, hash them."""
    started = time.perf_counter()
    for folder in files.fleet:
        shutil.copytree(folder, scratch / "copy" / folder.name)
        for path in (scratch / "copy" / folder.name).iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    times["cp.push"].append(_contenders.Timed(time.perf_counter() - started))
    started = time.perf_counter()
    for folder in files.fleet:
        for path in folder.iterdir():
            with open(path, "rb") as file:
                hashlib.file_digest(file, "sha256")
    times["sha256.push"].append(_contenders.Timed(time.perf_counter() - started))
    shutil.rmtree(scratch / "copy")


def on_s3(scratch: Path, files: Files, times: Times) -> list[str]:
    """Rounds on an S3 store. Which plain clients took part."""
    running = processes("weed")
    with object_store() as (store, bucket, env):
        serving = tuple(processes("weed") - running)
        with _contenders.ours(scratch, env, serving) as ours:
            plain = [kind for kind in (*PLAIN, HASHING) if importlib.util.find_spec(kind.partition("-")[0])]
            contenders: list[tuple[str, Any]] = [("s3", ours)]
            contenders += [(kind, _contenders.Plain(kind, store.endpoint, bucket, scratch, serving)) for kind in plain]
            for n in range(ROUNDS):
                say(f"S3 round {n + 1} of {ROUNDS}")
                files.change()
                measure(times, contenders[:: -1 if n % 2 else 1], files, scratch)
            return plain


def processes(name: str) -> set[int]:
    """The numbers of the processes that run a program of this name."""
    pids = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == name:
                pids.add(int(path.parent.name))
    return pids


@contextlib.contextmanager
def object_store() -> Iterator[tuple[services.ObjectStore, str, dict[str, str]]]:
    import boto3

    with services.seaweedfs() as store:
        os.environ.update(
            AWS_ACCESS_KEY_ID=store.access_key, AWS_SECRET_ACCESS_KEY=store.secret_key, AWS_REGION=store.region
        )
        os.environ["AWS_DEFAULT_REGION"] = store.region
        bucket = f"bench-{uuid.uuid4().hex[:8]}"
        boto3.session.Session().client("s3", endpoint_url=store.endpoint).create_bucket(Bucket=bucket)
        yield store, bucket, {"REGISTRY_BLOBS": f"s3://{bucket}/ours", "REGISTRY_S3_ENDPOINT": store.endpoint}


def memory(scratch: Path, files: Files) -> dict[str, int]:
    """Largest resident sizes for 100 MB and for 1 GB, each with a server of its own."""
    peaks = {}
    for size, folder in (("100mb", files.small), ("1gb", files.large_file)):
        files.change()
        with _contenders.ours(scratch, {}) as ours:
            peaks[f"client_{size}"] = max(ours.push(folder).peak_bytes, ours.pull(folder).peak_bytes)
            peaks[f"server_{size}"] = ours.server_peak_bytes()
    return peaks


def main() -> None:
    times: Times = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench-transfer-") as folder:
        root = Path(folder)
        say("making the adapters")
        files = Files(root)
        peaks = memory(root, files) if "memory" in PARTS else {}
        oras = local(root, files, times) if "local" in PARTS else False
        plain = on_s3(root, files, times) if "s3" in PARTS else []
        sizes = files.sizes()
    print(json.dumps(result(times, peaks, oras, plain, sizes)))


def result(times: Times, peaks: dict[str, int], oras: bool, plain: list[str], sizes: dict[str, int]) -> dict[str, Any]:
    median = {name: statistics.median(took.seconds for took in all_) for name, all_ in times.items()}
    spent = {
        name: statistics.median(took.cpu_seconds + took.server_cpu_seconds for took in all_)
        for name, all_ in times.items()
    }

    def against(ours: str, others: list[str], step: str, of: dict[str, float] = median) -> float | None:
        theirs = [of[f"{other}.{step}"] for other in others if f"{other}.{step}" in of]
        return round(min(theirs) / of[f"{ours}.{step}"], 3) if theirs and f"{ours}.{step}" in of else None

    ratios: dict[str, float | None] = {}
    for end, fleet in FLEETS.items():
        for verb in ("push", "pull"):
            step, parallel = verb + end, ["oras_at_once"] if oras else []
            ratios[f"{verb}_fleet_cpu_vs_floor_{fleet}_local"] = against("local", ["floor"], step, spent)
            ratios[f"{verb}_fleet_speed_vs_floor_{fleet}_local"] = against("local", ["floor"], step)
            ratios[f"{verb}_fleet_cpu_vs_oras_parallel_{fleet}_local"] = against("local", parallel, step, spent)
            ratios[f"{verb}_fleet_speed_vs_oras_parallel_{fleet}_local"] = against("local", parallel, step)
            ratios[f"{verb}_fleet_cpu_vs_obstore_hashing_{fleet}_s3"] = against("s3", [HASHING], step, spent)
            ratios[f"{verb}_fleet_speed_vs_obstore_hashing_{fleet}_s3"] = against("s3", [HASHING], step)
            ratios[f"{verb}_fleet_cpu_vs_least_{fleet}_s3"] = against("s3", plain, step, spent)
    for step in ("push", "pull", "push_one", "pull_one"):
        where, suffix = step.partition("_")[0], "_one" if step.endswith("one") else ""
        ratios[f"{where}{suffix}_local_speed_vs_oras"] = against("local", ["oras"] if oras else [], step)
        ratios[f"{where}{suffix}_local_speed_vs_oras_at_once"] = against(
            "local", ["oras_at_once"] if oras else [], step
        )
        ratios[f"{where}{suffix}_s3_speed_vs_fastest"] = against("s3", plain, step)
        if not suffix:
            ratios[f"{where}_local_speed_vs_floor"] = against("local", ["floor"], step)
            for kind in ("floor", "floor_nosync"):
                ratios[f"{kind}_{where}_speed_vs_oras"] = against(kind, ["oras"] if oras else [], step)
        ratios[f"{where}{suffix}_local_cpu_vs_oras"] = against("local", ["oras"] if oras else [], step, spent)
        ratios[f"{where}{suffix}_s3_cpu_vs_least"] = against("s3", plain, step, spent)
    ratios["push_local_speed_vs_cp"] = against("local", ["cp"], "push")
    ratios["push_local_speed_vs_sha256"] = against("local", ["sha256"], "push")
    for side in ("server", "client"):
        key = f"{side}_peak_memory_1gb_vs_100mb"
        ratios[key] = round(peaks[f"{side}_1gb"] / peaks[f"{side}_100mb"], 3) if peaks else None
    later = {name: seconds for name, seconds in median.items() if name.endswith(AFTERWARDS) and spent[name] >= 0.05}
    moved = {name: seconds for name, seconds in median.items() if not name.endswith(AFTERWARDS)}
    rates = {
        f"{n}_mb_per_s": round(sizes[n.partition(".")[2]] / s / 1e6)
        for n, s in moved.items()
        if n.partition(".")[2] in sizes
    }
    figures: dict[str, float] = {**rates, **{f"{name}_peak_mb": round(size / 1e6) for name, size in peaks.items()}}
    figures |= {f"{name}_s": round(seconds, 2) for name, seconds in later.items()}
    figures |= {f"{name}_cpu_s": round(s, 2) for name, s in spent.items() if s and (name in moved or name in later)}
    for name in moved:
        took = [run.seconds for run in times[name]]
        figures[f"{name}_spread"] = round(max(took) / min(took), 2)
    absent = [] if oras or "local" not in PARTS else ["oras or docker-registry is not installed: its ratios are null"]
    absent += [f"{kind} is not installed" for kind in PLAIN if kind not in plain and "s3" in PARTS]
    machine = {
        "cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version(), "rounds": ROUNDS,
        "load": os.getloadavg()[0],
    }  # fmt: skip
    return {"bench": "transfer", "ratios": ratios, "figures": figures, "machine": machine, "notes": absent}


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
