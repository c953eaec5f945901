"""The rules against what a real vLLM answered over HTTP, and against whether it then acted as PEFT does.

Recorded by `python -m tests.proof.vllm_http`; asked again by `make test-vllm`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry import engines
from registry.findings import Finding
from tests.engines.cases import BASE, CASES, facts_of

RECORDED = json.loads(Path(__file__).with_name("recorded_http.json").read_text())
QUESTIONS = [(engine, case) for engine, rows in RECORDED.items() for case in rows]
TOLERANCE = 2e-2


def findings(engine: str, case: str) -> list[Finding]:
    facts = facts_of(CASES["plain"]).model_copy(update={"weights": "fail"}) if case == "nan" else facts_of(CASES[case])
    return [f for f in engines.evaluate(facts, engines.profile(f"{engine},max_lora_rank=16")) if f.severity != "info"]


def test_every_case_was_asked() -> None:
    assert [sorted(rows) for rows in RECORDED.values()] == [sorted([*CASES, "nan"])] * len(RECORDED)
    assert BASE.config["head_dim"] == 32


@pytest.mark.parametrize(("engine", "case"), QUESTIONS)
def test_a_yes_was_loaded_and_acted_as_peft_and_differed_from_the_base(engine: str, case: str) -> None:
    row = RECORDED[engine][case]
    if not findings(engine, case):
        assert (row["answer"], row["acts"]) == ("ok", True)
        assert row["from_peft"] < TOLERANCE < row["from_base"]


@pytest.mark.parametrize(("engine", "case"), QUESTIONS)
def test_a_no_was_refused_or_served_as_something_else(engine: str, case: str) -> None:
    row, reported = RECORDED[engine][case], findings(engine, case)
    effects = {finding.expected for finding in reported}
    if not reported:
        return
    if effects & {"refuses", "needs_setting"}:
        assert row["answer"] != "ok"
        return
    assert row["answer"] == "ok"
    unlike_peft = row["acts"] is not True  # or PEFT itself refuses it
    assert unlike_peft or row["from_base"] < 1e-5, "it is served as trained, and we say that it is not"


def test_an_adapter_whose_prefix_is_wrong_is_served_as_the_base_alone() -> None:
    for rows in RECORDED.values():
        assert rows["wrong-prefix"]["from_base"] < 1e-5
        assert rows["nan"]["answer"] == "ok"
        assert "Out of range float" in rows["nan"]["request"]
