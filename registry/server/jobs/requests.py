"""Jobs as users see them: submit, list, show, cancel. `queue` has the worker's side.

- To submit, an actor must see every source and may push where the result goes. Nothing is queued that the rows already
  rule out.
- A job belongs to the namespace of its subject. If it also names adapters of others, only those who may see all of them
  see which ones. It refers to versions by number, so an alias that moves meanwhile changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, String, Text, func, or_
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import defer
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, select

from registry import names
from registry.adapters import formats
from registry.api.jobs import JobPage, JobSubmit
from registry.bases import UNREGISTERED, BaseSpec
from registry.digest import Digest, DigestPrefix
from registry.errors import Conflict, Invalid, Unavailable
from registry.evaluation.verdicts import Check
from registry.jobs import FINAL, Job, JobStep, Kind, State
from registry.merging import conversions, recipes
from registry.merging.recipes import Ingredient, MergeOperation, Recipe
from registry.names import AdapterName, Ref
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import availability, base_rows, base_weights, bases, verdicts, versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import BaseRow, VersionRow
from registry.server.database.models.jobs import JobRow
from registry.server.jobs import queue

RECIPE_KINDS = {MergeOperation.COMBINE: Kind.MERGE, MergeOperation.RESIZE: Kind.MERGE, MergeOperation.FUSE: Kind.FUSE}
SAME_FIELDS = ("architecture", "hidden", "layers", "heads", "kv_heads", "vocab")
"""Fields that must be equal in the base of an adapter and in the base that it is fused into."""

WAITING_LIMIT = 100
WORKER_JOBS = 200
LISTED_RESULT_LIMIT = 4096
"""Characters of the longest result in a list of jobs: a page of whole ones would have hundreds of megabytes."""
OPEN_LIMIT = 1000
"""Merges, fuses and conversions that wait or run, for one namespace that their results go to."""


def submit_job(session: Session, actor: Actor, request: JobSubmit) -> Job:
    """Queue a job. An equal job that is queued or running is returned instead of a second one."""
    if request.kind in (Kind.MERGE, Kind.FUSE):
        row = _submit_recipe(session, actor, request)
    elif request.kind in (Kind.CONVERT, Kind.CONVERT_ON_BASE):
        row = _submit_conversion(session, actor, request)
    elif request.kind is Kind.SMOKE_TEST:
        row = _submit_smoke_test(session, actor, request)
    else:
        raise Invalid("REQUEST_INVALID", f"kind: '{request.kind}' cannot be submitted")
    return queue.to_job(row)


def _submit_smoke_test(session: Session, actor: Actor, request: JobSubmit) -> JobRow:
    if request.payload:  # payloads would make equal jobs differ, and they could be queued without end
        raise Invalid("REQUEST_INVALID", "payload: a smoke test takes none")
    ref = Ref.parse(request.ref)
    actor.require(Scope.PUSH, ref.name)
    version = versions.find(session, actor, ref.name, ref.selector)
    spec = base_rows.load_spec(base_rows.get(session, version.base_id))
    if spec.is_registered and not can_be_tested(version, spec):
        format_name = version.facts.get("format")
        subject = f"{ref.name}@{version.number}"
        message = f"{subject} has no smoke test: no worker loads the format '{format_name}' on its base"
        next_step = f"convert it: adapter convert {subject} --format peft --into NAME"
        raise Invalid("TEST_UNSUPPORTED", message, next_step=next_step)
    return _enqueue(session, actor, request, ref.name, version, priority=request.priority)


def can_be_tested(version: VersionRow, spec: BaseSpec) -> bool:
    """Whether a worker can load a version on its base: PEFT adapters, and image adapters on an image model."""
    format = formats.named(version.facts.get("format", formats.PEFT.name))
    return format == formats.PEFT or (spec.is_pipeline and format.is_image)


def _submit_conversion(session: Session, actor: Actor, request: JobSubmit) -> JobRow:
    """Client and worker check what the version's files say; here only the request is checked."""
    conversion = conversions.conversion(request.payload)
    ref = Ref.parse(request.ref)
    version = versions.find(session, actor, ref.name, ref.selector, include_withdrawn=False)
    actor.require(Scope.PUSH, AdapterName.parse(conversion.into))
    _check_waiting(session, conversion.into)
    return _enqueue(session, actor, request, ref.name, version, payload=conversion.model_dump(mode="json"))


def _submit_recipe(session: Session, actor: Actor, request: JobSubmit) -> JobRow:
    recipe = Recipe.read(request.payload)
    if RECIPE_KINDS.get(recipe.operation) is not request.kind:
        raise Invalid("REQUEST_INVALID", f"payload: {recipe.operation} is no job of kind '{request.kind}'")
    refs = [Ref.parse(source) for source in recipe.sources]
    rows = [versions.find(session, actor, ref.name, ref.selector, include_withdrawn=False) for ref in refs]
    sources = list(zip(refs, rows, strict=True))
    recipes.demand(recipe, [_ingredient(session, ref, row) for ref, row in sources])
    if not sources:
        raise Invalid("RECIPE_INVALID", "sources: names no adapter")
    base = base_rows.get(session, rows[0].base_id)
    _require_target(session, actor, recipe, base)
    _check_waiting(session, recipe.into)
    _lock_sources(session, sources)
    fixed = tuple(str(Ref(ref.name, row.number)) for ref, row in sources)
    payload = recipe.model_copy(update={"sources": fixed}).model_dump(mode="json")
    return _enqueue(session, actor, request, refs[0].name, rows[0], base=recipe.onto or base.name, payload=payload)


def _lock_sources(session: Session, sources: Sequence[tuple[Ref, VersionRow]]) -> None:
    """Lock the sources until the job is there: a deletion sees the job, or is seen here."""
    ids = [row.id for _, row in sources]
    locked = select(VersionRow).where(col(VersionRow.id).in_(ids)).order_by(col(VersionRow.id))
    session.exec(locked.with_for_update(read=True).execution_options(populate_existing=True)).all()
    for ref, row in sources:
        availability.require_available(ref.name, row)


def _enqueue(
    session: Session, actor: Actor, request: JobSubmit, name: AdapterName, version: VersionRow, *, base: str = "",
    **options: Any,
) -> JobRow:  # fmt: skip
    """Queue a job on the version's base, or on another one."""
    row = base_rows.get(session, version.base_id)
    if row.fingerprint == UNREGISTERED:
        raise base_rows.unknown_base(row.name)
    base = base or row.name
    return queue.enqueue(session, actor, request.kind, version, name=name, base=base, **options)


def _check_waiting(session: Session, into: str) -> None:
    """`Unavailable` (RATE_LIMITED) if too many merges, fuses and conversions into this namespace wait already."""
    namespace = into.partition("/")[0].lower()
    payload = func.lower(sql_cast(col(JobRow.payload), String))  # as text: of others no payload is read
    waiting = select(JobRow.id).where(
        col(JobRow.kind) != Kind.SMOKE_TEST, col(JobRow.state).in_([State.QUEUED, State.RUNNING]),
        or_(*(payload.contains(f'"into": "{namespace}{end}', autoescape=True) for end in '/"')),
    )  # fmt: skip
    count = db.count_rows(session, waiting.limit(WAITING_LIMIT))
    if count >= WAITING_LIMIT:
        raise Unavailable(
            "RATE_LIMITED",
            f"{count} merges and conversions into '{namespace}' are waiting, which is the limit",
            next_step="wait until some are done, or cancel them",
            retry_after_seconds=60,
        )


def _ingredient(session: Session, ref: Ref, row: VersionRow) -> Ingredient:
    base = base_rows.get(session, row.base_id)
    newest = verdicts.newest_of(session, row)
    compat = [v.outcome for v in newest if v.check is Check.COMPAT and not v.by_owner]
    broken = any(finding.code == "weights.not_finite" for v in newest for finding in v.findings)
    return Ingredient(
        name=f"{ref.name}@{row.number}", digest=row.digest, base=base.name, base_fingerprint=base.fingerprint,
        facts=row.facts.get("engine") or {}, compat=compat[-1] if compat else "", is_finite=not broken,
    )  # fmt: skip


def _require_target(session: Session, actor: Actor, recipe: Recipe, base: BaseRow) -> None:
    """Raise unless the result of the recipe may go where it says and can be computed on that base."""
    if recipe.operation is not MergeOperation.FUSE:
        actor.require(Scope.PUSH, AdapterName.parse(recipe.into))
        return
    name = names.base_name(recipe.into)
    if base_rows.find_named(session, name) is not None:
        raise Conflict("BASE_EXISTS", f"base '{name}' exists", next_step="fuse into another name: a base never changes")
    bases.require_may_add(session, actor, name)
    spec = base_rows.load_spec(base)
    if not recipe.onto:
        if spec.quantization and not recipe.dequantize:
            raise recipes.on_its_grid(spec.quantization)
        return
    other = base_rows.find(session, names.base_name(recipe.onto))
    other_spec = base_rows.load_spec(other)
    if any(getattr(spec, field) != getattr(other_spec, field) for field in SAME_FIELDS):
        raise Invalid("RECIPE_INVALID", f"onto: the base {other.name} has a different architecture from {base.name}")
    if other_spec.quantization:
        raise Invalid("RECIPE_INVALID", f"onto: the base {other.name} is quantized ({other_spec.quantization}), too")
    if base_weights.are_unrelated(session, base, other):
        raise Invalid("RECIPE_INVALID", f"onto: the weights of {other.name} are unrelated to those of {base.name}")


def list_jobs(
    session: Session, actor: Actor, *, state: str = "", kind: str = "", ref: str = "", cursor: str = "", limit: int,
    count: bool = False,
) -> JobPage:  # fmt: skip
    """Jobs that the actor may see, newest first. `ref` is an adapter, or one of its versions by number or digest.

    Long results are left out (`LISTED_RESULT_LIMIT`), as steps are: `show_job` has them.
    """
    statement = select(JobRow).where(queue.visible(actor))
    if state:
        statement = statement.where(col(JobRow.state) == _require_member(State, "state", state))
    if kind:
        statement = statement.where(col(JobRow.kind) == _require_member(Kind, "kind", kind))
    if ref:
        statement = statement.where(_has_subject(ref))
    total = db.count_rows(session, statement) if count else None
    if cursor:
        last = queue.find_job(session, actor, Scope.PULL, cursor)
        older = col(JobRow.created_at) < last.created_at
        same_moment = (col(JobRow.created_at) == last.created_at) & (col(JobRow.id) < last.id)
        statement = statement.where(or_(older, same_moment))
    ordered = statement.order_by(col(JobRow.created_at).desc(), col(JobRow.id).desc())
    rows = _read_without_results(session, ordered.limit(limit + 1))
    _add_short_results(session, rows[:limit])
    items = [_redact(actor, row) for row in rows[:limit]]
    return JobPage(items=items, next_cursor=items[-1].id if len(rows) > limit else "", total=total)


def _read_without_results(session: Session, statement: Any) -> list[JobRow]:
    rows: list[JobRow] = list(session.exec(statement.options(defer(cast(Any, JobRow.result)))).all())
    for row in rows:
        set_committed_value(row, "result", {})
    return rows


def _add_short_results(session: Session, rows: Sequence[JobRow]) -> None:
    is_short = func.length(sql_cast(col(JobRow.result), Text)) <= LISTED_RESULT_LIMIT
    ids = [row.id for row in rows]
    results = dict(session.exec(select(JobRow.id, JobRow.result).where(any_of(col(JobRow.id), ids), is_short)).all())
    for row in rows:
        set_committed_value(row, "result", results.get(row.id, {}))


@dataclass(frozen=True, slots=True)
class WorkerActivity:
    """What a worker did last: `seen_at` is when it began or ended a job, `job` what it runs now."""

    name: str
    seen_at: datetime
    job: Job | None


def list_workers(session: Session, actor: Actor) -> list[WorkerActivity]:
    """The workers of the newest `WORKER_JOBS` jobs that the actor may see, the one that was active last first."""
    began = select(JobRow).where(queue.visible(actor), col(JobRow.worker) != "")
    workers: dict[str, WorkerActivity] = {}
    for row in _read_without_results(session, began.order_by(col(JobRow.created_at).desc()).limit(WORKER_JOBS)):
        before = workers.get(row.worker)
        running = before.job if before else None
        if row.state == State.RUNNING:
            running = _redact(actor, row)
        seen_at = max(row.finished_at or row.started_at or row.created_at, before.seen_at if before else row.created_at)
        workers[row.worker] = WorkerActivity(row.worker, seen_at, running)
    return sorted(workers.values(), key=lambda worker: worker.seen_at, reverse=True)


def count_open(session: Session, actor: Actor) -> dict[State, int]:
    """How many of the actor's jobs wait and run: `OPEN_LIMIT` of each at most."""
    counts = {}
    for state in (State.QUEUED, State.RUNNING):
        open_jobs = select(JobRow.id).where(queue.visible(actor), col(JobRow.state) == state).limit(OPEN_LIMIT)
        counts[state] = db.count_rows(session, open_jobs)
    return counts


def show_job(session: Session, actor: Actor, job_id: str) -> Job:
    """One job with its steps, which lists leave out."""
    row = queue.find_job(session, actor, Scope.PULL, job_id)
    return _redact(actor, row, queue.list_steps(session, row))


def cancel_job(session: Session, actor: Actor, job_id: str) -> Job:
    """Cancel a job that is queued or running. Its worker notices at the next renewal. Idempotent."""
    row = queue.find_job(session, actor, Scope.PUSH, job_id, lock=True)
    if row.state == State.CANCELLED:
        return _redact(actor, row)
    if row.state in FINAL:
        raise Conflict("JOB_STATE", f"job {row.id} is {row.state} and cannot be cancelled")
    queue.cancel(session, actor, row)
    return _redact(actor, row)


def _redact(actor: Actor, row: JobRow, steps: tuple[JobStep, ...] = ()) -> Job:
    """The job without the fields that may name adapters which the actor may not see."""
    job = queue.to_job(row)
    if all(map(actor.sees, queue.named_adapters(row))):
        return job.model_copy(update={"steps": steps})
    return job.model_copy(update={"payload": {}, "progress": "", "result": {}, "error": ""})


def _has_subject(text: str) -> ColumnElement[bool]:
    ref = Ref.parse(text)
    of_adapter = queue.has_adapter(ref.name)
    if isinstance(ref.selector, Digest):
        return (col(JobRow.subject_digest) == ref.selector) & of_adapter
    if isinstance(ref.selector, DigestPrefix):
        return col(JobRow.subject_digest).startswith(ref.selector) & of_adapter
    return col(JobRow.subject) == str(ref) if isinstance(ref.selector, int) else of_adapter


def _require_member(words: type[State] | type[Kind], field: str, text: str) -> str:
    if text not in [str(word) for word in words]:
        raise Invalid("REQUEST_INVALID", f"{field}: {text[:40]!r} is not one of {', '.join(words)}")
    return text
