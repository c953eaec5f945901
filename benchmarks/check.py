"""`make bench-check`: what the header-only verdict costs, over the good adapters, beside loading the same with PEFT.

    ms_per_adapter        read configuration and header, describe, compare with the base: best of five, median of all
    peak_memory_mb        peak memory of a process that does nothing else, interpreter included
    share_of_bytes_read   bytes read of all bytes of the files
    time_vs_peft_load     ratio: our time over PEFT's to put the same adapter on its base, which is loaded already

Goals: under 10 ms and 60 MB an adapter. Needs the worker extra (they are built with PEFT); without it, it says so and
ends with empty figures. `make bench-recheck-engines` measures what evaluating 10,000 stored versions again costs.
The checks run in a process of their own, which imports no torch. The last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from registry import compat
from registry.adapters import read as contents
from registry.bases import BaseSpec
from registry.client.local.base_folder import base_spec_from
from registry.digest import Digest
from registry.errors import RegistryError
from registry.versions.files import CONFIG, WEIGHTS
from registry.versions.manifest import Descriptor
from tests import fixtures

ROUNDS = 5
PEFT_SAMPLES = 12
HERE = "benchmarks.check"


def entries() -> list[tuple[Path, str]]:
    """Folder and base's name of every complete good adapter."""
    good = fixtures.good()
    return [
        (good / name, entry["base"])
        for name, entry in sorted(fixtures.manifest(good).items())
        if (good / name / WEIGHTS).is_file() and (good / name / CONFIG).is_file()
    ]


def check(folder: Path, base: BaseSpec) -> int:
    """The verdict's work on one folder; the bytes that it read."""
    counted = 0
    paths = [WEIGHTS, CONFIG]
    described = [
        Descriptor(path=p, media_type="application/octet-stream", digest=Digest.of(b""),
                   size_bytes=(folder / p).stat().st_size) for p in paths
    ]  # fmt: skip

    def read(path: str, start: int, length: int) -> bytes:
        nonlocal counted
        with open(folder / path, "rb") as file:
            file.seek(start)
            data = file.read(length)
        counted += len(data)
        return data

    read_adapter = contents.read_contents(described, read)
    compat.check_fit(read_adapter.lora, base)
    return counted


def measure(listing: list[list[str]]) -> dict[str, Any]:
    """Runs in the process without torch."""
    bases: dict[str, BaseSpec] = {}
    for _, base in listing:
        if base not in bases:
            bases[base] = base_spec_from(Path(base), Path(base).name)[0]
    seconds, read, total, refused = [], 0, 0, 0
    for folder, base in listing:
        best = []
        try:
            for _ in range(ROUNDS):
                started = time.perf_counter()
                bytes_read = check(Path(folder), bases[base])
                best.append(time.perf_counter() - started)
        except RegistryError:
            refused += 1
            continue
        seconds.append(min(best))
        read += bytes_read
        total += sum((Path(folder) / name).stat().st_size for name in (WEIGHTS, CONFIG))
    return {
        "adapters": len(seconds),
        "refused": refused,
        "ms_per_adapter": round(statistics.median(seconds) * 1000, 3),
        "ms_slowest": round(max(seconds) * 1000, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "share_of_bytes_read": round(read / total, 4),
        "torch_imported": "torch" in sys.modules,
    }


def peft_ms(listing: list[list[str]]) -> float:
    """Milliseconds that PEFT takes for one of these adapters (median), its base in memory."""
    import peft
    import transformers

    loaded: dict[str, Any] = {}
    seconds = []
    for folder, base in listing[:: max(1, len(listing) // PEFT_SAMPLES)]:
        try:
            if base not in loaded:
                loaded[base] = transformers.AutoModelForCausalLM.from_pretrained(base)
            started = time.perf_counter()
            wrapped = peft.PeftModel.from_pretrained(loaded[base], folder)
            seconds.append(time.perf_counter() - started)
            with contextlib.suppress(AttributeError):  # prompts change nothing in the base
                wrapped.unload()
        except Exception as e:
            print(f"left out of PEFT's side: {Path(folder).name}: {type(e).__name__}")
            loaded.pop(base, None)
    return statistics.median(seconds) * 1000


def main() -> None:
    if not fixtures.AVAILABLE:
        print("the adapters need the worker extra, which is not installed")
        print(json.dumps({"bench": "check", "ratios": {}, "figures": {}, "machine": {}}))
        return
    tiny = fixtures.tiny_bases()
    listing = [[str(folder), str(tiny / base)] for folder, base in entries() if (tiny / base).is_dir()]
    child = subprocess.run(
        [sys.executable, "-m", HERE, "--measure"], input=json.dumps(listing), text=True, capture_output=True, check=True
    )
    figures = json.loads(child.stdout)
    peft = peft_ms(listing)
    figures["peft_ms"] = round(peft, 3)
    ratios = {"time_vs_peft_load": round(figures["ms_per_adapter"] / peft, 4)}
    for name, value in {**figures, **ratios}.items():
        print(f"{name:22} {value}")
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    print(json.dumps({"bench": "check", "ratios": ratios, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(measure(json.loads(sys.stdin.read()))))
    else:
        main()
