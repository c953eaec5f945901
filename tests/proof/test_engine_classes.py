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
SETTINGS: dict[str, dict[str, str]] = json.loads(record.RECORDED_SETTINGS.read_text())
RECORDED: dict[str, dict[str, str]] = json.loads(record.RECORDED.read_text())


@pytest.mark.parametrize("engine", sorted(RECORDED))
def test_the_code_of_a_release_answers_as_recorded(engine: str) -> None:
    name, _, version = engine.partition("==")
    folder = Path(str(FOLDER)) / f"{name}-{version}"
    ask = record.vllm if name == "vllm" else record.sglang
    assert _one_tensor(ask(folder)) == _one_tensor(RECORDED[engine])


@pytest.mark.parametrize("engine", sorted(SETTINGS))
def test_the_configuration_of_a_release_takes_the_settings_that_are_recorded(engine: str) -> None:
    folder = Path(str(FOLDER)) / engine.replace("==", "-")
    assert record.vllm_settings(folder) == SETTINGS[engine]


def _one_tensor(answers: dict[str, str]) -> dict[str, str]:
    """Which layer a file's reader meets first, and which half of its pairs, is no part of the answer."""
    tensor = re.compile(r"layers\.\d+(\.\S+\.lora_)[AB]|layers\.\d+")
    return {case: tensor.sub(r"layers.N\1", answer) for case, answer in answers.items()}
