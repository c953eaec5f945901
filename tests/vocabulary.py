"""Variable names that say nothing of what they hold. tests/test_measures.py allows none of them in the package.

Example
    >>> vague_names(ast.parse("found = 1"))
    [(1, 'found')]
"""

import ast

_VAGUE = """
told found asked known wanted given kept left place sentence one made said seen got taken held mine what shown written
chosen named
"""
VAGUE = frozenset(_VAGUE.split())
"""Forms such as `told_before` are not counted."""


def vague_names(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, name) of each assigned variable, attribute and parameter in `VAGUE`."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.attr))
    return sorted((line, name) for line, name in names if name in VAGUE)
