"""Where a user's files are: the folders of the XDG Base Directory Specification."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

_DEFAULTS = {"config": "~/.config", "data": "~/.local/share", "cache": "~/.cache"}


def user_folder(kind: Literal["config", "data", "cache"], environment: Mapping[str, str] = os.environ) -> Path:
    """The folder `adapter-registry` in `$XDG_CONFIG_HOME`, `$XDG_DATA_HOME` or `$XDG_CACHE_HOME`."""
    home = environment.get(f"XDG_{kind.upper()}_HOME") or _DEFAULTS[kind]
    return Path(home).expanduser() / "adapter-registry"
