"""Bases of every kind, tiny and random: honest adapters pass a push and the real worker, wrong ones never do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from registry.evaluation.verdicts import Check, Outcome
from registry.worker.loop import Worker
from registry.worker.model import tasks
from registry.worker.smoke.isolated import LABELS_LIMIT, labels_of_head
from tests.truth import architectures
from tests.worker.setup import WorkerSetup

pytestmark = pytest.mark.usefixtures("forked_programs")

WEIGHTS = "adapter_model.safetensors"
Make = Callable[..., Worker]
Tensors = dict[str, torch.Tensor]
KINDS = (
    ("bert", "BertForSequenceClassification", "SEQ_CLS"),
    ("t5", "T5ForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("llava", "LlavaForConditionalGeneration", "CAUSAL_LM"),
)
MORE_KINDS = (
    ("llama", "LlamaForSequenceClassification", "SEQ_CLS"),
    ("bert", "BertForTokenClassification", "TOKEN_CLS"),
    ("bert", "BertForQuestionAnswering", "QUESTION_ANS"),
    ("albert", "AlbertForMaskedLM", None),
    ("modernbert", "ModernBertModel", "FEATURE_EXTRACTION"),
    ("bart", "BartForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("gemma3", "Gemma3ForConditionalGeneration", "CAUSAL_LM"),
    ("mixtral", "MixtralForCausalLM", "CAUSAL_LM"),
    ("mamba", "MambaForCausalLM", "CAUSAL_LM"),
    ("jamba", "JambaForCausalLM", "CAUSAL_LM"),
    ("opt", "OPTForCausalLM", "CAUSAL_LM"),
    ("gpt_neox", "GPTNeoXForCausalLM", "CAUSAL_LM"),
    ("whisper", "WhisperForConditionalGeneration", None),
    ("vision-encoder-decoder", "VisionEncoderDecoderModel", "CAUSAL_LM"),
    ("inkling_text", "InklingForCausalLM", "CAUSAL_LM"),
    ("ctrl", "CTRLLMHeadModel", "CAUSAL_LM"),
)
TARGETS = {
    "BertForTokenClassification": ["query", "value"],
    "BertForQuestionAnswering": ["query", "value"],
    "GPT2ForQuestionAnswering": ["c_attn"],
    "MambaForCausalLM": ["in_proj", "x_proj"],
}
"""Where PEFT refuses all linear modules: it saves these heads itself, and Mamba's kernel reads some weights."""


def save_adapter(model: Any, folder: Path, task: str | None) -> None:
    """An adapter as after training, beside a saved head where the task has one."""
    torch.manual_seed(1)
    targets = TARGETS.get(type(model).__name__, "all-linear")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, task_type=task))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    wrapped.peft_config["default"].base_model_name_or_path = "kind"
    wrapped.save_pretrained(folder)


def change(folder: Path, copy: Path, edit: Callable[[Tensors], Tensors]) -> Path:
    """The adapter with other tensors."""
    copy.mkdir()
    (copy / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    save_file({name: t.contiguous() for name, t in edit(load_file(folder / WEIGHTS)).items()}, copy / WEIGHTS)
    return copy


def in_head(edit: Callable[[torch.Tensor], torch.Tensor | None], tensors: Tensors) -> Tensors:
    """The adapter with other matrices in the head that it saves, or without them."""
    edited = {n: edit(t) if re.search(r"(classifier|score|qa_outputs)\..*weight", n) else t for n, t in tensors.items()}
    return {name: tensor for name, tensor in edited.items() if tensor is not None}


def wrong_shape(tensors: Tensors) -> Tensors:
    """One B of a different width from its module."""
    first = next(name for name in sorted(tensors) if "lora_B" in name)
    return tensors | {first: torch.cat((tensors[first], tensors[first][:1]))}


def other_size(tensors: Tensors) -> Tensors:
    """Every A for a model that is twice as wide."""
    return {name: torch.cat((t, t), dim=1) if "lora_A" in name else t for name, t in tensors.items()}


@pytest.mark.parametrize(("model_type", "name", "task"), [
    *KINDS, *(pytest.param(*kind, marks=pytest.mark.deep) for kind in MORE_KINDS),
])  # fmt: skip
def test_honest_adapters_pass_on_this_kind_and_wrong_ones_never(
    setup: WorkerSetup, worker: Make, tmp_path: Path, model_type: str, name: str, task: str | None
) -> None:
    model = architectures.build(model_type, name, tmp_path / "base")
    save_adapter(model, tmp_path / "honest", task)
    setup.add_base("kind", tmp_path / "base")
    setup.push(tmp_path / "honest", "acme/honest", base="kind")
    for edit in (wrong_shape, other_size):
        bad = change(tmp_path / "honest", tmp_path / edit.__name__, edit)
        setup.push(bad, f"acme/{edit.__name__.replace('_', '-')}", base="kind")
    summary = worker().run(once=True)
    assert (summary.failed, re.findall("IndexError", str(setup.lines))) == (0, [])
    verdicts = {v.check: v for v in setup.harness.admin.version("acme/honest").verdicts}
    assert {c: (verdicts[c].outcome, verdicts[c].summary) for c in (Check.COMPAT, Check.SMOKE)} == {
        Check.COMPAT: (Outcome.PASS, ""), Check.SMOKE: (Outcome.PASS, ""),
    }  # fmt: skip
    for wrong in ("acme/wrong-shape", "acme/other-size"):
        assert Outcome.FAIL in {
            v.outcome for v in setup.harness.admin.version(wrong).verdicts if v.check is Check.COMPAT
        }


def test_a_prompt_beside_a_saved_head_passes_and_a_lost_bias_of_the_head_or_another_task_fails(
    setup: WorkerSetup, worker: Make, tmp_path: Path
) -> None:
    model = architectures.build("bert", "BertForSequenceClassification", tmp_path / "base")
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4, base_model_name_or_path="kind")
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    wrapped.peft_config["default"].base_model_name_or_path = "kind"
    wrapped.save_pretrained(tmp_path / "honest")
    lost = "base_model.classifier.bias"
    bad = change(tmp_path / "honest", tmp_path / "lost", lambda all_: {n: t for n, t in all_.items() if n != lost})
    setup.add_base("kind", tmp_path / "base")
    setup.push(tmp_path / "honest", "acme/honest", base="kind")
    setup.push(bad, "acme/lost", base="kind")
    other = change(tmp_path / "honest", tmp_path / "other", lambda all_: all_)
    written = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(written | {"task_type": "CAUSAL_LM"}))
    setup.push(other, "acme/other-task", base="kind")
    assert worker().run(once=True).failed == 0
    outcomes = {
        name: {v.check: v.outcome for v in setup.harness.admin.version(f"acme/{name}").verdicts}
        for name in ("honest", "lost", "other-task")
    }
    assert {outcomes["honest"][check] for check in (Check.COMPAT, Check.SMOKE)} == {Outcome.PASS}
    assert outcomes["lost"][Check.COMPAT] is outcomes["other-task"][Check.COMPAT] is Outcome.FAIL


@pytest.mark.parametrize(("model_type", "name", "task"), [
    ("llama", "LlamaForCausalLM", "SEQ_CLS"), ("bert", "BertForMaskedLM", "TOKEN_CLS"),
    pytest.param("gpt2", "GPT2LMHeadModel", "QUESTION_ANS", marks=pytest.mark.deep),
    pytest.param("roberta", "RobertaForMaskedLM", "SEQ_CLS", marks=pytest.mark.deep),
])  # fmt: skip
def test_an_adapter_that_brings_its_head_is_tested_with_it_on_a_language_model(
    setup: WorkerSetup, worker: Make, tmp_path: Path, model_type: str, name: str, task: str
) -> None:
    """transformers puts the head in place of the base's own; what lost it, or its head's numbers, is refused."""
    config = architectures.build(model_type, name, tmp_path / "base").config
    choice = tasks.class_for(config, task)
    assert choice is not None
    model = choice[0].from_pretrained(tmp_path / "base", num_labels=2 if task == "QUESTION_ANS" else 3)
    save_adapter(model, tmp_path / "honest", task)
    setup.add_base("kind", tmp_path / "base")
    setup.push(tmp_path / "honest", "acme/honest", base="kind")
    edits: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
        "nan": lambda t: t * float("nan"), "wide": lambda t: torch.cat((t, t), 1), "lost": lambda _t: None
    }  # fmt: skip
    for edit, of_matrix in edits.items():
        bad = change(tmp_path / "honest", tmp_path / edit, partial(in_head, of_matrix))
        setup.push(bad, f"acme/{edit}", base="kind")
    assert worker().run(once=True).failed == 0
    outcomes = {
        name: {v.check: v.outcome for v in setup.harness.admin.version(f"acme/{name}").verdicts}
        for name in ("honest", *edits)
    }
    assert (outcomes["honest"][Check.COMPAT], outcomes["honest"][Check.SMOKE]) == (Outcome.WARN, Outcome.PASS)
    for edit in edits:
        assert Outcome.FAIL in outcomes[edit].values()
        assert outcomes[edit].get(Check.SMOKE) is not Outcome.PASS


@pytest.mark.parametrize(("model_type", "name", "lacks_head"), [
    ("bart", "BartForConditionalGeneration", False), ("funnel", "FunnelForMaskedLM", True),
    pytest.param("bert", "BertForSequenceClassification", False, marks=pytest.mark.deep),
])  # fmt: skip
def test_an_adapter_for_features_is_tested_on_the_class_that_has_its_names(
    setup: WorkerSetup, worker: Make, tmp_path: Path, model_type: str, name: str, lacks_head: bool
) -> None:
    """PEFT takes any class for them; transformers has two without a head for Funnel."""
    model = architectures.build(model_type, name, tmp_path / "base")
    model = transformers.AutoModel.from_pretrained(tmp_path / "base") if lacks_head else model
    save_adapter(model, tmp_path / "honest", "FEATURE_EXTRACTION")
    setup.add_base("kind", tmp_path / "base")
    setup.push(tmp_path / "honest", base="kind")
    assert worker().run(once=True).failed == 0
    verdicts = {v.check: v.outcome for v in setup.harness.admin.version("acme/support").verdicts}
    assert (verdicts[Check.COMPAT], verdicts[Check.SMOKE]) == (Outcome.PASS, Outcome.PASS)


@pytest.mark.parametrize(
    ("shapes", "labels"),
    [({"score.weight": (3, 8)}, 3), ({"qa_outputs.weight": (2, 8), "qa_outputs.bias": (2,)}, 2), ({}, 0),
     ({"classifier.dense.weight": (8, 8), "classifier.dense.bias": (8,), "classifier.out_proj.weight": (12, 8)}, 12),
     ({"score.weight": (LABELS_LIMIT, 1)}, LABELS_LIMIT), ({"score.weight": (LABELS_LIMIT + 1, 1)}, 0)],
)  # fmt: skip
def test_the_labels_of_a_head_are_those_of_its_last_layer_and_few(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], labels: int
) -> None:
    tensors = {f"base_model.model.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors | {"base_model.model.other": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    assert labels_of_head(tmp_path / "adapter_model.safetensors") == labels


@pytest.mark.parametrize(
    ("name", "task", "is_its_own"),
    [("Qwen2AudioForConditionalGeneration", "SEQ_2_SEQ_LM", True), ("LlamaForCausalLM", "SEQ_2_SEQ_LM", False),
     ("FlaubertWithLMHeadModel", "CAUSAL_LM", True), ("BertForSequenceClassification", "CAUSAL_LM", False)],
)  # fmt: skip
def test_adapters_of_every_task_that_peft_runs_on_a_class_are_tested(name: str, task: str, is_its_own: bool) -> None:
    assert tasks.task_of(name, is_encoder_decoder=False).takes(task) is is_its_own


VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
IMAGES = {"image_size": 32, "patch_size": 8, "num_frames": 4}
SEEING: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("TimesformerModel", "TimesformerConfig", VIT | IMAGES),
    ("VideoMAEModel", "VideoMAEConfig", VIT | IMAGES),
    ("VivitForVideoClassification", "VivitConfig", VIT | IMAGES | {"tubelet_size": [2, 8, 8]}),
    ("VJEPA2Model", "VJEPA2Config", VIT | {
        "crop_size": 32, "patch_size": 8, "frames_per_clip": 4, "pred_hidden_size": 32, "pred_num_hidden_layers": 1,
        "pred_num_attention_heads": 2}),
    ("GLPNForDepthEstimation", "GLPNConfig", {
        "hidden_sizes": [16, 16, 40, 32], "depths": [1] * 4, "decoder_hidden_size": 16, "image_size": 32}),
)  # fmt: skip


@pytest.mark.parametrize(("maker", "configuration", "sizes"), SEEING)
def test_a_model_of_videos_or_of_depth_runs_on_noise_of_its_own_shape(
    maker: str, configuration: str, sizes: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, maker)(getattr(transformers, configuration)(**sizes)).eval()
    forward = tasks.ForwardPass(model, tasks.task_of(maker, is_encoder_decoder=False))
    first, other = forward.rows(model, [[1, 3, 5, 7], [2, 4, 6, 9]])
    assert first.shape == other.shape
    assert not torch.equal(first, other)


def test_a_model_that_does_not_run_says_why_its_last_attempt_failed() -> None:
    config = transformers.CLIPConfig(
        text_config=VIT | {"vocab_size": 64, "eos_token_id": 2, "bos_token_id": 1},
        vision_config=VIT | {"image_size": 32, "patch_size": 8},
    )
    model = transformers.CLIPModel(config).eval()
    with pytest.raises(IndexError, match="out of range"):
        tasks.ForwardPass(model, tasks.ANY).rows(model, [[1, 3, 5, 99]])
