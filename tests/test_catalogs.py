"""One catalogue each: what it lists is used, and nothing outside it repeats its values."""

from __future__ import annotations

import json
import re

from registry.engines import rulebook
from registry.events import EventType
from registry.roles import SCOPES_OF_ROLE, Role, Scope
from tests import import_table


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


def test_the_examined_version_of_peft_stands_in_its_rules_alone() -> None:
    examined = rulebook.engine("peft").examined[-1]
    fields = json.loads((import_table.ROOT / "registry/adapters/peft/fields.json").read_text())
    assert fields["peft"] == examined
    assert [module for module, source in import_table.sources().items() if examined in source] == []
