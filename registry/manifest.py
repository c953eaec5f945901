"""`Manifest`: what a version is. Its canonical bytes are hashed, and that digest *is* the version.

    Descriptor   path, media type, digest and size of one file
    Edge         relation to a parent version, by the parent's manifest digest
    BaseRef      the base this adapter is for: its name and its architecture fingerprint
    Manifest     base + files + parents + annotations + provenance

Invariants
- The same files for the same base with the same parents are the same version, whoever pushes them, whenever.
  So a message, a time or an author is never in the manifest.
- Parents are digests, so lineage is covered by the hash and cannot form a cycle.
- Files are sorted by path; no two paths are equal under case folding; every file has a kind we know (`KINDS`).
- Pickles, archives and code are never files of a version.
- A manifest that declares no inputs is the same bytes as before there were any: its `provenance` is left out.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from registry import names
from registry.digest import Digest, canonical_json
from registry.errors import Invalid, Reason, TooLarge
from registry.model import FrozenModel
from registry.provenance import Provenance

MEDIA_TYPE: Final = "application/vnd.adapter-registry.manifest.v1+json"
FILES_LIMIT = 256
CONFIG_LIMIT_BYTES = 256 * 2**10
FILE_LIMIT_BYTES = 20 * 2**30
VERSION_LIMIT_BYTES = 40 * 2**30
MANIFEST_LIMIT_BYTES = 1 * 2**20
TAG_VALUE_LIMIT = 200
"""Characters of an annotation that can be searched for; longer ones are kept, not found."""

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
NOTE = ".adapter.json"
"""The one file of ours in a folder that was pulled; never a part of a version."""
WEIGHTS_ENDINGS = (".safetensors", ".gguf")
"""How the names of files end that may hold an adapter's weights. PEFT's is `WEIGHTS`; other tools' have any name."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file that a version may hold: a path pattern, its media type, its size limit."""

    pattern: str
    media_type: str
    limit_bytes: int


KINDS: tuple[FileKind, ...] = (
    FileKind("*.safetensors", "application/vnd.safetensors", FILE_LIMIT_BYTES),
    FileKind("*.gguf", "application/vnd.gguf", FILE_LIMIT_BYTES),
    FileKind(CONFIG, "application/vnd.peft.config+json", CONFIG_LIMIT_BYTES),
    FileKind("README.md", "text/markdown", 2**20),
    FileKind("chat_template.jinja", "text/vnd.chat-template", 64 * 2**10),
    FileKind("tokenizer.json", "application/vnd.tokenizer+json", 64 * 2**20),
    FileKind("tokenizer_config.json", "application/json", 2**20),
    FileKind("special_tokens_map.json", "application/json", 2**20),
    FileKind("added_tokens.json", "application/json", 2**20),
    FileKind("vocab.json", "application/json", 32 * 2**20),
    FileKind("merges.txt", "text/plain", 32 * 2**20),
    FileKind("tokenizer.model", "application/vnd.sentencepiece", 64 * 2**20),
    FileKind("trainer_state.json", "application/json", 8 * 2**20),
    FileKind("training_args.yaml", "text/yaml", 2**20),
    FileKind("golden.jsonl", "application/vnd.adapter-registry.evaluation.golden+jsonl", 2**20),
    FileKind("LICENSE", "text/plain", 2**20),
)

_BY_NEMO = "export it to PEFT with NeMo's or Megatron-Bridge's adapter export"
REFUSED: tuple[tuple[str, str, str], ...] = (
    ("*.bin", "file.pickle_refused", "may be a pickle, which runs code when read; save as safetensors"),
    ("*.pt", "file.pickle_refused", "may be a pickle, which runs code when read; save as safetensors"),
    ("*.pth", "file.pickle_refused", "may be a pickle, which runs code when read; save as safetensors"),
    ("*.pkl", "file.pickle_refused", "is a pickle, which runs code when read"),
    ("*.ckpt", "file.pickle_refused", "may be a pickle, which runs code when read; save as safetensors"),
    ("*.py", "file.code_refused", "is code, and an adapter needs none"),
    ("*.so", "file.code_refused", "is code, and an adapter needs none"),
    ("*.zip", "file.archive_refused", "is an archive; push the files themselves"),
    ("*.tar*", "file.archive_refused", "is an archive; push the files themselves"),
    ("*.nemo", "file.archive_refused", f"is an archive of NeMo with a pickle in it; {_BY_NEMO}"),
    ("*.distcp", "file.archive_refused", f"is a piece of a checkpoint of NeMo or Megatron; {_BY_NEMO}"),
    ("*.tensors", "file.archive_refused", "is vLLM's cache of an adapter; push the PEFT adapter that it was made from"),
)
"""Kinds that are refused with a reason of their own; every other unknown kind is `file.kind_unknown`."""


def kind_of(path: str) -> FileKind | None:
    """The kind of a path in the version's root or a folder below it, or None for one that we do not keep."""
    name = path.rsplit("/", 1)[-1]
    return next((kind for kind in KINDS if fnmatch.fnmatchcase(name, kind.pattern)), None)


def refusal_of(path: str) -> Reason:
    """Why a file that has no kind is not kept."""
    for pattern, code, message in REFUSED:
        if fnmatch.fnmatchcase(path.lower(), pattern):
            return Reason(code, path, message)
    return Reason("file.kind_unknown", path, "is not a kind of file that an adapter version holds")


class Relation(StrEnum):
    """How a version came from its parent."""

    CONTINUED = "continued"
    MERGED = "merged"
    CONVERTED = "converted"
    EXTRACTED = "extracted"
    FUSED = "fused"


class Descriptor(FrozenModel):
    path: str
    media_type: str
    digest: Digest
    size_bytes: int = Field(ge=0, le=FILE_LIMIT_BYTES)


class Edge(FrozenModel):
    """Child → parent. `name` is what the parent was called then, for people; the digest is what counts."""

    relation: Relation
    digest: Digest
    name: str = Field(default="", max_length=200)


class BaseRef(FrozenModel):
    name: str
    fingerprint: Digest

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return str(names.base_name(name))


class Manifest(FrozenModel):
    schema_version: Literal[1] = 1
    media_type: Literal["application/vnd.adapter-registry.manifest.v1+json"] = MEDIA_TYPE
    base: BaseRef
    files: tuple[Descriptor, ...] = Field(min_length=1, max_length=FILES_LIMIT)
    parents: tuple[Edge, ...] = Field(default=(), max_length=64)
    annotations: dict[str, str] = Field(default_factory=dict, max_length=64)
    provenance: Provenance | None = Field(default=None, exclude_if=lambda declared: declared is None)

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        reasons = list(_reasons_against(self.files))
        large = [r for r in reasons if r.code == "file.too_large"]
        if large:
            raise TooLarge("SIZE_INVALID", f"{large[0].location} {large[0].message}", reasons=reasons)
        if reasons:
            code = "FILE_REFUSED" if any(r.code.startswith("file.") for r in reasons) else "MANIFEST_INVALID"
            raise Invalid(code, f"{reasons[0].location} {reasons[0].message}", reasons=reasons)
        total = sum(f.size_bytes for f in self.files)
        if total > VERSION_LIMIT_BYTES:
            raise TooLarge(
                "SIZE_INVALID",
                f"version: {total} bytes are over the limit of {VERSION_LIMIT_BYTES} (VERSION_LIMIT_BYTES)",
            )
        return self

    def to_bytes(self) -> bytes:
        """Canonical JSON: the bytes whose SHA-256 is the version."""
        return self.canonical

    @cached_property
    def canonical(self) -> bytes:
        """As `to_bytes`; made once, since a push asks for it again and again."""
        return canonical_json(self.model_dump(mode="json"))

    @cached_property
    def digest(self) -> Digest:
        return Digest.of(self.canonical)

    def __copy__(self) -> Self:
        """A copy may be changed by who makes it (`model_copy`), so it forgets what was made of the original."""
        copied = super().__copy__()
        for made in ("canonical", "digest"):
            copied.__dict__.pop(made, None)
        return copied

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)

    def file(self, path: str) -> Descriptor | None:
        return next((f for f in self.files if f.path == path), None)

    @classmethod
    def build(
        cls,
        base: BaseRef,
        files: Iterable[Descriptor],
        parents: Iterable[Edge] = (),
        annotations: dict[str, str] | None = None,
        provenance: Provenance | None = None,
    ) -> Manifest:
        """The manifest of these parts, in canonical order."""
        return cls(
            base=base,
            files=tuple(sorted(files, key=lambda f: f.path)),
            parents=tuple(sorted(set(parents), key=lambda e: (e.relation, e.digest))),
            annotations=annotations or {},
            provenance=provenance,
        )

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Bytes → manifest. `Invalid` unless they are the canonical bytes of a valid one."""
        if len(data) > MANIFEST_LIMIT_BYTES:
            raise TooLarge("SIZE_INVALID", f"manifest: {len(data)} bytes are over {MANIFEST_LIMIT_BYTES}")
        try:
            manifest = cls.model_validate(json.loads(data))
        except (ValueError, RecursionError) as e:
            raise Invalid("MANIFEST_INVALID", f"manifest: {_first_line(e)}") from e
        if manifest.to_bytes() != data:
            raise Invalid("MANIFEST_INVALID", "manifest: these bytes are not in canonical form (RFC 8785)")
        return manifest


def _reasons_against(files: tuple[Descriptor, ...]) -> Iterable[Reason]:
    paths: dict[str, str] = {}
    for earlier, later in pairwise(files):
        if earlier.path >= later.path:
            yield Reason("manifest.order", later.path, "is listed twice or out of order")
    for f in files:
        names.file_path(f.path)
        other = paths.setdefault(f.path.casefold(), f.path)
        if other != f.path:
            yield Reason("file.path_conflict", f.path, f"equals {other} where case does not count")
        kind = kind_of(f.path)
        if kind is None:
            yield refusal_of(f.path)
        elif f.media_type != kind.media_type:
            yield Reason("manifest.media_type", f.path, f"has media type {f.media_type}, not {kind.media_type}")
        elif f.size_bytes > kind.limit_bytes:
            yield Reason("file.too_large", f.path, f"has {f.size_bytes} bytes, over the limit of {kind.limit_bytes}")
    if not any(f.path.endswith(WEIGHTS_ENDINGS) for f in files):
        yield Reason("adapter.weights_missing", WEIGHTS, "is missing: a version holds its weights as safetensors")


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(p) for p in first['loc']) or 'document'}: {first['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
