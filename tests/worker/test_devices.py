"""The way of a GPU, walked on the CPU: `cpu:0` is a device like any other, so the format is that of the record.

The process holds no base, its children are programs of their own that load it. What only a GPU has is in tests/gpu.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from registry.worker.devices import CPU, CUDA
from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import ModelProcess, Pool, ProcessLimits
from registry.worker.sandbox import confine
from tests import fixtures
from tests.worker import models

DEVICE = "cpu:0"
LIMITS = ProcessLimits(deadline_seconds=120, threads=1)


def test_a_fleet_in_16_bits_is_tried_on_one_load_by_one_child(base_folder: Path, tmp_path: Path) -> None:
    fleet = [models.adapter(base_folder, tmp_path / str(i), seed=i, r=2 + 2 * i) for i in range(3)]
    dora = models.adapter(base_folder, tmp_path / "dora", use_dora=True)
    source = BaseSource("tiny", base_folder, "", dtype="BF16")
    with Pool(device=DEVICE) as pool:
        assert "load_seconds" not in pool.process(source).ready, "the process itself loaded the base"
        results = [pool.try_adapter(source, folder, LIMITS)["result"] for folder in [*fleet, dora]]
        loads = pool.base_loads
    assert [result["execution"]["mode"] for result in results] == ["loaded", "loaded", "swapped", "loaded"]
    assert [result["findings"] for result in results] == [[]] * 4
    assert {result["reference_logprobs"]["dtype"] for result in results} == {"bfloat16"}
    assert loads == 1


@pytest.mark.skipif(not fixtures.IMAGES_AVAILABLE, reason="diffusers is not installed")
def test_an_image_adapter_is_rendered_in_16_bits(tmp_path: Path) -> None:
    shutil.copy(fixtures.images() / "kohya-sd.safetensors", tmp_path)
    with Pool(device=DEVICE) as pool:
        source = BaseSource("sd-tiny", fixtures.image_bases() / "sd-tiny", "", dtype="BF16")
        result = pool.try_adapter(source, tmp_path, LIMITS)["result"]
    assert result["findings"] == []
    assert set(result["images"]) == {"before", "after"}


def test_a_model_process_for_a_gpu_sees_none_and_its_children_see_those_of_the_worker(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def environment_of(device: str) -> dict[str, str]:
        process = ModelProcess(
            BaseSource("tiny", base_folder, ""), device=device, environment={"CUDA_VISIBLE_DEVICES": "1,3"}
        )
        try:
            while not (environment := Path(f"/proc/{process.pid}/environ").read_bytes()):
                os.sched_yield()  # Linux shows nothing between closing what exec closes and laying out the new memory
            words = environment.split(b"\0")
        finally:
            process.kill()
        return dict(word.decode().partition("=")[::2] for word in words if b"CUDA_VISIBLE" in word)

    assert environment_of(CPU) == {"CUDA_VISIBLE_DEVICES": "1,3"}
    on_a_gpu = environment_of(CUDA)
    assert on_a_gpu == {"CUDA_VISIBLE_DEVICES": "", "ADAPTER_CUDA_VISIBLE_DEVICES": "1,3"}
    for name, value in on_a_gpu.items():
        monkeypatch.setenv(name, value)
    assert confine.gpu_environment()["CUDA_VISIBLE_DEVICES"] == "1,3"
