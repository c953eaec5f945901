"""What the code has, the pages name: commands, options, settings, codes, routes, rooms and words.

Everything is read from the code itself, so a new thing without a line in docs/ turns a test red.
"""

from __future__ import annotations

import ast
import datetime
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from cli import main as door
from cli import output
from cli.audit import STORY
from registry import errors
from registry.server import app as server_app
from registry.server.settings import Settings
from tests import import_table
from tests.import_table import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"(?<!\!)\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")
WORDS = """
Adapter, Version, Ref, Alias, Channel, Gate, Yank, Base, BaseSpec, LoraSpec, Blob, Digest, Descriptor, Manifest, Edge,
Relation, Check, Finding, Verdict, Report, Attestation, Job, Kind, Lease, Attempt, Recipe, Event, Checkpoint, Actor,
Token, Scope, Namespace
"""


def page(name: str) -> str:
    return (ROOT / name).read_text()


def missing(names: set[str], text: str) -> list[str]:
    """Names that the page does not hold as `code`, at the start of code, or as a **word**."""
    written = set(re.findall(r"\*\*([^*]+)\*\*", text))
    for code in re.findall(r"`([^`\n]+)`", text):
        written |= {code, code.split("=")[0], *code.split(" ")}
    return sorted(names - written)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command of `adapter` with its full name, groups opened."""
    pending: list[tuple[str, click.Command]] = [("adapter", door.main)]
    while pending:
        name, command = pending.pop()
        if isinstance(command, click.Group):
            context = click.Context(command)
            for word in command.list_commands(context):
                inner = command.get_command(context, word)
                assert inner is not None, f"{name} lists {word} and does not have it"
                pending.append((f"{name} {word}", inner))
        else:
            yield name, command


def section(text: str, heading: str) -> str:
    """The text below a heading that holds `heading` in backticks, up to the next heading."""
    found = re.search(rf"^#+ `{re.escape(heading)}(?: [^`]*)?`.*?$(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return found.group(0) if found else ""


def test_every_command_has_a_section_that_names_every_option() -> None:
    text = page("docs/cli.md")
    found = []
    for name, command in commands():
        about = section(text, name)
        if not about:
            found.append(f"{name} has no section in docs/cli.md")
            continue
        options = {o for p in command.params if isinstance(p, click.Option) and not p.hidden for o in p.opts[:1]}
        found += [f"{name}: {option} is not in its section" for option in sorted(options) if option not in about]
    assert found == []


def test_every_section_of_the_command_page_is_a_command() -> None:
    names = {name for name, _ in commands()}
    headings = re.findall(r"^#+ `(adapter [^`]+)`", page("docs/cli.md"), re.MULTILINE)
    assert headings
    assert [heading for heading in headings if not any(f"{heading} ".startswith(f"{name} ") for name in names)] == []


def test_every_setting_is_documented_with_its_default() -> None:
    rows = [line for line in page("docs/settings.md").splitlines() if line.startswith("|")]
    found = []
    for field in fields(Settings):
        variable = f"REGISTRY_{field.name.upper()}"
        row = next((line for line in rows if f"`{variable}`" in line), "")
        if not row:
            found.append(f"{variable} has no row")
        elif not isinstance(field.default, str) and str(field.default) not in row.replace(",", ""):
            found.append(f"{variable}: the row does not hold the default {field.default}")
    assert found == []


def test_every_variable_that_the_code_reads_is_documented() -> None:
    text = page("docs/settings.md")
    read = {
        node.value
        for source in import_table.sources().values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"(?:ADAPTER|REGISTRY)_[A-Z0-9_]*[A-Z0-9]", node.value)
    }
    codes = {code for kind in errors.CLASSES for code in kind.CODES}
    assert missing(read - codes, text) == []


def test_every_error_code_is_documented_with_its_status_and_exit_code() -> None:
    rows = page("docs/errors.md").splitlines()
    found = []
    for kind in errors.CLASSES:
        for code in sorted(kind.CODES):
            row = next((line for line in rows if line.startswith(f"| `{code}` ")), "")
            status = server_app.status_of(kind(code, "an example"))
            for number in (status, output.EXIT_CODES[kind]):
                if not re.search(rf"\| {number} \|", row):
                    found.append(f"{code} ({kind.__name__}) should have a row with {number}: {row!r}")
    assert found == []


def test_every_dotted_code_of_a_finding_or_a_reason_is_documented() -> None:
    families = (
        "adapter|base|blob|compat|config|file|format|gate|lora|manifest|name|provenance|safetensors|smoke|weights"
    )
    found = set()
    trees = {module: ast.parse(source) for module, source in import_table.sources().items()}
    for module, tree in trees.items():
        if module.startswith(("migrations", "registry.server.database.models")):  # columns look alike
            continue
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(rf"({families})\.[a-z_]+", text) and text not in STORY:
                found.add(text)
    assert missing({code for code in found if not code.endswith((".json", ".py"))}, page("docs/findings.md")) == []


def test_every_route_is_documented_with_its_scope() -> None:
    rows = page("docs/api.md").splitlines()
    words = {"": "any token", "open": "none"}
    found = []
    for (method, path), scope in server_app.declared_scopes().items():
        if method in ("HEAD", "OPTIONS"):
            continue
        start = f"| `{method} {path.replace(':path}', '}')}` | {words.get(scope or '', scope)} |"
        found += [start] if not any(row.startswith(start) for row in rows) else []
    assert found == []


def test_every_word_of_the_glossary_has_a_row_and_every_row_is_a_word_of_the_code() -> None:
    text = page("docs/glossary.md")
    rows = re.findall(r"^\| \*\*([^*]+)\*\* \|", text, re.MULTILINE)
    words = {word.strip() for row in rows for word in re.split(r"[,/]", row)}
    assert {word.strip() for word in WORDS.split(",")} - words == set()
    code = "\n".join(import_table.sources().values()).lower()
    coming = set(re.findall(r"^\| \*\*([^*]+)\*\* \|.*\(coming\)", text, re.MULTILINE))
    unused = {word for word in words if word.lower() not in code}
    assert unused <= {word.strip() for row in coming for word in re.split(r"[,/]", row)}


def test_the_tables_of_rooms_are_what_the_modules_say_of_themselves() -> None:
    text = page("ARCHITECTURE.md")
    assert text == import_table.with_rooms(text), "run scripts/rooms"


def test_every_room_that_the_architecture_names_exists() -> None:
    paths = {path.relative_to(ROOT) for path in import_table.modules().values()}
    named = set(re.findall(r"`((?:client|serving|server|worker|cli)/[a-z_0-9/]+\.py)`", page("ARCHITECTURE.md")))
    assert {name for name in named if Path(name) not in paths and Path("registry", name) not in paths} == set()


def test_the_table_of_allowed_imports_on_paper_has_a_line_for_each_row_of_the_test() -> None:
    text = page("ARCHITECTURE.md")
    assert [row.prefix for row in import_table.TABLE if f"| `{row.prefix}` |" not in text] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_between_pages_leads_somewhere(path: Path) -> None:
    targets = [link for link in LINK.findall(path.read_text()) if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in targets if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_of_the_project_that_a_page_names_exists(path: Path) -> None:
    tops = "registry|cli|tests|migrations|docs|benchmarks|demo|scripts"
    named = {found.rstrip("/") for found in re.findall(rf"`((?:{tops})/[^`\s{{<…]*)`", path.read_text())}
    assert [name for name in sorted(named) if not any(ROOT.glob(name))] == []


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    targets |= {f"bench-{path.stem.replace('_', '-')}" for path in (ROOT / "benchmarks").glob("[a-z]*.py")}
    named = {(path.name, target) for path in PAGES for target in re.findall(r"`make ([a-z-]+)", path.read_text())}
    assert {pair for pair in named if pair[1] not in targets} == set()


def test_decisions_are_numbered_without_a_gap_and_have_status_date_and_every_section() -> None:
    records = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    assert [record.name[:4] for record in records] == [f"{n:04}" for n in range(1, len(records) + 1)]
    index = page("docs/adr/README.md")
    for record in records:
        header = re.match(r"# (.+)\n\n- Status: (.+)\n- Date: (\S+)\n", record.read_text())
        assert header, f"{record.name} lacks title, status and date"
        title, status, date = header.groups()
        assert title.startswith(f"{int(record.name[:4])}. ")
        assert status.split(";")[0] in ("Proposed", "Accepted", "Superseded"), record.name
        assert datetime.date.fromisoformat(date)
        assert f"[{title.split('. ', 1)[1]}]({record.name}) | {date} |" in index
        headings = re.findall(r"^## (.+)$", record.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Alternatives", "Consequences"], record.name
