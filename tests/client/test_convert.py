"""Conversions by renaming run here: a new header over the same bytes, pushed with the original as its parent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.api.bases import BaseAdd
from registry.client import convert
from registry.client.local import base_folder
from registry.client.transfer import pull, push
from registry.errors import Invalid
from registry.merging.conversions import Conversion
from registry.names import AdapterName, Ref
from tests import non_peft_files, samples
from tests.harness import Harness
from tests.samples import Tensor

REF = Ref.parse("acme/support")
REPAIR = Conversion(to="peft", into="acme/mended", repair=True)
GOOD = "base_model.model.model.layers."


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}


@pytest.fixture
def filled_harness(harness: Harness, tmp_path: Path) -> Harness:
    harness.add_base()
    spec, _ = base_folder.base_spec_from(non_peft_files.pipeline(tmp_path / "sd"), "sd-tiny")
    harness.bases["sd-tiny"] = spec
    harness.admin.add_base(BaseAdd(spec=spec))
    return harness


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".weight", ".default.weight"),
        ("base_model.model.", "base_model.model._orig_mod."),
        ("base_model.model.", ""),
        ("base_model.model.model.", ""),
        ("base_model.model.", "module.base_model.model."),
        ("base_model.model.", "base_model.model.model."),
    ],
)
def test_names_that_nearly_match_peft_are_repaired_on_request_and_the_bytes_stay(
    filled_harness: Harness, tmp_path: Path, old: str, new: str
) -> None:
    base = samples.llama()
    good = samples.lora(base, seed=9)
    wrong = samples.lora(base, seed=9, change=lambda tensors: renamed(tensors, old, new))
    filled_harness.push("acme/support", wrong)
    assert filled_harness.admin.version("acme/support").verdicts[0].outcome == "fail"
    converted = convert.convert(filled_harness.admin, REF, REPAIR)
    assert converted.pushed is not None
    version = converted.pushed.version
    assert version.verdicts[0].outcome == "pass", version.verdicts[0].summary
    pull.pull(filled_harness.admin, Ref.parse("acme/mended"), tmp_path / "mended", cache=None)
    assert samples.tensors_of((tmp_path / "mended" / samples.WEIGHTS).read_bytes()) == samples.tensors_of(
        good[samples.WEIGHTS]
    )
    assert (tmp_path / "mended" / samples.CONFIG).read_bytes() == wrong[samples.CONFIG]


@pytest.mark.parametrize("targets", ["all-linear", None, ["q_proj", "v_proj"]])
def test_tinkers_name_of_the_head_becomes_that_of_the_library(
    filled_harness: Harness, tmp_path: Path, targets: object
) -> None:
    def with_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        head = "base_model.model.model.unembed_tokens.lora_"
        return tensors | {f"{head}A.weight": ("F32", (8, 64), None), f"{head}B.weight": ("F32", (512, 8), None)}

    trained = samples.lora(samples.llama(), config={"target_modules": targets}, change=with_head)
    filled_harness.push("acme/support", trained)
    converted = convert.convert(filled_harness.admin, REF, REPAIR)
    assert converted.pushed is not None
    verdict = converted.pushed.version.verdicts[0]
    assert verdict.outcome == "pass", verdict.summary
    pull.pull(filled_harness.admin, Ref.parse("acme/mended"), tmp_path / "mended", cache=None)
    config = json.loads((tmp_path / "mended" / samples.CONFIG).read_bytes())
    assert config["target_modules"] == ["lm_head", "q_proj", "v_proj"]
    names = samples.tensors_of((tmp_path / "mended" / samples.WEIGHTS).read_bytes())
    assert "base_model.model.lm_head.lora_B.weight" in names


def test_the_result_says_what_it_came_from_and_the_original_is_untouched(filled_harness: Harness) -> None:
    wrong = samples.lora(samples.llama(), change=lambda tensors: renamed(tensors, ".weight", ".default.weight"))
    before = filled_harness.push("acme/support", wrong).version
    converted = convert.convert(filled_harness.admin, REF, REPAIR)
    assert converted.pushed is not None
    version = converted.pushed.version
    assert [(str(edge.relation), edge.digest, edge.name) for edge in version.parents] == [
        ("converted", before.digest, "acme/support@1")
    ]
    annotations = filled_harness.admin.resolve("acme/mended").manifest.annotations
    assert annotations["conversion.to"] == "peft"
    assert annotations["conversion.done"].startswith("16 of 16 tensors renamed")
    assert filled_harness.admin.version("acme/support").digest == before.digest
    assert [a.name for a in filled_harness.admin.adapters().items] == ["acme/mended", "acme/support"]


def test_converting_twice_is_one_version(filled_harness: Harness) -> None:
    filled_harness.push(
        "acme/support", samples.lora(samples.llama(), change=lambda t: renamed(t, ".weight", ".default.weight"))
    )
    first, second = (convert.convert(filled_harness.admin, REF, REPAIR).pushed for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.created, second.created, second.version.number) == (True, False, 1)


def test_a_good_adapter_has_nothing_to_repair(filled_harness: Harness) -> None:
    filled_harness.push("acme/support")
    with pytest.raises(Invalid) as refused:
        convert.convert(filled_harness.admin, REF, REPAIR)
    assert refused.value.code == "CONVERSION_INVALID"


def test_a_repair_never_makes_two_tensors_one(filled_harness: Harness) -> None:
    def doubled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | renamed(tensors, ".weight", ".default.weight")

    filled_harness.push("acme/support", samples.lora(samples.llama(), change=doubled))
    with pytest.raises(Invalid) as refused:
        convert.convert(filled_harness.admin, REF, REPAIR)
    assert "would both be called" in refused.value.detail


@pytest.mark.parametrize(
    ("old", "new"),
    [(".weight", ".default.weight"), ("unet.", ""), ("lora_A", "lora.down"), ("lora_B", "lora.up")],
)
def test_image_names_that_nearly_match_diffusers_are_repaired_on_request(
    filled_harness: Harness, tmp_path: Path, old: str, new: str
) -> None:
    at = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    good: dict[str, Tensor] = {
        f"{at}.lora_A.weight": ("F32", (4, 32), None),
        f"{at}.lora_B.weight": ("F32", (32, 4), None),
    }
    wrong = samples.safetensors(renamed(samples.tensors_of(samples.safetensors(good)), old, new))
    filled_harness.push("acme/support", {"style.safetensors": wrong}, base="sd-tiny")
    converted = convert.convert(filled_harness.admin, REF, Conversion(to="diffusers", into="acme/mended", repair=True))
    assert converted.pushed is not None
    assert converted.pushed.version.verdicts[0].outcome == "pass"
    pull.pull(filled_harness.admin, Ref.parse("acme/mended"), tmp_path / "mended", cache=None)
    file = tmp_path / "mended" / "pytorch_lora_weights.safetensors"
    assert set(samples.tensors_of(file.read_bytes())) == set(good)
    with pytest.raises(Invalid, match="found no name to fix"):
        convert.convert(
            filled_harness.admin, Ref.parse("acme/mended"), Conversion(to="diffusers", into="acme/again", repair=True)
        )


def test_diffusers_names_of_2023_become_todays_without_a_worker(filled_harness: Harness, tmp_path: Path) -> None:
    at = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    old: dict[str, Tensor] = {}
    for leaf, columns in (("to_q", 32), ("to_k", 24), ("to_out", 32)):
        old[f"{at}.processor.{leaf}_lora.down.weight"] = ("F32", (4, columns), None)
        old[f"{at}.processor.{leaf}_lora.up.weight"] = ("F32", (32, 4), None)
    folder = samples.write({"old.safetensors": samples.safetensors(old)}, tmp_path / "old")
    push.push_folder(filled_harness.admin, folder, AdapterName("art", "style"), base="sd-tiny")
    converted = convert.convert(
        filled_harness.admin, Ref.parse("art/style"), Conversion(to="diffusers", into="art/new")
    )
    assert converted.pushed is not None
    version = converted.pushed.version
    assert (version.facts["format"], version.verdicts[0].outcome) == ("diffusers", "pass")
    pull.pull(filled_harness.admin, Ref.parse("art/new"), tmp_path / "new", cache=None)
    new = samples.tensors_of((tmp_path / "new" / "pytorch_lora_weights.safetensors").read_bytes())
    original = samples.tensors_of((folder / "old.safetensors").read_bytes())
    assert new[f"{at}.to_out.0.lora_B.weight"] == original[f"{at}.processor.to_out_lora.up.weight"]
    assert sorted(new) == sorted(
        f"{at}.{leaf}.lora_{half}.weight" for leaf in ("to_q", "to_k", "to_out.0") for half in "AB"
    )


def test_what_changes_values_is_queued_for_a_worker(filled_harness: Harness) -> None:
    filled_harness.push("acme/support")
    converted = convert.convert(filled_harness.admin, REF, Conversion(to="canonical", into="acme/plain"))
    assert converted.job is not None
    assert (str(converted.job.kind), converted.job.subject, converted.job.payload["into"]) == (
        "convert",
        "acme/support@1",
        "acme/plain",
    )


def test_who_may_not_push_into_the_target_queues_nothing(filled_harness: Harness) -> None:
    filled_harness.push("acme/support")
    reader = filled_harness.actor("pull", "push", namespaces=["acme"])
    with pytest.raises(Exception, match="other"):
        convert.convert(reader, REF, Conversion(to="canonical", into="other/plain"))
    assert [str(job.kind) for job in filled_harness.admin.jobs().items] == ["smoke-test"]


@pytest.mark.parametrize(
    ("how", "to", "why"),
    [
        ({"dora": True}, "canonical", "DoRA"),
        ({"alpha": 8}, "canonical", "canonical already"),
        ({"config": {"init_lora_weights": "pissa"}}, "canonical", "convert it to plain first|changed the base"),
        ({}, "plain", "PiSSA and OLoRA"),
        ({"config": {"init_lora_weights": "pissa_niter_4"}}, "plain", "randomized"),
        ({}, "peft", "already in PEFT format"),
        ({}, "diffusers", "image models"),
        ({"config": {"alora_invocation_tokens": [1, 2]}}, "gguf", "invocation tokens"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(
    filled_harness: Harness, how: dict[str, object], to: str, why: str
) -> None:
    filled_harness.push("acme/support", samples.lora(samples.llama(), **how))  # type: ignore[arg-type]
    with pytest.raises(Invalid, match=why) as refused:
        convert.convert(filled_harness.admin, REF, Conversion(to=to, into="acme/other"))
    assert refused.value.code == "CONVERSION_INVALID"
