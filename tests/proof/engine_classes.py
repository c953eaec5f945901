"""The code of vLLM and SGLang on a CPU: on which modules do the classes of many architectures take LoRA, and what do
they do with adapters that are broken?

    python -m tests.proof.engine_classes vllm|sglang|facts [ARCHITECTURE …]

It asks, and adds the answers to tests/engines/recorded_models.json.
`tiny_adapters` makes the models and the adapters. The engine builds the class and loads the adapters (`_vllm_load.py`,
`_sglang_load.py`, in its own environment) as its server does. Recorded beside it are the facts by which rules evaluate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.proof import tiny_adapters, venvs

RECORDED = Path(__file__).resolve().parents[1] / "engines" / "recorded_models.json"
FACTS = "facts"


def ask(engine: str, architectures: Iterable[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Architecture → `class`, `modules` and `answers` by case; `error` if it does not start with LoRA."""
    python, script = {"vllm": venvs.vllm_python(), "sglang": venvs.sglang_python()}[engine], f"_{engine}_load.py"
    if python is None:
        raise RuntimeError(f"{engine} is not installed: python -m tests.proof.venvs {engine}")
    adapters = {name: tiny_adapters.make(name, folder / name) for name in architectures}
    questions = [[str(folder / n / "base"), {c: str(p) for c, p in paths.items()}] for n, paths in adapters.items()]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "SGLANG_SOURCE": str(venvs.sglang_source())
    }
    process = subprocess.run(
        [str(python), "-W", "ignore", str(Path(__file__).with_name(script))], input=json.dumps(questions),
        capture_output=True, text=True, env=clean, cwd=folder, check=False,
    )  # fmt: skip
    rows = [json.loads(line[1:]) for line in process.stdout.splitlines() if line.startswith("@")]
    if len(rows) != len(adapters):
        raise RuntimeError(f"{engine} ended early:\n{process.stderr[-4000:]}")
    return dict(zip(adapters, rows, strict=True))


def record(engine: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Add these answers, one architecture a line."""
    document: dict[str, dict[str, Any]] = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    document.setdefault(engine, {}).update(results)
    parts = [
        f"{json.dumps(name)}: {{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(rows[key], sort_keys=True)}"
                                                for key in sorted(rows)) + "\n}"
        for name, rows in sorted(document.items())
    ]  # fmt: skip
    RECORDED.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    sys.stdout.write(f"{len(results)} architectures of {engine} -> {RECORDED.name}\n")


def facts(architectures: Iterable[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Architecture → case → the facts by which rules evaluate."""
    rows: dict[str, dict[str, Any]] = {}
    for name in architectures:
        adapters = tiny_adapters.make(name, folder / name)
        rows[name] = {case: tiny_adapters.facts_of(path, folder / name / "base") for case, path in adapters.items()}
    return rows


if __name__ == "__main__":
    engine, names = sys.argv[1], sys.argv[2:] or list(tiny_adapters.ARCHITECTURES)
    with tempfile.TemporaryDirectory(prefix="proof-") as scratch:
        rows = facts(names, Path(scratch)) if engine == FACTS else ask(engine, names, Path(scratch))
    record(FACTS if engine == FACTS else f"{engine}=={venvs.VERSIONS[engine]}", rows)
