"""What a smoke test costs: 20 adapters on the real base, beside its forward with reading the file, and reloading.

    cost      wall of one adapter through the model process, hot-swapped: values, norms, swap, forward, drift, a mixed
              batch with base and another adapter, the checksum of the base; the way there and back included
    forward   the passes that no smoke test can do without, and nothing else: the same token rows in the same batches,
              the probes with an adapter in (rank 8, PEFT), the mixed batch with base and another
    read      the file into tensors, as they lie in it
    bare      the same passes on the base without any adapter: less than anyone needs, for comparison
    apart     the same rows on the base without any adapter, each by itself: the measure before rows were batched
    reload    load the base, load the adapter, the same probes once: what a worker without a warm base does

They are taken in turn for each adapter, in one run, on as many threads, so other load falls on all alike; the last two
at every fourth. `cost_vs_forward_plus_read`, its like and `time_vs_reload` are medians of the ratios of each turn (less
is better). `cpu_…` is the same in seconds of CPU (of the child and of this process), which other load on the machine
moves less.

python -m benchmarks.smoke [ADAPTERS]
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from tests import fixtures

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench"
ADAPTERS = 20
SELDOM, SELDOM_EVERY = ("apart", "reload"), 4
RANKS = (8, 8, 4, 8)
"""Ranks of the fleet in turn: one slot takes them all."""
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base() -> Path:
    """The real base, de-quantized once."""
    folder = CACHE / "smollm2-base"
    if not (folder / "config.json").is_file():
        command = [sys.executable, "-m", "tests.fixtures.make_base", "real", str(folder), "--dtype", "bfloat16"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder if (folder / "config.json").is_file() else next(folder.rglob("config.json")).parent


def fleet(folder: Path, count: int) -> list[Path]:
    """Adapters as trained ones are: A and B random and small, all linear modules."""
    import peft
    import torch
    import transformers

    folders = [CACHE / f"smoke-{folder.name}-{i}" for i in range(count)]
    for i, target in enumerate(folders):
        if (target / "adapter_config.json").is_file():
            continue
        torch.manual_seed(i)
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        rank = RANKS[i % len(RANKS)]
        settings = peft.LoraConfig(r=rank, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(model, settings)
        state = {
            name: 0.02 * torch.randn(values.shape) for name, values in peft.get_peft_model_state_dict(wrapped).items()
        }
        wrapped.peft_config["default"].base_model_name_or_path = folder.name
        target.mkdir(parents=True, exist_ok=True)
        wrapped.peft_config["default"].save_pretrained(str(target))
        fixtures_save(state, target / "adapter_model.safetensors")
    return folders


def fixtures_save(state: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: values.contiguous() for name, values in state.items()}, path, metadata={"format": "pt"})


def seconds(act: Callable[[], Any]) -> tuple[float, float]:
    """Wall, and CPU of this process."""
    started, cpu = perf_counter(), process_time()
    act()
    return perf_counter() - started, process_time() - cpu


def reference_timings(folder: Path, adapters: list[Path]) -> tuple[dict[str, Callable[[Path], Any]], int]:
    """What a turn is compared with, by name; each is given the turn's adapter. And the tokens of one smoke test."""
    import peft
    from safetensors.torch import load_file

    from registry.worker.model import language as model

    bare, other = model.LoadedBase.load(folder, "real"), model.LoadedBase.load(folder, "real")
    worn = peft.PeftModel.from_pretrained(other.model, str(adapters[0]), adapter_name="one")
    worn.load_adapter(str(adapters[1]), adapter_name="other")
    worn.eval().requires_grad_(False)
    mixed = [bare.probes[0][:8]] * 3

    def forward(_: Path) -> None:
        bare.logits(bare.probes, worn)
        bare.rows(mixed, worn, adapter_names=["__base__", "one", "other"])

    def without(_: Path) -> None:
        bare.logits(bare.probes)
        bare.rows(mixed)

    def apart(_: Path) -> None:
        for row in [*bare.probes, *mixed]:
            bare.rows([row])

    def reload(adapter: Path) -> None:
        again = model.LoadedBase.load(folder, "real")
        wrapped = peft.PeftModel.from_pretrained(again.model, str(adapter))
        again.logits(again.probes, wrapped.eval())

    def read(adapter: Path) -> None:
        load_file(adapter / "adapter_model.safetensors")

    tokens = sum(len(row) for row in [*bare.probes, *mixed])
    return {"read": read, "forward": forward, "bare": without, "apart": apart, "reload": reload}, tokens


def measure(folder: Path, adapters: list[Path], threads: int) -> tuple[dict[str, float], dict[str, Any]]:
    import torch
    import transformers

    from registry.worker.model.sources import BaseSource
    from registry.worker.model_process.client import Pool, ProcessLimits

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    beside, tokens = reference_timings(folder, adapters)
    for name in ("forward", "bare"):
        beside[name](adapters[0])
    limits = ProcessLimits(deadline_seconds=300, threads=threads)
    turns: list[dict[str, float]] = []
    parts: dict[str, list[float]] = {}
    with Pool() as pool:
        source = BaseSource("real", folder, "")
        for adapter in adapters[:2]:  # both slots are filled by loading; every later adapter is swapped
            pool.try_adapter(source, adapter, limits)
        for number, adapter in enumerate([*adapters[2:], *adapters[:2]]):
            responses: list[dict[str, Any]] = []

            def smoke(adapter: Path = adapter, responses: list[dict[str, Any]] = responses) -> None:
                responses.append(pool.try_adapter(source, adapter, limits))

            cost, cpu = seconds(smoke)
            result = responses[0]["result"]
            if result["execution"]["mode"] != "swapped" or result["findings"]:
                raise SystemExit(f"{adapter.name} was not swapped, or is not well: {responses[0]}")
            turn = {"cost": cost, "cpu_cost": cpu + result["measurements"]["cpu_seconds"]}
            for name, act in beside.items():
                if name not in SELDOM or number % SELDOM_EVERY == 0:
                    turn[name], turn[f"cpu_{name}"] = seconds(partial(act, adapter))
            turns.append(turn)
            for name, value in result["measurements"].items():
                if name.endswith("_seconds"):
                    parts.setdefault(name, []).append(value)
        loads = pool.base_loads
    ratios, figures = summary(turns, parts)
    return ratios, figures | {"base_loads": loads, "adapters": len(turns), "threads": threads, "tokens": tokens}


def summary(turns: list[dict[str, float]], parts: dict[str, list[float]]) -> tuple[dict[str, float], dict[str, Any]]:
    """The ratios of the turns, and the medians of what they are made of."""
    reloads = [turn for turn in turns if "reload" in turn]

    def against(name: str, cpu: str = "") -> float:
        """The median of cost over this and reading."""
        timed_turns = [t for t in turns if name in t]
        return statistics.median(t[f"{cpu}cost"] / (t[f"{cpu}{name}"] + t[f"{cpu}read"]) for t in timed_turns)

    ratios = {
        "cost_vs_forward_plus_read": against("forward"),
        "cpu_cost_vs_forward_plus_read": against("forward", "cpu_"),
        "cpu_cost_vs_bare_plus_read": against("bare", "cpu_"),
        "cpu_cost_vs_apart_plus_read": against("apart", "cpu_"),
        "time_vs_reload": statistics.median(t["cost"] / t["reload"] for t in reloads),
        "cpu_time_vs_reload": statistics.median(t["cpu_cost"] / t["cpu_reload"] for t in reloads),
    }
    figures: dict[str, Any] = {
        f"{name}_seconds": statistics.median(t[name] for t in turns if name in t) for name in reloads[0]
    }
    figures |= {f"of_it_{name}": statistics.median(values) for name, values in parts.items()}
    return ratios, figures


def main() -> None:
    if not fixtures.AVAILABLE:
        print("smoke tests need the worker extra, which is not installed")
        print(json.dumps({"bench": "smoke", "ratios": {}, "figures": {}, "machine": {}}))
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"  # as a model process has it; read when torch is imported
    CACHE.mkdir(parents=True, exist_ok=True)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ADAPTERS
    folder = base()
    ratios, figures = measure(folder, fleet(folder, count), int(os.environ.get("BENCH_THREADS") or os.cpu_count() or 1))
    figures = {name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}
    for name, value in (ratios | figures).items():
        print(f"{name:40} {value:.4g}" if isinstance(value, float) else f"{name:40} {value}")
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    rounded = {name: round(value, 4) for name, value in ratios.items()}
    print(json.dumps({"bench": "smoke", "ratios": rounded, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
