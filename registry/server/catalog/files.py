"""Which bytes of a version an actor may read: its files, and the reports behind its verdicts.

Invariants
- A digest opens nothing by itself: bytes are found through a version that the actor may see.
- A yanked version is still read by its number or its digest, no longer by an alias; one in quarantine by its digest
  alone, and only by those who may promote.
"""

from __future__ import annotations

from sqlmodel import Session, col, select

from registry import names
from registry.api.verdicts import ReferenceLogprobsView
from registry.digest import Digest
from registry.errors import Corrupt, NotFound
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check
from registry.manifest import Descriptor
from registry.names import AdapterName, Selector
from registry.server.actors import Actor
from registry.server.catalog import availability, versions
from registry.server.database.models import BlobRow, VerdictRow, VersionFileRow, VersionRow
from registry.server.storage.blobs import BlobStore, key_of
from registry.server.storage.references import BlobState

REPORTS_LOOKED_AT = 3


def find_file(session: Session, actor: Actor, name: AdapterName, selector: Selector, path: str) -> Descriptor:
    """One file of one version. `NotFound` (BLOB_UNKNOWN) for a path that the version does not hold."""
    version = _version(session, actor, name, selector)
    row = session.get(VersionFileRow, (version.id, names.file_path(path)))
    if row is None:
        raise NotFound("BLOB_UNKNOWN", f"version {version.number} of '{name}' has no file '{path}'")
    kept = session.get(BlobRow, row.digest)
    if kept is not None and kept.state == BlobState.CORRUPT:
        raise Corrupt(
            "DIGEST_MISMATCH",
            f"{path} of version {version.number} of '{name}': the stored bytes no longer hash to {row.digest}",
            next_step=f"to repair it, push the same files to '{name}' again",
        )
    return Descriptor(path=row.path, media_type=row.media_type, digest=Digest(row.digest), size_bytes=row.size_bytes)


def find_report(session: Session, actor: Actor, name: AdapterName, selector: Selector, digest: Digest) -> Descriptor:
    """The report with this digest, if one of this version's verdicts names it."""
    version = _version(session, actor, name, selector)
    naming = select(BlobRow).join(VerdictRow, col(VerdictRow.report) == col(BlobRow.digest))
    wanted = naming.where(col(VerdictRow.version_id) == version.id, col(VerdictRow.report) == digest)
    row = session.exec(wanted.limit(1)).first()
    if row is None:
        raise NotFound("BLOB_UNKNOWN", f"no verdict of version {version.number} of '{name}' has the report {digest}")
    return Descriptor(path="report.json", media_type="application/json", digest=digest, size_bytes=row.size_bytes)


def reference_logprobs(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, blobs: BlobStore
) -> ReferenceLogprobsView:
    """How the newest smoke test of this version saw it answer. `NotFound` (BLOB_UNKNOWN) when none did so yet."""
    version = _version(session, actor, name, selector)
    judged = select(VerdictRow, BlobRow.size_bytes).join(BlobRow, col(BlobRow.digest) == col(VerdictRow.report))
    wanted = judged.where(col(VerdictRow.version_id) == version.id, col(VerdictRow.check) == Check.SMOKE)
    for verdict, size_bytes in session.exec(wanted.order_by(col(VerdictRow.id).desc()).limit(REPORTS_LOOKED_AT)):
        digest = Digest(verdict.report or "")
        data = blobs.read(key_of(digest), 0, size_bytes)
        if Digest.of(data) != digest:
            raise Corrupt("DIGEST_MISMATCH", f"the report {digest} no longer hashes to its name")
        found = Report.model_validate_json(data)
        if found.reference_logprobs is not None:
            return ReferenceLogprobsView(
                version=f"{name}@{version.number}", digest=Digest(version.digest), base=found.base,
                base_fingerprint=found.base_fingerprint, report=digest, reference_logprobs=found.reference_logprobs,
            )  # fmt: skip
    raise NotFound(
        "BLOB_UNKNOWN",
        f"no smoke test of version {version.number} of '{name}' has recorded reference log-probabilities yet",
        next_step=f"run `adapter smoke-test {name}@{version.number} --wait`",
    )


def locate_bytes(blobs: BlobStore, file: Descriptor) -> str:
    """The key of a file's bytes, which are there with the right size. `Corrupt` (DIGEST_MISMATCH) otherwise."""
    stat = blobs.stat(key_of(file.digest))
    if stat is None or stat.size_bytes != file.size_bytes:
        found = "nothing" if stat is None else f"{stat.size_bytes} bytes"
        raise Corrupt(
            "DIGEST_MISMATCH",
            f"{file.path}: the store holds {found} where {file.size_bytes} bytes of {file.digest} were stored",
            next_step="tell the operator: `adapter fsck` shows what else is missing",
        )
    return stat.key


def _version(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> VersionRow:
    found = versions.find(session, actor, name, selector)
    availability.require_readable(actor, name, found, selector)
    return found
