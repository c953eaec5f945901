"""Smoke tests of image adapters on tiny pipelines, through the registry: images, findings, unknown formats."""

from __future__ import annotations

import base64
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.api.bases import BaseAdd
from registry.client.local.base_folder import base_spec_from
from registry.evaluation.verdicts import Outcome
from registry.worker.loop import Worker
from tests import fixtures
from tests.worker.setup import WorkerSetup

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fixtures.IMAGES_AVAILABLE, reason="diffusers is not installed"),
]
EXPECTED = {
    "kohya-sd": ("sd-tiny", Outcome.PASS),
    "diffusers-old": ("sd-tiny", Outcome.PASS),
    "flux-xlabs": ("flux-tiny", Outcome.PASS),
    "flux-comfy": ("flux-tiny", Outcome.FAIL, "smoke.tensors_not_loaded", "smoke.image_unchanged"),
    "lycoris-loha": ("sd-tiny", Outcome.UNKNOWN, "smoke.task_unsupported"),
}
"""diffusers accepts ComfyUI's names and ignores them."""


def test_image_adapters_are_rendered_and_the_report_holds_both_images(
    setup: WorkerSetup, worker: Callable[..., Worker], tmp_path: Path
) -> None:
    adapters, pipelines = fixtures.images(), fixtures.image_bases()
    for base in ("sd-tiny", "flux-tiny"):
        spec, _ = base_spec_from(pipelines / base, base)
        setup.harness.admin.add_base(BaseAdd(spec=spec, source=str(pipelines / base)))
    for name, (base, *_) in EXPECTED.items():
        (tmp_path / name).mkdir()
        shutil.copy(adapters / f"{name}.safetensors", tmp_path / name)
        setup.push(tmp_path / name, f"acme/{name}", base=base)
    tally = worker().run(once=True)
    assert (tally.done, tally.failed) == (len(EXPECTED), 0), setup.lines
    verdicts = {name: setup.smoke(f"acme/{name}") for name in EXPECTED}
    findings = {name: (v.outcome, *(f.code for f in v.findings)) for name, v in verdicts.items() if v is not None}
    assert findings == {name: tuple(outcome_and_codes) for name, (_, *outcome_and_codes) in EXPECTED.items()}
    verdict = verdicts["kohya-sd"]
    assert verdict is not None
    assert verdict.report is not None
    report = setup.harness.admin.report("acme/kohya-sd", verdict.report)
    assert (report.measurements["mean_pixel_delta"] or 0) > 1e-6
    images = {name: base64.b64decode(image) for name, image in report.images.items()}
    assert {name: _size(image) for name, image in images.items()} == {"before": (128, 128), "after": (128, 128)}
    assert images["before"] != images["after"]
    profile = f"diffusers=={report.made_by['diffusers']}"
    taken = {name: setup.harness.admin.verdicts(f"acme/{name}", [profile]).items[0].outcome for name in EXPECTED}
    assert taken == {
        "kohya-sd": "pass", "diffusers-old": "pass", "flux-xlabs": "pass", "flux-comfy": "fail", "lycoris-loha": "fail"
    }  # fmt: skip


def _size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)
