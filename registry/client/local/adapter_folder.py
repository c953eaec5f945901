"""`AdapterFolder`: a folder whose files were read by the rules of the registry, without asking one.

A push does not need it: the registry evaluates it. Checks, comparisons and conversions on this machine do.
"""

from dataclasses import dataclass
from pathlib import Path

from registry.adapters.companions import check_companions, check_token_files
from registry.adapters.read import AdapterContents, PeftContents, read_any
from registry.client.local.folder import Folder, describe, read_at, read_folder, select_files
from registry.errors import Invalid


@dataclass(frozen=True, slots=True)
class AdapterFolder(Folder):
    """The files of an adapter, and what configuration and header say."""

    contents: AdapterContents

    @property
    def peft(self) -> PeftContents:
        """The contents of a PEFT adapter. `Invalid` (FOLDER_INVALID) for another tool's."""
        if isinstance(self.contents, PeftContents):
            return self.contents
        raise Invalid(
            "FOLDER_INVALID",
            f"{self.path}: {self.contents.file.file} is in '{self.contents.format}' format, and PEFT's is needed here",
            next_step="convert it first: `adapter convert`",
        )


def read_adapter(path: Path) -> AdapterFolder:
    """The adapter in this folder. `Invalid` names the file, the rule and the limit."""
    contents, folder = read_contents(path), read_folder(path)
    return AdapterFolder(folder.path, folder.files, folder.sources, folder.left_out, contents)


def read_contents(path: Path) -> AdapterContents:
    """What the files of an adapter's folder say, under the rules of a push. `Invalid`. Reads no weights."""
    selected, _ = select_files(path)

    def read(file: str, start: int, length: int) -> bytes:
        return read_at(selected[file][0], start, length)

    described = [describe(name, size) for name, (_, size) in selected.items()]
    sizes = {name: size for name, (_, size) in selected.items()}
    check_companions(sizes, read)
    check_token_files(sizes, read)
    return read_any(described, read)
