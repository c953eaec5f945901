"""Rules against what engines themselves did with 28 adapters on a tiny random model of each of many architectures.

vLLM's and SGLang's own classes were built and loaded the adapters (`python -m tests.proof.engine_classes`). A vLLM
server (`python -m tests.proof.vllm_http_models`) and llama.cpp's own converter and server (`python -m
tests.proof.llama_cpp_models`) answered with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from registry import engines
from registry.engines import source_facts
from registry.engines.facts import FACTS_VERSION
from registry.engines.source_facts import version_of
from registry.evaluation.verdicts import Outcome, add_up
from registry.findings import Finding
from scripts.engine_rules import generated

RECORDED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("recorded_models.json").read_text())
FACTS: dict[str, dict[str, dict[str, Any]]] = RECORDED.pop("facts")
SERVER = "vllm-server"
SETTINGS = {
    "vllm": ",max_lora_rank=16",
    SERVER: ",max_lora_rank=16",
    "sglang": ",max_lora_rank=16,target_modules=all",
    "llama.cpp": "",
}
BASES = [(engine, architecture) for engine, rows in RECORDED.items() for architecture in rows]
NO_LORA = "does not support LoRA"
LOADED = {"vllm": {"ok"}, SERVER: {"ok", "loads"}, "sglang": {"ok"}, "llama.cpp": {"ok", "loads"}}
UNSEEN = {"rslora", "alpha-pattern", "alora", "saved-head", "trained-tokens"}
"""Cases that SGLang's classes load and do not use: only their answers, which need a GPU, would show it."""


def _name(engine: str) -> str:
    return engine.partition("==")[0]


def _evaluate(engine: str, architecture: str, case: str) -> list[Finding]:
    facts = {**FACTS[architecture][case], "facts_version": FACTS_VERSION}
    return engines.evaluate(facts, engines.profile(engine.replace(SERVER, "vllm") + SETTINGS[_name(engine)]))


def _answers(engine: str, architecture: str) -> dict[str, str]:
    """Case → the engine's answer; none for a model that it could not build here."""
    row = RECORDED[engine][architecture]
    if NO_LORA in row.get("error", ""):
        return dict.fromkeys(FACTS[architecture], row["error"])
    return {case: answer for case, answer in row.get("answers", {}).items() if not case.endswith(" ours")}


def test_enough_architectures_answered_every_case() -> None:
    assert {_name(engine) for engine in RECORDED} == set(SETTINGS)
    for engine, rows in RECORDED.items():
        answered = [name for name in rows if _answers(engine, name).keys() == FACTS[name].keys()]
        assert len(answered) >= 8
        assert {"embedding", "head"} < {case for name in answered for case in FACTS[name]}


@pytest.mark.parametrize(("engine", "architecture"), BASES)
def test_what_the_engine_refuses_or_ignores_never_passes(engine: str, architecture: str) -> None:
    answers = _answers(engine, architecture)
    refused = [case for case, answer in answers.items() if answer not in LOADED[_name(engine)]]
    outcomes = {case: add_up(_evaluate(engine, architecture, case)) for case in refused}
    assert {case: answers[case] for case, outcome in outcomes.items() if outcome in (Outcome.PASS, Outcome.WARN)} == {}


@pytest.mark.parametrize(("engine", "architecture"), BASES)
def test_what_the_engine_loads_whole_is_not_refused(engine: str, architecture: str) -> None:
    wrong: dict[str, list[str]] = {}
    for case, answer in _answers(engine, architecture).items():
        fits = FACTS[architecture][case]["compat"] != "fail"
        unseen = case in UNSEEN or FACTS[architecture][case].get("bias_tensors")
        if answer in LOADED[_name(engine)] and fits and not (_name(engine) == "sglang" and unseen):
            errors = [f.message for f in _evaluate(engine, architecture, case) if f.severity == "error"]
            wrong |= {case: errors} if errors else {}
    assert wrong == {}


@pytest.mark.parametrize("case", sorted(UNSEEN))
def test_what_sglang_loads_and_does_not_use_is_no_refusal(case: str) -> None:
    for engine, architecture in BASES:
        if _name(engine) == "sglang" and _answers(engine, architecture).get(case) == "ok":
            effects = {f.expected for f in _evaluate(engine, architecture, case) if f.severity == "error"}
            assert effects in ({"wrong_output"}, {"ignores_silently"})


@pytest.mark.parametrize(("engine", "architecture"), [b for b in BASES if _name(b[0]) == "llama.cpp"])
def test_what_we_convert_for_llama_cpp_acts_as_in_peft(engine: str, architecture: str) -> None:
    for question, answer in RECORDED[engine][architecture].get("answers", {}).items():
        case, _, ours = question.partition(" ")
        if ours and FACTS[architecture][case]["compat"] in ("pass", "warn"):
            assert answer == "ok" or len(answer) > 20, (case, answer)
            assert not answer.startswith(("wrong", "ignores")), (case, answer)


@pytest.mark.parametrize(("engine", "architecture"), [b for b in BASES if _name(b[0]) == "vllm"])
def test_the_class_that_was_built_is_the_one_that_its_source_names(engine: str, architecture: str) -> None:
    row = RECORDED[engine][architecture]
    name, _, version = engine.partition("==")
    source = source_facts.of(name, version_of(version), architecture)
    if "class" in row and source["source_registered"]:
        assert source["source_class"].rpartition(".")[2] == row["class"]
        assert source["source_lora"] == ("modules" in row)


@pytest.mark.parametrize(("engine", "architecture"), [b for b in BASES if _name(b[0]) in ("vllm", "sglang")])
def test_no_module_of_the_built_class_is_missing_in_the_generated_file(engine: str, architecture: str) -> None:
    row = RECORDED[engine][architecture]
    name, _, version = engine.partition("==")
    facts = generated(name)[version]
    model = facts["classes"].get(facts["architectures"].get(architecture), {})
    if "modules" in row and model.get("linear") is not None:
        assert set(row["modules"]) <= {*model["linear"], *model["embedding"], "experts"}
