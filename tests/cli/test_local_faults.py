"""What fails on the command's own machine is one sentence, and never a reason to ask the registry again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.runner import CommandRunner
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
        ("--help > /dev/full", 74, "Error: a file or standard output cannot be written: its disk is full\n"),
        ("whoami > /dev/full", 74, "Error: a file or standard output cannot be written: its disk is full\n"),
        ("list 2>&-", 0, ""),
    ],
)
def test_an_output_that_takes_nothing_is_one_sentence(tmp_path: Path, words: str, code: int, error: str) -> None:
    result = adapter(tmp_path, words)
    assert (result.returncode, result.stderr) == (code, error)


def test_ctrl_c_during_the_imports_is_one_word(tmp_path: Path) -> None:
    result = adapter(tmp_path, source=INTERRUPT)
    assert (result.returncode, result.stderr) == (130, "Interrupted.\n")


def test_a_full_disk_of_the_embedded_registry_ends_a_push_at_once(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cli.add_base()
    folder = cli.make_adapter("support")
    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("nobody else mends this disk meanwhile"))
    refused = cli("push", folder, "acme/support", "--base", "tiny-llama", expect=74).stderr
    assert "No space left on device" in refused
    assert f"free space on the disk of {cli.folder / 'data'}" in refused


def test_a_pull_to_a_full_disk_ends_before_it_begins(released: CommandRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    target = released.folder / "there"
    usage = shutil.disk_usage(released.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    refused = released("pull", "acme/support", target, expect=74).stderr
    assert refused == f"Error: '{target}' cannot be written: its disk is full\n"
    assert [path.name for path in released.folder.glob(".there*")] == []
    assert "10 B free for the embedded registry" in released("doctor").stdout
