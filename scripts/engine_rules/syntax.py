"""Classes, constants and imports of a package, read from syntax trees. Nothing is imported or executed.

    library = Library(tree)
    model = library.find("vllm.model_executor.models.llama.LlamaForCausalLM")
    library.mro(model)                          its classes in Python's order, as far as the package defines them
    library.attribute(model, "embedding_modules")     a literal, or UNREADABLE

Only literals are evaluated: constants, lists, dicts, names and attributes that lead to literals, `|`, `**`, and the
comprehension that filters a dict. Imports are followed through every branch; where platforms differ, NVIDIA's counts.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from scripts.engine_rules.tree import SourceTree

DEPTH_LIMIT = 40
"""Of imports, bases and expressions that lead to each other."""
LENGTH_LIMIT = 20_000
"""Items of one evaluated list, dict or text."""
STEPS_LIMIT = 200_000
"""Expressions read for one value: names that repeat each other grow without bound."""


class _Unreadable:
    def __repr__(self) -> str:
        return "UNREADABLE"


UNREADABLE: Final = _Unreadable()
"""Instead of a value that is no literal."""
ABSENT: Final = _Unreadable()
"""Instead of an attribute that no class has."""


@dataclass(frozen=True)
class Definition:
    """A class, a function or a module-level value."""

    module: str
    name: str
    node: ast.AST = field(compare=False, repr=False)

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)


@dataclass
class _Module:
    name: str
    is_package: bool
    definitions: dict[str, ast.AST] = field(default_factory=dict)
    imports: dict[str, list[str]] = field(default_factory=dict)
    """Local name → dotted paths it may stand for."""


class Library:
    """All modules of a tree, parsed when they are asked for. `unreadable` names the files that could not be parsed."""

    def __init__(self, tree: SourceTree) -> None:
        self.unreadable: set[str] = set()
        self._tree = tree
        self._modules: dict[str, _Module | None] = {}
        self._resolved: dict[tuple[str, str], Definition | None] = {}
        self._orders: dict[Definition, list[Definition]] = {}
        self._assigned: dict[Definition, dict[str, ast.AST]] = {}
        self._steps = 0

    # ------------------------------------------------------------ modules and names
    def find(self, path: str) -> Definition | None:
        """What a dotted path from outside names."""
        module, _, name = path.rpartition(".")
        return self.resolve(module, name) if module else None

    def modules(self, package: str) -> list[str]:
        """The modules directly in a package, sorted."""
        folder = package.replace(".", "/") + "/"
        files = (name.removeprefix(folder) for name in self._tree.names() if name.startswith(folder))
        return [f"{package}.{file.removesuffix('.py')}" for file in files if "/" not in file and file != "__init__.py"]

    def definitions(self, module: str) -> dict[str, ast.AST]:
        """What a module defines at its top level."""
        parsed = self._module(module)
        return parsed.definitions if parsed else {}

    def resolve(self, module: str, dotted: str, depth: int = 0) -> Definition | None:
        """What a name, or a dotted name, means inside a module; None if the package does not define it."""
        key = (module, dotted)
        if key not in self._resolved:
            self._resolved[key] = None  # imports that lead back here find nothing
            self._resolved[key] = self._resolve(module, dotted, depth) if depth < DEPTH_LIMIT else None
        return self._resolved[key]

    def _resolve(self, module: str, dotted: str, depth: int) -> Definition | None:
        parsed = self._module(module)
        if parsed is None:
            return None
        first, _, rest = dotted.partition(".")
        if not rest and first in parsed.definitions:
            return Definition(module, first, parsed.definitions[first])
        for target in sorted(parsed.imports.get(first, ()), key=lambda path: ".nvidia" not in path):
            whole = f"{target}.{rest}" if rest else target
            inner, _, name = whole.rpartition(".")
            while inner:  # the longest part that is a module
                if self._module(inner) is not None:
                    if definition := self.resolve(inner, name, depth + 1):
                        return definition
                    break
                inner, _, more = inner.rpartition(".")
                name = f"{more}.{name}"
        return None

    def _module(self, name: str) -> _Module | None:
        if name not in self._modules:
            self._modules[name] = self._parse(name)
        return self._modules[name]

    def _parse(self, name: str) -> _Module | None:
        path = name.replace(".", "/")
        for file, is_package in ((f"{path}.py", False), (f"{path}/__init__.py", True)):
            text = self._tree.read(file)
            if text is None:
                continue
            try:
                parsed = ast.parse(text)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                self.unreadable.add(file)
                return None
            module = _Module(name, is_package)
            _collect(parsed.body, module)
            for node in ast.walk(parsed):
                _collect_import(node, module)
            return module
        return None

    # ------------------------------------------------------------ classes
    def mro(self, definition: Definition, depth: int = 0) -> list[Definition]:
        """The class and its bases, each once, in Python's order; bases outside the package are left out."""
        if definition not in self._orders:
            self._orders[definition] = [definition]  # a class that inherits itself
            bases = [base for base in self.bases(definition) if base != definition and depth < DEPTH_LIMIT]
            chains = [list(self.mro(base, depth + 1)) for base in bases]
            self._orders[definition] = [definition, *_merged([*chains, list(bases)])]
        return self._orders[definition]

    def bases(self, definition: Definition) -> list[Definition]:
        nodes = definition.node.bases if isinstance(definition.node, ast.ClassDef) else []
        named = (self.resolve(definition.module, name) for node in nodes if (name := dotted_name(_unsubscripted(node))))
        return [base for base in named if base is not None and base.is_class]

    def inherits(self, definition: Definition, outside: str) -> bool:
        """Whether some class of the order names this base, which the package need not define (`Module`)."""
        return any(
            dotted_name(_unsubscripted(node)).rpartition(".")[2] == outside
            for cls in self.mro(definition)
            if isinstance(cls.node, ast.ClassDef)
            for node in cls.node.bases
        )

    def attribute(self, definition: Definition, name: str, depth: int = 0) -> Any:
        """The value that the class, or the nearest of its bases, assigns; ABSENT, or UNREADABLE."""
        for cls in self.mro(definition):
            if (expression := self._expression(cls, name)) is not None:
                return self.evaluate(expression, cls.module, depth + 1, cls)
        return ABSENT

    def _expression(self, cls: Definition, name: str) -> ast.AST | None:
        if cls not in self._assigned:
            self._assigned[cls] = _assigned_names(cls)
        return self._assigned[cls].get(name)

    # ------------------------------------------------------------ literals
    def evaluate(self, node: ast.AST, module: str, depth: int = 0, cls: Definition | None = None) -> Any:
        """The literal that an expression means in a module (and in a class's body), or UNREADABLE."""
        self._steps = self._steps + 1 if depth > 1 else 0
        if depth > DEPTH_LIMIT or self._steps > STEPS_LIMIT:
            return UNREADABLE
        match node:
            case ast.Constant():
                return node.value
            case ast.List() | ast.Tuple() | ast.Set():
                return self._sequence(node, module, depth, cls)
            case ast.Dict():
                return self._dict(node, module, depth, cls)
            case ast.DictComp():
                return self._filtered(node, module, depth, cls)
            case ast.BinOp(op=ast.BitOr() | ast.Add()):
                return _joined(*(self.evaluate(side, module, depth + 1, cls) for side in (node.left, node.right)))
            case ast.Name() | ast.Attribute():
                return self._named(node, module, depth, cls)
            case ast.Call(args=[], func=func):
                fields = {k.arg: self.evaluate(k.value, module, depth + 1, cls) for k in node.keywords if k.arg}
                return Call(dotted_name(func).rpartition(".")[2], fields)
            case ast.Subscript():  # Literal[1, 8, 16]
                return self.evaluate(node.slice, module, depth + 1, cls)
            case _:
                return UNREADABLE

    def _sequence(self, node: ast.List | ast.Tuple | ast.Set, module: str, depth: int, cls: Definition | None) -> Any:
        values: list[Any] = []
        for item in node.elts[:LENGTH_LIMIT]:
            inner = item.value if isinstance(item, ast.Starred) else item
            value = self.evaluate(inner, module, depth + 1, cls)
            if isinstance(item, ast.Starred):
                if not isinstance(value, list | dict):
                    return UNREADABLE
                values.extend(value)
            else:
                values.append(value)
        return UNREADABLE if any(value is UNREADABLE for value in values) else values[:LENGTH_LIMIT]

    def _dict(self, node: ast.Dict, module: str, depth: int, cls: Definition | None) -> Any:
        values: dict[Any, Any] = {}
        for key, item in zip(node.keys[:LENGTH_LIMIT], node.values, strict=False):
            value = self.evaluate(item, module, depth + 1, cls)
            if key is None:
                if not isinstance(value, dict):
                    return UNREADABLE
                values |= value
                continue
            name = self.evaluate(key, module, depth + 1, cls)
            if isinstance(name, str | int | bool):  # other keys (patterns) are left out
                values[name] = value
        return values if len(values) <= LENGTH_LIMIT else UNREADABLE

    def _filtered(self, node: ast.DictComp, module: str, depth: int, cls: Definition | None) -> Any:
        """`{k: (a, b) for k, (a, b) in TABLE.items() if b == "…"}`: the rows of a table that hold a value."""
        (loop, *others) = node.generators
        if others or not isinstance(loop.iter, ast.Call) or not isinstance(loop.iter.func, ast.Attribute):
            return UNREADABLE
        table = self.evaluate(loop.iter.func.value, module, depth + 1, cls)
        if loop.iter.func.attr != "items" or not isinstance(table, dict):
            return UNREADABLE
        constants = [n.value for test in loop.ifs for n in ast.walk(test) if isinstance(n, ast.Constant)]
        return {k: row for k, row in table.items() if isinstance(row, list) and all(c in row for c in constants)}

    def _named(self, node: ast.Name | ast.Attribute, module: str, depth: int, cls: Definition | None) -> Any:
        name = dotted_name(node)
        if cls is not None and "." not in name and (expression := self._expression(cls, name)) is not None:
            return self.evaluate(expression, cls.module, depth + 1, cls)
        definition = self.resolve(module, name)
        if definition is None and "." in name:
            owner, _, attribute = name.rpartition(".")
            holder = self.resolve(module, owner)
            value = self.attribute(holder, attribute, depth + 1) if holder and holder.is_class else UNREADABLE
            return UNREADABLE if value is ABSENT else value
        if definition is None or isinstance(definition.node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            return UNREADABLE
        return self.evaluate(definition.node, definition.module, depth + 1)


@dataclass(frozen=True)
class Call:
    """A call with keywords only, as a value: `WeightsMapper(orig_to_new_prefix={…})`."""

    name: str
    fields: dict[str, Any]


def _assigned_names(cls: Definition) -> dict[str, ast.AST]:
    """Name → the expression that the class's own body assigns last, or else its methods on `self`."""
    names: dict[str, ast.AST] = {}
    for node in ast.walk(cls.node) if isinstance(cls.node, ast.ClassDef) else ():
        for target, value in _assignments(node):
            if (name := dotted_name(target)).startswith("self."):
                names[name.removeprefix("self.")] = value
    for statement in cls.node.body if isinstance(cls.node, ast.ClassDef) else ():
        names |= {target.id: value for target, value in _assignments(statement) if isinstance(target, ast.Name)}
    return names


def _assignments(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        yield node.target, node.value


def dotted_name(node: ast.AST) -> str:
    """`a.b.c` of a name or of attributes of a name; "" of anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _unsubscripted(node: ast.AST) -> ast.AST:
    return node.value if isinstance(node, ast.Subscript) else node


def _collect(body: list[ast.stmt], module: _Module) -> None:
    """Definitions at the top level and in its `if` and `try`; the first of a name counts."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            module.definitions.setdefault(statement.name, statement)
        for target, value in _assignments(statement):
            if isinstance(target, ast.Name):
                module.definitions.setdefault(target.id, value)
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(statement, ast.If | ast.Try | ast.With):
                _collect(getattr(statement, inner, []), module)


def _collect_import(node: ast.AST, module: _Module) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            local = alias.asname or alias.name.partition(".")[0]
            module.imports.setdefault(local, []).append(alias.name if alias.asname else local)
    elif isinstance(node, ast.ImportFrom):
        parts = module.name.split(".")
        if node.level:
            parts = parts[: len(parts) - node.level + (1 if module.is_package else 0)]
        start = ".".join([*(parts if node.level else []), *([node.module] if node.module else [])])
        for alias in node.names:
            module.imports.setdefault(alias.asname or alias.name, []).append(f"{start}.{alias.name}")


def _merged(chains: list[list[Definition]]) -> list[Definition]:
    """Python's merge of the bases' orders (C3); where that has no answer, the first base goes on."""
    order: list[Definition] = []
    chains = [chain for chain in chains if chain]
    while chains:
        heads = [chain[0] for chain in chains]
        head = next((h for h in heads if not any(h in chain[1:] for chain in chains)), heads[0])
        order.append(head)
        chains = [rest for chain in chains if (rest := [d for d in chain if d != head])]
    return order


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, Call) and isinstance(second, Call):
        names = {*first.fields, *second.fields}
        return Call(first.name, {n: _joined(first.fields.get(n, {}), second.fields.get(n, {})) for n in names})
    if isinstance(first, dict) and isinstance(second, dict):
        joined: Any = first | second
    elif (isinstance(first, list) and isinstance(second, list)) or (isinstance(first, str) and isinstance(second, str)):
        joined = first + second  # type: ignore[operator]
    else:
        return UNREADABLE
    return joined if len(joined) <= LENGTH_LIMIT else UNREADABLE
