"""`AdapterRegistry` with real models: a PeftModel is pushed from memory, and a version is loaded onto models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from registry.errors import Invalid
from registry.sdk import AdapterRegistry
from tests.worker import models
from tests.worker.setup import WorkerSetup


@pytest.fixture
def registry(setup: WorkerSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterRegistry:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return AdapterRegistry(client=setup.harness.admin)


def base_model(folder: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_a_model_is_pushed_from_memory_as_its_folder_would_be(
    registry: AdapterRegistry, base_folder: Path, tmp_path: Path, task_type: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    saved = models.adapter(base_folder, tmp_path / "saved", task_type=task_type)
    model = peft.PeftModel.from_pretrained(base_model(base_folder), saved)
    open_files = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", lambda *_, **__: pytest.fail("a temporary folder"))
        patch.setattr(model, "save_pretrained", lambda *_, **__: pytest.fail("written to disk"))
        from_memory = registry.push(model, "acme/memory", base="tiny").version
    assert len(os.listdir("/proc/self/fd")) <= open_files + 1
    from_folder = registry.push(saved, "acme/folder", base="tiny").version
    weights = [
        file.digest
        for version in (from_memory, from_folder)
        for file in version.files
        if file.path == "adapter_model.safetensors"
    ]
    assert weights[0] == weights[1]
    registry.pull("acme/memory", tmp_path / "pulled")
    written, sent = (json.loads((tmp_path / at / "adapter_config.json").read_bytes()) for at in ("saved", "pulled"))
    assert sent["target_modules"] == sorted(written["target_modules"])  # PEFT's order of a set changes from run to run
    assert {**sent, "target_modules": None} == {**written, "target_modules": None}


def test_a_version_is_loaded_onto_a_plain_model_and_onto_a_peft_model(
    registry: AdapterRegistry, base_folder: Path, good: Path
) -> None:
    registry.push(good, "acme/support", base="tiny")
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = peft.PeftModel.from_pretrained(base_model(base_folder), good)(ids).logits
    plain = base_model(base_folder)
    assert not torch.allclose(plain(ids).logits, expected)
    torch.testing.assert_close(registry.load("acme/support", plain)(ids).logits, expected)
    wrapped = peft.get_peft_model(base_model(base_folder), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert registry.load("acme/support", wrapped, adapter="support") is wrapped
    assert wrapped.active_adapter == "support"
    torch.testing.assert_close(wrapped(ids).logits, expected)


def test_an_adapter_that_the_model_does_not_have_is_named(registry: AdapterRegistry, base_folder: Path) -> None:
    wrapped = peft.get_peft_model(base_model(base_folder), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(Invalid, match="the model has no adapter 'other'; it has default"):
        registry.push(wrapped, "acme/support", adapter="other")


def test_what_is_no_peft_model_is_refused_with_what_to_push(registry: AdapterRegistry, base_folder: Path) -> None:
    plain = base_model(base_folder)
    wrapped = peft.get_peft_model(base_model(base_folder), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    sources: list[Any] = [plain, wrapped.merge_and_unload(), {}, None]
    for source in sources:
        with pytest.raises(Invalid, match=f"a {type(source).__name__} is no PeftModel and no folder") as caught:
            registry.push(source, "acme/support")
        assert "push the PeftModel, before its adapter is merged" in caught.value.next_step


def test_a_model_of_another_base_is_refused_in_one_line(registry: AdapterRegistry, good: Path) -> None:
    registry.push(good, "acme/support", base="tiny")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=64)
    wrapped = peft.get_peft_model(
        transformers.LlamaForCausalLM(config), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    for model in (transformers.LlamaForCausalLM(config), wrapped):
        with pytest.raises(Invalid, match=f"does not fit this {type(model).__name__}: .*size mismatch") as caught:
            registry.load("acme/support", model, adapter="support")
        assert (len(caught.value.detail.splitlines()), len(caught.value.detail) < 700) == (1, True)
        assert "a new model of its base" in caught.value.next_step
