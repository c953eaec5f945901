"""`adapter push-all`: a folder that cannot even be looked into."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.desk import Desk


def test_a_folder_that_may_not_be_read_stops_no_other(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.base()
    desk.adapter("good")
    locked = desk.adapter("locked")
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
    said = desk("push-all", tmp_path / "adapters", "fleet", expect=2).stdout
    assert "fleet/good@1  new  compat pass" in said
    assert "fleet/locked  refused" in said
