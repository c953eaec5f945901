"""The pages of docs/serving/: every one is linked, and names engine profiles that the rules know."""

from __future__ import annotations

import re
from pathlib import Path

from registry import engines
from tests.import_table import ROOT
from tests.test_docs import LINK

FOLDER = ROOT / "docs/serving"


def test_every_page_is_linked_from_the_index() -> None:
    linked = {Path(link).name for link in LINK.findall((FOLDER / "README.md").read_text())}
    assert {path.name for path in FOLDER.glob("*.md")} - linked == {"README.md"}


def test_every_engine_profile_that_a_page_names_is_one_that_the_rules_know() -> None:
    text = "\n".join(path.read_text() for path in FOLDER.glob("*.md"))
    named = set(re.findall(r"--(?:engine|profile) ([a-z.-]+==[^\s`]+)", text))
    assert len(named) > 10
    assert [profile for profile in sorted(named) if not profile.startswith(str(engines.profile(profile)))] == []
