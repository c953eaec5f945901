"""`Manifest`: what a version is. Its canonical bytes are hashed, and that digest *is* the version.

The same files for the same base with the same parents are the same version for every pusher, so no message, time or
author is in it. Parents are digests: lineage is covered by the hash and cannot form a cycle. A manifest that declares
no inputs leaves `provenance` out.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from registry import names
from registry.digest import Digest, canonical_json
from registry.errors import Invalid, TooLarge
from registry.findings import Finding
from registry.model import FrozenModel
from registry.validation import first_problem
from registry.versions.files import (
    FILE_LIMIT_BYTES,
    WEIGHTS,
    WEIGHTS_ENDINGS,
    WHOLE_MODEL,
    WHOLE_MODEL_STEP,
    kind_of,
    refusal_of,
)
from registry.versions.provenance import Provenance

MEDIA_TYPE: Final = "application/vnd.adapter-registry.manifest.v1+json"
FILES_LIMIT = 256
VERSION_LIMIT_BYTES = 40 * 2**30
MANIFEST_LIMIT_BYTES = 1 * 2**20
TAG_VALUE_LIMIT = 200
"""Characters of an annotation that can be searched for; longer ones are kept, not found."""
ANNOTATIONS_LIMIT_BYTES = 16 * 2**10
"""Keys and values together: each list of versions has them."""


class Relation(StrEnum):
    """How a version came from its parent."""

    CONTINUED = "continued"
    MERGED = "merged"
    CONVERTED = "converted"
    EXTRACTED = "extracted"
    FUSED = "fused"


class Descriptor(FrozenModel):
    """A file of a version."""

    path: str
    """Path of the file in the version, with `/` between folders."""
    media_type: str
    """Media type, which follows from the path."""
    digest: Digest
    """SHA-256 of the file's bytes."""
    size_bytes: int = Field(ge=0, le=FILE_LIMIT_BYTES)
    """Length of the file in bytes."""


class Edge(FrozenModel):
    """Child → parent. `name` is what the parent was called then, for people; the digest is what counts."""

    relation: Relation
    """How the child came from the parent."""
    digest: Digest
    """Digest of the parent's manifest; of a base, its fingerprint."""
    name: str = Field(default="", max_length=200)
    """Name of the parent at that time, for people. Only the digest counts."""


class BaseRef(FrozenModel):
    """The base model of a version: its name and the digest of its architecture."""

    name: Annotated[str, AfterValidator(names.base_name)]
    """Name of the base in this registry."""
    fingerprint: Digest
    """Digest of the architecture of the base, as `GET /bases/{base}` returns it."""


class ManifestDraft(FrozenModel):
    """A manifest whose base may still have to be chosen."""

    schema_version: Literal[1] = 1
    """Version of this format."""
    media_type: Literal["application/vnd.adapter-registry.manifest.v1+json"] = MEDIA_TYPE
    """Media type of this format."""
    base: BaseRef | None = None
    """Base model that the adapter was trained on; null: the registry chooses it."""
    files: tuple[Descriptor, ...] = Field(min_length=1, max_length=FILES_LIMIT)
    """All files, sorted by path, with at least one of weights. Together at most 40 GiB."""
    parents: tuple[Edge, ...] = Field(default=(), max_length=64)
    """Versions that this one was made from, sorted by relation and digest."""
    annotations: dict[str, str] = Field(default={}, max_length=64)
    """Key → value, sealed in the manifest: part of the digest, so they never change."""
    provenance: Provenance | None = Field(default=None, exclude_if=lambda declared: declared is None)
    """What the pusher declares the version was made from; null if nothing."""

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        check_files(self.files)
        return self

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(f.size_bytes for f in self.files)

    def file(self, path: str) -> Descriptor | None:
        """The descriptor at this path."""
        return next((f for f in self.files if f.path == path), None)

    @classmethod
    def build(
        cls,
        base: BaseRef | None,
        files: Iterable[Descriptor],
        parents: Iterable[Edge] = (),
        annotations: dict[str, str] | None = None,
        provenance: Provenance | None = None,
    ) -> Self:
        """The manifest of these parts, in canonical order. `Invalid` (MANIFEST_INVALID)."""
        try:
            return cls(
                base=base,
                files=tuple(sorted(files, key=lambda f: f.path)),
                parents=tuple(sorted(set(parents), key=lambda e: (e.relation, e.digest))),
                annotations=annotations or {},
                provenance=provenance,
            )
        except ValidationError as e:
            raise Invalid("MANIFEST_INVALID", "manifest: {}: {}".format(*first_problem(e, "document"))) from e

    def with_base(self, base: BaseRef) -> Manifest:
        """The manifest of the same parts for this base."""
        return Manifest(
            base=base, files=self.files, parents=self.parents, annotations=self.annotations, provenance=self.provenance
        )


class Manifest(ManifestDraft):
    """What a version is: base, files, parents and what its pusher declares."""

    base: BaseRef
    """The base model that the adapter was trained on."""

    def to_bytes(self) -> bytes:
        """Canonical JSON: the bytes whose SHA-256 is the version."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical JSON: the id of the version."""
        return Digest.of(self.to_bytes())

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Bytes → manifest. `Invalid` unless they are the canonical bytes of a valid one."""
        check_manifest_bytes(data)
        try:
            manifest = cls.model_validate_json(data)
        except ValueError as e:
            raise Invalid("MANIFEST_INVALID", "manifest: {}: {}".format(*first_problem(e, "document"))) from e
        if manifest.to_bytes() != data:
            raise Invalid("MANIFEST_INVALID", "manifest: these bytes are not in canonical form (RFC 8785)")
        return manifest


def check_manifest_bytes(data: bytes) -> None:
    """`TooLarge` (SIZE_INVALID) for the bytes of a manifest that are over the limit."""
    if len(data) > MANIFEST_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"manifest: {len(data)} bytes are over {MANIFEST_LIMIT_BYTES}")


def check_size(manifest: Manifest) -> None:
    """`TooLarge` (SIZE_INVALID) for a manifest, or annotations, over the limit."""
    check_manifest_bytes(manifest.to_bytes())
    size_bytes = sum(len(text.encode()) for pair in manifest.annotations.items() for text in pair)
    if size_bytes > ANNOTATIONS_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"annotations: {size_bytes} bytes are over {ANNOTATIONS_LIMIT_BYTES}")


def check_files(files: tuple[Descriptor, ...], *, needs_weights: bool = True) -> None:
    """`Invalid` or `TooLarge` unless a version may hold these files, in order of their paths."""
    findings = [f for f in _findings_against(files) if needs_weights or f.code != "adapter.weights_missing"]
    large = [r for r in findings if r.code == "file.too_large"]
    if large:
        raise TooLarge("SIZE_INVALID", f"{large[0].location} {large[0].message}", findings=findings)
    if findings:
        code = "FILE_REFUSED" if any(r.code.startswith("file.") for r in findings) else "MANIFEST_INVALID"
        next_step = WHOLE_MODEL_STEP if any(r.code == WHOLE_MODEL for r in findings) else ""
        raise Invalid(code, f"{findings[0].location} {findings[0].message}", findings=findings, next_step=next_step)
    total = sum(f.size_bytes for f in files)
    if total > VERSION_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"version: {total} bytes; the limit is {VERSION_LIMIT_BYTES}")


def _findings_against(files: tuple[Descriptor, ...]) -> Iterable[Finding]:
    paths: dict[str, str] = {}
    folders = {parent: f.path for f in files for parent in _parents(f.path.casefold())}
    for earlier, later in pairwise(files):
        if earlier.path >= later.path:
            yield Finding("manifest.order", later.path, "is listed twice or out of order")
    for f in files:
        names.file_path(f.path)
        other = paths.setdefault(f.path.casefold(), f.path)
        if other != f.path:
            yield Finding("file.path_conflict", f.path, f"equals {other} where case does not count")
        if inner := folders.get(f.path.casefold()):
            yield Finding("file.path_conflict", f.path, f"is a file, and {inner} needs a folder of that name")
        kind = kind_of(f.path)
        if kind is None:
            yield refusal_of(f.path)
        elif f.media_type != kind.media_type:
            yield Finding("manifest.media_type", f.path, f"has media type {f.media_type}, not {kind.media_type}")
        elif f.size_bytes > kind.limit_bytes:
            yield Finding("file.too_large", f.path, f"has {f.size_bytes} bytes, over the limit of {kind.limit_bytes}")
    if not any(f.path.endswith(WEIGHTS_ENDINGS) for f in files):
        yield Finding("adapter.weights_missing", WEIGHTS, "is missing: a version holds its weights as safetensors")


def _parents(path: str) -> list[str]:
    """The folders that a path lies in: `a/b` and `a` of `a/b/c`."""
    return [path[:end] for end, character in enumerate(path) if character == "/"]
