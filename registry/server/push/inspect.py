"""What the server itself sees in a push: are the bytes there and correct, what do they say, do they fit the base?

- Nothing that a client claimed is trusted: sizes and digests were verified as the bytes came, facts come from them.
- What is inspected is what was verified: a whole file is hashed as it is read, a piece of a larger one is read twice.
- A requested blob counts once its push has sent it, never because its final key exists: that may be another tenant's.
- It writes neither blobs nor rows. Malformed files raise; incompatible ones get a finding.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from registry import compat
from registry.adapters import formats, templates
from registry.adapters.card import check_card
from registry.adapters.companions import check_companions, check_token_files, is_token_file
from registry.adapters.read import AdapterContents, ReadCache, read_any, weights_of
from registry.api.transfer import SMALL_BLOB_BYTES, PushItem
from registry.bases import BaseSpec, Similarity
from registry.compat import tokenizers
from registry.digest import Digest
from registry.engines import version_facts
from registry.errors import Conflict, Refused, TooLarge, Unavailable
from registry.findings import Finding
from registry.names import AdapterName
from registry.server.catalog.search import text_index
from registry.server.evaluation.norms import INLINE_BYTES, Measured, MeasuringPlan, measure
from registry.server.storage.blobs import BlobStore, key_of
from registry.versions.files import CARD, CONFIG, GOLDEN, TEMPLATE_FILES, WEIGHTS_ENDINGS, Read
from registry.versions.manifest import Descriptor, Manifest, ManifestDraft

FACTS_LIMIT_BYTES = 256 * 2**10
"""Bytes of the facts of a version: a header may name 30,000 modules that have nothing in common."""
SHARED_BYTES = 16 * 2**20
"""Bytes of small files that the pushes of one group share."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a version's row will say about its content, and the findings of the check `compat`."""

    method: str
    rank: int | None
    facts: dict[str, Any]
    findings: tuple[Finding, ...]
    weights: Measured | None = None
    """None while the weights still have to be measured: they are large."""
    card_words: str = ""
    """What the text index gets of it."""
    can_be_tested: bool = True
    """Whether a worker can load it on its base: PEFT adapters can, and image adapters on an image model."""


class GroupReads:
    """What the pushes of one group found in the store, which is asked once about files that they share. Thread-safe."""

    def __init__(self) -> None:
        self._sizes: dict[Digest, int] = {}
        self.data: dict[Digest, bytes] = {}
        """The verified bytes of small files, `SHARED_BYTES` at most (some more if threads read at once)."""
        self._size_bytes = 0

    def size_of(self, blobs: BlobStore, digest: Digest) -> int:
        """How many bytes the store has of a blob; -1 without the blob."""
        if digest not in self._sizes:
            stat = blobs.stat(key_of(digest))
            self._sizes[digest] = stat.size_bytes if stat is not None else -1
        return self._sizes[digest]

    def keep(self, digest: Digest, data: bytes) -> None:
        """Keep the bytes of a file if they are few."""
        if len(data) <= SMALL_BLOB_BYTES and self._size_bytes + len(data) <= SHARED_BYTES:
            self._size_bytes += len(data)
            self.data[digest] = data


def check_blobs(
    blobs: BlobStore, manifest: Manifest, stored: Set[Digest], taken_over: Set[Digest], damaged: Set[Digest],
    shared: GroupReads,
) -> None:  # fmt: skip
    """Check that the bytes of every file are there. `Conflict` (UPLOAD_INCOMPLETE) lists those that are missing.

    `stored` blobs were verified when they came; `taken_over` ones are those of a version; no other one has come.
    `damaged` ones are hashed again.
    """
    missing: list[Finding] = []
    lost = False
    for file in manifest.files:
        is_there = file.digest in stored
        if file.digest in taken_over:
            is_there = shared.size_of(blobs, file.digest) == file.size_bytes
            lost = lost or not is_there
        if is_there and file.digest in damaged:
            is_there = Digest.of_chunks(blobs.open(key_of(file.digest))) == file.digest
        if not is_there:
            missing.append(_unknown(file))
    if missing:
        raise _incomplete(missing, lost)


def check_none_missing(manifest: Manifest, missing: Set[str]) -> None:
    """`Conflict` (UPLOAD_INCOMPLETE) that lists the files whose bytes are missing, if there are any."""
    findings = [_unknown(file) for file in manifest.files if file.digest in missing]
    if findings:
        raise _incomplete(findings, lost=False)


def _unknown(file: Descriptor) -> Finding:
    return Finding("blob.unknown", file.path, f"was not uploaded ({file.digest})")


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


def inspect_files(
    blobs: BlobStore, manifest: Manifest, spec: BaseSpec, relatives: Sequence[Similarity] = (), *,
    measure_small: bool = True, shared: GroupReads | None = None,
) -> Inspection:  # fmt: skip
    """Read the configuration, the headers and the tokenizer's files, and compare them with the base.

    `measure_small`: measure the weights, too, if they are small.
    """
    shared = shared or GroupReads()
    weights = weights_of(manifest.files)
    inline = measure_small and weights.size_bytes <= INLINE_BYTES
    read = _reader(blobs, manifest, shared, keep=weights.path if inline else "")
    sizes = {file.path: file.size_bytes for file in manifest.files}
    check_beside({path: size for path, size in sizes.items() if path not in (weights.path, CONFIG, CARD)}, read)
    _search_tokens(manifest.files, read)
    contents = read_contents(manifest.files, read)
    fit, facts = contents.evaluate(spec, relatives)
    findings = (*fit, *tokenizers.check_tokenizer(manifest.files, read, spec), *check_card(sizes, read))
    measured = None
    if inline:
        whole = memoryview(read(weights.path, 0, weights.size_bytes))
        measured = measure(lambda at, n: whole[at : at + n], weights.size_bytes, contents.measuring)
    facts = {**facts, **version_facts.claims(manifest.files, read)}
    if (size_bytes := len(json.dumps(facts))) > FACTS_LIMIT_BYTES:
        detail = f"the names of modules, ranks and scales in its header have {size_bytes} bytes"
        raise TooLarge("SIZE_INVALID", f"{weights.path}: {detail}, over the limit of {FACTS_LIMIT_BYTES}")
    format = contents.adapter.format
    testable = spec.is_registered and (format == formats.PEFT or (spec.is_pipeline and format.is_image))
    card = read(CARD, 0, min(sizes[CARD], text_index.CARD_LIMIT_BYTES)) if CARD in sizes else b""
    words = text_index.card_words(card, facts, manifest.annotations)
    return Inspection(facts["method"], facts["rank"], facts, findings, measured, words, testable)


def check_beside(sizes: Mapping[str, int], read: Read) -> None:
    """Refuse unsafe files beside weights and configuration."""
    check_companions(sizes, read)
    if any(path.rpartition("/")[2] in TEMPLATE_FILES for path in sizes):
        templates.check_templates(sizes, read)


_SEARCHED: dict[Digest, None] = {}
"""Files of tokens without code, the newest last: the adapters of one base often have the same, of many megabytes."""
_SEARCHED_LIMIT = 1000


def _search_tokens(files: Iterable[Descriptor], read: Read) -> None:
    new = [file for file in files if is_token_file(file.path) and file.digest not in _SEARCHED]
    check_token_files({file.path: file.size_bytes for file in new}, read)
    _SEARCHED.update(dict.fromkeys(file.digest for file in new))
    for digest in list(_SEARCHED)[:-_SEARCHED_LIMIT]:
        _SEARCHED.pop(digest, None)


class Contents:
    """What configuration and header say, and how that fits the last bases that it was compared with."""

    def __init__(self, adapter: AdapterContents) -> None:
        self.adapter = adapter
        self._fits: list[tuple[BaseSpec, tuple[Similarity, ...], Fit]] = []

    @cached_property
    def measuring(self) -> MeasuringPlan:
        """How its weights are measured."""
        return MeasuringPlan.of(self.adapter.header, self.adapter.pairs)

    def evaluate(self, spec: BaseSpec, relatives: Sequence[Similarity]) -> Fit:
        """The findings about it on this base, and its facts."""
        for spec_then, relatives_then, fit in self._fits:
            if spec_then is spec and relatives_then == tuple(relatives):  # equal specs are slow to compare
                return fit
        fit = compat.check(self.adapter, spec, relatives), version_facts.facts_of(self.adapter)
        self._fits = [(spec, tuple(relatives), fit), *self._fits[: FITS_LIMIT - 1]]
        return fit


Fit = tuple[tuple[Finding, ...], dict[str, Any]]
FITS_LIMIT = 4
_CONTENTS: ReadCache[Contents] = ReadCache(limit=32)


def says_what_it_is(path: str) -> bool:
    """Whether a file says what kind of adapter it is part of: others do not count, such as a model card."""
    return path in (CONFIG, GOLDEN) or path.endswith(WEIGHTS_ENDINGS)


def read_contents(files: Iterable[Descriptor], read: Read) -> Contents:
    """What configuration and header say. Remembered by their bytes: a script's adapters have equal ones."""
    read_files = [file for file in files if says_what_it_is(file.path)]
    sizes = tuple((file.path, file.size_bytes) for file in read_files)
    return _CONTENTS.compute(sizes, read, lambda read: Contents(read_any(read_files, read)))


# The first bytes of files, which a plan carries, so that pushes are evaluated before their bytes are sent. A client may
# send other bytes afterwards. So excerpts only refuse a push or choose its base.
class NotSent(Exception):
    """A plan has no excerpt of these bytes."""


@dataclass(frozen=True, slots=True)
class Excerpts:
    """The first bytes of some files of one push, and the sizes of these files."""

    data_of: Mapping[str, bytes]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, item: PushItem, data: Sequence[bytes]) -> Excerpts:
        """The excerpts of one push, among those of the request."""
        sizes = {file.path: file.size_bytes for file in item.manifest.files if file.path in item.excerpts}
        return cls({path: data[item.excerpts[path]][:size] for path, size in sizes.items()}, sizes)

    @property
    def whole(self) -> dict[str, int]:
        """The sizes of those files that were sent as a whole."""
        return {path: size for path, size in self.sizes.items() if len(self.data_of[path]) == size}

    def find_whole(self, manifest: ManifestDraft) -> dict[Digest, bytes]:
        """The bytes of the files that were sent as a whole, by the digests that they are said to have."""
        return {file.digest: self.data_of[file.path] for file in manifest.files if file.path in self.whole}

    def read(self, path: str, start: int, length: int) -> bytes:
        """Read a piece of a file. `NotSent` if an excerpt does not hold all of it."""
        data = self.data_of.get(path)
        if data is None or min(start + length, self.sizes[path]) > len(data):
            raise NotSent
        return data[start : start + length]

    def select_readable(self, draft: ManifestDraft) -> list[Descriptor] | None:
        """The files that say what the adapter is; None if the plan has no excerpt of one of them."""
        read = [file for file in draft.files if says_what_it_is(file.path)]
        if any(file.path not in self.data_of for file in read if file.path != GOLDEN):
            return None
        return [file for file in read if file.path != GOLDEN or GOLDEN in self.whole]


def read_excerpts(draft: ManifestDraft, excerpts: Excerpts) -> Contents | None:
    """What configuration and header say, if a plan has both; alphas that are not among the excerpts are left out."""
    files = excerpts.select_readable(draft)
    if files is None:
        return None
    with contextlib.suppress(NotSent):
        return read_contents(files, excerpts.read)
    with contextlib.suppress(NotSent):
        return Contents(read_any(files, excerpts.read, with_values=False))
    return None


def evaluate_excerpts(
    manifest: Manifest, contents: Contents, excerpts: Excerpts, spec: BaseSpec, relatives: Sequence[Similarity]
) -> tuple[Finding, ...]:
    """The findings of the check `compat` that follow from what a plan has."""
    findings = contents.evaluate(spec, relatives)[0]
    with contextlib.suppress(NotSent):
        findings = (*findings, *tokenizers.check_tokenizer(manifest.files, excerpts.read, spec))
    return findings


def refusal_of(name: AdapterName, base: str, findings: Iterable[Finding]) -> Refused | None:
    """The error of a push to a strict namespace that does not fit its base; None if it fits."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return None
    return Refused(
        "INCOMPATIBLE",
        f"'{name}' does not fit its base '{base}': {errors[0].to_text()}",
        findings=errors,
        next_step=f"namespace '{name.namespace}' is strict; push to another one to store it anyway",
    )


def _reader(blobs: BlobStore, manifest: Manifest, shared: GroupReads, *, keep: str) -> Read:
    """Reads pieces of the manifest's files and detects bits that flip between the store and here.

    The file `keep` is read once as a whole and hashed; its pieces come from that. `Unavailable` when bytes differ.
    """
    by_path = {file.path: file for file in manifest.files}
    data_of: dict[Digest, bytes] = {}

    def read(path: str, start: int, length: int) -> bytes:
        file = by_path[path]
        if path == keep and file.digest not in data_of and file.size_bytes > length:
            data_of[file.digest] = read(path, 0, file.size_bytes)
        whole = data_of.get(file.digest, shared.data.get(file.digest))
        if whole is not None:
            return whole[start : start + length]
        data = blobs.read(key_of(file.digest), start, length)
        if start == 0 and length >= file.size_bytes:
            is_same, is_whole = Digest.of(data) == file.digest, True
        else:
            is_same, is_whole = blobs.read(key_of(file.digest), start, length) == data, False
        if not is_same:
            raise Unavailable("STORE_UNAVAILABLE", f"{path}: the store returned bytes that were not verified")
        if is_whole:
            shared.keep(file.digest, data)
        return data

    return read
