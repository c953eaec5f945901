"""`make bench-merge`: fusing beside copying and beside PEFT, combining beside PEFT's svd; each pair in one run.

    fuse_merge_time_vs_cp                  time of the merging part / `cp -r` of the same files (aim: at most 4)
    fuse_process_time_vs_peft              whole process / PEFT's: load, merge_and_unload, save (aim: at most 0.2)
    fuse_process_cpu_vs_peft               the same in seconds of CPU, which other load on the machine moves less
    fuse_peak_memory_vs_peft               peak memory of both processes (aim: at most 0.2)
    fuse_peak_memory_large_vs_small_base   peak memory at 1.7 GB / at 0.7 GB (aim: 1)
    combine_time_vs_peft_svd               0.7 a + 0.3 b to rank 8 / add_weighted_adapter("svd") (aim: at most 0.02)

Figures: seconds and MB behind the ratios; `combine_error` and by how much it differs from the dense SVD's at most;
`peft_linear_error`, the relative error of add_weighted_adapter("linear") against the same weighted sum; the share of
fused elements that equal the double-precision ones rounded once; whether untouched tensors are the same bytes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from benchmarks import _merging as parts
from tests import fixtures

ROUNDS = 3
PEFT_ROUNDS = 2
SAMPLED = 24
"""Modules and tensors on which results are compared with dense arithmetic."""


def fusing(scratch: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Copy, fuse, and let PEFT merge the same base, in turns."""
    large, small = parts.llama(parts.LARGE), parts.llama(parts.SMALL)
    shapes = parts.modules(parts.HIDDEN, parts.INNER, parts.HIDDEN)
    ours = parts.adapter("lora-large", parts.LARGE, shapes, parts.RANK, 2)
    little = parts.adapter("lora-small", parts.SMALL, shapes, parts.RANK, 3)
    copies, fused, merged = [], [], []
    for turn in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run(["cp", "-r", large, scratch / "copy"], check=True)
        copies.append(time.perf_counter() - began)
        shutil.rmtree(scratch / "copy")
        shutil.rmtree(scratch / "fused", ignore_errors=True)
        fused.append(parts.run(parts.FUSE, ours, large, scratch / "fused"))
        if turn < PEFT_ROUNDS:
            merged.append(parts.run(parts.PEFT, ours, large, scratch / "peft"))
            shutil.rmtree(scratch / "peft")
    low = parts.run(parts.FUSE, little, small, scratch / "low")
    copy, merging, process, peft, cpu, peft_cpu = (
        statistics.median(values)
        for values in (
            copies, [run.seconds for run in fused], [run.process_seconds for run in fused],
            [run.process_seconds for run in merged], [run.cpu_seconds for run in fused],
            [run.cpu_seconds for run in merged],
        )
    )  # fmt: skip
    peak, peft_peak = max(run.peak_mb for run in fused), max(run.peak_mb for run in merged)
    ratios = {
        "fuse_merge_time_vs_cp": merging / copy, "fuse_process_time_vs_peft": process / peft,
        "fuse_process_cpu_vs_peft": cpu / peft_cpu,
        "fuse_peak_memory_vs_peft": peak / peft_peak, "fuse_peak_memory_large_vs_small_base": peak / low.peak_mb,
    }  # fmt: skip
    figures = {
        "base_gb": sum(path.stat().st_size for path in large.glob("*.safetensors")) / 1e9, "cp_seconds": copy,
        "fuse_merge_seconds": merging, "fuse_process_seconds": process, "peft_process_seconds": peft,
        "fuse_process_cpu_seconds": cpu, "peft_process_cpu_seconds": peft_cpu,
        "fuse_peak_mb": peak, "fuse_peak_small_base_mb": low.peak_mb, "peft_peak_mb": peft_peak,
        "adapter_mb": (ours / "adapter_model.safetensors").stat().st_size / 1e6,
    }  # fmt: skip
    return ratios, figures | _faithful(ours, large, scratch / "fused")


def _faithful(adapter: Path, base: Path, fused: Path) -> dict[str, Any]:
    """How many of some tensors' elements are the exact ones, rounded once; and are the others the same bytes?"""
    import torch
    from safetensors import safe_open

    lora = safe_open(adapter / "adapter_model.safetensors", framework="pt")
    equal = total = 0
    untouched = True
    for shard in sorted(base.glob("*.safetensors")):
        old, new = safe_open(shard, framework="pt"), safe_open(fused / shard.name, framework="pt")
        targets = [name for name in old.keys() if name.split(".")[-2] in parts.TARGETS]  # noqa: SIM118
        for name in targets[:: max(1, len(targets) // (SAMPLED // 3))]:
            head = "base_model.model." + name.removesuffix(".weight")
            delta = (
                lora.get_tensor(f"{head}.lora_B.weight").double() @ lora.get_tensor(f"{head}.lora_A.weight").double()
            )
            expected = (old.get_tensor(name).double() + 2 * delta).bfloat16()
            equal += int((expected == new.get_tensor(name)).sum())
            total += expected.numel()
        rest = set(old.keys()) - set(targets)
        untouched &= all(torch.equal(old.get_tensor(name), new.get_tensor(name)) for name in rest)
    return {"fused_elements_equal": equal / total, "untouched_tensors_equal": untouched}


def combining(scratch: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """0.7 a + 0.3 b to rank 8, on the modules of SmolLM2-135M."""
    import peft
    import torch
    import transformers

    from registry.merging.recipes import MergeOperation, Method, Recipe
    from registry.worker.merge.adapters import Adapter
    from registry.worker.merge.combine import combine

    shapes = parts.modules(parts.SMOL["hidden"], parts.SMOL["inner"], parts.SMOL["kv"])
    folders = [parts.adapter(f"smol-{seed}", parts.SMOL["layers"], shapes, 8, seed) for seed in (4, 5)]
    recipe = Recipe(operation=MergeOperation.COMBINE, sources=("a", "b"), method=Method.SVD, rank=8)
    times = []
    for turn in range(ROUNDS):
        began = time.perf_counter()
        sources = [(0.7, Adapter.open(folders[0])), (0.3, Adapter.open(folders[1]))]
        report = combine(recipe, sources, scratch / f"both-{turn}")
        times.append(time.perf_counter() - began)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=1024,
    ))  # fmt: skip
    wrapped = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="a")
    wrapped.load_adapter(folders[1], adapter_name="b")
    wrapped.add_weighted_adapter(["a", "b"], [0.7, 0.3], "linear", combination_type="linear")
    began = time.perf_counter()
    wrapped.add_weighted_adapter(["a", "b"], [0.7, 0.3], "svd", combination_type="svd", svd_rank=8)
    theirs = time.perf_counter() - began
    ours = statistics.median(times)
    figures = {
        "combine_seconds": ours, "peft_svd_seconds": theirs, "combine_error": report.relative_error,
        **_against_dense(wrapped, {module.path: module.relative_error for module in report.modules}, torch),
    }  # fmt: skip
    return {"combine_time_vs_peft_svd": ours / theirs}, figures


def _against_dense(wrapped: Any, errors: dict[str, float], torch: Any) -> dict[str, float]:
    """The errors beside those of the dense SVD, and PEFT's own, on some modules."""
    lost = dict.fromkeys(("linear", "svd"), 0.0)
    expected, apart = 0.0, 0.0
    for path in sorted(errors)[:: max(1, len(errors) // SAMPLED)]:
        module = wrapped.base_model.model.get_submodule(path)
        delta = {name: module.get_delta_weight(name).detach().double() for name in ("a", "b", "linear", "svd")}
        exact = 0.7 * delta["a"] + 0.3 * delta["b"]
        values = torch.linalg.svdvals(exact)
        apart = max(apart, abs(errors[path] - float(values[8:].norm() / values.norm())))
        expected += float(exact.square().sum())
        for name in lost:
            lost[name] += float((delta[name] - exact).square().sum())
    combine_errors = {f"peft_{name}_error": (value / expected) ** 0.5 for name, value in lost.items()}
    return {"combine_error_differs_from_dense_svd": apart, **combine_errors}


def main() -> None:
    if not fixtures.AVAILABLE:
        print("merging needs the worker extra, which is not installed")
        print(json.dumps({"bench": "merge", "ratios": {}, "figures": {}, "machine": {}}))
        return
    parts.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-merge-", dir=parts.CACHE) as scratch:
        fuse_ratios, fuse_figures = fusing(Path(scratch))
        combine_ratios, combine_figures = combining(Path(scratch))
    ratios, figures = fuse_ratios | combine_ratios, fuse_figures | combine_figures
    for name, value in (ratios | figures).items():
        print(f"{name:40} {value:.6g}" if isinstance(value, float) else f"{name:40} {value}")
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    rounded = {name: round(value, 4) for name, value in ratios.items()}
    print(json.dumps({"bench": "merge", "ratios": rounded, "figures": figures, "machine": machine}))


if __name__ == "__main__":
    main()
