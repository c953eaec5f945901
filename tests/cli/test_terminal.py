"""No text from elsewhere steers the terminal, hides behind another text or looks like a line of its own."""

from __future__ import annotations

import ast
import json
import sqlite3
from pathlib import Path

import click
import pytest

from cli.console import output, session
from cli.console.tables import Column, Table
from registry.api.jobs import ClaimRequest, FailRequest
from registry.api.serving import NodeReport, SlotReport
from registry.client.registry import Registry
from tests import samples
from tests.cli.runner import CommandRunner
from tests.import_table import ROOT

pytestmark = pytest.mark.security

HOSTILE = "\x1b]52;c;aGk=\x07\x1b[31mred\x9b2J\u202egnp\nroot did it"
PRINTERS = {"output.py", "progress.py", "tables.py"}
"""Files of cli/ that may print by themselves. Others print JSON, which is escaped, or a counter of their own."""


def test_every_way_to_print_escapes_and_keeps_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(click, "echo", lambda text="", **_: printed.append(str(text)))
    output.line(output.strong(HOSTILE) + HOSTILE)
    Table((Column[str](HOSTILE, str, output.faint),)).print([HOSTILE])
    output.facts([(HOSTILE, HOSTILE), ("two", [HOSTILE, HOSTILE])])
    output.note(HOSTILE)
    assert len(printed) == 1 + 2 + 3 + 1
    for text in printed:
        styles = text.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "")
        assert styles.isprintable(), text
    assert printed[0].startswith("\x1b[1m\\x1b]52;")
    assert "\\u202egnp ⏎ root did it" in printed[0]


def test_json_has_no_character_that_does_not_print() -> None:
    text = output.json_text({"reason": HOSTILE})
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == {"reason": HOSTILE}


def test_commands_escape_what_others_wrote(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    digest = cli.push("acme/support", "--alias", "canary")["version"]["digest"]
    with session.embedded(Registry) as registry:
        slot = SlotReport(adapter="acme/support", digest=digest, served_name="s", state="failed", reason=HOSTILE)
        registry.report_node("gpu-1", "vllm", NodeReport(base="tiny-llama", alias="canary", slots=[slot]))
        claimed = registry.claim(ClaimRequest(worker=HOSTILE))
        assert claimed is not None
        failure = FailRequest(lease_token=claimed.lease.token, error=HOSTILE, final=True)
        job = registry.fail(claimed.job.id, failure)
        assert job.error.replace("\n", "").isprintable()
    with sqlite3.connect(tmp_path / "data" / "registry.db") as connection:  # as an older server stored it
        connection.execute("UPDATE base SET source = ?", [HOSTILE])
        connection.execute("UPDATE fleet_slot SET reason = ?", [HOSTILE])
        connection.execute("UPDATE job SET error = ?, worker = ?", [HOSTILE, HOSTILE])
        connection.execute("UPDATE version SET message = ?", [HOSTILE])
    files = samples.lora(samples.llama())
    config = json.loads(files["adapter_config.json"]) | {"x\x1b[2J": HOSTILE}
    changed = samples.write(files | {"adapter_config.json": json.dumps(config).encode()}, tmp_path / "changed")
    for words in (
        ("base", "show", "tiny-llama"), ("base", "list"), ("fleet",), ("job", "list"), ("job", "show", job.id),
        ("show", "acme/support"), ("diff", "acme/support", changed),
    ):  # fmt: skip
        for arguments in (words, (*words, "--json")):
            result = cli(*arguments)
            lines = (result.stdout + result.stderr).splitlines()
            assert all(line.isprintable() for line in lines), arguments
            assert not any(line.strip().startswith("root did it") for line in lines) or words[0] in ("show", "job")


def test_control_characters_in_a_source_of_a_base_are_refused(cli: CommandRunner, tmp_path: Path) -> None:
    folder = samples.llama().write(tmp_path / "base\x1b[2J")
    assert "control character" in cli("base", "add", "tiny-llama", folder, expect=2).stderr


def test_only_the_output_functions_print() -> None:
    """`click.echo` elsewhere prints JSON of `output.json_text`, or texts without foreign parts."""
    allowed = {"main.py": 1, "maintenance.py": 2, "lineage.py": 1, "export.py": 1, "serve.py": 1, "completion.py": 1,
               "session.py": 1}  # fmt: skip
    for path in sorted((ROOT / "cli").rglob("*.py")):
        if path.name in PRINTERS:
            continue
        calls = [
            node for node in ast.walk(ast.parse(path.read_text()))
            if (isinstance(node, ast.Attribute) and node.attr in ("echo", "secho", "style"))
            or (isinstance(node, ast.Name) and node.id == "print")
        ]  # fmt: skip
        assert len(calls) <= allowed.get(path.name, 0), path.name
