"""Import boundaries are tests: allowed imports, no late imports, no cycles, and sizes that keep modules readable.

Planted breaches prove that each test can fail. The table itself is data in tests/import_table.py.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import import_table
from tests.import_table import ROOT

FUNCTION_LINES_LIMIT = 60
FILE_LINES_LIMIT = 500
SOURCES = import_table.sources()
KNOWN = set(SOURCES)


def test_every_import_is_one_that_the_table_allows() -> None:
    assert [
        breach for module, source in SOURCES.items() for breach in import_table.forbidden(module, source, KNOWN)
    ] == []


def test_no_import_happens_late_except_in_the_lazy_loader() -> None:
    assert [breach for module, source in SOURCES.items() for breach in import_table.late_imports(module, source)] == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("registry.compat", "import torch"),
        ("registry.compat", "from registry.server.database.models import content"),
        ("registry.compat", "from . import digest"),
        ("registry.client.registry", "from registry.server.database.models import content"),
        ("registry.server.push.commit", "import fastapi"),
        ("registry.server.push.commit", "from registry.server.routes import deps"),
        ("registry.server.push.commit", "from registry.client import registry"),
        ("registry.server.storage.blobs", "import boto3"),
        ("registry.worker.loop", "import sqlmodel"),
        ("registry.worker.loop", "from registry.server.jobs import queue"),
        ("registry.digest", "def f():\n    from cli import main"),
        ("cli.commands", "from registry.server import push"),
        ("cli.commands", "from cli import main"),
        ("cli.commands", "from .. import digest"),
        ("migrations.versions.0001_first", "from registry.server.database.models import content"),
    ],
)
def test_a_planted_breach_is_found(module: str, line: str) -> None:
    modules = KNOWN | {
        "registry.server.database.models.content",
        "registry.server.http.dependencies",
        "registry.client.registry",
        "cli.main",
    }
    modules |= {"registry.server.jobs.queue", "registry.server.push.commit"}
    assert import_table.forbidden(module, line, modules)


def test_files_of_the_command_line_import_each_other_relatively() -> None:
    assert import_table.forbidden("cli.commands", "from . import main\nfrom .main import load", KNOWN) == []
    assert ("cli.main", 1) in import_table.imports_of("cli.commands", "from . import main", KNOWN)


def test_no_check_depends_on_an_assert_outside_tests() -> None:
    asserts = [
        f"{module}:{node.lineno}"
        for module, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assert)
    ]
    assert asserts == []


def _python_files() -> list[Path]:
    folders = ("registry", "cli", "migrations", "tests", "benchmarks", "demo")
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in paths if path.parent.name != "versions"]  # one migration step is one list of tables


def test_no_function_is_longer_than_a_screen() -> None:
    long_functions = []
    for path in _python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_LIMIT:
                    long_functions.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines")
    assert long_functions == []


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in _python_files()}
    assert {path: lines for path, lines in lengths.items() if lines > FILE_LINES_LIMIT} == {}


def test_each_migration_has_the_next_number_and_follows_the_one_before() -> None:
    for number, path in enumerate(sorted((ROOT / "migrations" / "versions").glob("*.py")), 1):
        text = path.read_text()
        before = f'"{number - 1:04}"' if number > 1 else "None"
        assert path.name.startswith(f"{number:04}_")
        assert f'\nrevision = "{number:04}"\ndown_revision = {before}\n' in text, path.name
