"""Smoke tests of new versions: queue one for each that can be tested, and end those of earlier checkpoints.

A version that failed `compat` or `weights`, or that no worker can load, gets none.
"""

from collections.abc import Sequence

from sqlalchemy import exists
from sqlmodel import Session, col, select

from registry import names
from registry.evaluation.verdicts import Check, Outcome
from registry.jobs import Kind
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import AliasRow, VersionRow
from registry.server.jobs import queue
from registry.server.push.commit_decisions import NewVersion
from registry.versions.manifest import Relation


def enqueue(session: Session, actor: Actor, created: Sequence[NewVersion]) -> list[str]:
    """Queue a smoke test of each version that can be tested and failed nothing; the ids, empty for no job."""
    job_ids, added, tested = [], [], []
    for version in created:
        is_failed = any(v.outcome == Outcome.FAIL for v in version.verdicts if v.check in (Check.COMPAT, Check.WEIGHTS))
        job_ids.append("")
        if version.inspection.can_be_tested and not is_failed:
            base = version.base.name
            job = queue.build(
                session, actor, Kind.SMOKE_TEST, version.row, name=version.commit.name, base=base, automatic=True
            )
            added.append(job)
            tested.append(version)
            job_ids[-1] = job[0].id
    db.bulk_insert(session, [row for row, _ in added])
    db.bulk_insert(session, [event for _, event in added])
    _supersede_parents(session, tested)
    return job_ids


def _supersede_parents(session: Session, tested: Sequence[NewVersion]) -> None:
    """End the waiting tests of the checkpoints that these continue, in the same adapters, unless an alias has them.

    So of a burst of checkpoints only the newest is tested, however long the queue is, also of those of one group.
    """
    continued = {
        (version.row.adapter_id, str(edge.digest)): f"@{version.row.number} continues this version"
        for version in tested
        for edge in version.commit.manifest.parents
        if edge.relation is Relation.CONTINUED
    }
    if not continued:
        return
    aliased = exists().where(col(AliasRow.version_id) == col(VersionRow.id), col(AliasRow.alias) != names.NEWEST)
    parents = select(VersionRow.id, VersionRow.adapter_id, VersionRow.digest).where(
        col(VersionRow.adapter_id).in_({adapter_id for adapter_id, _ in continued}),
        col(VersionRow.digest).in_({digest for _, digest in continued}),
        ~aliased,
    )
    causes = {
        version_id or 0: continued[adapter_id, digest]
        for version_id, adapter_id, digest in session.exec(parents)
        if (adapter_id, digest) in continued
    }
    queue.supersede(session, causes)
