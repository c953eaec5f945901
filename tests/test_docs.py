"""The written pages are true: links, paths, commands and make targets exist, every term has a row."""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from cli import main
from registry.merging.recipes import Method
from registry.server.settings import Settings
from scripts.reference import cli as cli_page
from scripts.reference import limits
from tests import import_table
from tests.import_table import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WRITTEN = [page for page in PAGES if page.parent.name != "reference"]
LINK = re.compile(r"(?<!\!)\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")


def page(name: str) -> str:
    return (ROOT / name).read_text()


def on_pages(wrong: Callable[[str], list[str]], pages: list[Path] = PAGES) -> dict[str, list[str]]:
    """Page → what is wrong in its text, of those with something wrong."""
    found = {str(path.relative_to(ROOT)): wrong(path.read_text()) for path in pages}
    return {name: faults for name, faults in found.items() if faults}


COMMANDS = dict(cli_page.commands("adapter", main.main))


def typed_lines(text: str) -> Iterator[str]:
    """The lines of fenced and indented code that begin with `adapter`; a line that ends in \\ goes on in the next."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            typed = line.strip().removeprefix("$ ")
            if typed.startswith("adapter "):
                yield typed


def test_pages_install_from_a_checkout_as_nothing_is_published() -> None:
    lines = [line for page in WRITTEN for line in page.read_text().splitlines() if "pip install" in line]
    assert len(lines) > 5
    assert [line for line in lines if re.search(r"pip install.*\badapter-registry", line)] == []


def faults(typed: str) -> list[str]:
    """What of a typed line the command line does not know."""
    words = shlex.split(re.split(r" [|>;&]", typed)[0], comments=True)
    command = next((c for name, c in COMMANDS.items() if words[: len(name.split())] == name.split()), None)
    if command is None:
        return [f"{typed}: no such command"]
    options = {o for p in command.params if isinstance(p, click.Option) for o in [*p.opts, *p.secondary_opts]}
    return [f"{typed}: no option {w}" for w in words if w.startswith("-") and w.split("=")[0] not in options]


def test_every_command_line_on_a_page_exists_with_its_options() -> None:
    assert on_pages(lambda text: [fault for line in typed_lines(text) for fault in faults(line)], WRITTEN) == {}


def test_every_command_in_the_text_of_a_page_exists_with_its_options() -> None:
    def wrong(text: str) -> list[str]:
        typed = (" ".join(code.split()) for code in re.findall(r"`(adapter [a-z][^`]*)`", text))
        return [fault for line in typed if "…" not in line.split()[:3] for fault in faults(line.replace("'", ""))]

    assert on_pages(wrong) == {}


def test_a_command_or_an_option_that_does_not_exist_is_found() -> None:
    fence = "```\n$ adapter export smollm2 /srv \\\n  --purge | less --raw\n```\n"
    text = f"    adapter exprot smollm2\n\n{fence}\nadapter words\n"
    assert [fault.split(": ")[1] for line in typed_lines(text) for fault in faults(line)] == [
        "no such command",
        "no option --purge",
    ]


def test_every_link_between_pages_leads_somewhere() -> None:
    lost = []
    for path in PAGES:
        targets = [link for link in LINK.findall(path.read_text()) if not re.search("://|^mailto:", link)]
        lost += [(path.name, link) for link in targets if not (path.parent / link).exists()]
    assert lost == []


def test_every_path_of_the_project_that_a_page_names_exists() -> None:
    def absent(text: str) -> list[str]:
        tops = "registry|cli|tests|migrations|deploy|docs|benchmarks|demo|scripts"
        named = {path.rstrip("/") for path in re.findall(rf"`((?:{tops})/[^`\s{{<…]*)`", text)}
        return [name for name in sorted(named) if not any(ROOT.glob(name))]

    assert on_pages(absent) == {}


CATALOGS = "\n".join(page(f"docs/reference/{name}.md") for name in ("errors", "findings", "settings"))
CATALOGS += page("deploy/compose.yaml") + page("deploy/Containerfile")
OF_OTHERS = re.compile(
    r"(?:AWS|CODE|DYN|GITLAB|HF|LORA|MSG|NGC|NIM|PREDIBASE|SSL|VLLM)_"
    r"|(?:CAUSAL_LM|SEQ_2_SEQ_LM|SEQ_CLS|TOKEN_CLS|QUESTION_ANS|FEATURE_EXTRACTION|SEQ_)\Z"  # PEFT's tasks
)


def test_every_finding_error_and_variable_that_a_page_names_exists() -> None:
    groups = "|".join(sorted(set(re.findall(r"^\| `([a-z]+)\.[a-z_]+`", CATALOGS, re.MULTILINE))))

    def unknown(text: str) -> list[str]:
        named = set(re.findall(rf"`((?:{groups})\.(?!json`)[a-z_]+)`", text))
        named |= {name for name in re.findall(r"\b([A-Z]+_[A-Z_]*[A-Z])\b", text) if not OF_OTHERS.match(name)}
        return [name for name in sorted(named) if name not in CATALOGS]

    assert on_pages(unknown, WRITTEN) == {}


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
        assert re.match(r"(Proposed|Accepted|Superseded)\b", status), record.name
        assert datetime.date.fromisoformat(date)
        assert f"[{title.split('. ', 1)[1]}]({record.name}) | {date} |" in index
        headings = re.findall(r"^## (.+)$", record.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Alternatives", "Consequences"], record.name


def test_every_path_of_the_table_where_to_change_what_exists() -> None:
    section = page("ARCHITECTURE.md").split("## Where to change what")[1].split("\n## ")[0]
    paths = {code for code in re.findall(r"`([^`]+)`", section) if "/" in code or code.endswith(".md")}
    assert len(paths) > 20
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_every_merge_method_has_a_row() -> None:
    assert [method for method in Method if f"\n| `{method}` |" not in page("docs/merging.md")] == []


def test_the_pages_name_the_attempts_of_a_webhook_and_the_grace_of_gc() -> None:
    assert limits.attempts() == 8
    assert "After eight [attempts]" in page("docs/rest.md")
    assert f"kept for {Settings().gc_grace_seconds // 86400} days" in page("docs/operations.md")


def test_the_page_of_smoke_tests_has_a_row_for_each_check_in_order() -> None:
    rows = re.findall(r"^\| ([a-z]+) \| [A-Z].*\?", page("docs/smoke.md"), re.M)
    source = import_table.sources()["registry.worker.smoke.checks"]  # not imported: the worker's extra may be absent
    assert rows == re.findall(r'SmokeCheck\("(\w+)"', source)
