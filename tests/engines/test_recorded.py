"""Rules and settings against recorded answers of the engines' own code (`record.py`): every release and case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry import engines
from registry.engines import rulebook
from registry.errors import Invalid
from tests.engines.cases import facts_of
from tests.engines.record import CASES

RECORDED: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("recorded.json").read_text())
FACTS = {name: facts_of(files) for name, files in CASES.items()}
LATER = {
    "vllm": {"no-b"},  # fails while scaling lora_B, after the functions that were recorded
    "sglang": {"layer-replication", "lora-bias", "rank-differs-from-config", "no-b", "v-only", "up-only"},  # in buffers
}
SETTINGS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("recorded_settings.json").read_text())


def examined(name: str) -> tuple[str, ...]:
    return rulebook.engine(name).examined


def test_every_case_was_asked_of_every_recorded_engine() -> None:
    assert {engine: sorted(answers) for engine, answers in RECORDED.items()} == dict.fromkeys(RECORDED, sorted(CASES))
    assert set(RECORDED) == {f"{name}=={version}" for name in ("vllm", "sglang") for version in examined(name)}


@pytest.mark.parametrize("engine", RECORDED)
def test_the_rules_refuse_what_the_engine_refuses_and_nothing_more(engine: str) -> None:
    profile = engines.profile(f"{engine},max_lora_rank=16")
    for case in CASES:
        refusals = [f.message for f in engines.evaluate(FACTS[case], profile) if f.expected == "refuses"]
        answer = RECORDED[engine][case]
        assert bool(refusals) == (answer != "ok" or case in LATER[profile.engine]), (case, answer, refusals)


@pytest.mark.parametrize("engine", [name for name in RECORDED if name.startswith("vllm")])
def test_the_quoted_message_is_the_one_that_the_engine_gave(engine: str) -> None:
    profile = engines.profile(f"{engine},max_lora_rank=16")
    for case, answer in RECORDED[engine].items():
        if answer != "ok" and case not in LATER["vllm"]:
            messages = [f.message for f in engines.evaluate(FACTS[case], profile) if 'It reports: "' in f.message]
            quotes = [message.split('It reports: "')[1].split('"')[0] for message in messages]
            parts = [part.strip(" .") for quote in quotes for part in quote.split("...")]
            assert any(part and part in answer for part in parts), (case, quotes, answer)


def test_a_profile_is_one_that_the_engine_starts_with_and_no_other() -> None:
    wrong = []
    for engine, answers in SETTINGS.items():
        for text, answer in answers.items():
            try:
                engines.profile(f"{engine},{text}")
                outcome = "ok"
            except Invalid:
                outcome = "refused"
            if (outcome == "ok") != (answer == "ok"):
                wrong.append((engine, text, outcome, answer))
    assert wrong == []
    assert set(SETTINGS) == {f"vllm=={version}" for version in examined("vllm")}


def test_an_adapter_that_the_rules_let_pass_was_let_in_by_the_engine() -> None:
    for engine, answers in RECORDED.items():
        for case, answer in answers.items():
            if not engines.evaluate(FACTS[case], engines.profile(f"{engine},max_lora_rank=16")):
                assert answer == "ok", (engine, case)
