"""Chat templates of adapters, parsed and never rendered: what could load files, escape a sandbox or exhaust a parser.

A consumer renders a template in Jinja's sandbox at best. A template needs no other template, no attribute that begins
with an underscore, and no attribute access through `attr` or `format`, so each of these is refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from registry.adapters.companions import check_json
from registry.errors import Invalid
from registry.findings import Finding
from registry.versions.files import CHAT_TEMPLATE, TEMPLATE_FILES, Read

LENGTH_LIMIT = 64 * 2**10
TOTAL_LIMIT = 256 * 2**10
"""Characters of all templates of a version: parsing 64 Ki of them takes up to a second."""
DEPTH_LIMIT = 100
NODES_LIMIT = 10_000
TEMPLATES_LIMIT = 32
_FROM_ELSEWHERE = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_BY_NAME = frozenset({"attr", "format", "format_map"})
"""Filters and methods of text that read attributes by name."""
_ATTRIBUTE_AT = {"map": 0, "selectattr": 0, "rejectattr": 0, "groupby": 0, "sum": 0, "unique": 1, "min": 1, "max": 1,
                 "join": 1, "sort": 2}  # fmt: skip
"""Filter → the position of the argument that names an attribute (of `map`, also a filter)."""


class _Generation(Extension):
    """`{% generation %}`: transformers marks with it what the assistant says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements up to `endgeneration`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_ENVIRONMENT = Environment(extensions=[loopcontrols, _Generation])  # noqa: S701 - nothing is rendered


def check_templates(sizes: Mapping[str, int], read: Read) -> None:
    """Refuse unsafe templates among these files (path → size). `Invalid` (CONFIG_INVALID) names file and rule."""
    total = 0
    for path, size_bytes in sizes.items():
        name = path.rpartition("/")[2]
        if name in TEMPLATE_FILES:
            for location, text in templates_in(path, name, read(path, 0, size_bytes)):
                total += len(text)
                if total > TOTAL_LIMIT:
                    rule = f"all templates of a version have at most {TOTAL_LIMIT} characters"
                    _refuse("template.too_large", location, f"is too large: {rule}")
                check_template(location, text)


def check_template(location: str, text: str) -> None:
    """Refuse one template. `Invalid` (CONFIG_INVALID) says which rule it breaks."""
    if len(text) > LENGTH_LIMIT:
        _refuse("template.too_large", location, f"has {len(text)} characters; the limit is {LENGTH_LIMIT}")
    try:
        tree = _ENVIRONMENT.parse(text)
    except TemplateSyntaxError as e:
        _refuse("template.invalid", location, f"is not a Jinja template: {str(e.message)[:200]} (line {e.lineno})")
    except (RecursionError, ValueError, OverflowError):
        _refuse("template.too_deep", location, "is not a Jinja template that can be parsed: it nests too deeply")
    waiting: list[tuple[nodes.Node, int]] = [(tree, 0)]
    count = 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > DEPTH_LIMIT or count > NODES_LIMIT:
            rule = f"the limits are {DEPTH_LIMIT} levels and {NODES_LIMIT} expressions"
            _refuse("template.too_deep", location, f"is too complex: {rule}")
        if problem := _problem(node):
            _refuse("template.unsafe", location, f"{problem} (line {node.lineno})")
        waiting += [(child, depth + 1) for child in node.iter_child_nodes()]


def templates_in(path: str, name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """The templates in one file, each with its location. `Invalid` (CONFIG_INVALID) if it is malformed."""
    if name == CHAT_TEMPLATE:
        try:
            yield path, data.decode()
        except UnicodeDecodeError:
            _refuse("template.invalid", path, "is not UTF-8 text")
        return
    value: Any = check_json(path, data).get("chat_template")
    location = f"{path}: chat_template"
    if isinstance(value, list):
        if not all(isinstance(item, dict) and set(item) == {"name", "template"} for item in value):
            _refuse("template.invalid", location, "must be text, or a list of objects of name and template")
        texts = [item["template"] for item in value]
    else:
        texts = [] if value is None else list(value.values()) if isinstance(value, dict) else [value]
    if len(texts) > TEMPLATES_LIMIT or not all(isinstance(text, str) for text in texts):
        _refuse("template.invalid", location, f"must be text, or at most {TEMPLATES_LIMIT} named texts")
    yield from ((location, text) for text in texts)


def _problem(node: nodes.Node) -> str:
    """The rule that a node breaks by itself; empty without one."""
    if isinstance(node, _FROM_ELSEWHERE):
        return f"loads another template with {type(node).__name__.lower()}"
    if isinstance(node, nodes.Getattr):
        return _problem_with_name(node.attr)
    if isinstance(node, nodes.Getitem):
        return _problem_with_name(node.arg.value) if isinstance(node.arg, nodes.Const) else ""
    if not isinstance(node, nodes.Filter):
        return ""
    if node.name in _BY_NAME:
        return f"uses the filter {node.name!r}, which reads attributes by name"
    for argument in _attributes_of(node):
        if not isinstance(argument, nodes.Const):
            return f"gives the filter {node.name!r} an attribute that is not constant"
        if problem := next(filter(None, map(_problem_with_name, str(argument.value).split("."))), ""):
            return problem
    return ""


def _attributes_of(node: nodes.Filter) -> list[nodes.Expr]:
    """The arguments by which a filter reads attributes of the values that it filters."""
    position = _ATTRIBUTE_AT.get(node.name)
    if position is None:
        return []
    spread = [argument for argument in (node.dyn_args, node.dyn_kwargs) if argument is not None]
    keyword_arguments = [pair.value for pair in node.kwargs if pair.key in ("attribute", "filter")]
    return [*node.args[position : position + 1], *keyword_arguments, *spread]


def _problem_with_name(name: object) -> str:
    if isinstance(name, str) and name.startswith("_"):
        return f"reads the attribute {name[:60]!r}, which begins with an underscore"
    return f"uses {name!r}, which reads attributes by name" if name in _BY_NAME else ""


def _refuse(code: str, location: str, message: str) -> NoReturn:
    raise Invalid.from_finding("CONFIG_INVALID", Finding(code, location, message))
