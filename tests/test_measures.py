"""The figures of `make facts` only get better: each limit is what the code reached, and is lowered with it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests import import_table, measures, vocabulary
from tests.import_table import ROOT

LIMITS = {
    "lines": 77_564,
    "files_in_a_folder_max": 31,
    "file_lines_max": 500,
    "function_lines_max": 60,
    "cycles": 0,
    "arrows_back": 0,
    "vague_names": 0,
    "vague_names_in_loops": 1,
    "vague_names_in_tests": 1,
    "metaphors": 51,
    "repeated_blocks": 0,
    "undocumented_public_functions": 0,
}
"""Lower a limit when a change lowers its figure. `make facts ARGS=NAME` lists where a figure comes from."""


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """From a process of its own: other tests change the recursion limit, and Python 3.11's parser fails on that."""
    done = subprocess.run([sys.executable, "-m", "scripts.facts"], cwd=ROOT, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.mark.parametrize("name", LIMITS)
def test_a_figure_stays_within_its_limit(name: str, facts: dict[str, Any]) -> None:
    assert facts[name] <= LIMITS[name], f"make facts ARGS={name} lists where it comes from"


def test_vague_names_are_counted_in_assignments_and_parameters() -> None:
    tree = ast.parse("def f(told, *, asked=1):\n    found: int = 1\n    with a as left:\n        self.seen = found")
    assert {name for _, name in vocabulary.vague_names(tree)} == {"told", "asked", "found", "left", "seen"}


def test_vague_names_of_loops_are_counted_apart() -> None:
    tree = ast.parse("for one in x:\n    found = 1\n    def f(told): ...\nelse:\n    left = [got for got in x]")
    assert vocabulary.vague_names(tree) == [(3, "told"), (5, "left")]
    assert vocabulary.vague_names(tree, in_loops=True) == [(1, "one"), (2, "found"), (5, "got")]


def test_metaphors_are_found_in_identifiers_and_prose_as_whole_words() -> None:
    text = 'ShelfReader = my_shelf  # the next room\nLANE = "choice of space, plane, warehouse"'
    assert vocabulary.metaphors(text) == [(1, "shelf"), (1, "shelf"), (1, "room"), (2, "lane")]
    assert vocabulary.metaphors('<svg viewBox="0 0 8 8">a box') == [(1, "box")], (
        "the attribute of SVG has no other name"
    )
    assert vocabulary.metaphors("viewBox = my_viewBox") == [(1, "box"), (1, "box")]


def test_a_folder_has_at_most_twelve_modules_but_the_one_with_a_module_for_each_noun() -> None:
    paths = [path for name, path in import_table.modules().items() if not name.startswith("migrations")]
    counts = {str(folder.relative_to(ROOT)): count for folder, count in measures.files_by_folder(paths).items()}
    assert {folder for folder, count in counts.items() if count > 12} == {"cli"}


def test_the_server_has_a_handful_of_modules_beside_its_packages() -> None:
    alone = {name for name in import_table.modules() if re.fullmatch(r"registry\.server\.\w+", name)}
    packages = {name.rpartition(".")[0] for name in import_table.modules()}
    assert len(alone - packages) <= 5


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


def test_repeated_lines_are_found_without_blanks_comments_and_imports() -> None:
    block = [f"x{i} = {i}" for i in range(measures.REPEATED_LINES)]
    sources = {
        "a": "\n".join(block),
        "b": "import os\ny = 1\n" + "\n\n# why\n".join(block) + "\nx = 2",
        "c": "x = 1\n" * 20,
    }
    assert measures.repetitions(sources) == [("b", 3, "a", 1)]
    assert measures.repetitions({"a": "\n".join(block[1:]), "b": "\n".join(block[1:])}) == []


def test_public_functions_without_a_docstring_are_found() -> None:
    public = 'def f(): ...\ndef h():\n    "Doc."\nclass C:\n    def m(self): ...\n'
    tree = ast.parse(public + "def _g(): ...\nclass _D:\n    def n(self): ...")
    assert measures.undocumented(tree) == ["f", "m"]
