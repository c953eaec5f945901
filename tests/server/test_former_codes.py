"""Codes of findings that stored reports and records still hold are read as those of today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from registry.findings import FORMER_CODES, convert_old_code, convert_old_finding

MIGRATION = Path(__file__).parents[2] / "migrations" / "versions" / "0020_standard_words.py"


def codes_of_migration() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("standard_words", MIGRATION)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(MIGRATION)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    codes: dict[str, str] = module.CODES
    return codes


def test_readers_and_the_migration_agree() -> None:
    migrated = codes_of_migration()
    assert {old: new for old, new in FORMER_CODES.items() if migrated.get(old, new) != new} == {}
    assert [old for old in FORMER_CODES if convert_old_code(old) == old] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("acts.golden_unasked", "smoke.golden_skipped"),
        ("fit.method_unjudged", "compat.method_not_judged"),
        ("lora.rank_unannounced", "lora.rank_differs_from_config"),
        ("sglang.rank_unannounced", "sglang.rank_differs_from_config"),
        ("values.not_finite", "weights.not_finite"),
        ("compat.shape", "compat.shape"),
    ],
)
def test_a_former_code_becomes_the_code_of_today(old: str, new: str) -> None:
    assert convert_old_finding({"code": old, "found": "x"}) == {"code": new, "actual": "x"}
