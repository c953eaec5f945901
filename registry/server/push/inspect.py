"""What the server itself sees in a push: are the bytes there and true, what do they say, and do they fit the base?

Invariants
- Nothing that a client claimed is believed: sizes and digests come from the store, facts from the bytes.
- What is judged is what was verified: a whole file is hashed as it is read, a piece of a larger one is read twice.
- A staged blob is never looked for under its final key: that may be another tenant's.
- Malformed raises; incompatible is a finding.
- Reads blobs and rows, writes neither: it all happens before the first row of a version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from registry.adapters import read as contents
from registry.adapters.formats import IMAGE_SCHEMES
from registry.bases import BaseSpec
from registry.bases.similarity import Similarity
from registry.compat import evaluate, tokenizers
from registry.digest import Digest, Hasher
from registry.engines import version_facts
from registry.errors import Conflict, Invalid, Reason, Unavailable
from registry.evaluation.verdicts import Finding
from registry.manifest import Manifest
from registry.server.database.models import PushBlobRow
from registry.server.evaluation.weights.measure import INLINE_BYTES, Measured, measure
from registry.server.storage.blobs import BlobStore, Stat, key_of


@dataclass(frozen=True, slots=True)
class Judged:
    """What a version's row will say of its content, and the findings of the check `compat`."""

    method: str
    rank: int | None
    facts: dict[str, Any]
    findings: tuple[Finding, ...]
    weights: Measured | None = None
    """None while the weights are still to be measured: they are large."""
    can_be_tried: bool = True
    """Whether a worker can put it on its base: PEFT's own, and image adapters on an image model."""


_LOST = "the store has lost it: ask an administrator to run `adapter fsck --deep`, then push again"
"""Until a check has marked it, no plan asks for it again."""


class Mismatch(Invalid):
    """What was staged under `key` is not what the manifest says."""

    def __init__(self, key: str, detail: str, reasons: list[Reason]) -> None:
        super().__init__("BLOB_MISMATCH", detail, reasons=reasons)
        self.key = key


def verified(blobs: BlobStore, rows: Iterable[PushBlobRow], manifest: Manifest) -> dict[Digest, str]:
    """Digest → key of every blob of this push, each there with the size and the hash that the manifest says.

    `Conflict` (UPLOAD_INCOMPLETE) lists every file whose bytes are not there; `Invalid` (BLOB_MISMATCH).
    """
    keys = {Digest(row.digest): row.staging_key or key_of(Digest(row.digest)) for row in rows}
    missing: list[Reason] = []
    lost = False
    for file in manifest.files:
        stat = _found(blobs, keys[file.digest], file.size_bytes)
        if stat is None:
            missing.append(Reason("blob.unknown", file.path, f"was not uploaded: no bytes for {file.digest}"))
            lost = lost or not keys[file.digest].startswith("staging/")
            continue
        found = stat.digest or _hash(blobs, stat.key)
        if (stat.size_bytes, found) != (file.size_bytes, file.digest):
            message = f"has {stat.size_bytes} bytes that hash to {found}; the manifest says {file.size_bytes} bytes"
            reasons = [Reason("blob.size_mismatch", file.path, message)]
            raise Mismatch(stat.key, f"{file.path} {message}", reasons)
    if missing:
        raise Conflict(
            "UPLOAD_INCOMPLETE",
            f"{missing[0].location} {missing[0].message}" + (f" (and {len(missing) - 1} more)" if missing[1:] else ""),
            reasons=missing,
            next_step=_LOST if lost else "push again: only missing files are sent",
        )
    return keys


def _found(blobs: BlobStore, key: str, size_bytes: int) -> Stat | None:
    """What is under the key, once parts that were sent are put together."""
    stat = blobs.stat(key)
    if stat is None:
        blobs.complete_parts(key, size_bytes)
        stat = blobs.stat(key)
    return stat


def look(
    blobs: BlobStore,
    keys: dict[Digest, str],
    manifest: Manifest,
    spec: BaseSpec,
    relatives: Sequence[Similarity] = (),
    *,
    measuring: bool = True,
) -> Judged:
    """Reads the configuration, the headers and the tokenizer's files, and compares them with the base.

    `measuring`: the numbers of small weights, too.
    """
    weights = contents.weights_of(manifest.files)
    small = measuring and weights.size_bytes <= INLINE_BYTES
    read = _reader(blobs, keys, manifest, keep=weights.path if small else "")
    found = contents.read_any(manifest.files, read)
    compat = evaluate.fit(found, spec, relatives)
    findings = (*compat, *tokenizers.check_tokenizer(manifest.files, read, spec))
    measured = None
    if small:
        measured = measure(lambda at, n: read(weights.path, at, n), weights.size_bytes, found.header, found.pairs)
    told = {**version_facts.of(found), **version_facts.claims(manifest.files, read)}
    tried = isinstance(found, contents.Contents) or (spec.is_pipeline and found.file.scheme in IMAGE_SCHEMES)
    return Judged(told["method"], told["rank"], told, findings, measured, tried)


def _reader(blobs: BlobStore, keys: dict[Digest, str], manifest: Manifest, *, keep: str) -> contents.Read:
    """Reads pieces of the manifest's files. A bit that flips between the store and here is found.

    The file `keep` is read once, as a whole, and hashed; its pieces are of that. `Unavailable` when bytes differ.
    """
    by_path = {file.path: file for file in manifest.files}
    whole: dict[str, bytes] = {}

    def read(path: str, start: int, length: int) -> bytes:
        file = by_path[path]
        if path in whole:
            return whole[path][start : start + length]
        if path == keep and file.size_bytes > length:
            whole[path] = read(path, 0, file.size_bytes)
            return whole[path][start : start + length]
        found = blobs.read(keys[file.digest], start, length)
        if start == 0 and length >= file.size_bytes:
            same = Digest.of(found) == file.digest
        else:
            same = blobs.read(keys[file.digest], start, length) == found
        if not same:
            raise Unavailable("STORE_UNAVAILABLE", f"{path}: the store gave other bytes than those that were verified")
        return found

    return read


def _hash(blobs: BlobStore, key: str) -> Digest:
    hasher = Hasher()
    for chunk in blobs.open(key):
        hasher.update(chunk)
    return hasher.digest()
