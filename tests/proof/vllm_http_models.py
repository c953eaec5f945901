"""A vLLM server (CPU), asked over HTTP on a tiny model of each of many architectures, against PEFT's answers.

    python -m tests.proof.vllm_http_models [ARCHITECTURE …]     asks, and adds to tests/engines/recorded_models.json

An answer is `ok`, `loads` where PEFT refuses the adapter and nothing can be compared, `ignores it`, `wrong: …` with the
largest difference of a log-probability, or the server's words about the adapter or a request with it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from registry import engines
from registry.engines.facts import FACTS_VERSION
from registry.evaluation.verdicts import Outcome, add_up
from tests.proof import engine_classes, reference, tiny_adapters, venvs, vllm_http

NAME = f"vllm-server=={venvs.VLLM}"
ARCHITECTURES = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForCausalLM", "Phi3ForCausalLM", "GraniteForCausalLM", "Olmo2ForCausalLM",
)  # fmt: skip
"""A server for each takes a minute. None starts with LoRA for a class that has none, such as GPT-2's."""
TOLERANCE = 1e-3


def ask(architectures: Iterable[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Architecture → `answers` by case. Raises RuntimeError if a server does not start, or is wrong alone."""
    return {name: _ask(name, folder / name) for name in architectures}


def compare(rows: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """How our rules evaluate these adapters: the kind of agreement → `architecture/case`."""
    settings = engines.profile(f"vllm=={venvs.VLLM},max_lora_rank={vllm_http.MAX_LORA_RANK}")
    kinds: dict[str, list[str]] = {"right": [], "false yes": [], "false no": [], "unknown": []}
    for architecture, row in rows.items():
        for case, answer in row["answers"].items():
            stored = {**facts[architecture][case], "facts_version": FACTS_VERSION}
            outcome = add_up(engines.evaluate(stored, settings))
            if outcome in (Outcome.PASS, Outcome.WARN):
                kind = "right" if answer in ("ok", "loads") else "false yes"
            elif answer != "ok":
                kind = "right"
            else:
                kind = "unknown" if outcome is Outcome.UNKNOWN else "false no"
            kinds[kind].append(f"{architecture}/{case}")
    return kinds


def _ask(architecture: str, folder: Path) -> dict[str, Any]:
    python = venvs.vllm_python()
    if python is None:
        raise RuntimeError("vLLM is not installed: python -m tests.proof.venvs vllm")
    adapters = tiny_adapters.make(architecture, folder)
    in_peft = reference.answers(folder / "base", adapters)
    with vllm_http.server(python, folder / "base", folder / "vllm.log") as client:
        if _differs(vllm_http.log_probs(client, "base"), in_peft[""]):
            raise RuntimeError(f"{architecture} alone answers otherwise than in transformers")
        rows = vllm_http.ask(client, adapters, in_peft)
    return {"answers": {case: _answer(row).replace(str(folder / case), "FOLDER")[:300] for case, row in rows.items()}}


def _differs(served: reference.LogProbs | str, expected: reference.LogProbs | str) -> bool:
    return isinstance(served, str) or isinstance(expected, str) or reference.distance(served, expected) > TOLERANCE


def _answer(row: dict[str, Any]) -> str:
    """The row of `vllm_http.ask` in a word."""
    if row["answer"] != "ok" or "request" in row:
        return str(row.get("request", row["answer"]))
    if "from_peft" not in row:
        return "loads"
    if row["from_peft"] <= TOLERANCE:
        return "ok"
    return "ignores it" if row["from_base"] <= TOLERANCE else f"wrong: {row['from_peft']:.2g} from PEFT"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="proof-") as scratch:
        results = ask(sys.argv[1:] or ARCHITECTURES, Path(scratch))
    engine_classes.record(NAME, results)
