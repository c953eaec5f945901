"""Pushes by the Hub API to a live server: the newest client, and requests of our own for what no client would send."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.hub import pushes
from tests.hub.live import Live


def test_the_newest_client_pushes_drafts_and_versions(live: Live, tmp_path: Path) -> None:
    pushes.check_python(live, Path(sys.executable), tmp_path, "acme/newest")
