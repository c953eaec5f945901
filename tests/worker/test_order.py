"""The same adapter gets the same verdict and the same numbers in any order, after any other, and alone."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest

from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import Pool, ProcessLimits
from tests import fixtures
from tests.worker import models

pytestmark = pytest.mark.usefixtures("forked_programs")
LIMITS = ProcessLimits(deadline_seconds=120, threads=1)
NUMBERS = ("max_logit_delta", "mean_logit_delta", "kl_nats", "top1_agreement", "perplexity", "base_perplexity")
ONLY_WARM = frozenset({"smoke.mixed_differs"})
"""Only a process that holds several adapters can compare them."""
HANGING = "hangs"

Answers = dict[str, tuple[dict[str, str], dict[str, float]]]


def ask(pool: Pool, source: BaseSource, name: str, folder: Path, limits: ProcessLimits = LIMITS) -> Any:
    """Severity by code, and the measurements of the forward pass."""
    limits = replace(limits, deadline_seconds=0.5) if name == HANGING else limits
    response = pool.try_adapter(source, folder, limits)
    if "result" not in response:
        return {"failed": "failed"}, {}
    result = response["result"]
    codes = {f["code"]: f["severity"] for f in result["findings"] if f["code"] not in ONLY_WARM}
    return codes, {name: result["measurements"][name] for name in NUMBERS if name in result["measurements"]}


def differences(first: Answers, second: Answers) -> list[str]:
    """The adapters whose answers are not equal to rounding."""
    return [
        name
        for name, (codes, numbers) in first.items()
        if codes != second[name][0]
        or numbers.keys() != second[name][1].keys()
        or not all(_is_close(number, second[name][1][key]) for key, number in numbers.items())
    ]


def _is_close(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=1e-3, abs_tol=1e-5)


def orders(names: Iterable[str], count: int) -> list[list[str]]:
    listed = list(names)
    return [listed, listed[::-1], *(random.Random(seed).sample(listed, len(listed)) for seed in range(count))]


def compare_orders(batch: dict[str, Path], source: BaseSource, *, permutations: int) -> None:
    """Test the batch in several orders on one base load, and each adapter in a process of its own."""
    with Pool() as pool:
        alone = {name: ask(pool, source, name, folder, replace(LIMITS, isolate=True)) for name, folder in batch.items()}
        for order in orders(batch, permutations):
            again = {name: ask(pool, source, name, batch[name]) for name in order}
            assert differences(alone, again) == [], order
        assert pool.base_loads == 1


@pytest.fixture(scope="module")
def source(base_folder: Path) -> BaseSource:
    return BaseSource("tiny", base_folder, "sha256:" + "0" * 64)


def _changed(good: Path, folder: Path, **fields: Any) -> Path:
    shutil.copytree(good, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.mark.security
def test_verdicts_and_measurements_do_not_depend_on_the_order(
    base_folder: Path, good: Path, source: BaseSource, tmp_path: Path
) -> None:
    make: dict[str, Callable[[Path], Path]] = {
        "plain": lambda folder: models.adapter(base_folder, folder, seed=2),
        "wide": lambda folder: models.adapter(base_folder, folder, r=8, use_rslora=True),
        "nan": lambda folder: models.adapter(base_folder, folder, change=models.with_nan),
        "zero": lambda folder: models.adapter(base_folder, folder, change=models.zero_b),
        "prefix": lambda folder: models.adapter(base_folder, folder, change=models.wrong_prefix),
        "poisoned": lambda folder: models.adapter(base_folder, folder, change=models.poisoned),
        "refused": lambda folder: _changed(good, folder, init_lora_weights="/etc/passwd"),
        "rank": lambda folder: _changed(good, folder, r=8),
        "dora": lambda folder: models.adapter(base_folder, folder, use_dora=True),
        "head": lambda folder: models.adapter(base_folder, folder, modules_to_save=["lm_head"]),
        "embedding": lambda folder: models.adapter(base_folder, folder, target_modules=["embed_tokens", "q_proj"]),
        "bias": lambda folder: models.adapter(base_folder, folder, init_lora_weights="pissa"),
    }
    batch = {name: act(tmp_path / name) for name, act in make.items()} | {"good": good}
    (tmp_path / HANGING).mkdir()
    for path in good.iterdir():
        os.mkfifo(tmp_path / HANGING / path.name)
    compare_orders(batch | {HANGING: tmp_path / HANGING}, source, permutations=1)


@pytest.mark.deep
def test_verdicts_on_good_and_bad_adapters_do_not_depend_on_their_order() -> None:
    batch, bases = {}, fixtures.tiny_bases()
    for folder in (fixtures.good(), fixtures.bad()):
        for name, entry in fixtures.manifest(folder).items():
            if entry["base"] == "llama-a" and (folder / name / "adapter_model.safetensors").is_file():
                batch[f"{folder.name[:3]} {name}"] = folder / name
    assert len(batch) > 70
    compare_orders(batch, BaseSource("llama-a", bases / "llama-a", ""), permutations=1)


def test_peft_reads_every_configuration_also_of_a_layout_that_is_known(
    pool: Pool, source: BaseSource, good: Path, tmp_path: Path
) -> None:
    for _ in range(3):
        assert pool.try_adapter(source, good, LIMITS)["result"]["findings"] == []
    wrong = _changed(good, tmp_path / "wrong", init_lora_weights="no_such_initialization")
    (finding,) = pool.try_adapter(source, wrong, LIMITS)["result"]["findings"]
    assert finding["severity"] == "error"
    assert f"PEFT {peft.__version__}" in finding["message"]
