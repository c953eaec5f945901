"""Helpers for tests of maintenance: whole runs of gc and fsck, unfinished pushes, unreferenced blobs."""

from __future__ import annotations

from datetime import timedelta

from registry.api.maintenance import FsckPage, FsckRequest, GcReport, GcRequest
from registry.api.transfer import PushPlan, PushRequest
from registry.digest import Digest
from registry.server.database import db
from registry.server.database.models import BlobRow
from registry.server.database.models.pushes import PushRow
from registry.server.storage.blobs import key_of, write_blob
from tests import samples
from tests.bulk import plan_push
from tests.harness import Harness, rows, upload


def collect(harness: Harness, *, grace: int | None = 0, dry_run: bool = False) -> GcReport:
    """Run garbage collection to its end."""
    report = GcReport()
    cursor = ""
    while True:
        report += harness.admin.collect(GcRequest(grace_seconds=grace, dry_run=dry_run, cursor=cursor))
        cursor = report.next_cursor
        if not cursor:
            return report


def check(harness: Harness, *, deep: bool = True) -> list[FsckPage]:
    """Run a check to its end, once what follows earlier responses has ended."""
    harness.transport.settle()
    pages = [harness.admin.fsck(FsckRequest(deep=deep))]
    while pages[-1].next_cursor:
        pages.append(harness.admin.fsck(FsckRequest(deep=deep, cursor=pages[-1].next_cursor)))
    return pages


def findings(harness: Harness, *, deep: bool = True) -> list[str]:
    """Return the findings of a whole check, as code and location."""
    return [f"{f.code} {f.location}" for page in check(harness, deep=deep) for f in page.findings]


def plan(harness: Harness, files: samples.Files, name: str = "acme/support") -> PushPlan:
    return plan_push(harness.admin, name, PushRequest(manifest=harness.manifest(files)))


def send(harness: Harness, planned: PushPlan, files: samples.Files) -> None:
    upload(harness.admin, planned, files)


def expire(harness: Harness, planned: PushPlan) -> None:
    with harness.session(write=True) as session:
        row = session.get_one(PushRow, planned.push_id)
        row.expires_at = db.now() - timedelta(seconds=1)
        session.add(row)


def states(harness: Harness) -> dict[str, str]:
    with harness.session() as session:
        return {row.digest: row.state for row in rows(session, BlobRow)}


def orphan(harness: Harness, data: bytes = b"unreferenced") -> Digest:
    """Store a live blob that nothing refers to."""
    digest = Digest.of(data)
    write_blob(harness.blobs, key_of(digest), [data], limit_bytes=len(data))
    with harness.session(write=True) as session:
        session.add(BlobRow(digest=digest, size_bytes=len(data), created_at=db.now()))
    return digest
