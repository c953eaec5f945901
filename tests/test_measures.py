"""Limits of a few figures of `make facts`: imports without cycles or arrows back, no vague names."""

from __future__ import annotations

import ast

from tests import import_table, measures, vocabulary

SOURCES = {name: text for name, text in import_table.sources().items() if not name.startswith("migrations")}


def test_imports_have_no_cycle_and_no_arrow_back() -> None:
    graph = import_table.graph(SOURCES)
    assert (measures.cycles(graph), measures.arrows_back(graph)) == ([], [])


def test_no_name_is_vague() -> None:
    vague = {name: list(vocabulary.vague_names(ast.parse(source))) for name, source in SOURCES.items()}
    assert {name: words for name, words in vague.items() if words} == {}


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
