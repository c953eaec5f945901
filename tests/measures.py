"""Figures about the code: sizes, import cycles, vague words. Only the standard library.

`make facts` prints them as one line of JSON. Unless a name says otherwise they are about `registry/` and `cli/`.

- A cycle is a set of modules that import each other, directly or over others.
- Arrows are the imports between the files and folders directly in one folder. An arrow runs back when it lies on a
  cycle of that graph, or when it leads from a layer of `LAYERS` to a higher one.
- A function is measured from `def` to its last line; nested functions count as functions too.

Example
    $ make facts | jq .vague_names
"""

from __future__ import annotations

import ast
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests import import_table, vocabulary

LAYERS = (("domain",), ("client",), ("sdk", "serving", "worker", "server"), ("training", "routes", "app"), ("cli",))
"""Kinds of tests/import_table.py from the bottom up."""


def facts(root: Path) -> dict[str, Any]:
    """All figures, by the name that `make facts` prints."""
    paths = {name: path for name, path in import_table.modules().items() if not name.startswith("migrations")}
    sources = {name: path.read_text() for name, path in paths.items()}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    lengths = {path: len(sources[name].splitlines()) for name, path in paths.items()}
    functions = [length for tree in trees.values() for length in function_lengths(tree)]
    graph = import_table.graph(sources)
    code = [line for source in sources.values() for line in code_lines(source)]
    return {
        "files": len(paths),
        "lines": sum(lengths.values()),
        "code_lines": len(code),
        "code_line_mean": round(statistics.mean(map(len, code)), 1),
        "test_lines": sum(path.read_text().count("\n") for path in (root / "tests").rglob("*.py")),
        "file_lines_median": statistics.median_low(lengths.values()),
        "file_lines_max": max(lengths.values()),
        "function_lines_median": statistics.median_low(functions),
        "function_lines_mean": round(statistics.mean(functions), 1),
        "function_lines_max": max(functions),
        "cycles": len(cycles(graph)),
        "arrows_back": len(arrows_back(graph)),
        "vague_names": sum(len(vocabulary.vague_names(tree)) for tree in trees.values()),
    }


def function_lengths(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def code_lines(source: str) -> Iterator[str]:
    """The lines without indentation that hold code: no blank lines, comments, docstrings or imports."""
    tree = ast.parse(source)
    omitted: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)  # a docstring, or `...`
        ):
            omitted.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for number, line in enumerate(source.splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#") and number not in omitted:
            yield text


# ------------------------------------------------------------------ imports
def cycles(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """The strongly connected components with more than one member."""
    rest = {node: set(targets) - {node} for node, targets in graph.items()}
    while ends := {node for node, targets in rest.items() if not targets & rest.keys()}:
        rest = {node: targets - ends for node, targets in rest.items() if node not in ends}
    reachable = {node: _reachable(rest, node) for node in rest}
    components = {frozenset(other for other in reachable[node] if node in reachable[other]) for node in rest}
    return [set(component) for component in sorted(components, key=sorted) if len(component) > 1]


def _reachable(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    visited: set[str] = set()
    pending = list(graph[start])
    while pending:
        node = pending.pop()
        if node not in visited:
            visited.add(node)
            pending += graph.get(node, ())
    return visited


def arrows_back(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Each arrow that runs back, as `folder: from -> to` or `from -> to`."""
    messages = []
    for folder, siblings in sorted(sibling_graphs(graph).items()):
        for component in cycles(siblings):
            arrows = ((a, b) for a in sorted(component) for b in sorted(set(siblings[a]) & component))
            messages += [f"{folder}: {a} -> {b}" for a, b in arrows]
    height = {kind: level for level, kinds in enumerate(LAYERS) for kind in kinds}
    for module in sorted(graph):
        level = height[import_table.kind_of(module)]
        messages += [
            f"{module} -> {other}" for other in sorted(graph[module]) if height[import_table.kind_of(other)] > level
        ]
    return messages


def sibling_graphs(graph: Mapping[str, Iterable[str]]) -> dict[str, dict[str, set[str]]]:
    """Folder → file or folder directly in it → those beside it that it imports."""
    graphs: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for module, targets in graph.items():
        for target in targets:
            ours, theirs = module.split("."), target.split(".")
            depth = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            if depth is not None:  # else one is the package of the other
                siblings = graphs[".".join(ours[:depth])]
                siblings[ours[depth]].add(theirs[depth])
                siblings[theirs[depth]].update()
    return graphs
