"""A campaign over 200 adapters of one base, by a real worker: one load of the base, and a table that is right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from registry.client.judging import Judging
from registry.jobs import State
from registry.wire.jobs import CampaignItem, RevalidateRequest
from registry.worker.loop import Worker
from registry.worker.pool import Pool
from tests.worker import models
from tests.worker.workshop import BASE, Workshop

ADAPTERS = 200
LOUD_EVERY, SILENT = 10, 7
"""Each tenth moves the base twenty times as far as the others; one has no effect at all."""


def fleet(pattern: Path, folder: Path) -> dict[str, Path]:
    """Adapters of one layout by the names of their versions, each with numbers of its own."""
    tensors, made = load_file(pattern / models.WEIGHTS), {}
    for number in range(ADAPTERS):
        target = shutil.copytree(pattern, folder / str(number))
        torch.manual_seed(number)
        size = 0.0 if number == SILENT else 0.2 if number % LOUD_EVERY == 0 else 0.01
        own = {
            name: torch.randn_like(values) * (size if "lora_B" in name else 0.05) for name, values in tensors.items()
        }
        save_file(own, target / models.WEIGHTS)
        made[f"acme/shop-{number}@1"] = target
    return made


def test_a_campaign_over_200_adapters_of_one_base_loads_it_once_and_names_what_changed(
    workshop: Workshop, good: Path, worker: Callable[..., Worker], tmp_path: Path
) -> None:
    judging = Judging(workshop.world.admin)
    pushed = fleet(good, tmp_path)
    for version, folder in pushed.items():
        workshop.push(folder, version.removesuffix("@1"))
    loud = {f"acme/shop-{number}@1" for number in range(0, ADAPTERS, LOUD_EVERY)}
    silent = f"acme/shop-{SILENT}@1"
    with Pool() as pool:
        first = judging.begin(RevalidateRequest(base=BASE))
        assert (first.total, first.finished) == (ADAPTERS, False)
        tally = worker(pool=pool).run(once=True)
        assert (tally.done, tally.failed, tally.base_loads) == (ADAPTERS, 0, 1)
        table = _table(judging, first.id)
        assert {version: item.after for version, item in table.items()} == dict.fromkeys(pushed, "pass") | {
            silent: "fail"
        }
        assert {item.before for item in table.values()} == {""}

        judging.set_thresholds(BASE, {"drift_warn_kl_nats": _between(workshop, pushed, loud)})
        second = judging.begin(RevalidateRequest(base=BASE))
        tally = worker(pool=pool).run(once=True)
        assert (tally.done, tally.failed, tally.base_loads) == (ADAPTERS, 0, 1)
    told = {version: (item.before, item.after) for version, item in _table(judging, second.id).items()}
    assert told == dict.fromkeys(loud, ("pass", "warn"))
    assert judging.begin(RevalidateRequest(base=BASE, outdated=True)).total == 0


def _table(judging: Judging, campaign: str) -> dict[str, CampaignItem]:
    view = judging.campaign(campaign)
    assert (view.finished, view.states, view.changed) == (True, {State.DONE: ADAPTERS}, len(view.items))
    return {item.version: item for item in view.items}


def _between(workshop: Workshop, pushed: dict[str, Path], loud: set[str]) -> float:
    """A threshold that the loud ones alone are over, from what their reports say."""
    far = [_kl(workshop, version) for version in loud]
    near = max(_kl(workshop, version) for version in list(pushed)[1:ADAPTERS:37])
    assert min(far) > 4 * near
    return min(far) / 2


def _kl(workshop: Workshop, version: str) -> float:
    verdict = workshop.acts(version)
    assert verdict is not None
    assert verdict.report is not None
    return float(workshop.world.admin.report(version, verdict.report).measurements["kl_nats"])
