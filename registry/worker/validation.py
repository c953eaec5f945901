"""One validation: pull the adapter, judge its header once more, put it on its base, make the report.

Invariants
- A check that cannot run raises `Failed`: that is a failed job, never a failing verdict.
- An adapter that does not fit by its header never reaches the model: its report says so.
- Where the header cannot tell (unusual methods, packed bases), PEFT itself is asked for names and shapes, on the meta
  device: the report then says whether it fits, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.api import BaseView
from registry.client.folder import read_folder
from registry.compat import evaluate
from registry.errors import Invalid, TooLarge
from registry.evaluation.reports import Report
from registry.evaluation.thresholds import Thresholds
from registry.evaluation.verdicts import Check, Finding, Outcome, add_up, summarise
from registry.worker.model_process.client import Gone
from registry.worker.task import Done, Failed, Task

UNTOLD = frozenset({"compat.method_unjudged", "compat.shape_unknown"})
"""Findings that say that headers cannot tell."""


def validate(task: Task) -> Done:
    """The report of the check *smoke* on the claimed version."""
    base, lease = task.base, task.lease
    source = replace(task.ready_source(), thresholds=base.thresholds)
    with tempfile.TemporaryDirectory(prefix="adapter-job-") as scratch:
        lease.say("pulling the adapter")
        folder = task.pull(Path(scratch) / "adapter")
        findings = _fit(folder, base)
        if add_up(findings) is Outcome.FAIL:
            return _done(_report(task, [_not_tried(findings), *findings], {}, {}))
        open_questions = [finding for finding in findings if finding.code in UNTOLD]
        lease.say(f"putting the adapter on {base.name}")
        try:
            with task.pool.listening(lease.tell):
                answer = task.pool.try_adapter(source, folder, task.limits, structure=bool(open_questions))
        except Gone as e:
            raise Failed(str(e)) from e
    lease.check()
    if "seen" not in answer:
        raise Failed(str(answer.get("failed") or "the check ended without an answer"))
    report = _report(task, _findings(answer["seen"].get("findings", ())), answer["seen"], answer["base"])
    if "structure" in answer:
        certain = [finding for finding in findings if finding not in open_questions]
        report = report.model_copy(update={"compat": (*certain, *_findings(answer["structure"]))})
    return _done(report)


def _findings(messages: Iterable[Any]) -> tuple[Finding, ...]:
    return tuple(Finding.model_validate(finding) for finding in messages)


def _fit(folder: Path, base: BaseView) -> list[Finding]:
    """The domain's own judgement, made here again: the names that reach the model are on its allow-list."""
    try:
        contents = read_folder(folder).found
    except (Invalid, TooLarge) as e:
        raise Failed(f"what was pulled breaks a rule: {e.detail}", final=True) from e
    return list(evaluate.fit(contents, base.spec, base.relatives))


def _not_tried(findings: list[Finding]) -> Finding:
    """The other findings stand beside it."""
    worst = [finding for finding in findings if finding.severity == "error"]
    message = f"not put on the base, because it does not fit by its header: {summarise(worst[:1])}"
    return Finding.of("error", "smoke.does_not_fit", "adapter_model.safetensors", message)


def _report(task: Task, findings: Iterable[Finding], result: dict[str, Any], keeper: dict[str, Any]) -> Report:
    measurements = result.get("measurements", {})
    about_base = {
        "base_load_seconds": keeper.get("load_seconds"),
        "base_parameters": keeper.get("parameters"),
        "base_loads": keeper.get("base_loads"),
        "adapters_tried": keeper.get("adapters_tried"),
    }
    return Report(
        check=Check.SMOKE,
        subject=task.subject.digest,
        base=task.base.name,
        base_fingerprint=str(task.base.fingerprint),
        findings=tuple(findings),
        measurements=measurements | {name: value for name, value in about_base.items() if value is not None},
        made_by=dict(keeper.get("versions", {})),
        reference_logprobs=result.get("reference_logprobs"),
        pictures=result.get("pictures", {}),
        thresholds=Thresholds.with_overrides(task.base.thresholds).model_dump(),
    )


def _done(report: Report) -> Done:
    outcome = add_up(report.findings)
    measurements = report.measurements
    if measurements.get("mean_pixel_delta") is not None and outcome != "fail":
        return Done(
            f"smoke: {outcome} (the picture changes by {measurements['mean_pixel_delta']:.3g} of its range)", report
        )
    if measurements.get("kl_nats") is not None and outcome != "fail":
        moved = (
            f"logits move by up to {measurements['max_logit_delta']:.3g}, KL {measurements['kl_nats']:.3g} nats a token"
        )
        return Done(f"smoke: {outcome} ({moved})", report)
    return Done(f"smoke: {outcome}" + (f": {summary}" if (summary := summarise(report.findings)) else ""), report)
