"""`FolderTarget`: an export in a folder, for engines that read one: NIM, vLLM's filesystem resolver, TGI, LMDeploy.

A folder appears by one rename from `.incoming-…`, complete and synced to disk, and disappears by one. Other entries are
never touched.
"""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.digest import Digest
from registry.errors import Invalid
from registry.filesystem import replace_file, sync_folder
from registry.serving.export.export import INDEX
from registry.versions.files import NOTE

_INCOMING = ".incoming-"
LEFT_BEHIND_SECONDS = 86_400
"""A scratch folder of this age was left by an export that was killed."""


class FolderTarget:
    """The folder is created by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.title = str(self.root)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new folder for files under way; it is deleted afterwards."""
        self._delete_old_scratch()
        folder = self.root / f"{_INCOMING}{secrets.token_hex(6)}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def note(self, name: str) -> bytes | None:
        """The note of an exported version; None without one."""
        return _read(self.root / name / NOTE)

    def sizes(self, name: str) -> dict[str, int]:
        """Path → bytes of an exported version's files."""
        folder = self.root / name
        return {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }

    def put(self, name: str, staged: Path, _digests: dict[str, Digest]) -> None:
        """The digests were verified when the folder was staged."""
        sync_folder(staged)
        try:
            os.rename(staged, self.root / name)
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise Invalid(
                "FOLDER_INVALID",
                f"{self.root / name} exists and was not created by an export; it is left untouched",
                next_step="name another folder, or move that one away",
            ) from e
        sync_folder(self.root)

    def names(self) -> list[str]:
        """Names of the exported versions, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def remove(self, name: str) -> None:
        """Delete an exported version."""
        with self.scratch() as folder:
            os.rename(self.root / name, folder / name)

    def index(self) -> bytes | None:
        """The bytes of the index; None without one."""
        return _read(self.root / INDEX)

    def write_index(self, data: bytes) -> None:
        """Replace the index."""
        replace_file(self.root / INDEX, data)
        sync_folder(self.root)

    def _delete_old_scratch(self) -> None:
        """Delete scratch folders of exports that were killed."""
        for path in self.root.glob(f"{_INCOMING}*"):
            try:
                old = path.stat().st_mtime < time.time() - LEFT_BEHIND_SECONDS
            except OSError:
                continue  # another export has just finished
            if old:
                shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
