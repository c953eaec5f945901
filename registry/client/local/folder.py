"""`Folder`: an adapter's folder on this machine, checked by the server's rules before a byte is sent.

Regular files of a known kind directly in the folder are taken; `left_out` lists other entries with reasons. Links,
pipes and sockets are refused, and so is a pickle, code or an archive: silently leaving it out would suggest that it
was pushed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from registry import names
from registry.adapters.companions import check_companions
from registry.adapters.read import AdapterContents, PeftContents, ReadCache, read_any
from registry.client.local import hashing
from registry.digest import Digest
from registry.errors import Invalid, TooLarge
from registry.findings import Finding
from registry.versions.files import GOLDEN, REFUSED, WEIGHTS_ENDINGS, kind_of, refusal_of
from registry.versions.manifest import BaseRef, Descriptor, Edge, Manifest
from registry.versions.provenance import Provenance

ENTRIES_LIMIT = 10_000
_REFUSED_CODES = frozenset(code for _, code, _ in REFUSED)
_IGNORED = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"})
"""Files of trainers beside an adapter. They are left out, pickle or not."""


_CONTENTS: ReadCache[AdapterContents] = ReadCache(limit=8)


@dataclass(frozen=True, slots=True)
class Folder:
    """What would be pushed. `sources`: path in the version → file on disk."""

    path: Path
    files: tuple[Descriptor, ...]
    sources: dict[str, Path]
    left_out: tuple[Finding, ...]
    contents: AdapterContents

    @property
    def peft(self) -> PeftContents:
        """The contents of a PEFT adapter. `Invalid` (FOLDER_INVALID) for another tool's."""
        if isinstance(self.contents, PeftContents):
            return self.contents
        format_name = self.contents.file.format
        raise Invalid(
            "FOLDER_INVALID",
            f"{self.path}: {self.contents.file.file} is in {format_name!r} format, and PEFT's is needed here",
            next_step="convert it first: `adapter convert`",
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(f.size_bytes for f in self.files)

    def manifest(
        self, base: BaseRef, parents: tuple[Edge, ...] = (), annotations: dict[str, str] | None = None,
        provenance: Provenance | None = None,
    ) -> Manifest:  # fmt: skip
        """The manifest of a version with these files."""
        return Manifest.build(base, self.files, parents, annotations, provenance)


def is_meant(text: str) -> bool:
    """Whether this text means a path on this machine, not a version in a registry."""
    return text.startswith((".", "/", "~")) or Path(text).exists()


def read_folder(
    path: Path, *, golden: Path | None = None, hashed: Callable[[int], None] = lambda _bytes: None
) -> Folder:
    """The adapter in this folder. `Invalid` names the file, the rule and the limit; nothing is sent anywhere.

    `golden`: a file elsewhere to store as golden.jsonl. `hashed` is called with the bytes hashed.
    """
    selected, left_out = _choose(_entries(path))
    return _read(path, selected, left_out, golden, hashed)


def read_files(title: Path, files: Mapping[str, Path], *, golden: Path | None = None) -> Folder:
    """The adapter in these files: path in the version → file on disk or in memory. `title` names it in errors."""
    selected = {name: (source, source.stat().st_size) for name, source in files.items()}
    return _read(title, selected, [], golden, lambda _bytes: None)


def _read(
    path: Path, selected: dict[str, tuple[Path, int]], left_out: list[Finding], golden: Path | None,
    hashed: Callable[[int], None],
) -> Folder:  # fmt: skip
    if golden is not None:
        selected[GOLDEN] = _regular(golden, GOLDEN)
    sources = {name: entry for name, (entry, _) in selected.items()}
    contents = _read_contents(selected)
    undigested = (_described(name, size) for name, (_, size) in selected.items())
    files = tuple(_hash(d, sources[d.path], hashed) for d in undigested)
    return Folder(path, tuple(sorted(files, key=lambda f: f.path)), sources, tuple(left_out), contents)


def read_contents(path: Path) -> AdapterContents:
    """What the files of an adapter's folder say, under the rules of a push. `Invalid`. Reads no weights."""
    return _read_contents(_choose(_entries(path))[0])


def _read_contents(selected: Mapping[str, tuple[Path, int]]) -> AdapterContents:
    described = [_described(name, size) for name, (_, size) in selected.items()]

    def read(file: str, start: int, length: int) -> bytes:
        return _read_at(selected[file][0], start, length)

    check_companions({name: size for name, (_, size) in selected.items()}, read)
    sizes = tuple((name, size) for name, (_, size) in selected.items())
    return _CONTENTS.compute(sizes, read, lambda read: read_any(described, read))


def _entries(path: Path) -> list[os.DirEntry[str]]:
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except FileNotFoundError:
        raise Invalid("FOLDER_INVALID", f"folder {str(path)!r} does not exist") from None
    except NotADirectoryError:
        raise Invalid("FOLDER_INVALID", f"{str(path)!r} is a file; push the folder that holds the adapter") from None
    except PermissionError:
        raise Invalid("FOLDER_INVALID", f"{str(path)!r} may not be read by this user") from None
    if len(entries) > ENTRIES_LIMIT:
        raise TooLarge("SIZE_INVALID", f"{path}: {len(entries)} entries are over the limit of {ENTRIES_LIMIT}")
    return entries


def _choose(entries: list[os.DirEntry[str]]) -> tuple[dict[str, tuple[Path, int]], list[Finding]]:
    selected: dict[str, tuple[Path, int]] = {}
    left_out: list[Finding] = []
    refused: list[Finding] = []
    for entry in entries:
        name = entry.name
        shown = name.encode("utf-8", "backslashreplace").decode()
        if entry.is_dir(follow_symlinks=False):
            left_out.append(Finding("file.folder", shown, "is a folder; a version holds only files"))
        elif name in _IGNORED or (name.startswith(".") and not entry.is_symlink()):
            left_out.append(
                Finding("file.not_the_adapter", shown, "is a file of a trainer or a tool, not of the adapter")
            )
        elif not entry.is_file(follow_symlinks=False):
            refused.append(Finding("file.special_refused", shown, "is a link, pipe, socket or device, not a file"))
        elif kind_of(name) is not None:
            names.file_path(name)
            selected[name] = (Path(entry.path), entry.stat(follow_symlinks=False).st_size)
        else:
            reason = refusal_of(shown)
            (refused if reason.code in _REFUSED_CODES else left_out).append(reason)
    if refused:
        first, more = refused[0], len(refused) - 1
        raise Invalid(
            "FILE_REFUSED",
            f"{first.location} {first.message}" + (f" (and {more} more)" if more else ""),
            findings=refused,
            next_step="take it out of the folder and push again"
            if any(name.endswith(WEIGHTS_ENDINGS) for name in selected)
            else "push the folder that save_pretrained() wrote, with adapter_model.safetensors in it",
        )
    return selected, left_out


def _regular(path: Path, name: str) -> tuple[Path, int]:
    try:
        status = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        raise Invalid("FOLDER_INVALID", f"there is no file {str(path)!r}") from None
    if not stat.S_ISREG(status.st_mode):
        message = "is a link, pipe, socket or device, not a file"
        findings = [Finding("file.special_refused", name, message)]
        raise Invalid("FILE_REFUSED", f"{path} {message}", findings=findings)
    return path, status.st_size


def _described(name: str, size_bytes: int) -> Descriptor:
    kind = kind_of(name)
    if kind is None:
        raise Invalid("FILE_REFUSED", f"{name} is not a kind of file that a version holds", findings=[refusal_of(name)])
    if size_bytes > kind.limit_bytes:
        message = f"has {size_bytes} bytes, over the limit of {kind.limit_bytes}"
        raise TooLarge.from_finding("SIZE_INVALID", Finding("file.too_large", name, message))
    return Descriptor(path=name, media_type=kind.media_type, digest=Digest.of(b""), size_bytes=size_bytes)


def _hash(described: Descriptor, source: Path, hashed: Callable[[int], None]) -> Descriptor:
    early = hashing.taken(source)
    if early is not None:
        hashed(early[1])
    hexadecimal, size_bytes = early or hashing.hash_of(source, hashed)
    if size_bytes != described.size_bytes:
        raise Invalid("FOLDER_INVALID", f"{described.path} changed while it was read; push it when it is finished")
    return described.model_copy(update={"digest": Digest(f"sha256:{hexadecimal}")})


def _read_at(source: Path, start: int, length: int) -> bytes:
    with open(source, "rb", buffering=0) as file:
        file.seek(start)
        parts = b""
        while len(parts) < length and (part := file.read(length - len(parts))):
            parts += part
        return parts
