"""Whether an adapter fits when headers cannot decide: PEFT is asked on the meta device, and its answer is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest

from registry.api.jobs import ClaimRequest, FinishRequest, JobSubmit
from registry.errors import Refused
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check, Outcome
from registry.findings import Finding
from registry.jobs import Kind
from registry.worker.loop import Worker
from tests.worker import models
from tests.worker.setup import WorkerSetup

NAME = "acme/support"
Make = Callable[..., Worker]


@pytest.fixture(scope="module")
def unusual(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, task_type="CAUSAL_LM")
    return models.adapter(base_folder, tmp_path_factory.mktemp("unusual") / "adaption-prompt", config=config)


def compat(setup: WorkerSetup) -> list[tuple[Outcome, list[str]]]:
    verdicts = [v for v in setup.harness.admin.version(NAME).verdicts if v.check is Check.COMPAT]
    return [(verdict.outcome, [finding.code for finding in verdict.findings]) for verdict in verdicts]


def test_a_worker_says_what_the_header_could_not_and_the_gate_opens(
    setup: WorkerSetup, unusual: Path, worker: Make
) -> None:
    setup.push(unusual)
    assert compat(setup) == [(Outcome.UNKNOWN, ["compat.method_not_evaluated"])]
    with pytest.raises(Refused):
        setup.harness.admin.promote(NAME, "prod", "1", generation=0)
    assert worker().run(once=True).done == 1
    assert compat(setup) == [(Outcome.PASS, ["compat.peft_expects"])]
    (verdict,) = [v for v in setup.harness.admin.version(NAME).verdicts if v.check is Check.COMPAT]
    assert "peft" in verdict.made_by
    assert verdict.report is not None
    assert setup.harness.admin.report(NAME, verdict.report).compat
    assert setup.harness.admin.promote(NAME, "prod", "1", generation=0).number == 1


def test_what_peft_does_not_expect_is_named(base_folder: Path, unusual: Path, tmp_path: Path) -> None:
    assert [finding.code for finding in models.compare_with_peft(base_folder, unusual)] == ["compat.peft_expects"]
    wide = models.base(tmp_path / "wide", hidden=128)
    (shape,) = models.compare_with_peft(wide, unusual)
    assert (shape.code, shape.severity) == ("compat.shape", "error")
    assert "expects other shapes" in shape.message


def test_a_no_of_peft_replaces_the_yes_of_the_header_but_its_yes_never_a_no(setup: WorkerSetup, good: Path) -> None:
    setup.push(good)
    no = Finding(code="compat.shape", severity="error", location="x", message="it does not fit, PEFT says")
    doubt = Finding(code="compat.kind", severity="unknown", location="x", message="cannot be said")
    failed = (Outcome.FAIL, [no.code])
    for findings, then in (((doubt,), (Outcome.PASS, [])), ((no,), failed), ((), failed)):
        verdict = setup.harness.admin.version(NAME).verdicts[0]
        if findings != (doubt,):
            setup.harness.admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=f"{NAME}@1"))
        claimed = setup.harness.admin.claim(ClaimRequest(worker="another"))
        assert claimed is not None
        report = Report(
            check=Check.SMOKE, subject=verdict.subject, base=verdict.base, base_fingerprint=verdict.base_fingerprint,
            compat=findings,
        )  # fmt: skip
        setup.harness.admin.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))
        assert compat(setup)[-1] == then
