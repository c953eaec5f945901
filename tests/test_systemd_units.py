"""The systemd units in deploy/: systemd reads them, and their commands exist with their options."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.import_table import ROOT
from tests.test_docs import faults

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_command_of_a_unit_exists_with_its_options(unit: Path) -> None:
    (command,) = re.findall(r"^ExecStart=/opt/registry/bin/(.*)$", unit.read_text(), re.MULTILINE)
    assert faults(re.sub(r" \$\w+", "", command)) == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_reads_a_unit_without_a_complaint(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text().replace("/opt/registry/bin/adapter", "/bin/true")
    copy = tmp_path / unit.name
    copy.write_text(text)
    checked = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (checked.returncode, [line for line in checked.stderr.splitlines() if unit.name in line]) == (0, [])
