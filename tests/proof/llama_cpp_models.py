"""llama.cpp's converter and server (CPU) on a tiny model of each of many architectures, against PEFT's answers.

    python -m tests.proof.llama_cpp_models [ARCHITECTURE …]     asks, and adds to tests/engines/recorded_models.json

An answer is `ok`, `loads` where PEFT refuses the adapter and nothing can be compared, `ignores it`, `wrong: …` with the
largest difference of a log-probability, or the words of the converter or of the server.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from registry.bases import BaseSpec
from registry.client.local.base_folder import base_spec_from
from tests.proof import engine_classes, llama_cpp, tiny_adapters, venvs
from tests.proof.reference import PROMPT

CONVERTER = Path(__file__).with_name("_llama_convert.py")
TOLERANCE = 2e-2
_TIME = re.compile(r"[\d.]+ E ")
"""How the server's log begins a line."""
NAME = f"llama.cpp=={venvs.LLAMA.rpartition('.')[0]}"


def ask(architectures: Iterable[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Architecture → case → the answer for the file of llama.cpp's converter, and for that of ours."""
    return {name: _ask(tiny_adapters.make(name, folder / name), folder / name) for name in architectures}


def _ask(adapters: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    python, source = venvs.llama_python(), venvs.llama_source()
    if python is None or source is None:
        raise RuntimeError("llama.cpp is not installed: python -m tests.proof.venvs llama")
    files = folder / "gguf"
    files.mkdir()
    order = {"source": str(source), "base": str(folder / "base"), "out": str(files),
             "adapters": {case: str(path) for case, path in adapters.items()}}  # fmt: skip
    converted = json.loads(_run(sys.executable, CONVERTER, order))
    if converted[""]:
        return {"error": converted[""]}
    ours = _convert(adapters, folder, base_spec_from(folder / "base", "tiny")[0])
    there = {case: str(files / f"{case}.gguf") for case in adapters if not converted[case]}
    there |= {f"{case} ours": str(path) for case, path in ours.items() if isinstance(path, Path)}
    served = _serve(python, files / "base.gguf", there)
    alone = llama_cpp.after_prompt(folder / "base", None)
    if _compare(served[""], alone, alone) != "ok":
        return {"error": "the base alone answers otherwise than in transformers"}
    answers: dict[str, str] = {}
    for case, path in adapters.items():
        try:
            peft: list[float] | None = llama_cpp.after_prompt(folder / "base", path)
        except Exception:  # PEFT refuses it
            peft = None
        answers[case] = converted[case] or _compare(served[case], peft, alone)
        own = ours[case]
        answers[f"{case} ours"] = own if isinstance(own, str) else _compare(served[f"{case} ours"], peft, alone)
    return {"answers": answers}


def _convert(adapters: Mapping[str, Path], folder: Path, base: BaseSpec) -> dict[str, Path | str]:
    return {case: llama_cpp.converted(folder / "ours" / case, path, base) for case, path in adapters.items()}


def _compare(served: list[float] | str, peft: list[float] | None, alone: list[float]) -> str:
    if isinstance(served, str) or peft is None:
        return served if isinstance(served, str) else "loads"
    if (far := llama_cpp.difference(served, peft)) < TOLERANCE:
        return "ok"
    return "ignores it" if llama_cpp.difference(served, alone) < TOLERANCE else f"wrong: {far:.2g} from PEFT"


def _serve(python: Path, base: Path, adapters: Mapping[str, str]) -> dict[str, list[float] | str]:
    """What the server answers with each adapter; with those that end it, its last words."""
    order = {"base": str(base), "adapters": dict(adapters), "prompt": list(PROMPT)}
    try:
        answers: dict[str, list[float] | str] = json.loads(_run(str(python), llama_cpp.SERVER, order))
        return answers
    except RuntimeError as e:
        if len(adapters) <= 1:
            return dict.fromkeys(adapters, str(e))
    names = list(adapters)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    parts = [_serve(python, base, {name: adapters[name] for name in half}) for half in halves]
    return parts[0] | parts[1]


def _run(python: str, script: Path, order: Mapping[str, Any]) -> str:
    process = subprocess.run([python, "-W", "ignore", str(script)], input=json.dumps(order), capture_output=True,
                             text=True, check=False, timeout=600)  # fmt: skip
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if "rror" in line or "shape" in line]
        raise RuntimeError(_TIME.sub("", (lines or ["the server ended"])[0].strip())[-200:])
    return process.stdout.splitlines()[-1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="proof-") as scratch:
        results = ask(sys.argv[1:] or tiny_adapters.ARCHITECTURES, Path(scratch))
    engine_classes.record(NAME, results)
