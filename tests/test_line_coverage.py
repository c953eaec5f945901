"""The plugin that reports which lines the tests run: it counts, merges test processes, and holds its floor."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.import_table import ROOT
from tests.line_coverage import ranges


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.line_coverage"]
    return subprocess.run([*command, *options, "tests/domain/test_digest.py"], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("processes", ["0", "1"])
def test_lines_are_counted_in_this_process_and_in_others(processes: str) -> None:
    done = run("-n", processes, "--coverage-missing", "--coverage-floor", "0.1")
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    percentage = re.search(r"^coverage: ([\d.]+) % of ([\d,]+) lines", done.stdout, re.MULTILINE)
    assert percentage is not None
    assert 0.1 < float(percentage[1]) < 20
    assert int(percentage[2].replace(",", "")) > 10_000, "files that no test imports count as well"
    assert re.search(r"^cli/push.py: \d", done.stdout, re.MULTILINE)


def test_a_run_below_the_floor_fails_and_says_so() -> None:
    done = run("--coverage-floor", "99")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "below the floor of 99 %" in done.stdout


def test_runs_of_lines_are_shortened() -> None:
    assert ranges([1, 3, 4, 5, 9]) == "1, 3-5, 9"
    assert ranges([]) == ""
