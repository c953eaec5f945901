"""The GGUF adapters that we write, as llama.cpp's own server answered with them, against PEFT.

Recorded by `python -m tests.proof.llama_cpp`; asked again by `make test-engines`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry import engines
from tests.engines.cases import CASES, facts_of

RECORDED = json.loads(Path(__file__).with_name("recorded_llama_cpp.json").read_text())
(ROWS,) = RECORDED.values()
TOLERANCE = 2e-2
CONVERTED = sorted(name for name in CASES if ROWS[name]["converter"] == "ok")


def test_every_case_was_asked_and_the_base_alone_agrees() -> None:
    assert sorted(ROWS) == sorted(["", *CASES])
    assert ROWS[""]["from_peft"] < TOLERANCE


@pytest.mark.parametrize("case", CONVERTED)
def test_what_we_convert_acts_in_llama_cpp_as_in_peft(case: str) -> None:
    assert ROWS[case]["from_peft"] < TOLERANCE < ROWS[case]["from_base"]


def test_rslora_and_patterns_act_only_because_the_scale_is_folded_before() -> None:
    """The rules speak of llama.cpp's own converter, which leaves the scale alone."""
    for case in ("rslora", "alpha-pattern"):
        assert case in CONVERTED
        assert [f.expected for f in engines.evaluate(facts_of(CASES[case]), engines.profile("llama.cpp"))] == [
            "wrong_output"
        ]


@pytest.mark.parametrize("case", sorted(set(CASES) - set(CONVERTED)))
def test_what_is_no_pair_of_linear_factors_is_refused_with_a_reason(case: str) -> None:
    assert len(ROWS[case]["converter"]) > 20
