"""What the server itself sees in a push: are the bytes there and correct, what do they say, do they fit the base?

- Nothing that a client claimed is trusted: sizes and digests come from the store, facts from the bytes. What is
  inspected is what was verified: a whole file is hashed as it is read, a piece of a larger one is read twice.
- A staged blob is never looked up under its final key: those bytes may be another tenant's.
- It writes neither blobs nor rows. Malformed files raise; incompatible ones get a finding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from registry import compat
from registry.adapters.card import check_card
from registry.adapters.companions import check_companions
from registry.adapters.formats import IMAGE_FORMATS
from registry.adapters.read import AdapterContents, PeftContents, ReadCache, read_any, weights_of
from registry.adapters.templates import check_templates
from registry.bases import BaseSpec, Similarity
from registry.compat import tokenizers
from registry.digest import Digest, Hasher
from registry.engines import version_facts
from registry.errors import Conflict, Invalid, Unavailable
from registry.findings import Finding
from registry.server.database import db
from registry.server.evaluation.norms import INLINE_BYTES, Measured, measure
from registry.server.storage.blobs import BlobStore, Stat
from registry.versions.files import Read
from registry.versions.manifest import Descriptor, Manifest


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a version's row will say about its content, and the findings of the check `compat`."""

    method: str
    rank: int | None
    facts: dict[str, Any]
    findings: tuple[Finding, ...]
    weights: Measured | None = None
    """None while the weights still have to be measured: they are large."""
    can_be_tested: bool = True
    """Whether a worker can load it on its base: PEFT adapters can, and image adapters on an image model."""


class BlobMismatch(Invalid):
    """The bytes under `key` are not what the manifest says."""

    def __init__(self, key: str, detail: str, findings: list[Finding]) -> None:
        super().__init__("BLOB_MISMATCH", detail, findings=findings)
        self.key = key


@contextmanager
def verified_blobs(
    blobs: BlobStore, keys: Mapping[Digest, str], stored: Set[Digest], manifest: Manifest,
    damaged: Set[Digest] = frozenset(),
) -> Iterator[dict[Digest, Stat]]:  # fmt: skip
    """Digest → what was verified of every blob of this push; each has the size and the hash that the manifest says.

    `keys` says where the bytes should be. `stored` are those that this server itself has hashed and written there;
    `damaged` ones are hashed again, whatever the store says. Snapshots last as long as the context. `Conflict`
    (UPLOAD_INCOMPLETE) lists every file whose bytes are missing; `BlobMismatch` names the first wrong one.
    """
    snapshots: list[str] = []
    try:
        yield _verify_blobs(blobs, keys, stored, manifest, damaged, snapshots)
    finally:
        with contextlib.suppress(Unavailable):  # `gc` deletes them with what else the push has staged
            for key in snapshots:
                blobs.delete(key)


def _verify_blobs(
    blobs: BlobStore, keys: Mapping[Digest, str], stored: Set[Digest], manifest: Manifest, damaged: Set[Digest],
    snapshots: list[str],
) -> dict[Digest, Stat]:  # fmt: skip
    verified: dict[Digest, Stat] = {}
    missing: list[Finding] = []
    lost = False
    for file in manifest.files:
        key = keys[file.digest]
        if file.digest in stored:
            verified[file.digest] = Stat(key, file.size_bytes, file.digest, db.now())
            continue
        stat = verified.get(file.digest) or _stat(blobs, key, file.size_bytes)
        if stat is None:
            missing.append(_unknown(file))
            lost = lost or not key.startswith("staging/")
            continue
        if stat.digest is None:
            stat = blobs.snapshot(stat)
            if stat.key != key:
                snapshots.append(stat.key)
        if stat.digest is None or file.digest in damaged:
            stat = replace(stat, digest=_hash(blobs, stat))
        digest = stat.digest
        if (stat.size_bytes, digest) != (file.size_bytes, file.digest):
            message = f"has {stat.size_bytes} bytes that hash to {digest}; the manifest says {file.size_bytes} bytes"
            findings = [Finding("blob.size_mismatch", file.path, message)]
            raise BlobMismatch(key, f"{file.path} {message}", findings)
        verified[file.digest] = stat
    if missing:
        raise _incomplete(missing, lost)
    return verified


def check_none_missing(manifest: Manifest, missing: Set[str]) -> None:
    """`Conflict` (UPLOAD_INCOMPLETE) that lists the files whose bytes are missing, if there are any."""
    findings = [_unknown(file) for file in manifest.files if file.digest in missing]
    if findings:
        raise _incomplete(findings, lost=False)


def _unknown(file: Descriptor) -> Finding:
    return Finding("blob.unknown", file.path, f"was not uploaded: no bytes for {file.digest}")


def _incomplete(missing: list[Finding], lost: bool) -> Conflict:
    """`lost`: bytes of an existing version are gone. No plan requests them until a check has marked them damaged."""
    return Conflict(
        "UPLOAD_INCOMPLETE",
        f"{missing[0].location} {missing[0].message}" + (f" (and {len(missing) - 1} more)" if missing[1:] else ""),
        findings=missing,
        next_step="the store has lost bytes: ask an administrator to run `adapter fsck --deep`, then push again"
        if lost
        else "push again: only missing files are sent",
    )


def _stat(blobs: BlobStore, key: str, size_bytes: int) -> Stat | None:
    """What is under the key, after assembling parts that were uploaded."""
    stat = blobs.stat(key)
    if stat is None:
        blobs.complete_parts(key, size_bytes)
        stat = blobs.stat(key)
    return stat


def inspect_files(
    blobs: BlobStore, keys: dict[Digest, str], manifest: Manifest, spec: BaseSpec,
    relatives: Sequence[Similarity] = (), *, measure_small: bool = True, small: Mapping[Digest, bytes] = {},
) -> Inspection:  # fmt: skip
    """Read the configuration, the headers and the tokenizer's files, and compare them with the base.

    `measure_small`: measure the weights, too, if they are small. `small`: verified bytes that need not be read.
    """
    weights = weights_of(manifest.files)
    inline = measure_small and weights.size_bytes <= INLINE_BYTES
    read = _reader(blobs, keys, manifest, small, keep=weights.path if inline else "")
    sizes = {file.path: file.size_bytes for file in manifest.files}
    check_companions(sizes, read)
    check_templates(sizes, read)
    contents, fit, facts = _evaluate(manifest, read, spec, relatives)
    findings = (
        *fit,
        *tokenizers.check_tokenizer(manifest.files, read, spec),
        *check_card(sizes, read),
    )
    measured = None
    if inline:
        measured = measure(lambda at, n: read(weights.path, at, n), weights.size_bytes, contents.header, contents.pairs)
    facts = {**facts, **version_facts.claims(manifest.files, read)}
    testable = isinstance(contents, PeftContents) or (spec.is_pipeline and contents.file.format in IMAGE_FORMATS)
    return Inspection(facts["method"], facts["rank"], facts, findings, measured, testable)


class _Same:
    """A key that equals itself only, for an object that is slow to hash."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value


_Evaluation = tuple[AdapterContents, tuple[Finding, ...], dict[str, Any]]
_EVALUATIONS: ReadCache[_Evaluation] = ReadCache(limit=32)


def _evaluate(manifest: Manifest, read: Read, spec: BaseSpec, relatives: Sequence[Similarity]) -> _Evaluation:
    """What configuration and header say, the findings about them on this base, and their facts."""
    files = [file for file in manifest.files if file.path not in version_facts.CLAIM_FILES]

    def evaluate(read: Read) -> _Evaluation:
        contents = read_any(files, read)
        return contents, compat.check(contents, spec, relatives), version_facts.facts_of(contents)

    sizes = tuple((file.path, file.size_bytes) for file in files)
    return _EVALUATIONS.compute((sizes, _Same(spec), tuple(relatives)), read, evaluate)


def _reader(
    blobs: BlobStore, keys: dict[Digest, str], manifest: Manifest, small: Mapping[Digest, bytes], *, keep: str
) -> Read:
    """Reads pieces of the manifest's files and detects bits that flip between the store and here.

    The file `keep` is read once as a whole and hashed; its pieces come from that. `Unavailable` when bytes differ.
    """
    by_path = {file.path: file for file in manifest.files}
    whole = {file.path: small[file.digest] for file in manifest.files if file.digest in small}

    def read(path: str, start: int, length: int) -> bytes:
        file = by_path[path]
        if path in whole:
            return whole[path][start : start + length]
        if path == keep and file.size_bytes > length:
            whole[path] = read(path, 0, file.size_bytes)
            return whole[path][start : start + length]
        data = blobs.read(keys[file.digest], start, length)
        if start == 0 and length >= file.size_bytes:
            is_same = Digest.of(data) == file.digest
        else:
            is_same = blobs.read(keys[file.digest], start, length) == data
        if not is_same:
            raise Unavailable("STORE_UNAVAILABLE", f"{path}: the store returned other bytes than those it had verified")
        return data

    return read


def _hash(blobs: BlobStore, stat: Stat) -> Digest:
    hasher = Hasher()
    for chunk in blobs.open(stat.key):
        hasher.update(chunk)
    return hasher.digest()
