"""Waits for what the registry does after a push: the verdict on large weights, and jobs. Waiting only polls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from registry.api.catalog import VersionView
from registry.client.core import Versions
from registry.errors import Unavailable
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.names import AdapterName, Ref

if TYPE_CHECKING:  # a push does not load these schemas
    from registry.client.registry import Registry
    from registry.jobs import Job

POLL_SECONDS = 0.5
PENDING_SECONDS = 120.0
"""How long a caller without a limit of its own waits for the verdict on large weights."""


def is_pending(verdicts: Iterable[Verdict]) -> bool:
    """Whether the server has not read the numbers of the weights yet, because they are large."""
    return all(verdict.check is not Check.WEIGHTS for verdict in verdicts)


def has_failed(verdicts: Iterable[Verdict]) -> bool:
    """Whether the newest verdict of a check is fail."""
    newest = {(verdict.check, verdict.profile, verdict.by_owner): verdict.outcome for verdict in verdicts}
    return Outcome.FAIL in newest.values()


def wait_for_weights(registry: Versions, version: VersionView, until: float) -> VersionView:
    """Poll until the version has the verdict `weights`, or until this monotonic time."""
    while is_pending(version.verdicts) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        version = registry.version(Ref(AdapterName.parse(version.name), version.digest))
    return version


def wait_for_job(
    registry: Registry, job_id: str, timeout: float | None = None, *,
    on_poll: Callable[[Job, float], None] = lambda _job, _waited: None,
) -> Job:  # fmt: skip
    """Poll until the job is final. `Unavailable` (TRY_LATER): `timeout` seconds passed before.

    `on_poll` is called with each answer and the seconds waited so far.
    """
    started = time.monotonic()
    while True:
        job = registry.job(job_id)
        waited = time.monotonic() - started
        on_poll(job, waited)
        if job.finished_at is not None:
            return job
        if timeout is not None and waited >= timeout:
            raise Unavailable(
                "TRY_LATER",
                f"job {job.id} is still {job.state}, and the time to wait has passed",
                next_step=f"it continues, once a worker runs (`adapter worker`): `adapter job show {job.id}`",
            )
        time.sleep(POLL_SECONDS)


def pending_error(version: VersionView) -> Unavailable:
    """The error for a missing verdict `weights` of a version."""
    title = f"{version.name}@{version.number}"
    return Unavailable(
        "TRY_LATER",
        f"the verdict on the weights of {title} is still pending",
        next_step=f"`adapter show {title}` shows it when it is there",
    )
