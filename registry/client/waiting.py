"""Waits for what the registry does after a push: the verdict on large weights, and jobs. Waiting only polls.

An alias that was asked for together with a wait moves after the verdicts, and not to a version that failed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from registry.api.catalog import VersionView
from registry.api.transfer import PushResult
from registry.client.core import Versions
from registry.errors import Denied, Invalid, NotFound, Refused, Unavailable
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.names import NEWEST, AdapterName, Ref

if TYPE_CHECKING:  # a push does not load these schemas
    from registry.api.jobs import QueuePosition
    from registry.client.registry import Registry
    from registry.jobs import Job

POLL_SECONDS = 0.5
NO_TEST_CODES = ("TEST_UNSUPPORTED", "BASE_UNKNOWN")
"""Errors of a smoke test that cannot be requested for a version: no worker loads it, or its base is not registered."""
PENDING_SECONDS = 120.0
"""How long a caller without a limit of its own waits for the verdict on large weights."""
QUEUED_SECONDS = 600.0
"""How long a caller without a limit of its own waits while no worker has the job, nor one that takes such jobs is
busy: a CI job must end without a worker."""
POSITION_SECONDS = 5.0
"""How often the position of a job that waits is read."""


def is_pending(verdicts: Iterable[Verdict]) -> bool:
    """Whether the server has not read the numbers of the weights yet, because they are large."""
    return all(verdict.check is not Check.WEIGHTS for verdict in verdicts)


def failures(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The newest verdicts of checks, engines and owners that are fail."""
    newest = {(verdict.check, verdict.profile, verdict.by_owner): verdict for verdict in verdicts}
    return [verdict for verdict in newest.values() if verdict.outcome is Outcome.FAIL]


def has_decided(verdicts: Iterable[Verdict]) -> bool:
    """Whether there is a verdict on the smoke test, or one that makes it needless: fail of `compat` or `weights`."""
    verdicts = tuple(verdicts)
    return _failure(verdicts) is not None or any(verdict.check is Check.SMOKE for verdict in verdicts)


def _failure(verdicts: Iterable[Verdict]) -> Verdict | None:
    """What the adapter failed on its base. Engines do not count: only a gate knows which of them matter."""
    return next((verdict for verdict in failures(verdicts) if verdict.check is not Check.ENGINE), None)


def check_verdicts(version: VersionView) -> None:
    """`Refused` (VERDICT_FAILED) for a version that failed a check: no alias moves to it after a wait."""
    if failure := _failure(version.verdicts):
        raise Refused("VERDICT_FAILED", f"the check '{failure.check}' says fail: {failure.summary}")


def wait_for_weights(registry: Versions, version: VersionView, until: float) -> VersionView:
    """Poll until the version has the verdict `weights`, or until this monotonic time."""
    while is_pending(version.verdicts) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        version = registry.version(ref_of(version), patient=True)
    return version


def request_smoke_test(
    registry: Registry, pushed: PushResult, *, on_no_test: Callable[[str], None] = lambda _reason: None
) -> PushResult:
    """The push with the job that will decide about the version, unless that is decided.

    That is the job of the push, an equal one that is open, or a new one, such as after a job that failed.
    `on_no_test` is called with the reason if the version cannot be tested; then there is no job.
    """
    if pushed.job_id or has_decided(pushed.version.verdicts):
        return pushed
    version = registry.version(ref_of(pushed.version))  # its test may have ended since the push
    if has_decided(version.verdicts):
        return pushed.model_copy(update={"version": version})
    try:
        job = registry.submit_smoke_test(ref_of(pushed.version))
    except (Invalid, NotFound) as e:
        if e.code not in NO_TEST_CODES:
            raise
        on_no_test(e.detail)
        return pushed
    return pushed.model_copy(update={"job_id": job.id})


def move_alias(registry: Registry, pushed: PushResult, alias: str, message: str) -> PushResult:
    """The push with its alias moved through the gate once the verdicts are there, or with the reason why not."""
    if alias in ("", NEWEST):
        return pushed
    version, refusal = pushed.version, ""
    try:
        check_verdicts(version)
        generation = registry.generation(version.name, alias)
        registry.promote(version.name, alias, str(version.number), generation=generation, reason=message)
        version = registry.version(ref_of(version))
    except (Denied, NotFound, Refused) as e:  # NotFound: the name may be a wrong spelling
        refusal = e.detail
    return pushed.model_copy(update={"version": version, "alias_refused": refusal})


def ref_of(version: VersionView) -> Ref:
    """The version by its digest."""
    return Ref(AdapterName.parse(version.name), version.digest)


def wait_for_job(
    registry: Registry, job_id: str, timeout: float | None = None, *, queued_timeout: float | None = None,
    on_poll: Callable[[Job, float, QueuePosition | None], None] = lambda _job, _waited, _position: None,
) -> Job:  # fmt: skip
    """Poll until the job is final. `Unavailable` (TRY_LATER): `timeout` seconds passed before.

    `queued_timeout`: how long no worker may have the job while none that takes such jobs is busy, if there is no
    `timeout`; None is `QUEUED_SECONDS`. `on_poll` is called with each response, the seconds waited so far, and the
    position of a job that has waited for `POSITION_SECONDS`.
    """
    queued_timeout = QUEUED_SECONDS if queued_timeout is None else queued_timeout
    started = queued_since = position_at = time.monotonic()
    position: QueuePosition | None = None
    while True:
        job = registry.job(job_id, patient=True)
        now = time.monotonic()
        if not job.waits_for_a_worker:
            position = None
        elif now - position_at >= min(POSITION_SECONDS, queued_timeout):
            position, position_at = _position(registry, job_id), now
        on_poll(job, now - started, position)
        if job.finished_at is not None:
            return job
        is_busy = position is not None and position.worker_is_busy is not False  # None: by an older server
        queued_since = queued_since if job.waits_for_a_worker and not is_busy else now
        has_queued_limit = timeout is None and job.waits_for_a_worker
        limit, since = (queued_timeout, queued_since) if has_queued_limit else (timeout, started)
        if limit is not None and now - since >= limit and not (has_queued_limit and is_busy):
            raise _late(job, is_busy=is_busy)
        time.sleep(POLL_SECONDS)


def _position(registry: Registry, job_id: str) -> QueuePosition | None:
    try:
        return registry.queue_position(job_id)
    except NotFound:  # an older server, or a deleted job, which the next poll reports
        return None


def _late(job: Job, *, is_busy: bool) -> Unavailable:
    reason, condition = "the time to wait has passed", ""
    if job.waits_for_a_worker:
        reason = "workers are busy with other jobs" if is_busy else "no worker has it"
        condition = "" if is_busy else ", once a worker runs (`adapter worker`)"
    return Unavailable(
        "TRY_LATER",
        f"job {job.id} is still {job.state}, and {reason}",
        next_step=f"it continues{condition}: `adapter job show {job.id} --wait`",
    )


def pending_error(version: VersionView) -> Unavailable:
    """The error for a missing verdict `weights` of a version."""
    title = f"{version.name}@{version.number}"
    return Unavailable(
        "TRY_LATER",
        f"the verdict on the weights of {title} is still pending",
        next_step=f"`adapter show {title}` shows it when it is there",
    )
