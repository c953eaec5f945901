"""The registry's verdicts about generated image adapters, against what diffusers did with each.

Recorded by `python -m tests.proof.diffusers_grid --record`; all are asked again by `make test-truth`.
"""

from __future__ import annotations

import pytest

from registry.bases import BaseSpec
from tests.engines import image_grid

ANSWERS: dict[str, str] = image_grid.recorded()["answers"]


@pytest.fixture(scope="module")
def specs() -> dict[str, BaseSpec]:
    return image_grid.base_specs()


GROUPS = sorted({"/".join(identity.split("/")[:2]) for identity in ANSWERS})


@pytest.mark.parametrize("group", GROUPS)
def test_no_verdict_contradicts_what_diffusers_did(group: str, specs: dict[str, BaseSpec]) -> None:
    answers = {identity: answer for identity, answer in ANSWERS.items() if identity.startswith(f"{group}/")}
    differences = {i: image_grid.disagreement(image_grid.build(i), specs, answer) for i, answer in answers.items()}
    assert {i: text for i, text in differences.items() if text} == {}


def test_the_sample_holds_every_family_and_all_kinds_of_answers() -> None:
    assert {identity.split("/")[0] for identity in ANSWERS} == set(image_grid.recorded()["bases"])
    assert {answer.split()[0] for answer in ANSWERS.values()} >= {"exact", "wrong", "ValueError", "KeyError", "Endless"}
    assert len(ANSWERS) >= 300
