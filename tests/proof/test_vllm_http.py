"""Every case is asked of a real vLLM again; its answers must be those that are recorded. `make test-vllm`."""

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
