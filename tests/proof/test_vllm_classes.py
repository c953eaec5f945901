"""vLLM's own classes are asked again; their answers must be those that are recorded. `make test-vllm`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.proof import venvs

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not venvs.vllm_is_wanted(), reason=f"builds models in vLLM {venvs.VLLM}: make test-vllm"),
]


def test_the_classes_of_vllm_answer_as_recorded(tmp_path: Path) -> None:
    from tests.proof import vllm_classes  # imports torch

    recorded = json.loads(vllm_classes.RECORDED.read_text())[f"vllm=={venvs.VLLM}"]
    rows = vllm_classes.ask(vllm_classes.ARCHITECTURES, tmp_path)
    assert {name: _answers(row) for name, row in rows.items()} == {name: _answers(r) for name, r in recorded.items()}


def _answers(row: dict[str, object]) -> tuple[object, ...]:
    cases = row["cases"]
    assert isinstance(cases, dict)
    return row.get("class"), row.get("modules"), {case: row_["answer"] == "ok" for case, row_ in cases.items()}
