"""`adapter push-all` with a folder that cannot be read."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runner import CommandRunner


def test_an_unreadable_folder_stops_no_other_push(
    cli: CommandRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.add_base()
    cli.make_adapter("good")
    locked = cli.make_adapter("locked")
    stat, scandir = os.stat, os.scandir

    def look(path: Any, *more: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{locked}/"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *more, **options)

    def scan(path: Any) -> Any:
        if str(path) == str(locked):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "stat", look)
    monkeypatch.setattr(os, "scandir", scan)
    result = cli("push-all", tmp_path / "adapters", "globex", expect=2).stdout
    assert "globex/good@1  new  compat pass" in result
    assert "globex/locked  refused" in result
