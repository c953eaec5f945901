"""Limits of a few figures of `make facts`: imports without cycles or arrows back, no vague names."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests import measures
from tests.import_table import ROOT

LIMITS = {
    "cycles": 0,
    "arrows_back": 0,
    "vague_names": 0,
}
"""`make facts ARGS=NAME` lists where a figure comes from."""


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """From a process of its own: other tests change the recursion limit, and Python 3.11's parser fails on that."""
    done = subprocess.run([sys.executable, "-m", "scripts.facts"], cwd=ROOT, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.mark.parametrize("name", LIMITS)
def test_a_figure_stays_within_its_limit(name: str, facts: dict[str, Any]) -> None:
    assert facts[name] <= LIMITS[name], f"make facts ARGS={name} lists where it comes from"


def test_cycles_are_found_and_their_tails_are_not() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set(), "c.x": {"d"}}
    assert measures.cycles(graph) == [{"b", "c"}]


def test_an_arrow_runs_back_between_folders_without_a_cycle_of_modules() -> None:
    graph = {
        "registry.a.x": {"registry.b.x"},
        "registry.b.y": {"registry.a.y"},
        "registry.b.x": set(),
        "registry.a.y": set(),
    }
    assert measures.arrows_back(graph) == ["registry: a -> b", "registry: b -> a"]
    assert measures.arrows_back({"registry.digest": {"cli.main"}, "cli.main": set()}) == ["registry.digest -> cli.main"]


def test_code_lines_leave_out_blank_lines_comments_docstrings_and_imports() -> None:
    source = '''"""Doc."""
import a
from b import (
    c,
)

# why
X = 1  # kept
"""Of X."""

def f():
    "Doc."
    return "a"
'''
    assert list(measures.code_lines(source)) == ["X = 1  # kept", "def f():", 'return "a"']
