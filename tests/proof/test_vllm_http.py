"""Every case is asked of real vLLM servers again; their answers must be those that are recorded. `make test-vllm`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.proof import venvs

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not venvs.vllm_is_wanted(),
        reason=f"asks vLLM {venvs.VLLM} for minutes: make test-vllm does it",
    ),
]


def test_vllm_answers_as_recorded_and_matches_peft(tmp_path: Path) -> None:
    from tests.proof import vllm_http  # imports torch

    recorded = json.loads(vllm_http.RECORDED.read_text())[f"vllm=={venvs.VLLM}"]
    rows = vllm_http.run(tmp_path)
    assert {name: (row["answer"], row["acts"]) for name, row in rows.items()} == {
        name: (row["answer"], row["acts"]) for name, row in recorded.items()
    }


def test_vllm_answers_on_tiny_models_as_recorded_and_as_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.proof import engine_classes, vllm_http_models  # import torch

    recorded = json.loads(engine_classes.RECORDED.read_text())[vllm_http_models.NAME]
    rows = vllm_http_models.ask(vllm_http_models.ARCHITECTURES, tmp_path)
    for name, row in recorded.items():
        answers = {case: answer == "ok" for case, answer in rows[name]["answers"].items()}
        assert answers == {case: answer == "ok" for case, answer in row["answers"].items()}, name
    kinds = vllm_http_models.compare(rows, engine_classes.facts(rows, tmp_path / "facts"))
    with capsys.disabled():
        print(f"\n{len(rows)} architectures, {', '.join(f'{len(names)} {kind}' for kind, names in kinds.items())}")
    assert kinds["false yes"] + kinds["false no"] + kinds["unknown"] == []
