"""One catalogue each: what it lists is used, and nothing outside it repeats its values."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from registry.events import EventType
from tests import import_table


def constants(*, outside: str) -> Iterator[tuple[str, str]]:
    """(module, text) of every string constant in the code, but those of one module."""
    for module, source in import_table.sources().items():
        if module != outside:
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield module, node.value


def test_event_types_stand_in_their_catalogue_alone() -> None:
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
