"""One catalogue each: what it lists is used, and nothing outside it repeats its values."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator

from registry.adapters.methods import METHODS
from registry.engines import rulebook
from registry.events import EventType
from registry.roles import SCOPES_OF_ROLE, Role, Scope
from tests import import_table


def constants(*, outside: str) -> Iterator[tuple[str, str]]:
    """(module, text) of every string constant in the code, without one module and the migrations."""
    for module, source in import_table.sources().items():
        if module != outside and not module.startswith("migrations"):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield module, node.value


def test_class_names_are_unique_but_for_private_ones() -> None:
    modules_of: defaultdict[str, list[str]] = defaultdict(list)
    for module, source in import_table.sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules_of[node.name].append(module)
    assert {name: modules for name, modules in modules_of.items() if len(modules) > 1} == {}


def test_event_types_stand_in_their_catalog_alone() -> None:
    literals = [(module, text) for module, text in constants(outside="registry.events") if text in set(EventType)]
    assert literals == []


def test_every_event_type_is_written_by_the_server() -> None:
    server = "\n".join(
        source for module, source in import_table.sources().items() if module.startswith("registry.server")
    )
    assert [member.name for member in EventType if f"EventType.{member.name}" not in server] == []


def test_the_name_of_an_event_type_follows_from_its_value_and_its_message_takes_its_object() -> None:
    for member in EventType:
        assert re.fullmatch(r"[a-z]+\.[a-z_]+", member)
        assert member.name == member.upper().replace(".", "_")


def test_the_page_about_access_has_every_scope_and_the_scopes_of_every_role() -> None:
    page = (import_table.ROOT / "docs" / "access.md").read_text()
    assert [scope for scope in Scope if f"`{scope}`" not in page] == []
    for role, scopes in SCOPES_OF_ROLE.items():
        allowed = "everything in the namespace" if role is Role.OWNER else ", ".join(s for s in Scope if s in scopes)
        assert f"| `{role}` | {allowed} |" in page


def test_lists_of_peft_methods_stand_in_their_table_alone() -> None:
    lists = []
    for module, source in import_table.sources().items():
        if module != "registry.adapters.methods" and not module.startswith("migrations"):
            for node in ast.walk(ast.parse(source)):
                items = node.elts if isinstance(node, ast.Set | ast.List | ast.Tuple) else []
                names = [item.value for item in items if isinstance(item, ast.Constant) and item.value in METHODS]
                lists += [(module, names)] if len(names) > 2 else []
    assert lists == []


def test_the_examined_version_of_peft_stands_in_its_rules_alone() -> None:
    examined = rulebook.engine("peft").examined[-1]
    fields = json.loads((import_table.ROOT / "registry/adapters/peft/fields.json").read_text())
    assert fields["peft"] == examined
    assert [module for module, source in import_table.sources().items() if examined in source] == []
