"""`RegistryCallback` in real trainings of a tiny base: versions with lineage, retention, a registry that fails."""

from __future__ import annotations

import inspect
import logging
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers

from registry.errors import Invalid, Unavailable
from registry.sdk import AdapterRegistry
from registry.training import RegistryCallback
from tests.import_table import ROOT
from tests.maintenance import collect
from tests.worker.setup import WorkerSetup

NAME = "acme/support"
PAGE = (ROOT / "docs/trainers.md").read_text()


class Sentences(torch.utils.data.Dataset):
    """A data set with the fingerprint that the library `datasets` gives one."""

    _fingerprint, split = "0123456789abcdef", "train"
    info = SimpleNamespace(dataset_name="tickets", builder_name="json")

    def __len__(self) -> int:
        return 8

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(position, position + 8)
        return {"input_ids": ids, "labels": ids}


@pytest.fixture
def registry(setup: WorkerSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterRegistry:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return AdapterRegistry(client=setup.harness.admin)


def setting(base: Path, output: Path, steps: int) -> dict[str, Any]:
    """Model, arguments and data set of a training that saves each step and keeps one checkpoint."""
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    args = transformers.TrainingArguments(
        output_dir=str(output), max_steps=steps, save_steps=1, logging_steps=1, per_device_train_batch_size=2,
        save_total_limit=1, learning_rate=1e-3, report_to=[], use_cpu=True, disable_tqdm=True, seed=7,
    )  # fmt: skip
    return {"model": peft.get_peft_model(model, config), "args": args, "train_dataset": Sentences()}


def train(callback: RegistryCallback, base: Path, output: Path, *, steps: int, resume: str | None = None) -> None:
    trainer = transformers.Trainer(**setting(base, output, steps), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)


def test_ten_checkpoints_become_ten_versions_and_retention_leaves_what_is_needed(
    registry: AdapterRegistry, setup: WorkerSetup, base_folder: Path, tmp_path: Path
) -> None:
    callback = RegistryCallback(NAME, registry=registry, base="tiny", keep_newest=3, tags={"job": "nightly"},
                                provenance={"parameters": {"note": "mine", "seed": 8}})  # fmt: skip
    train(callback, base_folder, tmp_path / "out", steps=10)
    versions = {version.number: version for version in registry.versions(NAME)}
    assert sorted(versions) == list(range(1, 11))
    for number, version in versions.items():
        assert [edge.digest for edge in version.parents] == ([versions[number - 1].digest] if number > 1 else [])
    newest = versions[10]
    assert (newest.message, newest.tags) == ("checkpoint 10", {"job": "nightly"})
    assert newest.provenance is not None
    (dataset,) = newest.provenance.datasets
    assert (dataset.name, dataset.uri, dataset.split) == ("tickets", "hf-datasets:0123456789abcdef", "train")
    parameters = newest.provenance.parameters
    assert (parameters["learning_rate"], parameters["step"]) == ("0.001", "10"), "what is declared adds to it"
    assert (parameters["note"], parameters["seed"]) == ("mine", "8")
    assert float(parameters["metrics.loss"]) > 0
    assert list((tmp_path / "out/.registry").iterdir()) == []
    assert {job.state for job in registry.client.jobs(ref=f"{NAME}@3").items} == {"superseded"}
    setup.harness.validate(f"{NAME}@10")
    registry.smoke_test(f"{NAME}@4")
    setup.harness.validate(f"{NAME}@4")
    registry.promote(f"{NAME}@4", "prod")
    collect(setup.harness)
    assert [version.number for version in registry.versions(NAME)] == [10, 9, 8, 4]


def test_a_training_resumes_from_a_version_and_continues_its_lineage(
    registry: AdapterRegistry, base_folder: Path, tmp_path: Path
) -> None:
    train(RegistryCallback(NAME, registry=registry, base="tiny"), base_folder, tmp_path / "first", steps=2)
    callback = RegistryCallback(NAME, registry=registry, base="tiny")
    resume = callback.resume_from(f"{NAME}@2", tmp_path / "resumed/checkpoint-2")
    train(callback, base_folder, tmp_path / "resumed", steps=3, resume=resume)
    version = registry.version(NAME)
    assert (version.number, version.message) == (3, "checkpoint 3")
    assert [edge.digest for edge in version.parents] == [registry.version(f"{NAME}@2").digest]


def test_a_registry_that_fails_does_not_stop_the_training_and_gets_all_checkpoints_later(
    registry: AdapterRegistry, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    push, failures = registry.push, iter([True, True])

    def fail_twice(*args: Any, **how: Any) -> Any:
        if next(failures, False):
            raise Unavailable("SERVER_UNREACHABLE", "the registry is away")
        return push(*args, **how)

    monkeypatch.setattr(registry, "push", fail_twice)
    with caplog.at_level(logging.WARNING, "registry.training"):
        train(RegistryCallback(NAME, registry=registry, base="tiny"), base_folder, tmp_path / "out", steps=4)
    assert [version.message for version in registry.versions(NAME)] == [f"checkpoint {n}" for n in (4, 3, 2, 1)]
    assert caplog.text.count("is tried again at the next save: the registry is away") == 2


def test_a_dead_registry_does_not_stop_the_training_of_the_page_and_the_files_stay(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    variables = setting(base_folder, Path("out"), 3)
    monkeypatch.setenv("ADAPTER_TIMEOUT", "0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and never listens
        monkeypatch.setenv("ADAPTER_REGISTRY", f"http://127.0.0.1:{unused.getsockname()[1]}")
        exec(code, variables | {"Trainer": transformers.Trainer, "dataset": variables["train_dataset"]})
    pushes = f"{tmp_path}/out/.registry, N by N: adapter push {tmp_path}/out/.registry/checkpoint-N acme/support"
    assert f"3 checkpoints were not pushed; push those in {pushes}" in caplog.text
    assert (tmp_path / "out/checkpoint-3/adapter_model.safetensors").is_file()
    waiting = {path.parent.name for path in (tmp_path / "out/.registry").glob("*/adapter_model.safetensors")}
    assert waiting == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


def test_provenance_that_breaks_a_rule_ends_the_construction(registry: AdapterRegistry) -> None:
    with pytest.raises(Invalid, match=r"provenance\.run\.?\w* "):
        RegistryCallback(NAME, registry=registry, provenance={"run": {"id": "1"}, "parameters": {"note": "mine"}})


def test_the_page_explains_each_argument_of_the_callback_in_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE)
    assert ["name", *rows] == list(inspect.signature(RegistryCallback).parameters)
