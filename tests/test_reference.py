"""The reference pages are what the code says, and nothing that the code offers is missing in them.

`make reference` writes the pages anew.
"""

from __future__ import annotations

import ast
import re
from typing import get_args

import click
import pytest

from cli import main
from registry import errors
from registry.events import EventType
from registry.findings import Severity
from registry.server import app
from scripts import reference
from scripts.reference import cli, findings, rest, settings
from scripts.reference import errors as error_page
from tests import import_table


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_reference_page_is_what_the_code_says(name: str) -> None:
    assert (reference.FOLDER / name).read_text() == reference.PAGES[name](), "run `make reference`"


def test_every_page_of_the_folder_is_generated() -> None:
    assert {path.name for path in reference.FOLDER.iterdir()} == set(reference.PAGES)


def test_every_command_and_option_has_a_help_text() -> None:
    silent = []
    for name, command in cli.commands("adapter", main.main):
        if not command.help:
            silent.append(name)
        options = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
        silent += [f"{name} {option.opts[0]}" for option in options if not option.help]
    assert silent == []


def test_every_error_code_has_a_meaning_and_a_next_step() -> None:
    kinds: tuple[type[errors.RegistryError], ...] = (errors.RegistryError, *errors.CLASSES)
    codes = {code for kind in kinds for code in kind.CODES}
    assert set(error_page.rows()) == codes
    assert [code for code, row in error_page.rows().items() if not (row["means"] and row["fix"])] == []


def test_every_variable_that_the_code_reads_is_documented_and_every_documented_one_is_read() -> None:
    texts = "\n".join(import_table.sources().values())
    codes = {code for kind in errors.CLASSES for code in kind.CODES}
    read = {
        node.value
        for source in import_table.sources().values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"(?:ADAPTER|REGISTRY)_[A-Z0-9_]*[A-Z0-9]", node.value)
    } - codes
    client = {name for group in settings.client().values() for name in group}
    server = {name for name, _, _ in settings.server()}
    assert read - client - server == set()
    assert {name for name in client if name not in texts} == set()


OTHER_NAMES = {"reach", "append"}  # functions whose first words are failpoints and events


def test_every_route_of_the_server_is_on_the_page() -> None:
    text = rest.markdown()
    routes = {f"{method} {path.replace(':path}', '}')}" for method, path in app.declared_scopes() if method != "HEAD"}
    assert {route for route in routes if f"{route}\n" not in text and f"{route}`" not in text} == {
        "GET /docs",
        "GET /openapi.json",
    }


def finding_codes() -> set[str]:
    """Every dotted code that the code writes down, except events, failpoints, columns and file names."""
    families = "|".join(findings.groups())
    codes: set[str] = set()
    others = {*EventType, "audit.key"}
    for module, source in import_table.sources().items():
        if module.startswith(("migrations", "registry.server.database.models", "registry.api.operations")):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in OTHER_NAMES:
                others |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(rf"({families})\.[a-z_]+", text):
                codes.add(text)
    return {code for code in codes - others if not code.endswith((".json", ".py", ".html"))}


def test_every_finding_code_has_a_meaning() -> None:
    assert finding_codes() - findings.codes() == set()


def test_every_documented_finding_code_is_one_of_the_code() -> None:
    """Written whole, or put together from its parts."""
    texts = "\n".join(import_table.sources().values())
    for code in sorted(findings.codes() - finding_codes()):
        name = code.split(".")[1]
        assert f'"{name}"' in texts or all(f'"{part}"' in texts for part in name.split("_")), code


def test_every_finding_of_a_verdict_has_the_severity_of_its_row() -> None:
    """Only `report` of the check `compat` may name another one, for a case that differs."""
    rows = {
        f"{family}.{code}": row["severity"].split(" or ")
        for family in ("compat", "format", "lora", "weights", "smoke")
        for code, row in findings.groups()[family]["codes"].items()
    }
    assert {severity for severities in rows.values() for severity in severities} == {*get_args(Severity)}
    different = [
        f"{module}:{node.lineno} {severity}"
        for module, source in import_table.sources().items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        for words in [[a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]]
        for code in words if code in rows
        for severity in {node.func.attr, *words} & {*get_args(Severity)}
        if severity not in rows[code]
    ]  # fmt: skip
    assert different == []
