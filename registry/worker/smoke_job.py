"""One smoke test job: pull the adapter, check its header again, test it on its base, write the report.

A check that cannot run raises `Failed`: a failed attempt, never a failing verdict; after the last attempt, `unknown`.
An adapter whose header is incompatible is never loaded. If the header is not enough (unusual methods, packed bases),
PEFT compares names and shapes on the meta device, and the report also has a `compat` verdict.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from registry import compat
from registry.api.bases import BaseView
from registry.client.local.adapter_folder import read_adapter
from registry.errors import Invalid, RegistryError, TooLarge, printable
from registry.evaluation.reports import Execution, Report
from registry.evaluation.thresholds import Thresholds
from registry.evaluation.verdicts import Check, Outcome, add_up, summarize
from registry.findings import Finding
from registry.versions.files import BASE_CONFIG, WEIGHTS
from registry.worker.model_process.client import NotLoaded, ProcessExited
from registry.worker.task import Done, Failed, Lost, Task

TEXT_LIMIT = 2000
_PROCESS_MEASUREMENTS = {
    "base_load_seconds": "load_seconds",
    "base_parameters": "parameters",
    "base_loads": "base_loads",
    "adapters_tried": "adapters_tried",
}
"""Measurement → the field of the model process."""


def smoke_test(task: Task) -> Done:
    """Run the smoke test of the claimed version. After the last attempt there is a verdict, if only `unknown`."""
    try:
        return _test(task)
    except Exception as e:
        is_of_registry = isinstance(e, Lost | RegistryError)
        if is_of_registry or getattr(e, "final", False) or task.job.attempt < task.job.attempts_limit:
            raise
        reason = str(e) if isinstance(e, Failed) else f"{type(e).__name__}: {e}"
        message = f"none of {task.job.attempt} attempts ended with a result; the last one: {printable(reason, 1000)}"
        return _unknown(task, "smoke.not_finished", WEIGHTS, message)


def _test(task: Task) -> Done:
    base, lease = task.base, task.lease
    source = replace(task.ready_source(), thresholds=base.thresholds)
    if base.spec.library_problem:
        message = f"{base.spec.library} cannot build {base.name}: {base.spec.library_problem}"
        return _unknown(task, "smoke.base_unsupported", BASE_CONFIG, message)
    with tempfile.TemporaryDirectory(prefix="adapter-job-") as scratch:
        lease.say("pulling the adapter")
        folder = task.pull(Path(scratch) / "adapter")
        findings = _fit(folder, base)
        if add_up(findings) is Outcome.FAIL:
            report = _report(task, [_not_tried(findings), *findings], {}, {})
            return _done(report.model_copy(update={"compat": tuple(findings)}))
        lease.say(f"testing the adapter on {base.name}")
        try:
            response = task.pool.try_adapter(source, folder, task.limits, progress=lease.set_progress)
        except ProcessExited as e:
            if not (isinstance(e, NotLoaded) and base.spec.quantization):
                raise Failed(str(e)) from e
            message = f"{base.name} is quantized ({base.spec.quantization}), and this worker {e}"
            return _unknown(task, "smoke.base_unsupported", BASE_CONFIG, message)
    lease.check()
    task.demand_unchanged_base()
    result = response.get("result")
    if result is None:
        raise Failed(str(response.get("failed") or "the smoke test ended without a result"))
    report = _report(task, _findings(result.get("findings", ())), result, response["base"])
    structure, certain = _findings(result.get("structure", ())), [f for f in findings if f.severity != "unknown"]
    if structure:  # PEFT decides what headers could not; the registry keeps what it was sure of itself
        report = report.model_copy(update={"compat": (*certain, *structure)})
    if (took := result.get("engine")) is not None:
        report = report.model_copy(update={"engine": _findings(took)})
    return _done(report)


def _unknown(task: Task, code: str, location: str, message: str) -> Done:
    """The verdict `unknown` with its reason."""
    return _done(_report(task, [Finding.of("unknown", code, location, printable(message, TEXT_LIMIT))], {}, {}))


_FINDING = TypeAdapter(Finding)


def _findings(messages: Iterable[Any]) -> tuple[Finding, ...]:
    """The findings of a child, with printable texts."""
    return tuple(
        _FINDING.validate_python({name: printable(str(value), TEXT_LIMIT) for name, value in finding.items()})
        for finding in messages
    )


def _fit(folder: Path, base: BaseView) -> list[Finding]:
    """Check the header again: only names on the allow-list reach the model."""
    try:
        contents = read_adapter(folder).contents
    except (Invalid, TooLarge) as e:
        raise Failed(f"the pulled adapter is invalid: {e.detail}", final=True) from e
    return list(compat.check(contents, base.spec, base.relatives))


def _not_tried(findings: list[Finding]) -> Finding:
    """The finding that the adapter was not loaded, beside the findings that say why."""
    errors = [finding for finding in findings if finding.severity == "error"]
    message = f"not loaded, because its header is incompatible: {summarize(errors[:1])}"
    return Finding.of("error", "smoke.incompatible", WEIGHTS, message)


def _report(task: Task, findings: Iterable[Finding], result: dict[str, Any], process: dict[str, Any]) -> Report:
    measurements = result.get("measurements", {})
    execution = Execution.model_validate(result.get("execution", {}))
    of_process = {name: process.get(field) for name, field in _PROCESS_MEASUREMENTS.items()}
    return Report(
        check=Check.SMOKE, subject=task.subject.digest, base=task.base.name,
        base_fingerprint=str(task.base.fingerprint), findings=tuple(findings),
        measurements=measurements | {name: value for name, value in of_process.items() if value is not None},
        made_by=dict(process.get("versions", {})), reference_logprobs=result.get("reference_logprobs"),
        images=result.get("images", {}), module_norms=result.get("module_norms", {}), golden=result.get("golden", ()),
        answers=result.get("answers", ()),
        execution=execution, thresholds=Thresholds.with_overrides(task.base.thresholds).model_dump(),
    )  # fmt: skip


def _done(report: Report) -> Done:
    outcome, numbers = add_up(report.findings), report.measurements
    if outcome != "fail" and numbers.get("mean_pixel_delta") is not None:
        details = f" (the image changes by {numbers['mean_pixel_delta']:.3g} of its range)"
    elif outcome != "fail" and numbers.get("kl_nats") is not None:
        kl = f"KL {numbers['kl_nats']:.3g} nats a token"
        details = f" (logits move by up to {numbers['max_logit_delta']:.3g}, {kl})"
    else:
        details = f": {summary}" if (summary := summarize(report.findings)) else ""
    missing = report.execution.missing_isolation if report.execution.mode else []
    warning = f"; this worker's machine gave the adapter no isolation: {', '.join(missing)}" if missing else ""
    return Done(f"smoke: {outcome}{details}{warning}", report)
