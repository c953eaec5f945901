"""The worker on a CUDA device: number formats of the record, packed bases, one base load, nothing stays behind.

Run by `make test-gpu`; without a device each test is skipped and counted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from registry.worker.keepers import CUDA, Limits, Source, device_of
from registry.worker.pool import Pool
from tests.worker import models

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(device_of("auto") != CUDA, reason="there is no CUDA device here"),
]
LIMITS = Limits(deadline_seconds=300, threads=1)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_fleet_is_tried_on_one_base_load_in_the_format_of_the_record(
    base_folder: Path, tmp_path: Path, dtype: str
) -> None:
    fleet = [models.adapter(base_folder, tmp_path / str(i), seed=i, r=2 + 2 * i) for i in range(4)]
    source = Source("tiny", base_folder, "", dtype=dtype)
    with Pool(device=CUDA) as pool:
        for folder in fleet:
            answer = pool.try_adapter(source, folder, LIMITS)
            assert answer["seen"]["findings"] == []
            assert answer["seen"]["fingerprint"]["device"] == "cuda"
        dora = pool.try_adapter(source, models.adapter(base_folder, tmp_path / "dora", use_dora=True), LIMITS)
        assert dora["seen"]["measurements"]["way"] == "loaded"
        assert pool.base_loads == 1


def test_a_poisoned_adapter_costs_the_process_and_the_next_one_is_right(base_folder: Path, tmp_path: Path) -> None:
    source = Source("tiny", base_folder, "", dtype="BF16")
    good = models.adapter(base_folder, tmp_path / "good")
    poison = models.adapter(base_folder, tmp_path / "poison", change=models.poisoned)
    with Pool(device=CUDA) as pool:
        before = pool.try_adapter(source, good, LIMITS)["seen"]["fingerprint"]
        found = pool.try_adapter(source, poison, replace(LIMITS, any_name=True))["seen"]
        assert "acts.base_changed" in {finding["code"] for finding in found["findings"]}
        assert pool.try_adapter(source, good, LIMITS)["seen"]["fingerprint"] == before


def test_a_base_that_is_packed_to_four_bits_is_loaded_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from tests import fixtures

    bases = fixtures.tiny_bases()
    packed = next((folder for folder in sorted(bases.iterdir()) if "nf4" in folder.name), None)
    if packed is None:
        pytest.skip("the fixtures hold no packed base")
    adapter = models.adapter(bases / "llama-a", tmp_path / "adapter")
    with Pool(device=CUDA) as pool:
        answer = pool.try_adapter(Source("nf4", packed, ""), adapter, LIMITS)
    assert answer["seen"]["measurements"]["max_logit_delta"] > 0
