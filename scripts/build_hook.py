"""Puts the manual pages into a wheel, if `make build` wrote them: an isolated build cannot import the commands."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "build/man"


class ManualPages(BuildHookInterface[Any]):
    """The build hook `custom` of pyproject.toml."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the pages to the files of a wheel that is no editable install."""
        if version == "standard" and (Path(self.root) / FOLDER).is_dir():
            build_data["shared_data"][FOLDER] = "share/man/man1"
