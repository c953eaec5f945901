"""The rules about model classes, against what vLLM's own code answered for a tiny random model of each architecture.

Recorded by `python -m tests.proof.vllm_classes`; asked again by `make test-vllm`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry import engines
from registry.engines import source_facts
from registry.engines.facts import FACTS_VERSION
from registry.engines.source_facts import version_of
from registry.evaluation.verdicts import Outcome, add_up
from scripts.engine_rules import generated

RECORDED = json.loads(Path(__file__).with_name("recorded_classes.json").read_text())
CASES = {"embedding", "head", "linear", "no-r", "no-lora_alpha", "no-target_modules"}
BASES = [(engine, architecture) for engine, rows in RECORDED.items() for architecture in rows]
QUESTIONS = [(*base, case) for base in BASES for case in RECORDED[base[0]][base[1]]["cases"]]


def test_enough_architectures_were_asked() -> None:
    for rows in RECORDED.values():
        assert len(rows) >= 8
        assert {case for row in rows.values() for case in row["cases"]} == CASES


@pytest.mark.parametrize(("engine", "architecture", "case"), QUESTIONS)
def test_a_yes_is_loaded_and_a_no_is_refused(engine: str, architecture: str, case: str) -> None:
    row = RECORDED[engine][architecture]["cases"][case]
    facts = {**row["facts"], "facts_version": FACTS_VERSION}
    outcome = add_up(engines.judge(facts, engines.profile(f"{engine},max_lora_rank=16")))
    if outcome is not Outcome.UNKNOWN:
        assert (outcome in (Outcome.PASS, Outcome.WARN)) == (row["answer"] == "ok"), row["answer"]


@pytest.mark.parametrize(("engine", "architecture"), BASES)
def test_the_class_that_was_built_is_the_one_that_its_source_names(engine: str, architecture: str) -> None:
    row = RECORDED[engine][architecture]
    name, _, version = engine.partition("==")
    source = source_facts.of(name, version_of(version), architecture)
    if "class" in row and source["source_registered"]:
        assert source["source_class"].rpartition(".")[2] == row["class"]
        assert source["source_lora"] == ("modules" in row)


@pytest.mark.parametrize(("engine", "architecture"), BASES)
def test_no_module_of_the_built_class_is_missing_in_the_generated_file(engine: str, architecture: str) -> None:
    row = RECORDED[engine][architecture]
    name, _, version = engine.partition("==")
    facts = generated(name)[version]
    model = facts["classes"].get(facts["architectures"].get(architecture), {})
    if "modules" in row and model.get("linear") is not None:
        assert set(row["modules"]) <= {*model["linear"], *model["embedding"], "experts"}
