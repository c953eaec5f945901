"""The bytes of a version that an actor may read: its files, the reports of its verdicts, and plans to download them.

A digest alone gives access to nothing: bytes are found through a version that the actor may see.
"""

import base64
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlmodel import Session, col, select

from registry import names
from registry.api.catalog import Resolved
from registry.api.evaluation import ReferenceLogprobsView
from registry.api.transfer import (
    BULK_MANIFESTS_BYTES,
    BULK_SMALL_BYTES,
    SMALL_BLOB_BYTES,
    SMALL_FILES_BYTES,
    PullPlan,
    SmallBlob,
)
from registry.digest import Digest
from registry.errors import Corrupt, NotFound, RegistryError
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check
from registry.names import AdapterName, Ref, Selector
from registry.server.actors import Actor
from registry.server.catalog import availability, verdicts, version_groups, versions
from registry.server.database import db
from registry.server.database.models import BlobRow, VerdictRow, VersionFileRow, VersionRow
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore, key_of
from registry.server.storage.states import BlobState, find_damaged
from registry.versions.manifest import Descriptor

REPORTS_SEARCHED = 3


# ------------------------------------------------------------------ files
def find_file(session: Session, actor: Actor, name: AdapterName, selector: Selector, path: str) -> Descriptor:
    """One file of one version. `NotFound` (BLOB_UNKNOWN) for a path that it lacks; `Corrupt` for damaged bytes."""
    version = _find_readable(session, actor, name, selector)
    row = session.get(VersionFileRow, (version.id, names.file_path(path)))
    if row is None:
        raise NotFound("BLOB_UNKNOWN", f"version {version.number} of '{name}' has no file '{path}'")
    blob = session.get(BlobRow, row.digest)
    if blob is not None and blob.state == BlobState.CORRUPT:
        raise Corrupt(
            "DIGEST_MISMATCH",
            f"{path} of version {version.number} of '{name}': the stored bytes no longer hash to {row.digest}",
            next_step=f"to repair it, push the same files to '{name}' again",
        )
    return Descriptor(path=row.path, media_type=row.media_type, digest=Digest(row.digest), size_bytes=row.size_bytes)


def locate_bytes(blobs: BlobStore, file: Descriptor) -> str:
    """The key of a file's bytes, which exist with the right size. `Corrupt` (DIGEST_MISMATCH) otherwise."""
    stat = blobs.stat(key_of(file.digest))
    if stat is None or stat.size_bytes != file.size_bytes:
        content = "nothing" if stat is None else f"{stat.size_bytes} bytes"
        raise Corrupt(
            "DIGEST_MISMATCH",
            f"{file.path}: the store has {content} where {file.size_bytes} bytes of {file.digest} were stored",
            next_step="tell the operator: `adapter fsck` shows what else is missing",
        )
    return stat.key


def _find_readable(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> VersionRow:
    version = versions.find(session, actor, name, selector)
    availability.require_readable(actor, name, version, selector)
    return version


# ------------------------------------------------------------------ reports
def find_report(session: Session, actor: Actor, name: AdapterName, selector: Selector, digest: Digest) -> Descriptor:
    """The report with this digest, if a verdict of this version refers to it."""
    version = _find_readable(session, actor, name, selector)
    statement = (
        select(BlobRow)
        .join(VerdictRow, col(VerdictRow.report) == col(BlobRow.digest))
        .where(col(VerdictRow.version_id) == version.id, col(VerdictRow.report) == digest)
    )
    row = session.exec(statement.limit(1)).first()
    if row is None:
        raise NotFound("BLOB_UNKNOWN", f"no verdict of version {version.number} of '{name}' has the report {digest}")
    return Descriptor(path="report.json", media_type="application/json", digest=digest, size_bytes=row.size_bytes)


def find_reference_logprobs(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, blobs: BlobStore
) -> ReferenceLogprobsView:
    """The reference log-probabilities of the newest smoke test that recorded any. `NotFound` (BLOB_UNKNOWN)."""
    version = _find_readable(session, actor, name, selector)
    statement = (
        select(VerdictRow, BlobRow.size_bytes)
        .join(BlobRow, col(BlobRow.digest) == col(VerdictRow.report))
        .where(col(VerdictRow.version_id) == version.id, col(VerdictRow.check) == Check.SMOKE)
        .where(col(VerdictRow.by_owner).is_(False))  # nodes verify what they load by it
        .order_by(col(VerdictRow.id).desc())
    )
    reports = session.exec(statement.limit(REPORTS_SEARCHED)).all()
    db.commit_early(session)
    for verdict, size_bytes in reports:
        digest = Digest(verdict.report or "")
        data = blobs.read(key_of(digest), 0, size_bytes)
        if Digest.of(data) != digest:
            raise Corrupt("DIGEST_MISMATCH", f"the report {digest} no longer hashes to its name")
        report = Report.model_validate_json(data)
        if report.reference_logprobs is not None:
            return ReferenceLogprobsView(
                version=f"{name}@{version.number}", digest=Digest(version.digest), base=report.base,
                base_fingerprint=report.base_fingerprint, report=digest, reference_logprobs=report.reference_logprobs,
            )  # fmt: skip
    raise NotFound(
        "BLOB_UNKNOWN",
        f"no smoke test of version {version.number} of '{name}' has recorded reference log-probabilities yet",
        next_step=verdicts.testing_step(actor, f"{name}@{version.number}"),
    )


# ------------------------------------------------------------------ download plans
READ_AT_ONCE = 8
"""Small files that are requested at once from a store on another machine."""


def plan_downloads(
    session: Session, actor: Actor, refs: Sequence[str], *, blobs: BlobStore, settings: Settings
) -> tuple[list[PullPlan | RegistryError], list[SmallBlob]]:
    """The plan of each ref or why it cannot be pulled, in the same order, and the small files of all.

    Damaged and missing files are left out; a request for one reports the error.
    """
    parsed = [_parse(text) for text in refs]
    valid = [ref for ref in parsed if isinstance(ref, Ref)]
    resolved = version_groups.resolve_all(session, actor, valid, manifests_bytes=BULK_MANIFESTS_BYTES)
    outcomes = [resolved[ref] if isinstance(ref, Ref) else ref for ref in parsed]
    plans = [outcome for outcome in outcomes if isinstance(outcome, Resolved)]
    damaged = find_damaged(session, {file.digest for version in plans for file in version.files})
    db.commit_early(session)
    small = _read_small(plans, damaged, blobs)
    left_out = {item.digest for item in small} | damaged
    return [
        outcome if isinstance(outcome, RegistryError) else _plan(outcome, left_out, actor, blobs, settings)
        for outcome in outcomes
    ], small


def _parse(text: str) -> Ref | RegistryError:
    try:
        return Ref.parse(text)
    except RegistryError as e:
        return e


def _plan(version: Resolved, left_out: set[Digest], actor: Actor, blobs: BlobStore, settings: Settings) -> PullPlan:
    """The plan of one version, with links to those files that are not `left_out`."""
    seconds, owner = min(settings.link_seconds, blobs.link_limit_seconds), actor.token_id
    links = {
        file.path: blobs.presign_read(
            key_of(file.digest), file.size_bytes, seconds=seconds, owner=owner, file_name=file.path
        )
        for file in version.files
        if file.digest not in left_out
    }
    direct = {path: url for path, url in links.items() if url is not None}
    return PullPlan(resolved=version, direct=direct, direct_seconds=seconds if direct else 0)


def _read_small(plans: Iterable[Resolved], damaged: set[Digest], blobs: BlobStore) -> list[SmallBlob]:
    """The bytes of the small files, each digest once, within the limits; wrong bytes are left out."""
    sizes: dict[Digest, int] = {}
    for version in plans:
        budget = SMALL_FILES_BYTES
        for digest, size_bytes in sorted({(f.digest, f.size_bytes) for f in version.files} - set(sizes.items())):
            if size_bytes > SMALL_BLOB_BYTES or digest in damaged:
                continue
            budget -= size_bytes
            if budget < 0 or sum(sizes.values()) + size_bytes > BULK_SMALL_BYTES:
                break
            sizes[digest] = size_bytes

    def read(blob: tuple[Digest, int]) -> SmallBlob | None:
        digest, size_bytes = blob
        try:
            data = blobs.read(key_of(digest), 0, size_bytes)
        except NotFound:
            return None
        encoded = base64.b64encode(data).decode()
        return SmallBlob(digest=digest, data=encoded) if Digest.of(data) == digest else None

    if len(sizes) < 2 or not blobs.is_remote:
        return [item for item in map(read, sizes.items()) if item is not None]
    with ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="small") as pool:
        return [item for item in pool.map(read, sizes.items()) if item is not None]
