"""What a command loads is what people wait for before it begins: rooms that a transfer does not need stay shut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.desk import Desk
from tests.cli.test_serve import served
from tests.import_table import ROOT

PROGRAM = """
import json, sys
from cli.main import main
code = main(sys.argv[1:], standalone_mode=False)
from pydantic import BaseModel

def shapes(of):
    return sum(1 + shapes(shape) for shape in of.__subclasses__() if shape.__module__.startswith("registry."))

print(json.dumps([sorted(sys.modules), shapes(BaseModel)]), file=sys.stderr)
sys.exit(code)
"""
SHUT_FOR_ALL = ("registry.engines", "registry.compat", "rich", "httpcore", "anyio", "fastapi", "sqlmodel", "torch")
CONVERSATIONS = ("access", "aliases", "audit", "bases", "jobs", "fleet", "desired_state", "maintenance", "evaluation")
SHUT = (
    *SHUT_FOR_ALL,
    *(f"registry.api.{room}" for room in CONVERSATIONS),
    *(
        "registry.client.registry",
        "registry.client.audit",
        "registry.client.transport.in_process",
        "cli.jobs",
        "registry.jobs",
    ),
    *(
        "registry.engines.version_facts",
        "registry.adapters.card",
        "registry.adapters.trainer",
        "registry.bases.identity",
    ),
    *("registry.evaluation.reports", "registry.evaluation.reference_logprobs"),
)
"""What neither a push nor a pull nor a list takes part in."""
SHUT_FOR_PUSH = ("registry.client.pull", "registry.client.local.cache", "registry.client.local.destination")
SHUT_FOR_READING = (
    *("registry.client.push", "registry.client.local.folder", "registry.adapters.read"),
    *("registry.adapters.formats", "registry.adapters.peft"),
)
SHUT_FOR_PULL = (*SHUT_FOR_READING, "registry.evaluation.golden")


@pytest.fixture
def shop(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with served(tmp_path / "data") as (_, said):
        monkeypatch.setenv("ADAPTER_REGISTRY", said["url"])
        monkeypatch.setenv("ADAPTER_TOKEN", said["token"])
        desk.base()
        desk.adapter("one")
        desk.adapter("two")
        yield desk


def loaded(*words: str) -> tuple[set[str], int]:
    """The modules of a process that ran this command, and how many shapes of ours it made."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
        env=os.environ,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    modules, shapes = json.loads(ran.stderr.splitlines()[-1])
    return set(modules), shapes


@pytest.mark.usefixtures("shop")
def test_a_command_loads_no_room_that_it_does_not_take_part_in(tmp_path: Path) -> None:
    push, pull = (SHUT + SHUT_FOR_PUSH, 68, 46), (SHUT + SHUT_FOR_PULL, 48, 38)
    look, ask = (SHUT + SHUT_FOR_PUSH + SHUT_FOR_PULL, 39, 38), (SHUT_FOR_ALL + SHUT_FOR_READING, 56, 123)
    for words, (shut, most_modules, most_shapes) in (
        (("push-all", str(tmp_path / "adapters"), "fleet", "--base", "tiny-llama", "--json"), push),
        (("pull-all", str(tmp_path / "served"), "--base", "tiny-llama", "--namespace", "fleet", "--json"), pull),
        (("push", str(tmp_path / "adapters" / "one"), "fleet/one", "--json"), push),
        (("pull", "fleet/two", str(tmp_path / "two"), "--json"), pull),
        (("list", "--json"), look),
        (("whoami", "--json"), ask),
    ):
        modules, shapes = loaded(*words)
        assert {"registry.client.core", "pydantic"} <= modules
        assert [name for name in shut if name in modules] == [], words
        ours = {name for name in modules if name.partition(".")[0] in ("registry", "cli")}
        assert len(ours) <= most_modules, sorted(ours)
        assert shapes <= most_shapes
    assert len(list((tmp_path / "served" / "fleet").iterdir())) == 2
