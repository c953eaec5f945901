"""`FolderEngine`: a directory that an engine watches, as links to versions: NIM, and others that read folders.

    PATH/acme-support-v3 → ../versions/9f86d081…      one link for each version; its name is the model's name
    PATH/current/acme-support → ../acme-support-v3    only `dir`: the version of an alias, switched by one rename

Only our links are made, replaced and removed; another file in their place is an error. Links are relative, so that
store and directory can be mounted elsewhere together. A directory has no answers: its versions are unverified.
"""

import contextlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from registry.errors import Refused, Unavailable

CURRENT = "current"


class FolderEngine:
    has_logprobs = False
    is_quantized = False

    def __init__(self, root: Path, *, current: bool) -> None:
        self.root, self._current = Path(os.path.abspath(root)), current

    def loaded(self) -> dict[str, str]:
        """Name of a link → the folder that it points at."""
        try:
            links = [entry for entry in self.root.iterdir() if entry.is_symlink() and entry.is_dir()]
        except FileNotFoundError:
            return {}
        except OSError as e:
            raise self._unavailable(e) from e
        return {link.name: str(_target(link)) for link in links}

    def readable_paths(self, loaded: Mapping[str, str]) -> Iterable[str]:
        """The folders of what is loaded."""
        return loaded.values()

    def load(self, served: str, folder: Path) -> None:
        """Link this name to the folder."""
        self._link(self.root / served, folder)

    def unload(self, served: str) -> None:
        """Remove the link, if it is there."""
        link = self.root / served
        if link.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                link.unlink()

    def set_aliases(self, aliases: Mapping[str, str], _adapters: int) -> None:
        """Link each alias to its served name, in the folder `current`, if the engine has one."""
        if not self._current:
            return
        folder = self.root / CURRENT
        current = {name.replace("/", "--"): served for name, served in aliases.items()}
        for name, served in current.items():
            self._link(folder / name, self.root / served)
        with contextlib.suppress(FileNotFoundError):
            for link in folder.iterdir():
                if link.is_symlink() and link.name not in current:
                    link.unlink()

    def logprobs(self, _served: str, _tokens: Sequence[int]) -> Sequence[float | None] | None:
        """None: a folder computes nothing."""
        return None

    def _link(self, link: Path, target: Path) -> None:
        if link.is_symlink() and _target(link) == target:
            return
        if link.exists() and not link.is_symlink():
            raise Refused("VERDICT_FAILED", f"{link} already exists and is not our link: move it away")
        scratch = link.with_name(f".{link.name[:80]}.{secrets.token_hex(4)}")
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            scratch.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
            os.replace(scratch, link)
        except OSError as e:
            raise self._unavailable(e) from e
        finally:
            scratch.unlink(missing_ok=True)

    def _unavailable(self, error: OSError) -> Unavailable:
        return Unavailable("STORE_UNAVAILABLE", f"{self.root} cannot be used: {error.strerror or error}")


def _target(link: Path) -> Path:
    """The direct target of a link: a version's folder, or another link of ours."""
    return Path(os.path.abspath(link.parent / os.readlink(link)))
