"""The page of the server's state: what is wrong with it first, and what it is set to."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import perf_counter

from fastapi import Request, Response
from sqlmodel import Session

from registry import __version__
from registry.api.maintenance import Health
from registry.digest import Digest
from registry.durations import relative
from registry.errors import RegistryError
from registry.jobs import State
from registry.roles import Scope
from registry.server import limits, webhooks
from registry.server.access import tokens
from registry.server.actors import Actor
from registry.server.database import db, schema
from registry.server.http.dependencies import AuditLogDep, EngineDep, QuickBlobsDep, SessionDep
from registry.server.http.services import services_of
from registry.server.jobs import requests
from registry.server.jobs.requests import WorkerActivity
from registry.server.maintenance import backup
from registry.server.pages.rendering import create_router, format_size, render
from registry.server.pages.sessions.visitors import SignedInDep
from registry.server.storage.blobs import BlobStore, key_of
from registry.server.storage.local import LocalBlobs

router = create_router()
WORKERS_IDLE = timedelta(minutes=15)
"""Jobs that wait while no worker began or ended one for so long: nobody works."""
BACKUP_AGE = timedelta(days=2)
EXPIRING = timedelta(days=7)
SKEW = timedelta(seconds=5)
DISK_LOW, DISK_FULL = 0.15, 0.05


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One part of the registry. `outcome`: as of a verdict. `path`: the page to look at."""

    part: str
    outcome: str
    text: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the store responded: why it does not, or nothing, after how many milliseconds, and what it can."""

    problem: str
    milliseconds: float
    capabilities: dict[str, bool]


@router.get("/status")
def show_status(
    request: Request, session: SessionDep, visitor: SignedInDep, engine: EngineDep, blobs: QuickBlobsDep,
    log: AuditLogDep,
) -> Response:  # fmt: skip
    """Show whether the parts of the registry are well, the workers, and how far the audit log is signed."""
    workers, jobs = requests.list_workers(session, visitor.actor), requests.count_open(session, visitor.actor)
    checks = [_check_queue(workers, jobs), *_check_rows(session, visitor.actor)]
    db.commit_early(session)  # no connection is held while the store responds
    probe = _probe(blobs)
    checks += _check_store(probe, services_of(request).blobs, is_operator=visitor.actor.may_everywhere(Scope.ADMIN))
    health = Health(
        status="ok", version=__version__, database=engine.dialect.name, blobs=blobs.kind,
        schema_revision=schema.revision_of(engine), capabilities=probe.capabilities,
    )  # fmt: skip
    return render(
        request, "status.html", title="Status", health=health, log_size=log.latest.size, log=log.describe_keys(),
        checks=sorted(checks, key=lambda check: ("fail", "warn", "pass").index(check.outcome)), workers=workers,
        jobs=jobs, limits=limits.by_section(), probe=probe,
    )  # fmt: skip


def _check_queue(workers: Sequence[WorkerActivity], jobs: dict[State, int]) -> HealthCheck:
    queued = jobs[State.QUEUED]
    newest = max((worker.seen_at for worker in workers), default=None)
    is_idle = not jobs[State.RUNNING] and (newest is None or newest < db.now() - WORKERS_IDLE)
    activity = f"the last one worked {relative(newest)}" if newest else "none has ever worked"
    if queued and is_idle:
        return HealthCheck("Workers", "fail", f"{queued:,} jobs wait and no worker takes them: {activity}", "/jobs")
    return HealthCheck("Workers", "pass", f"{queued:,} jobs wait, {jobs[State.RUNNING]:,} run; {activity}", "/jobs")


def _check_rows(session: Session, actor: Actor) -> Iterator[HealthCheck]:
    """Yield what the database says: webhooks and tokens of the actor, and its clock."""
    skew = db.clock_skew()
    text = f"this machine and the database differ by {skew.total_seconds():.1f} s"
    yield HealthCheck("Clock", "warn" if abs(skew) > SKEW else "pass", text)
    if not actor.has_scope(Scope.ADMIN):
        return
    failing = webhooks.find_failing(session, actor)
    if failing:
        text = f"messages are not accepted by {', '.join(url for _, url in failing[:3])}"
        yield HealthCheck("Webhooks", "fail", text, f"/settings/webhooks/{failing[0][0]}")
    else:
        yield HealthCheck("Webhooks", "pass", "every message was accepted", "/settings/webhooks")
    count = tokens.count_expiring(session, actor, EXPIRING)
    text = f"{count} end within {EXPIRING.days} days" if count else f"none ends within {EXPIRING.days} days"
    yield HealthCheck("Tokens", "warn" if count else "pass", text, "/settings/tokens")


def _check_store(probe: Probe, blobs: BlobStore, *, is_operator: bool) -> Iterator[HealthCheck]:
    """Yield what the store says; its space and backups to who administers everything."""
    if probe.problem:
        yield HealthCheck("Blob store", "fail", f"does not respond: {probe.problem}")
        return
    duration = f"{probe.milliseconds:.0f} ms" if probe.milliseconds >= 1 else "less than 1 ms"
    yield HealthCheck("Blob store", "pass", f"responds in {duration}")
    if not is_operator:
        return
    if isinstance(blobs, LocalBlobs):
        usage = shutil.disk_usage(blobs.root)
        free = usage.free / usage.total
        outcome = "fail" if free < DISK_FULL else "warn" if free < DISK_LOW else "pass"
        yield HealthCheck("Disk", outcome, f"{format_size(usage.free)} of {format_size(usage.total)} are free")
    newest = next(iter(backup.find_all(blobs)), None)
    if newest is None:
        yield HealthCheck("Backup", "warn", "there is none in the store: `adapter backup` makes one")
        return
    at = datetime.strptime(backup.name_of(newest), backup.TIME_FORMAT).replace(tzinfo=UTC)
    is_old = at < datetime.now(UTC) - BACKUP_AGE
    yield HealthCheck("Backup", "warn" if is_old else "pass", f"the newest was made {relative(at)}")


def _probe(blobs: BlobStore) -> Probe:
    started = perf_counter()
    try:
        blobs.stat(key_of(Digest.of(b"")))
        return Probe("", 1000 * (perf_counter() - started), dict(blobs.capabilities))
    except RegistryError as e:
        return Probe(e.detail, 1000 * (perf_counter() - started), {})
