"""Finish a job. A smoke test leaves its report as a blob and its verdict as a row.

- The job first refers to the report's blob, then the bytes are stored without a transaction, then verdict, event and
  job state are one transaction: no bytes without a row, no verdict without bytes.
- A report is untrusted input: it must be typed, bounded, and about the job's own version and base. The outcome follows
  from its findings. What it says about `compat` counts if the header could not decide that check, or if PEFT says no.
  What the engine's own library took of an image adapter's file is the verdict `engine` of its version.
- A worker whose token may not work everywhere evaluates for the version's own namespace: its verdicts say so
  (`by_owner`), and the registry does not attest them. Its reports have to fit into the quota; only those of
  verdicts that count are kept, and only these keep their findings.
"""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, update
from sqlmodel import Session, col, select

from registry import jobs
from registry.api.jobs import FinishRequest
from registry.digest import Digest
from registry.errors import Conflict, Invalid, TooLarge
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.events import EventType
from registry.findings import Finding
from registry.jobs import Job, Kind
from registry.roles import Scope
from registry.server import audit
from registry.server.access import quotas
from registry.server.actors import Actor
from registry.server.catalog import base_rows, verdicts
from registry.server.database import db
from registry.server.database.models import BaseRow, VerdictRow, VersionRow
from registry.server.database.models.jobs import JobRow
from registry.server.evaluation import engine_compat
from registry.server.jobs import queue
from registry.server.storage import blobs, references
from registry.server.storage.blobs import BlobStore


def finish_job(session: Session, actor: Actor, job_id: str, request: FinishRequest, *, store: BlobStore) -> Job:
    """Finish a job with its result. Repeating it with the same lease returns the same response."""
    db.begin_writing(session)
    row = queue.lock_running(session, actor, job_id, request.lease_token)
    if row is None or row.kind != Kind.SMOKE_TEST:
        return queue.to_job(queue.finish(session, actor, job_id, request.lease_token, request.result)[0])
    _refuse_deleted(session, row)
    report = _check_report(session, row, request)
    digest = _store(session, actor, row, report, store)
    row, ended_now = queue.finish(session, actor, job_id, request.lease_token, request.result)
    if ended_now:
        _refuse_deleted(session, row)
        _add_verdicts(session, actor, row, report, digest)
    session.flush()
    return queue.to_job(row)


def _refuse_deleted(session: Session, row: JobRow) -> None:
    """`Conflict` (LEASE_LOST) if the version was deleted: the job runs again once the deletion is undone.

    The lock makes a deletion wait until the verdict is written.
    """
    statement = select(VersionRow.deleted_at).where(VersionRow.id == row.version_id).with_for_update(read=True)
    if session.exec(statement).one() is not None:
        raise Conflict(
            "LEASE_LOST", f"this lease on job {row.id} is over: {row.subject} was deleted",
            next_step="stop working on it; its result would be ignored",
        )  # fmt: skip


def _check_report(session: Session, row: JobRow, request: FinishRequest) -> Report:
    report = request.report
    if report is None:
        raise Invalid("REQUEST_INVALID", "report: a smoke test needs one")
    if len(json.dumps(request.result)) > jobs.PAYLOAD_LIMIT_BYTES:  # what was measured is in the report
        raise TooLarge("SIZE_INVALID", f"result: over the limit of {jobs.PAYLOAD_LIMIT_BYTES} bytes of a smoke test")
    if report.check is not Check.SMOKE or report.subject != row.subject_digest or report.base != row.base:
        covers = f"{report.check} of {report.subject} on {report.base}"
        expected = f"{Check.SMOKE} of {row.subject_digest} on {row.base}"
        raise Invalid("REQUEST_INVALID", f"report: covers {covers}, but job {row.id} is about {expected}")
    base = _base(session, row)
    if report.base_fingerprint != base.fingerprint:
        raise Invalid("REQUEST_INVALID", f"report: base_fingerprint is not that of '{base.name}', {base.fingerprint}")
    return report


def _base(session: Session, row: JobRow) -> BaseRow:
    return base_rows.get(session, session.get_one(VersionRow, row.version_id).base_id)


def _store(session: Session, actor: Actor, row: JobRow, report: Report, store: BlobStore) -> Digest:
    """Store the report as a blob that the job refers to. Commits the transaction of `session` and begins another."""
    data = report.model_dump_json().encode()
    if len(data) > jobs.RESULT_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"report: {len(data)} bytes are over {jobs.RESULT_LIMIT_BYTES}")
    if not actor.may_everywhere(Scope.WORK):
        quotas.check_before_report(session, row.namespace, row.version_id, len(data))
    digest = Digest.of(data)
    references.reserve(session, {digest: len(data)})
    row.report = digest
    session.add(row)
    db.commit_early(session)
    blobs.write_blob(store, blobs.key_of(digest), [data], limit_bytes=len(data))
    db.begin_writing(session)
    references.mark_live(session, {digest: len(data)}, written_now={digest})
    return digest


def _add_verdicts(session: Session, actor: Actor, row: JobRow, report: Report, digest: Digest) -> None:
    version, base = session.get_one(VersionRow, row.version_id), _base(session, row)
    by_owner = not actor.may_everywhere(Scope.WORK)
    author: dict[str, Any] = {"reported_by": actor.identity, "by_owner": by_owner}
    smoke = _verdict(report.check, report, report.findings, base, digest, **author)
    session.add(verdicts.to_row(smoke, version.id, version.base_id, job_id=row.id))
    detail: dict[str, Any] = {"check": smoke.check, "outcome": smoke.outcome, "report": digest, "job": row.id}
    if by_owner:
        detail["by_owner"] = True
    compat = None if report.compat is None else _verdict(Check.COMPAT, report, report.compat, base, digest, **author)
    if compat is not None and _counts(compat, verdicts.newest_of(session, version)):
        session.add(verdicts.to_row(compat, version.id, version.base_id, job_id=row.id))
        session.flush()
        if compat.outcome is not Outcome.UNKNOWN and not by_owner:
            engine_compat.renew_verdicts(session, version, base)
        detail["compat"] = compat.outcome
    if report.engine is not None and (profile := engine_compat.profile_of_tools(report.made_by)):
        engine = _verdict(Check.ENGINE, report, report.engine, base, digest, profile=profile, **author)
        session.add(verdicts.to_row(engine, version.id, version.base_id, job_id=row.id))
        detail["engine"] = engine.outcome
    if by_owner:
        _release_former_reports(session, version)
    audit.append(session, actor, EventType.VERDICT_ADD, row.subject, detail)


def _release_former_reports(session: Session, version: VersionRow) -> None:
    """Let garbage collection delete the owner's reports of this version that no newest verdict refers to.

    Former verdicts lose their findings, too, which can have as many bytes.
    """
    session.flush()
    own = (col(VerdictRow.version_id) == version.id, col(VerdictRow.by_owner), col(VerdictRow.report).is_not(None))
    newest = select(func.max(VerdictRow.id)).where(own[0], own[1]).group_by(VerdictRow.check, VerdictRow.profile)
    former = update(VerdictRow).where(*own, col(VerdictRow.id).not_in(newest))
    session.connection().execute(former.values(report=None, findings=[]))


def _counts(compat: Verdict, newest: Sequence[Verdict]) -> bool:
    """Whether a worker's verdict on `compat` is stored beside the newest verdicts: PEFT knows more than headers.

    The registry's no is final. An owner may take back its own no, unless the registry says no by now.
    """
    by_owner = {v.by_owner: v.outcome for v in newest if v.check is Check.COMPAT}
    stored = by_owner.get(False)
    if compat.outcome is Outcome.FAIL:
        return stored is not Outcome.FAIL
    takes_back = compat.by_owner and by_owner.get(True) is Outcome.FAIL and stored is not Outcome.FAIL
    return stored is Outcome.UNKNOWN or takes_back


def _verdict(
    check: Check, report: Report, findings: Sequence[Finding], base: BaseRow, digest: Digest, **author: Any
) -> Verdict:
    return Verdict.of(
        check, report.subject, base.name, base.fingerprint, findings,
        report=digest, made_by=report.made_by, made_at=db.now(), **author,
    )  # fmt: skip
