"""Every good adapter, one for each method and option of PEFT, on its own tiny base; and every wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry.client.local.adapter_folder import read_adapter
from registry.errors import RegistryError
from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import Pool, ProcessLimits
from registry.worker.smoke import structure
from registry.worker.smoke.result import LibraryFailed
from tests import fixtures
from tests.worker import models

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_programs")]
LIMITS = ProcessLimits(deadline_seconds=120, threads=1)
CHANGES_ITS_BASE = {"lora-layer-replication", "lora-pissa", "lora-olora", "lora-bias-all", "lora-bias-only"}
"""They say so in their configuration, and are warned about."""


def test_every_good_adapter_has_an_effect_and_each_base_is_loaded_once() -> None:
    good, bases = fixtures.good(), fixtures.tiny_bases()
    entries = {
        name: entry
        for name, entry in fixtures.manifest(good).items()
        if (good / name / "adapter_model.safetensors").is_file() and (bases / entry["base"]).is_dir()
    }
    complaints: dict[str, Any] = {}
    with Pool() as pool:
        for name, entry in sorted(entries.items(), key=lambda item: str(item[1]["base"])):
            response = pool.try_adapter(BaseSource(entry["base"], bases / entry["base"], ""), good / name, LIMITS)
            findings: Any = response["result"]["findings"] if "result" in response else response
            if findings:
                complaints[name] = [(f["code"], f["severity"]) for f in findings] if "result" in response else findings
        loads = pool.base_loads
    assert complaints == {name: [("smoke.base_changed", "warning")] for name in CHANGES_ITS_BASE}
    assert len(entries) > 40
    assert loads == len({entry["base"] for entry in entries.values()})


def test_each_adapter_that_is_wrong_ends_in_one_response_and_the_next_one_is_right() -> None:
    """Straight to a process, as if no header had been looked at: whatever it is, it costs neither worker nor base."""
    bad, base = fixtures.bad(), fixtures.tiny_bases() / "llama-a"
    source, names = BaseSource("llama-a", base, ""), sorted(fixtures.manifest(bad).keys() - {"good"})
    passed, failed = [], []
    with Pool() as pool:
        baseline = pool.try_adapter(source, bad / "good", LIMITS)["result"]
        assert baseline["findings"] == []
        for name in names:
            response = pool.try_adapter(source, bad / name, LIMITS)
            assert ("result" in response) != bool(response.get("failed")), (name, response)
            if "failed" in response:
                failed.append(name)
            elif not response["result"]["findings"]:
                passed.append(name)
            again = pool.try_adapter(source, bad / "good", LIMITS)["result"]
            assert (again["findings"], again["reference_logprobs"]) == ([], baseline["reference_logprobs"]), (
                f"after {name}"
            )
        assert pool.base_loads == 1
    assert len(names) >= 50
    assert {"config-missing", "weights-missing", "pickle-with-code", "header-length-absurd"} <= set(failed)
    assert not {"nan", "inf-one-value", "all-zero-b", "whole-base-inside", "overwrites-lm-head"} & set(passed)


LOOKS_AT_VALUES = {"boft", "p-tuning", "prefix-tuning", "prompt-tuning", "shira"}
"""Methods that PEFT cannot make whole on the meta device: they are compared once PEFT has loaded the adapter."""
SAME_NAMES_AND_SHAPES = {"nan", "inf-one-value", "integer-weights", "alpha-zero"}
"""What is wrong with these is no name and no shape."""


def test_peft_on_the_meta_device_accepts_every_good_adapter_and_no_bad_one() -> None:
    bases, severities_of = fixtures.tiny_bases(), {}
    for folder in (fixtures.good(), fixtures.bad()):
        for name, entry in fixtures.manifest(folder).items():
            if (folder / name / "adapter_model.safetensors").is_file() and (bases / entry["base"]).is_dir():
                valid = _is_valid(folder / name)
                severities = _severities(bases / entry["base"], folder / name) if valid else set()
                severities_of[f"{folder.name.partition('-')[0]} {name}"] = (entry["fits"], severities)
    unknown = {
        name for name, (_, severities) in severities_of.items() if name.startswith("good") and severities != {"info"}
    }
    assert unknown == {f"good {name}" for name in LOOKS_AT_VALUES}
    missed = {name for name, (fits, severities) in severities_of.items() if fits == "no" and severities == {"info"}}
    assert missed == {f"bad {name}" for name in SAME_NAMES_AND_SHAPES}


def _severities(base: Path, folder: Path) -> set[str]:
    try:
        return {finding.severity for finding in models.compare_with_peft(base, folder)}
    except structure.NeedsValues:
        return {"unknown"}
    except LibraryFailed as e:
        return {e.finding.severity}


def _is_valid(folder: Path) -> bool:
    """Whether a push accepts it; an invalid one never reaches PEFT."""
    try:
        read_adapter(folder)
    except RegistryError:
        return False
    return True
