"""The audit log as a folder: written from a server, replayed without one.

    checkpoint          the signed note        keys            the verifier keys, a line each
    tile/…              C2SP's paths           events.jsonl    the events as the database tells them, a line each

Invariants
- The folder is laid out as C2SP's tlog-tiles has it, so other tools read it too; `events.jsonl` is ours.
- A folder proves itself against a key that you have from elsewhere, not against the one that lies in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from registry.api import LogKeys
from registry.api.audit import EventView
from registry.client.audit import Audit
from registry.errors import Invalid
from registry.tlog import tiles
from registry.tlog.notes import Checkpoint, Verifier


def write(audit: Audit, folder: Path, *, advance: Callable[[int], None] = lambda _events: None) -> Checkpoint:
    """Write the log as it is now into an empty or absent folder. `Invalid` where there is something already."""
    if folder.exists() and any(folder.iterdir()):
        raise Invalid("FOLDER_INVALID", f"{folder} is not empty", next_step="name a folder that is not there yet")
    folder.mkdir(parents=True, exist_ok=True)
    keys, note = audit.keys(), audit.checkpoint()
    checkpoint = Checkpoint.of_text(note.rpartition("\n\n")[0] + "\n")
    if checkpoint is None:
        raise Invalid("REQUEST_INVALID", "the registry's checkpoint cannot be read")
    (folder / "keys").write_text("".join(f"{key}\n" for key in keys.keys))
    for level, index, width in tiles.widths(checkpoint.size):
        _put(folder, tiles.tile_path(level, index, width), audit.tile(level, index, width, stored=True))
        if level == 0:
            _put(folder, tiles.tile_path("entries", index, width), audit.entries(index, width))
    with (folder / "events.jsonl").open("w") as file:
        for event in audit.events():
            if event.seq > checkpoint.size:
                break
            file.write(event.model_dump_json() + "\n")
            advance(1)
    (folder / "checkpoint").write_text(note)
    return checkpoint


def _put(folder: Path, path: str, data: bytes) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


class FolderLog:
    """An exported log as a source of a replay (registry.tlog.replay)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def checkpoint(self) -> str:
        """`Invalid` (FOLDER_INVALID) for a folder without one."""
        try:
            return (self._folder / "checkpoint").read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise Invalid("FOLDER_INVALID", f"{self._folder} holds no exported log: no 'checkpoint'") from e

    def keys(self) -> tuple[Verifier, ...]:
        """The keys that lie in the folder."""
        try:
            lines = (self._folder / "keys").read_text().splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise Invalid("FOLDER_INVALID", f"{self._folder} holds no exported log: no 'keys'") from e
        return tuple(Verifier.parse(line) for line in LogKeys(origin="", keys=lines).keys)

    def tiles(self, level: int, index: int, width: int) -> Sequence[bytes]:
        return [self._read(tiles.tile_path(level, index, width))]

    def entries(self, index: int, width: int) -> bytes:
        return self._read(tiles.tile_path("entries", index, width))

    def rows(self) -> Iterator[bytes]:
        """A line that is no event is an entry that nothing agrees with."""
        path = self._folder / "events.jsonl"
        with path.open("rb") as file:
            for line in file:
                try:
                    yield EventView.model_validate_json(line).entry()
                except (ValidationError, Invalid):
                    yield line

    def _read(self, path: str) -> bytes:
        try:
            return (self._folder / path).read_bytes()
        except OSError:
            return b""
