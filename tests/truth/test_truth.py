"""A sample of `make test-truth`: nowhere does the registry say yes or no where PEFT says the other.

Families that are known to be open are in `OPEN`; docs/truth.md lists them with the last whole run.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from pathlib import Path

import pytest

from tests import fixtures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("forked_programs"),
    pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra (torch, transformers, peft) is not installed"),
]

SEED = os.environ.get("TRUTH_SEED", "1")
GROUPS, OTHER_GROUPS, CASES, ARCHITECTURES = 10, 4, 3, ("gpt2", "t5", "BertForSequenceClassification")
OTHER_ARCHITECTURES = 2
OTHER_BASES = (
    "methods@classifier", "methods@encoder-decoder", "odd@llama", "odd@llama-tied", "odd@llama-body", "odd@bert-body",
    "odd@bert-headed",
)  # fmt: skip
HELD = ("weights", "smoke", "all")
"""Stages that must agree. Those from headers alone may pass what only the worker can see."""
WRONG = ("false yes", "false no", "crash")
OPEN: tuple[str, ...] = ()
"""Patterns of cases' ids that are not right yet."""


def test_every_method_of_the_installed_peft_is_tried() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from tests.truth import methods

    assert {str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING} == methods.VARIANTS.keys()


def test_a_sample_of_methods_and_mutations_gets_the_verdict_of_peft(tmp_path: Path) -> None:
    from tests.truth import cases

    plan = next(cases.plans())
    assert_agreement(tmp_path, [f"{group}/*" for group in sample(plan.groups, GROUPS)])


@pytest.mark.parametrize("base", OTHER_BASES)
def test_a_sample_on_other_bases_gets_the_verdict_of_peft(base: str, tmp_path: Path) -> None:
    from tests.truth.run import every_plan

    plan = next(plan for plan in every_plan() if plan.id == base)
    assert_agreement(tmp_path, [f"{group}/*" for group in sample(plan.groups, OTHER_GROUPS)])


def test_lora_on_a_sample_of_architectures_gets_the_verdict_of_peft(tmp_path: Path) -> None:
    from tests.truth import architectures, summary

    unbuilt = {item[0] for line in summary.read().values() for item in line.unbuilt}
    built = tuple(name for name, _, _ in architectures.names() if name not in unbuilt)
    assert_agreement(tmp_path, [f"{name}/*" for name in sample(built, OTHER_ARCHITECTURES)])


def test_multitask_prompts_answer_on_an_encoder_decoder(tmp_path: Path) -> None:
    assert_agreement(
        tmp_path,
        [
            "multitask_prompt_tuning@encoder-decoder/plain/honest",
            "lora@encoder-decoder/tokens/honest",
            "trainable_tokens@encoder-decoder/plain/honest",
        ],
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lora_on_an_architecture_gets_the_verdict_of_peft(name: str, tmp_path: Path) -> None:
    assert_agreement(tmp_path, [f"{name}/*"])


def assert_agreement(journal: Path, ids: list[str]) -> None:
    from tests.truth.run import Run, every_plan

    with Run(journal, ids, sample=CASES) as run:
        rows = [row for row in run.rows(every_plan()) if not any(fnmatch.fnmatchcase(row.id, i) for i in OPEN)]
    assert rows, f"nothing can be built of {ids}"
    assert [
        (row.id, fault) for row in rows for fault in row.faults if fault.stage in HELD and fault.kind in WRONG
    ] == []
    assert [row.id for row in rows if row.honest and row.answer.is_yes and row.together == "unknown"] == []


def sample(groups: tuple[str, ...], number: int) -> list[str]:
    """So many of these, by the seed."""
    return sorted(groups, key=lambda group: hashlib.sha256(f"{SEED} {group}".encode()).digest())[:number]
