"""`Folder`: the files of an adapter on this machine that a push would send, and the excerpts by which it is evaluated.

Regular files of a known kind directly in the folder are taken; `left_out` lists other entries with reasons. Links,
pipes and sockets are refused, and so is a pickle, code or an archive: silently leaving it out would suggest that it
was pushed. What the files say is evaluated by the registry, or by `adapter_folder` on this machine.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from registry import names
from registry.adapters.safetensors import LFS_NEXT_STEP, LFS_POINTER, SAVE_AGAIN, read_header
from registry.api.transfer import EXCERPT_LIMIT_BYTES
from registry.digest import Digest
from registry.errors import Invalid, TooLarge
from registry.findings import Finding
from registry.versions.files import (
    CONFIG,
    GOLDEN,
    REFUSED,
    WEIGHTS_ENDINGS,
    WHOLE_MODEL,
    WHOLE_MODEL_STEP,
    kind_of,
    refusal_of,
)
from registry.versions.manifest import FILES_LIMIT, BaseRef, Descriptor, Edge, Manifest, ManifestDraft
from registry.versions.provenance import Provenance

ENTRIES_LIMIT = 10_000
UNREAD_LIMIT_BYTES = 64 * 2**20
"""The header of a larger file is read before the file is hashed, which takes seconds: it says what is cut off."""
POINTER_LIMIT_BYTES = 1024
"""A Git LFS pointer has some 130 bytes."""
_REFUSED_CODES = frozenset({WHOLE_MODEL, *(code for _, code, _ in REFUSED)})
_IGNORED = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"})
"""Files of trainers beside an adapter. They are left out, pickle or not."""


SMALL_EXCERPT_BYTES = 64 * 2**10
"""Of a file that is neither weights nor the configuration: larger ones are evaluated when they have arrived."""
GGUF_EXCERPT_BYTES = 256 * 2**10
UNREADABLE_EXCERPT_BYTES = 4096
"""Of weights that have no header of a possible length: these bytes show what they are."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What would be pushed. `sources`: path in the version → file on disk."""

    path: Path
    files: tuple[Descriptor, ...]
    sources: dict[str, Path]
    left_out: tuple[Finding, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(f.size_bytes for f in self.files)

    def draft(
        self, parents: Iterable[Edge] = (), annotations: dict[str, str] | None = None,
        provenance: Provenance | None = None,
    ) -> ManifestDraft:  # fmt: skip
        """The manifest of a version with these files, whose base the registry chooses."""
        return ManifestDraft.build(None, self.files, parents, annotations, provenance)

    def manifest(self, base: BaseRef) -> Manifest:
        """The manifest of a version with these files alone."""
        return self.draft().with_base(base)

    def read_excerpts(self) -> dict[str, bytes]:
        """The bytes by which a push is evaluated before it is sent, by path: configuration, headers, small files."""
        excerpts: dict[str, bytes] = {}
        size_bytes = 0
        for file in sorted(self.files, key=lambda f: not (f.path == CONFIG or f.path.endswith(WEIGHTS_ENDINGS))):
            length = self._excerpt_bytes(file)
            if length is not None and size_bytes + length <= EXCERPT_LIMIT_BYTES:
                excerpts[file.path] = read_at(self.sources[file.path], 0, length)
                size_bytes += length
        return excerpts

    def _excerpt_bytes(self, file: Descriptor) -> int | None:
        """How long the excerpt of a file is; None if it has none."""
        if file.path.endswith(".gguf"):
            return min(file.size_bytes, GGUF_EXCERPT_BYTES)
        if file.path.endswith(WEIGHTS_ENDINGS):
            # A safetensors file begins with the length of its header, in 8 bytes.
            length = 8 + int.from_bytes(read_at(self.sources[file.path], 0, 8), "little")
            is_possible = length <= min(file.size_bytes, EXCERPT_LIMIT_BYTES)
            return length if is_possible else min(file.size_bytes, UNREADABLE_EXCERPT_BYTES)
        return file.size_bytes if file.path == CONFIG or file.size_bytes <= SMALL_EXCERPT_BYTES else None


def is_meant(text: str) -> bool:
    """Whether this text means a path on this machine, not a version in a registry."""
    return text.startswith((".", "/", "~")) or Path(text).exists()


def read_folder(path: Path, *, golden: Path | None = None) -> Folder:
    """The files in this folder. `Invalid` for one that is no regular file of a known kind within its limit.

    `golden`: a file elsewhere to store as golden.jsonl.
    """
    selected, left_out = select_files(path)
    return _read(path, selected, left_out, golden)


def read_files(title: Path, files: Mapping[str, Path], *, golden: Path | None = None) -> Folder:
    """The adapter in these files: path in the version → file on disk or in memory. `title` names it in errors."""
    selected = {name: (source, source.stat().st_size) for name, source in files.items()}
    return _read(title, selected, [], golden)


def _read(path: Path, selected: dict[str, tuple[Path, int]], left_out: list[Finding], golden: Path | None) -> Folder:
    if golden is not None:
        selected[GOLDEN] = _regular(golden, GOLDEN)
    if len(selected) > FILES_LIMIT:
        message = f"has {len(selected)} files of a version, and the limit is {FILES_LIMIT}"
        raise TooLarge("SIZE_INVALID", f"'{path}' {message}", next_step="move out what does not belong to the adapter")
    sources = {name: entry for name, (entry, _) in selected.items()}
    for name, (entry, size_bytes) in selected.items():
        if size_bytes <= POINTER_LIMIT_BYTES and read_at(entry, 0, len(LFS_POINTER)) == LFS_POINTER:
            finding = Finding("file.lfs_pointer", name, "is a Git LFS pointer: the file itself was never downloaded")
            raise Invalid.from_finding("FOLDER_INVALID", finding, next_step=LFS_NEXT_STEP)
    described = [describe(name, size) for name, (_, size) in selected.items()]
    for file in described:
        if file.path.endswith(".safetensors") and file.size_bytes > UNREAD_LIMIT_BYTES:
            read_header(partial(read_at, sources[file.path]), file.size_bytes, file=file.path)
    files = tuple(_hash(d, sources[d.path]) for d in described)
    return Folder(path, tuple(sorted(files, key=lambda f: f.path)), sources, tuple(left_out))


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


def select_files(path: Path) -> tuple[dict[str, tuple[Path, int]], list[Finding]]:
    """The files of an adapter in this folder, with their sizes, and why others are left out. `Invalid`."""
    selected: dict[str, tuple[Path, int]] = {}
    left_out: list[Finding] = []
    refused: list[Finding] = []
    for entry in _entries(path):
        name = entry.name
        printable = name.encode("utf-8", "backslashreplace").decode()
        if entry.is_dir(follow_symlinks=False):
            left_out.append(Finding("file.folder", printable, "is a folder; a version holds only files"))
        elif name in _IGNORED or (name.startswith(".") and not entry.is_symlink()):
            left_out.append(
                Finding("file.not_the_adapter", printable, "is a file of a trainer or a tool, not of the adapter")
            )
        elif not entry.is_file(follow_symlinks=False):
            refused.append(Finding("file.special_refused", printable, "is a link, pipe, socket or device, not a file"))
        elif kind_of(name) is not None:
            names.file_path(name)
            selected[name] = (Path(entry.path), entry.stat(follow_symlinks=False).st_size)
        else:
            reason = refusal_of(printable)
            (refused if reason.code in _REFUSED_CODES else left_out).append(reason)
    if refused:
        first, more = refused[0], len(refused) - 1
        if any(name.endswith(WEIGHTS_ENDINGS) for name in selected):
            next_step = "take it out of the folder and push again"
        elif any(reason.code == WHOLE_MODEL for reason in refused):
            next_step = WHOLE_MODEL_STEP
        elif any(reason.code == "file.pickle_refused" for reason in refused):
            next_step = SAVE_AGAIN
        else:
            next_step = "push the folder that save_pretrained() wrote, with adapter_model.safetensors in it"
        raise Invalid(
            "FILE_REFUSED",
            f"{first.location} {first.message}" + (f" (and {more} more)" if more else ""),
            findings=refused,
            next_step=next_step,
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


def describe(name: str, size_bytes: int) -> Descriptor:
    """A file that was not hashed yet. `Invalid` or `TooLarge` for one that no version holds."""
    kind = kind_of(name)
    if kind is None:
        raise Invalid("FILE_REFUSED", f"{name} is not a kind of file that a version holds", findings=[refusal_of(name)])
    if size_bytes > kind.limit_bytes:
        message = f"has {size_bytes} bytes, over the limit of {kind.limit_bytes}"
        raise TooLarge.from_finding("SIZE_INVALID", Finding("file.too_large", name, message))
    return Descriptor(path=name, media_type=kind.media_type, digest=Digest.of(b""), size_bytes=size_bytes)


def _hash(described: Descriptor, source: Path) -> Descriptor:
    digest = Digest.of_file(source)
    if source.stat().st_size != described.size_bytes:
        raise Invalid("FOLDER_INVALID", f"{described.path} changed while it was read; push it when it is finished")
    return described.model_copy(update={"digest": digest})


def read_at(source: Path, start: int, length: int) -> bytes:
    """The bytes of a file at this offset, fewer only at its end."""
    with open(source, "rb", buffering=0) as file:
        file.seek(start)
        parts = b""
        while len(parts) < length and (part := file.read(length - len(parts))):
            parts += part
        return parts
