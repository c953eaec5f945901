"""What is wrong with an adapter is said so that its trainer knows what to change."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from registry import compat
from tests import samples
from tests.domain import test_experts as experts
from tests.domain.specs import evaluate

Tensors = dict[str, samples.Tensor]
LLAMA = samples.llama("tiny-llama", layers=4)


def in_wrapper(tensors: Tensors) -> Tensors:
    return {name.replace(".model.model.", ".model.module.model."): tensor for name, tensor in tensors.items()}


def exchanged(tensors: Tensors) -> Tensors:
    other = {"lora_A": "lora_B", "lora_B": "lora_A"}
    return {name: tensors[name.replace(half, other[half])] for name in tensors for half in other if half in name}


@pytest.mark.parametrize(("trained_on", "change", "text"), [
    (LLAMA, in_wrapper, "without the prefix 'module.'"),
    (LLAMA, exchanged, "A and B look exchanged"),
    (samples.llama("tiny-llama", layers=2), None, "the file ends at layer 1, so its base may have fewer layers"),
])  # fmt: skip
def test_the_cause_is_named(trained_on: samples.Base, change: Callable[[Tensors], Tensors] | None, text: str) -> None:
    files = samples.lora(trained_on, change=change or (lambda tensors: tensors))
    assert text in " ".join(finding.message for finding in evaluate(files, LLAMA))


def test_tensors_of_fused_experts_without_target_parameters_are_said_to_lack_them() -> None:
    adapter = experts.adapter(experts.BLOCKS, target_modules=["q_proj"])
    messages = [finding.message for finding in compat.check_fit(adapter, experts.base())]
    assert any("the configuration lacks `target_parameters`" in message for message in messages)
