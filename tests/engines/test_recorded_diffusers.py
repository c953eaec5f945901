"""The rules against what diffusers itself did with each image case, and against whether the image changed as meant.

Recorded by `python -m tests.proof.diffusers_images`; asked again by `make test-engines`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry import engines
from registry.findings import Finding
from tests.engines.image_cases import CASES, bases, facts_of

RECORDED = json.loads(Path(__file__).with_name("recorded_diffusers.json").read_text())
((NAME, ROWS),) = RECORDED.items()
BASES = bases()
TOLERANCE = 1e-5
REFUSES, SILENT = {"refuses", "needs_setting"}, {"ignores_silently", "wrong_output"}


def findings(case: str) -> list[Finding]:
    case_ = CASES[case]
    findings = engines.evaluate(facts_of(case_, BASES[case_.base]), engines.profile(NAME))
    return [f for f in findings if f.severity != "info"]


def acts(case: str) -> bool:
    """Loaded, and the outputs are those of the weights that were changed by hand, not those of the base alone."""
    row = ROWS[case]
    reference, base = row.get("from_reference"), row.get("from_base")
    return row["answer"] == "ok" and isinstance(reference, float) and reference < TOLERANCE < base


def test_every_case_was_asked_and_most_of_them_act() -> None:
    assert NAME.startswith("diffusers==")
    assert sorted(ROWS) == sorted(CASES)
    assert sum(map(acts, CASES)) >= 14


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_yes_acts_as_meant_and_a_no_is_refused_or_goes_wrong(case: str) -> None:
    certain = {f.expected for f in findings(case) if f.severity != "unknown"}
    if not findings(case):
        assert acts(case), ROWS[case]
    if certain & REFUSES and not certain & SILENT:
        assert ROWS[case]["answer"] != "ok", ROWS[case]
    if certain & SILENT and not certain & REFUSES:
        assert ROWS[case]["answer"] == "ok", ROWS[case]
    assert not (certain and acts(case)), "it is served as trained, and we say that it is not"


@pytest.mark.parametrize("case", sorted(case for case in CASES if ROWS[case]["answer"] != "ok"))
def test_the_quoted_message_is_the_one_that_diffusers_gave(case: str) -> None:
    quoted = [f.message.split('It reports: "')[1].split('"')[0] for f in findings(case) if "It reports" in f.message]
    assert not quoted or any(part in ROWS[case]["answer"] for part in quoted), (quoted, ROWS[case])


def test_other_names_load_nothing_and_diffusers_says_nothing() -> None:
    for case in ("sd-flux-names", "flux-unet-names", "sd-no-prefix", "flux-no-prefix", "flux-comfy", "flux-bfl"):
        assert (ROWS[case]["answer"], ROWS[case]["modules"], ROWS[case]["from_base"]) == ("ok", 0, 0.0)
