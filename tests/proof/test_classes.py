"""The classes of vLLM and SGLang are asked again; their answers must be those that are recorded. `make test-vllm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.proof import venvs

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not venvs.vllm_is_wanted(), reason=f"builds models in vLLM {venvs.VLLM}: make test-vllm"),
]


@pytest.mark.parametrize("engine", sorted(venvs.VERSIONS))
def test_the_classes_of_an_engine_answer_as_recorded(engine: str, tmp_path: Path) -> None:
    from tests.proof import engine_classes  # imports torch

    recorded = json.loads(engine_classes.RECORDED.read_text())[f"{engine}=={venvs.VERSIONS[engine]}"]
    rows = engine_classes.ask(engine, recorded, tmp_path)
    assert {name: _answers(row) for name, row in rows.items()} == {name: _answers(r) for name, r in recorded.items()}


def _answers(row: dict[str, Any]) -> tuple[object, ...]:
    """Which parts of an answer must not change: an error's text names what a file's reader meets first."""
    cases = row.get("answers", {})
    return row.get("class"), row.get("modules"), {case: answer == "ok" for case, answer in cases.items()}
