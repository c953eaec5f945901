"""Words that this project does not use, and where it still does: vague variable names and metaphors.

`make facts` prints the counts; tests/test_measures.py holds them below its limits.

Example
    >>> vague_names(ast.parse("found = 1"))
    [(1, 'found')]
    >>> metaphors("class ShelfReader: ...")
    [(1, 'shelf')]
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_VAGUE = "told found asked known wanted given kept left place sentence one made said seen got taken held mine what"
PARTICIPLES = frozenset({"shown", "written", "chosen", "named", "listed"})
"""Participles as names. They are counted in the package and not in tests."""
VAGUE = PARTICIPLES | frozenset(_VAGUE.split())
"""Names that do not say what a variable holds. Forms such as `told_before` are not counted."""

_METAPHORS = """
aftercare box boxes carrier carriers desk desks door doors dossier dossiers guest guests house houses journey
journeys judgement judgements keeper keepers kinship lane lanes likeness likenesses neighbor neighbors neighbour
neighbours nurseries nursery pace paces painter painters parcel parcels parked picture pictures pulse pulses
raster rejudge rejudged room rooms roster rosters shelf shelves station stations stories story stranger strangers
sweep sweeps swept twin twins umbrella umbrellas upkeep voice voices walls wicked
"""
METAPHORS = frozenset(_METAPHORS.split())
"""Images for things that have a word in the field. The field's own metaphors (gate, tombstone, leaf) are fine."""

PAGES = ("*.md", "mkdocs.yml", "docs/**/*.md", ".github/**/*.md", ".github/**/*.yml")
TEXTS = (*PAGES, "Makefile", "pyproject.toml", ".ci/run", "registry/**/*.html", "registry/**/*.toml", "scripts/demo")
EXEMPT = ("tests/vocabulary.py", "tests/test_measures.py")
SOURCES = tuple(f"{top}/**/*.py" for top in ("registry", "cli", "migrations", "tests", "benchmarks", "demo", "scripts"))

_SVG_ATTRIBUTE = re.compile(r'\bviewBox="')
"""The attribute by which a drawing scales: SVG has no other word for it."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def vague_names(tree: ast.Module, *, in_loops: bool = False) -> list[tuple[int, str]]:
    """(line, name) of each assigned name and parameter in `VAGUE`, outside of loops and comprehensions or inside them.

    A loop is its targets and its body; the body of a function that is defined in a loop is outside of it.
    """
    return sorted((line, name) for line, name, looped in _assigned(tree, False) if name in VAGUE and looped is in_loops)


def _assigned(node: ast.AST, looped: bool) -> Iterator[tuple[int, str, bool]]:
    if isinstance(node, ast.arg):
        yield node.lineno, node.arg, looped
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.lineno, node.id, looped
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.lineno, node.attr, looped
    for field, value in ast.iter_fields(node):
        inside = _is_looped(node, field, looped)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _assigned(child, inside)


def _is_looped(node: ast.AST, field: str, looped: bool) -> bool:
    if isinstance(node, _FUNCTIONS):
        return False
    if isinstance(node, _LOOPS):
        return looped or field in ("target", "body")
    return looped or isinstance(node, _COMPREHENSIONS)


def metaphors(text: str) -> list[tuple[int, str]]:
    """(line, word) of each word in `METAPHORS`: in code, strings, comments and prose; identifiers are split."""
    lines = enumerate(_SVG_ATTRIBUTE.sub("", text).splitlines(), 1)
    words = ((number, word.lower()) for number, line in lines for word in _WORD.findall(line))
    return [(number, word) for number, word in words if word in METAPHORS]


def texts(root: Path) -> dict[Path, str]:
    """Every file that `metaphors` must read: code, pages, templates, workflows and scripts."""
    paths = {path for pattern in (*SOURCES, *TEXTS) for path in root.glob(pattern) if path.is_file()}
    return {path.relative_to(root): path.read_text() for path in sorted(paths - {root / name for name in EXEMPT})}
