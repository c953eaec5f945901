"""Codes of findings that stored reports and records still hold are read as those of today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from sqlmodel import select

from registry.findings import FORMER_CODES, Finding, convert_old_code, convert_old_finding
from registry.server.database.models import VerdictRow
from tests.harness import Harness

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
    assert {old: new for old, new in FORMER_CODES.items() if convert_old_code(migrated.get(old, new)) != new} == {}
    assert [old for old in FORMER_CODES if convert_old_code(old) == old] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("acts.golden_unasked", "smoke.golden_skipped"),
        ("compat.method_not_judged", "compat.method_not_evaluated"),
        ("fit.method_unjudged", "compat.method_not_evaluated"),
        ("lora.rank_unannounced", "lora.rank_differs_from_config"),
        ("sglang.rank_unannounced", "sglang.rank_differs_from_config"),
        ("values.not_finite", "weights.not_finite"),
        ("compat.shape", "compat.shape"),
    ],
)
def test_a_former_code_becomes_the_code_of_today(old: str, new: str) -> None:
    assert convert_old_finding({"code": old, "found": "x"}) == {"code": new, "actual": "x"}


def test_a_stored_verdict_is_read_with_the_codes_of_today(harness: Harness) -> None:
    harness.add_base()
    pushed = harness.push("acme/support")
    with harness.session(write=True) as session:
        row = session.exec(select(VerdictRow)).first()
        assert row is not None
        former = Finding.of("unknown", "compat.method_not_evaluated", "x", "m").to_dict()
        row.findings = [former | {"code": "compat.method_not_judged"}]
        session.add(row)
        check = row.check
    verdicts = {str(v.check): v for v in harness.admin.version(f"acme/support@{pushed.version.number}").verdicts}
    assert [finding.code for finding in verdicts[check].findings] == ["compat.method_not_evaluated"]
