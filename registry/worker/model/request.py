"""What is asked of the programs that read a base, so that these import no client. No torch here."""

import importlib.metadata

from registry.worker.sandbox import program

BUILDER = "transformers"
"""The library that builds bases."""


class IdentifyRequest(program.ProgramRequest):
    """The folder to identify."""

    FOLDERS = ("folder",)

    folder: program.FolderPath


class LibraryRequest(program.ProgramRequest):
    """The folder of the base to build."""

    FOLDERS = ("folder",)

    folder: program.FolderPath


def installed_library() -> str:
    """The library that builds bases here, with its version."""
    return f"{BUILDER} {importlib.metadata.version(BUILDER)}"
