"""A campaign over 200 adapters of one base, by a real worker: one load of the base, and a table that is right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from registry.api.jobs import CampaignRequest
from registry.jobs import State
from registry.worker.loop import Worker
from registry.worker.model.sources import BaseSource, stamps_of
from registry.worker.model_process.client import Pool, ProcessLimits
from tests.worker import models
from tests.worker.setup import BASE, WorkerSetup

ADAPTERS = 200
LOUD_EVERY, SILENT = 10, 7
"""Each tenth moves the base twenty times as far as the others; one has no effect at all."""


def make_adapters(pattern: Path, folder: Path) -> dict[str, Path]:
    """Adapters of one layout by the names of their versions, each with numbers of its own."""
    tensors, folders = load_file(pattern / models.WEIGHTS), {}
    for number in range(ADAPTERS):
        target = shutil.copytree(pattern, folder / str(number))
        torch.manual_seed(number)
        size = 0.0 if number == SILENT else 0.2 if number % LOUD_EVERY == 0 else 0.01
        own = {
            name: torch.randn_like(values) * (size if "lora_B" in name else 0.05) for name, values in tensors.items()
        }
        save_file(own, target / models.WEIGHTS)
        folders[f"acme/shop-{number}@1"] = target
    return folders


def test_a_campaign_over_200_adapters_of_one_base_loads_it_once_and_ends_in_a_table_that_is_right(
    setup: WorkerSetup, good: Path, worker: Callable[..., Worker], tmp_path: Path, base_folder: Path
) -> None:
    pushed = make_adapters(good, tmp_path)
    loud = {f"acme/shop-{number}@1" for number in range(0, ADAPTERS, LOUD_EVERY)}
    silent = f"acme/shop-{SILENT}@1"
    with Pool() as pool:
        view = setup.harness.admin.base(BASE)
        stamps = stamps_of(base_folder, view.spec.components)
        resolved = base_folder.resolve()
        source = BaseSource(BASE, resolved, str(view.fingerprint), dtype=view.spec.dtype, stamps=stamps)
        far, near = (_kl(pool, source, pushed[f"acme/shop-{number}@1"]) for number in (0, 1))
        assert far > 9 * near
        setup.harness.admin.set_thresholds(BASE, {"drift_warn_kl_nats": (far * near) ** 0.5})
        for version, folder in pushed.items():
            setup.push(folder, version.removesuffix("@1"))
        campaign = setup.harness.admin.start_campaign(CampaignRequest(base=BASE))
        assert (campaign.total, campaign.finished) == (ADAPTERS, False)
        tally = worker(pool=pool).run(once=True)
    assert (tally.done, tally.failed, tally.base_loads) == (ADAPTERS, 0, 1)
    campaign = setup.harness.admin.campaign(campaign.id)
    assert (campaign.finished, campaign.states, campaign.changed) == (True, {State.DONE: ADAPTERS}, ADAPTERS)
    expected = dict.fromkeys(pushed, "pass") | dict.fromkeys(loud, "warn") | {silent: "fail"}
    assert {item.version: item.after for item in campaign.items} == expected
    assert {item.before for item in campaign.items} == {""}
    assert setup.harness.admin.start_campaign(CampaignRequest(base=BASE, outdated=True)).total == 0


def _kl(pool: Pool, source: BaseSource, folder: Path) -> float:
    """How far an adapter moves the base, from the same process that the campaign will use."""
    response = pool.try_adapter(source, folder, ProcessLimits(deadline_seconds=120, threads=1))
    return float(response["result"]["measurements"]["kl_nats"])
