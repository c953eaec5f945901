"""Every case is converted and asked of llama.cpp's server again. Part of `make test-engines`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.proof import venvs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        venvs.llama_python() is None or venvs.llama_source() is None,
        reason="no environment with llama.cpp: make test-engines brings it",
    ),
]


def test_llama_cpp_answers_as_recorded(tmp_path: Path) -> None:
    from tests.proof import llama_cpp, vllm_http  # imports torch

    recorded = json.loads(llama_cpp.RECORDED.read_text())[f"xllamacpp=={venvs.LLAMA}"]
    rows = llama_cpp.run(tmp_path)
    assert {name: row.get("converter") for name, row in rows.items()} == {
        name: row.get("converter") for name, row in recorded.items()
    }
    for name, row in rows.items():
        if "from_peft" in row:
            assert abs(row["from_peft"] - recorded[name]["from_peft"]) < vllm_http.TOLERANCE / 2, name


def test_llama_cpp_answers_about_an_architecture_as_recorded(tmp_path: Path) -> None:
    from tests.proof import engine_classes, llama_cpp_models  # imports torch

    recorded = json.loads(engine_classes.RECORDED.read_text())[llama_cpp_models.NAME]["GemmaForCausalLM"]
    row = llama_cpp_models.ask(["GemmaForCausalLM"], tmp_path)["GemmaForCausalLM"]
    kinds = [{case: answer.partition(":")[0] for case, answer in r["answers"].items()} for r in (row, recorded)]
    assert kinds[0] == kinds[1]
