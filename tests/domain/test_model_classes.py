"""PEFT loads a base as the class for an adapter's task: paths with and without the prefix of a class with a head."""

from __future__ import annotations

from typing import Any

import pytest

from registry import compat
from tests import samples
from tests.domain.specs import base_spec, evaluate, lora_spec
from tests.domain.test_compat import codes

LLAMA = samples.llama()
LLAMA_SPEC = base_spec(LLAMA)

MAPPED = {"auto_mapping": {"base_model_class": "LlamaModel", "parent_library": "transformers.models.llama"}}


def unprefixed(tensors: dict[str, samples.Tensor]) -> dict[str, samples.Tensor]:
    """The names that PEFT writes for a LlamaModel: they lack the prefix of the class with a head."""
    return {name.replace(".model.model.", ".model."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(("config", "is_taken"), [
    ({"task_type": "FEATURE_EXTRACTION"}, True), ({"task_type": None, **MAPPED}, True), ({"task_type": None}, False),
    ({"task_type": "CAUSAL_LM"}, False), ({"task_type": "SEQ_CLS", "modules_to_save": ["score"]}, False),
])  # fmt: skip
def test_names_without_the_prefix_of_the_head_fit_where_peft_loads_a_model_without_a_head(
    config: dict[str, Any], is_taken: bool
) -> None:
    adapter = lora_spec(samples.lora(LLAMA, config=config, change=unprefixed))
    assert ("compat.module_unknown" not in codes(compat.check_fit(adapter, LLAMA_SPEC))) is is_taken


def test_names_without_the_prefix_are_compared_with_the_modules_below_it() -> None:
    config = {"task_type": "FEATURE_EXTRACTION"}
    for base, code in ((samples.llama("tiny-llama", hidden=96), "compat.shape"),
                       (samples.llama("tiny-llama", layers=6), "compat.module_missing")):  # fmt: skip
        assert code in codes(evaluate(samples.lora(LLAMA, config=config, change=unprefixed), base))
    beyond = samples.lora(
        LLAMA, config=config, change=lambda t: {n.replace("q_proj", "qq_proj"): v for n, v in unprefixed(t).items()}
    )
    assert "compat.module_unknown" in codes(evaluate(beyond, LLAMA))


@pytest.mark.parametrize(("prefix", "head", "severity"), [
    ("model.", True, None), ("", True, "unknown"), ("model.", False, "error"),
])  # fmt: skip
def test_a_classifier_on_a_base_without_a_head_has_the_prefix_and_its_head(
    prefix: str, head: bool, severity: str | None
) -> None:
    whole: dict[str, samples.Tensor] = {"base_model.model.score.weight": ("F32", (2, 64), None)} if head else {}
    adapter = lora_spec(
        samples.lora(
            LLAMA,
            config={"task_type": "SEQ_CLS", "modules_to_save": ["score"]},
            change=lambda t: {n.replace(".model.model.", f".model.{prefix}"): v for n, v in t.items()} | whole,
        )
    )
    bare = {path.removeprefix("model."): module for path, module in LLAMA_SPEC.modules.items() if path != "lm_head"}
    base = LLAMA_SPEC.model_copy(update={"architecture": "LlamaModel", "modules": bare})
    assert {f.severity for f in compat.check_fit(adapter, base)} - {"warning"} == ({severity} if severity else set())
