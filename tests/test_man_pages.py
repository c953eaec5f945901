"""Manual pages: one for each command, without a warning of groff, in the wheels of `make build`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

from cli import main
from scripts import man
from scripts.build_hook import ManualPages
from scripts.reference import cli
from tests.import_table import ROOT


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return man.pages()


def test_every_command_has_a_page_with_all_its_options_and_examples(pages: dict[str, str]) -> None:
    assert set(pages) == {"adapter.1", *(f"adapter-{name}.1" for name in main.COMMANDS)}
    for name, command in cli.commands("adapter", main.main):
        page = pages[f"{'-'.join(name.split()[:2])}.1"]
        options = [name for param in command.params for name in param.opts if name.startswith("--")]
        assert [option for option in options if option.replace("-", r"\-") not in page] == []


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_groff_prints_the_pages_without_a_warning(pages: dict[str, str], tmp_path: Path) -> None:
    man.write(tmp_path)
    command: list[str | Path] = [
        "groff",
        "-Kutf8",
        "-man",
        "-Tutf8",
        "-ww",
        "-z",
        *(tmp_path / name for name in sorted(pages)),
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_a_wheel_has_the_pages_if_they_were_written(tmp_path: Path) -> None:
    for version, folder, added in (
        ("standard", False, {}), ("editable", True, {}), ("standard", True, {"build/man": "share/man/man1"})
    ):  # fmt: skip
        if folder:
            (tmp_path / "build/man").mkdir(parents=True, exist_ok=True)
        data: dict[str, Any] = {"shared_data": {}}
        metadata = ProjectMetadata(str(ROOT), PluginManager())
        ManualPages(str(tmp_path), {}, None, metadata, str(tmp_path), "wheel").initialize(version, data)
        assert data["shared_data"] == added
