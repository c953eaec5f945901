"""One validation job: pull the adapter, judge its header once more, put it on its base, make the report.

Invariants
- A check that cannot run raises `Failed`: that is a failed job, never a failing verdict.
- An adapter that does not fit by its header never reaches the model: its report says so.
- The adapter lies in a folder of this job alone, which is gone afterwards.

Example
    >>> smoke_test(registry, claimed, source, pool=pool, limits=Limits(), lease=lease).findings
    ()
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from registry import compat
from registry.client import transfer
from registry.client.api import Registry
from registry.client.folder import read_folder
from registry.errors import Corrupt, Invalid, TooLarge
from registry.names import AdapterName, Ref
from registry.verdicts import Check, Finding, Outcome, Report, add_up, summarise
from registry.wire import BaseView, Resolved
from registry.wire.jobs import Claimed
from registry.worker.lease import Held
from registry.worker.pool import Gone, Limits, Pool, Source


class Failed(Exception):
    """This attempt could not answer. `final`: no other attempt would either."""

    def __init__(self, sentence: str, *, final: bool = False) -> None:
        super().__init__(sentence)
        self.final = final


def smoke_test(
    registry: Registry, claimed: Claimed, source: Source, *, pool: Pool, limits: Limits, lease: Held
) -> Report:
    """The report of the check *acts* on the claimed version."""
    subject, base = claimed.subject, claimed.base
    if subject is None or base is None:
        raise Failed("the job names no version or no base", final=True)
    if base.fingerprint != source.fingerprint:
        raise Failed(f"the base {base.name} was registered anew since this worker looked")
    with tempfile.TemporaryDirectory(prefix="adapter-job-") as scratch:
        folder = Path(scratch) / "adapter"
        lease.say("pulling the adapter")
        _pull(registry, subject, folder)
        findings = _fit(folder, base)
        if add_up(findings) is Outcome.FAIL:
            return _report(subject, base, [_not_tried(findings), *findings], {}, {})
        lease.say(f"putting the adapter on {base.name}")
        try:
            answer = pool.try_adapter(source, folder, limits)
        except Gone as e:
            raise Failed(str(e)) from e
    lease.check()
    if "seen" not in answer:
        raise Failed(str(answer.get("failed") or "the check ended without an answer"))
    return _report(subject, base, _findings(answer), answer["seen"].get("measurements", {}), answer["base"])


def _pull(registry: Registry, subject: Resolved, folder: Path) -> None:
    ref = Ref(AdapterName.parse(subject.name), subject.digest)
    try:
        transfer.pull(registry, ref, folder, cache=None)
    except Corrupt as e:
        raise Failed(e.detail) from e


def _fit(folder: Path, base: BaseView) -> list[Finding]:
    """The domain's own judgement, made here again: the names that reach the model are on its allow-list."""
    try:
        contents = read_folder(folder).contents
    except (Invalid, TooLarge) as e:
        raise Failed(f"what was pulled breaks a rule: {e.detail}", final=True) from e
    return [*contents.lora.findings, *compat.check_fit(contents.lora, base.spec, base.relatives)]


def _not_tried(findings: list[Finding]) -> Finding:
    return Finding(
        code="acts.does_not_fit",
        severity="error",
        place="adapter_model.safetensors",
        sentence=f"not put on the base, because it does not fit by its header: {summarise(findings)}"[:2000],
    )


def _findings(answer: dict[str, Any]) -> list[Finding]:
    return [Finding.model_validate(finding) for finding in answer["seen"].get("findings", ())]


def _report(
    subject: Resolved, base: BaseView, findings: list[Finding], measurements: dict[str, Any], keeper: dict[str, Any]
) -> Report:
    about_base = {
        "base_load_seconds": keeper.get("load_seconds"),
        "base_parameters": keeper.get("parameters"),
        "base_loads": keeper.get("base_loads"),
        "adapters_tried": keeper.get("adapters_tried"),
    }
    return Report(
        check=Check.ACTS,
        subject=subject.digest,
        base=base.name,
        base_fingerprint=str(base.fingerprint),
        findings=tuple(findings),
        measurements=measurements | {name: value for name, value in about_base.items() if value is not None},
        made_by=dict(keeper.get("versions", {})),
    )
