"""The summary of `make test-truth`: a run replaces the lines of what it asked whole, and the pages repeat them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import fixtures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra (torch, transformers, peft) is not installed"),
]
GROUPS = ("gpt2/dora", "gpt2/plain", "loha@classifier/plain", "opt/plain")


def results(*others: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A journal: gpt2 asked whole except what PEFT cannot build, OPT in part, a method whole."""
    passed = {stage: ["pass", ""] for stage in ("check", "compat", "weights", "smoke")}
    honest: dict[str, Any] = {"honest": True, "answer": {"why": "", "message": ""}, "said": passed}
    for values in (
        {"id": "gpt2/plain/honest", **honest},
        {"id": "gpt2/plain/lost", **honest, "honest": False, "answer": {"why": "missing", "message": "one"}},
        {"whole": "gpt2/plain"}, {"unmade": ["gpt2/dora", "PEFT", "ValueError: no DoRA"]},
        {"id": "opt/plain/honest", **honest},
        {"id": "loha@classifier/plain/honest", **honest, "said": {"check": ["fail", "x"]}},
        {"whole": "loha@classifier/plain"}, *others,
    ):  # fmt: skip
        yield {"commit": "abc", "libraries": "peft 1", **values}


def test_a_run_replaces_its_lines_and_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.truth import summary

    for name in ("ANSWERS", "PAGE"):
        monkeypatch.setattr(summary, name, tmp_path / name)
    gpt2, loha = summary.lines_of(results(), GROUPS)
    summary.write([gpt2], ["gpt2", "opt"])
    opt = summary.Line("opt", unbuilt=[["opt/default", "PEFT", "ValueError: no targets"]])
    summary.write([loha, opt], [])
    assert summary.read() == {"gpt2": gpt2, "loha@classifier": loha, "opt": opt}
    page = summary.PAGE.read_text()
    assert "3 cases of 1 methods and 1\narchitectures" in page
    assert "| check | 1 | 1 | 0 | – | 0 |" in page
    assert "| architectures | 1 of 2 | 2 |" in page
    assert "- `gpt2/plain/lost`: smoke" in page


def test_the_page_is_that_of_the_committed_summary() -> None:
    from tests.truth import summary

    lines = [line for _, line in sorted(summary.read().items())]
    assert summary.PAGE.read_text() == summary.page(lines)
