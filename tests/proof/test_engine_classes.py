"""The functions of published wheels that decide about an adapter are asked again. `make test-engines`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.engines import record
from tests.proof import venvs

FOLDER = venvs.wheels()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER is None, reason="no unpacked wheels of vLLM and SGLang: make test-engines brings them"),
]
RECORDED: dict[str, dict[str, str]] = json.loads(record.RECORDED.read_text())


@pytest.mark.parametrize("engine", sorted(RECORDED))
def test_the_code_of_a_release_answers_as_it_is_recorded(engine: str) -> None:
    name, _, version = engine.partition("==")
    folder = Path(str(FOLDER)) / f"{name}-{version}"
    ask = record.vllm if name == "vllm" else record.sglang
    assert _one_layer(ask(folder)) == _one_layer(RECORDED[engine])


def _one_layer(answers: dict[str, str]) -> dict[str, str]:
    """Which layer a file's reader meets first is no part of the answer."""
    return {case: re.sub(r"layers\.\d+", "layers.N", answer) for case, answer in answers.items()}
