"""The worker on a CUDA device: number formats of the record, packed bases, one base load, nothing stays behind.

Run by `make test-gpu`; without a device each test is skipped and counted.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from registry.worker.devices import CUDA, select_device
from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import Pool, ProcessLimits
from tests import fixtures
from tests.worker import models

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(select_device("auto") != CUDA, reason="there is no CUDA device here"),
]
LIMITS = ProcessLimits(deadline_seconds=300, threads=1)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_fleet_is_tried_on_one_base_load_in_the_format_of_the_record(
    base_folder: Path, tmp_path: Path, dtype: str
) -> None:
    fleet = [models.adapter(base_folder, tmp_path / str(i), seed=i, r=2 + 2 * i) for i in range(4)]
    source = BaseSource("tiny", base_folder, "", dtype=dtype)
    with Pool(device=CUDA) as pool:
        for folder in fleet:
            answer = pool.try_adapter(source, folder, LIMITS)
            assert answer["result"]["findings"] == []
            assert answer["result"]["reference_logprobs"]["device"] == "cuda"
        dora = pool.try_adapter(source, models.adapter(base_folder, tmp_path / "dora", use_dora=True), LIMITS)
        assert dora["result"]["execution"]["mode"] == "loaded"
        assert dora["result"]["measurements"]["peak_gpu_memory_bytes"] > 0
        assert pool.base_loads == 1
        pissa = pool.try_adapter(source, models.adapter(base_folder, tmp_path / "p", init_lora_weights="pissa"), LIMITS)
        assert pissa["result"]["execution"]["mode"] == "isolated"
        assert pool.base_loads == 2, "what changes the base loads one of its own"
        again = pool.try_adapter(source, fleet[0], LIMITS)
        assert again["result"]["findings"] == []
        assert pool.base_loads == 2, "the shared child and its base were lost"


def test_memory_that_runs_out_fails_the_attempt_and_the_next_one_is_right(base_folder: Path, tmp_path: Path) -> None:
    """On a GPU that is nearly full. Whatever becomes of a large adapter there, a small one is right afterwards."""
    torch = pytest.importorskip("torch")
    free, _ = torch.cuda.mem_get_info()
    good = models.adapter(base_folder, tmp_path / "good")
    source = BaseSource("tiny", base_folder, "", dtype="BF16")
    with Pool(device=CUDA) as pool:
        ballast = torch.empty(max(0, free - 700 * 2**20), dtype=torch.uint8, device="cuda")
        try:
            large = models.adapter(base_folder, tmp_path / "large", r=8192, target_modules="all-linear")
            answer = pool.try_adapter(source, large, LIMITS)
        finally:
            del ballast
            torch.cuda.empty_cache()
        assert "failed" in answer or answer["result"]["findings"] == []
        assert pool.try_adapter(source, good, LIMITS)["result"]["findings"] == []


@pytest.mark.skipif(not fixtures.IMAGES_AVAILABLE, reason="diffusers is not installed")
def test_an_image_adapter_is_rendered(tmp_path: Path) -> None:
    shutil.copy(fixtures.images() / "kohya-sd.safetensors", tmp_path)
    with Pool(device=CUDA) as pool:
        source = BaseSource("sd-tiny", fixtures.image_bases() / "sd-tiny", "", dtype="BF16")
        result = pool.try_adapter(source, tmp_path, LIMITS)["result"]
    assert result["findings"] == []
    assert set(result["images"]) == {"before", "after"}


def test_a_poisoned_adapter_costs_the_process_and_the_next_one_is_right(base_folder: Path, tmp_path: Path) -> None:
    source = BaseSource("tiny", base_folder, "", dtype="BF16")
    good = models.adapter(base_folder, tmp_path / "good")
    poison = models.adapter(base_folder, tmp_path / "poison", change=models.poisoned)
    with Pool(device=CUDA) as pool:
        before = pool.try_adapter(source, good, LIMITS)["result"]["reference_logprobs"]
        result = pool.try_adapter(source, poison, replace(LIMITS, any_name=True))["result"]
        assert "smoke.base_changed" in {finding["code"] for finding in result["findings"]}
        assert pool.try_adapter(source, good, LIMITS)["result"]["reference_logprobs"] == before


def test_a_base_that_is_packed_to_four_bits_is_loaded_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    bases = fixtures.tiny_bases()
    packed = next((folder for folder in sorted(bases.iterdir()) if "nf4" in folder.name), None)
    if packed is None:
        pytest.skip("the fixtures hold no packed base")
    adapter = models.adapter(bases / "llama-a", tmp_path / "adapter")
    with Pool(device=CUDA) as pool:
        answer = pool.try_adapter(BaseSource("nf4", packed, ""), adapter, LIMITS)
    assert answer["result"]["measurements"]["max_logit_delta"] > 0
