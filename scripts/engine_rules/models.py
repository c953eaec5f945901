"""What a model's class may contain: the module classes that it makes, and the layers that they name.

A class is inside a model if some class, factory or table of the model names it where code runs. So the answer may
hold more than one instance has (a branch that a configuration never takes), and never less, except for classes that
the base's configuration chooses; `Inside.decided_by_base` says that there is one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scripts.engine_rules.syntax import Definition, Library, dotted_name

CLASSES_LIMIT = 600
"""Classes looked at inside one model."""
MODULE_BASES = ("Module", "PreTrainedModel")
"""What layers and models inherit from outside the package: torch's and transformers' classes."""
BUILDERS = ("init_vllm_registered_model", "initialize_model")
"""Functions that make the inner model of a wrapper by its architecture."""


@dataclass(frozen=True)
class Inside:
    """The model's own class and the module classes in it."""

    classes: tuple[Definition, ...]
    decided_by_base: bool


class Models:
    """Looks into models. `table`: architecture → path of its class. `packages`: where factories are followed."""

    def __init__(self, library: Library, table: Mapping[str, str], packages: tuple[str, ...]) -> None:
        self._library, self._table, self._packages = library, table, packages
        self._uses: dict[Definition, tuple[set[Definition], bool]] = {}
        self._assigned: dict[tuple[Definition, Definition], frozenset[str]] = {}

    def inside(self, model: Definition) -> Inside:
        definitions: dict[Definition, None] = {model: None}
        waiting, decided_by_base = [model], False
        while waiting and len(definitions) < CLASSES_LIMIT:
            for part in self._library.mro(waiting.pop()):
                used, by_base = self._used(part)
                decided_by_base = decided_by_base or by_base
                new = [cls for cls in sorted(used, key=lambda d: d.path) if cls not in definitions]
                definitions |= dict.fromkeys(new)
                waiting += new
        return Inside(tuple(definitions), decided_by_base)

    def layers(self, classes: tuple[Definition, ...], base: Definition) -> list[str]:
        """The attributes to which these classes assign layers of a kind (`LinearBase`), sorted."""
        return sorted(set().union(*(self._layers_of(cls, base) for cls in classes)))

    def _used(self, definition: Definition) -> tuple[set[Definition], bool]:
        """The module classes that a class, function or table names, and whether an architecture is left open."""
        if definition not in self._uses:
            self._uses[definition] = set(), False  # what leads back here adds nothing
            self._uses[definition] = self._scan(definition)
        return self._uses[definition]

    def _scan(self, definition: Definition) -> tuple[set[Definition], bool]:
        used: set[Definition] = set()
        by_base = False
        for node in _expressions(definition.node):
            if isinstance(node, ast.Call) and dotted_name(node.func) in BUILDERS:
                names = self._architectures(node, definition)
                by_base = by_base or not names
                used |= {d for n in names if n in self._table and (d := self._library.find(self._table[n]))}
            name = dotted_name(node)
            target = self._library.resolve(definition.module, name) if name and name not in BUILDERS else None
            if target is None or target == definition:
                continue
            if target.is_class:
                if any(self._library.inherits(target, base) for base in MODULE_BASES):
                    used.add(target)
            elif target.module.startswith(self._packages):  # a factory, or a table of classes
                more, open_there = self._used(target)
                used, by_base = used | more, by_base or open_there
        return used, by_base

    def _architectures(self, call: ast.Call, definition: Definition) -> list[str]:
        for keyword in call.keywords:
            if keyword.arg == "architectures":
                value = self._library.evaluate(keyword.value, definition.module)
                return [str(v) for v in value] if isinstance(value, list) else []
        return []

    def _layers_of(self, cls: Definition, base: Definition) -> frozenset[str]:
        if (cls, base) not in self._assigned:
            functions = (
                (function, part)
                for part in self._library.mro(cls)
                for function in (part.node.body if isinstance(part.node, ast.ClassDef) else ())
                if isinstance(function, ast.FunctionDef)
            )
            names = (self._layers_in(function, part, base) for function, part in functions)
            self._assigned[cls, base] = frozenset().union(*names)
        return self._assigned[cls, base]

    def _layers_in(self, function: ast.FunctionDef, cls: Definition, base: Definition) -> set[str]:
        attributes: set[str] = set()
        variables: set[str] = set()
        for node in ast.walk(function):
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign) and node.value is not None:
                targets = [node.target]
            if not targets or not self._makes(getattr(node, "value", None), cls, base, variables):
                continue
            for target in map(dotted_name, targets):
                (attributes if target.startswith("self.") else variables).add(target)
        names = (name.removeprefix("self.") for name in attributes)
        return {name for name in names if "." not in name}

    def _makes(self, value: ast.AST | None, cls: Definition, base: Definition, variables: set[str]) -> bool:
        for node in ast.walk(value) if value is not None else ():
            name = dotted_name(node)
            if name and name in variables:
                return True
            target = self._library.resolve(cls.module, name) if name else None
            if target is not None and target.is_class and base in self._library.mro(target):
                return True
        return False


def _expressions(root: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run: no annotations, no bases, no checks of a type."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call) and dotted_name(node.func) in ("isinstance", "issubclass", "cast"):
            continue
        yield node
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "bases", "decorator_list"):
                waiting += [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, ast.AST)]
