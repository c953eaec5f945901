"""What fails on the command's own machine is one sentence, and never a reason to ask the registry again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_table import ROOT

INTERRUPT = """
import sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from cli import entry
entry.main()
"""


def adapter(
    home: Path, words: str = "list", *, source: str = "from cli import entry; entry.main()"
) -> subprocess.CompletedProcess[str]:
    """`adapter list` in a shell, with what these words say of its streams or its folder."""
    env = os.environ | {"HOME": str(home), "XDG_DATA_HOME": str(home), "PYTHONPATH": str(ROOT), "SOURCE": source}
    env["PYTHON"] = sys.executable
    command = ["bash", "-c", f'"$PYTHON" -c "$SOURCE" {words}']
    return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ("list >&-", 0, ""),
        ("whoami > /dev/full", 74, "Error: standard output cannot be written: its disk is full\n"),
        ("list 2>&-", 0, ""),
    ],
)
def test_an_output_that_takes_nothing_is_one_sentence(tmp_path: Path, words: str, code: int, error: str) -> None:
    result = adapter(tmp_path, words)
    assert (result.returncode, result.stderr) == (code, error)


def test_ctrl_c_during_the_imports_is_one_word(tmp_path: Path) -> None:
    result = adapter(tmp_path, source=INTERRUPT)
    assert (result.returncode, result.stderr) == (130, "Interrupted.\n")
