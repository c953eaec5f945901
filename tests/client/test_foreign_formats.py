"""Adapters of other tools through the registry: pushed, checked by their own names, listed, pulled unchanged."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.api.bases import BaseAdd
from registry.api.catalog import VersionView
from registry.client.local import base_folder
from registry.client.transfer import pull
from registry.client.transfer import push as pushing
from registry.errors import Invalid
from registry.names import AdapterName, Ref
from tests import non_peft_files, samples
from tests.harness import Harness
from tests.samples import Tensor

NAME = AdapterName("acme", "support")
Shapes = dict[str, tuple[int, ...]]
PRIVATE = {
    "ss_network_module": "networks.lora", "ss_network_dim": "4", "modelspec.trigger_phrase": "toy style",
    "ss_tag_frequency": '{"img": {"a photo of Ann": 3}}', "ss_dataset_dirs": '{"10_ann": {}}',
}  # fmt: skip


@pytest.fixture
def filled_harness(harness: Harness, tmp_path: Path) -> Harness:
    """A registry with a language model and an image model."""
    harness.add_base()
    spec, _ = base_folder.base_spec_from(non_peft_files.pipeline(tmp_path / "sd"), "sd-tiny")
    harness.bases["sd-tiny"] = spec
    harness.admin.add_base(BaseAdd(spec=spec))
    return harness


def push(harness: Harness, files: dict[str, bytes], tmp_path: Path, base: str, name: AdapterName = NAME) -> VersionView:
    folder = samples.write(files, tmp_path / name.name)
    return pushing.push_folder(harness.admin, folder, name, base=base).version


@pytest.mark.parametrize(
    ("make", "format_name", "scales"),
    [
        (non_peft_files.torchtune, "torchtune", [2.0]),
        (non_peft_files.mlx, "mlx", [20.0]),
        (non_peft_files.gguf_adapter, "gguf", [4.0]),
    ],
)
def test_text_adapters_of_other_trainers_fit_by_their_own_names(
    filled_harness: Harness, tmp_path: Path, make: object, format_name: str, scales: list[float]
) -> None:
    files = make(samples.llama())  # type: ignore[operator]
    version = push(filled_harness, files, tmp_path, "tiny-llama")
    assert version.verdicts[0].outcome == "pass", version.verdicts[0].summary
    facts = version.facts
    assert (facts["format"], facts["rank"], facts["scales"]) == (format_name, 4, scales)
    assert [a.name for a in filled_harness.admin.adapters(format=format_name).items] == ["acme/support"]
    assert filled_harness.admin.adapters(format="peft").items == []
    pull.pull(filled_harness.admin, Ref(NAME), tmp_path / "back", cache=None)
    assert {path: (tmp_path / "back" / path).read_bytes() for path in files} == files


def test_no_smoke_test_is_queued_for_what_peft_cannot_load(filled_harness: Harness, tmp_path: Path) -> None:
    push(filled_harness, non_peft_files.mlx(samples.llama()), tmp_path, "tiny-llama")
    assert filled_harness.admin.jobs().items == []


def test_an_mlx_configuration_names_its_base(filled_harness: Harness, tmp_path: Path) -> None:
    assert push(filled_harness, non_peft_files.mlx(samples.llama()), tmp_path, "").base == "tiny-llama"


def test_an_image_adapter_keeps_training_facts_and_leaves_private_captions_out(
    filled_harness: Harness, tmp_path: Path
) -> None:
    files = {"toy_style.safetensors": non_peft_files.kohya(metadata=PRIVATE)}
    version = push(filled_harness, files, tmp_path, "sd-tiny")
    assert version.verdicts[0].outcome == "pass", version.verdicts[0].summary
    facts = version.facts
    assert (facts["format"], facts["method"], facts["family"], facts["scales"]) == ("kohya", "LORA", "sd", [0.5])
    assert (facts["trigger_words"], facts["training"]["ss_network_dim"]) == ("toy style", "4")
    assert facts["targets"] == ["attn2_to_k", "attn2_to_q"]
    assert facts["private_left_out"] == ["ss_dataset_dirs", "ss_tag_frequency"]
    assert b"Ann" not in version.model_dump_json().encode()


def test_an_image_adapter_of_another_width_fails_with_the_sizes(filled_harness: Harness, tmp_path: Path) -> None:
    version = push(filled_harness, {"x.safetensors": non_peft_files.kohya(width=64)}, tmp_path, "sd-tiny")
    (finding, *_) = version.verdicts[0].findings
    assert (version.verdicts[0].outcome, finding.code, finding.actual) == ("fail", "compat.shape", "[64, 24]")


UNET, TEXT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1", "text_model.encoder.layers.0.self_attn"
OF_TEXT = (".lora_linear_layer.down", ".lora_linear_layer.up")
MIXED: dict[str, Tensor] = {
    "unet.conv_in.lora_A.weight": ("F32", (4, 4, 3, 3), None),
    "unet.conv_in.lora_B.weight": ("F32", (32, 4, 1, 1), None),
    f"unet.{UNET}.to_q.lora.down.weight": ("F32", (4, 32), None),
    f"unet.{UNET}.to_q.lora.up.weight": ("F32", (32, 4), None),
}


def add_pipeline(
    harness: Harness, folder: Path, kind: str, components: dict[str, Shapes], pipeline: str = "APipeline"
) -> str:
    """Register an image model of this class with these matrices, by component, under the name `art`."""
    (folder / "art").mkdir()
    (folder / "art" / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    for component, shapes in components.items():
        weights = samples.safetensors({f"{path}.weight": ("F32", shape, None) for path, shape in shapes.items()})
        config = json.dumps({"_class_name": kind} if "encoder" not in component else {"model_type": "clip_text_model"})
        files = {"config.json": config.encode(), "diffusion_pytorch_model.safetensors": weights}
        samples.write(files, folder / "art" / component)
    spec, _ = base_folder.base_spec_from(folder / "art", "art")
    harness.bases["art"] = spec
    harness.admin.add_base(BaseAdd(spec=spec))
    return spec.name


def pair(at: str, rows: int, columns: int, ends: tuple[str, str] = (".lora_A", ".lora_B")) -> dict[str, Tensor]:
    return {f"{at}{ends[0]}.weight": ("F32", (4, columns), None), f"{at}{ends[1]}.weight": ("F32", (rows, 4), None)}


def dora(size: int = 32) -> dict[str, Tensor]:
    """DoRA of a U-Net's attention as diffusers saves it."""
    tensors: dict[str, Tensor] = {}
    for leaf in ("to_q", "to_k"):
        tensors |= pair(f"unet.{UNET}.{leaf}", 32, 32, (".lora.down", ".lora.up"))
        tensors[f"unet.{UNET}.{leaf}.lora_magnitude_vector"] = ("F32", (size,), None)
    return tensors


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (lambda t: t, []),
        (lambda t: t | pair(f"text_encoder.{TEXT}.q_proj", 16, 16, OF_TEXT), []),
        (lambda t: t | pair(f"text_encoder.{TEXT}.q_proj", 16, 16), []),
        (lambda _: dora(7), ["lora.shape_invalid"]),
        (lambda _: dora(1), ["lora.shape_invalid"]),
        (lambda t: {n: x for n, x in t.items() if "to_q.lora_mag" not in n}, ["lora.magnitude_absent"]),
        (lambda t: {n: x for n, x in t.items() if "to_q.lora." not in n}, ["lora.pair_incomplete"]),
        (lambda t: {n: x for n, x in t.items() if "to_q.lora.up" not in n}, ["lora.pair_incomplete"]),
        (lambda _: MIXED, []),
    ],
    ids=["whole", "with text", "with text of PEFT", "too short", "one number", "lost", "alone", "half", "mixed"],
)  # fmt: skip
def test_what_diffusers_saves_is_read_whole_and_what_it_lost_is_found(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], codes: list[str], harness: Harness, tmp_path: Path
) -> None:
    unet: Shapes = {f"{UNET}.{leaf}": (32, 32) for leaf in ("to_q", "to_k")} | {"conv_in": (32, 4, 3, 3)}
    base = add_pipeline(
        harness, tmp_path, "UNet2DConditionModel", {"unet": unet, "text_encoder": {f"{TEXT}.q_proj": (16, 16)}}
    )
    version = push(harness, {"x.safetensors": samples.safetensors(change(dora()))}, tmp_path, base)
    verdict = version.verdicts[0]
    assert ([f.code for f in verdict.findings], version.facts["format"]) == (codes, "diffusers")
    assert verdict.outcome == ("fail" if codes else "pass")


@pytest.mark.parametrize(
    ("fields", "codes"),
    [
        ({"target_modules": ["to_q", "to_k"]}, []),
        ({"target_modules": [f"{UNET}.to_q", f"{UNET}.to_k"]}, []),
        ({"target_modules": ["to_q", "to_k", "conv_in"]}, ["compat.module_missing"]),
        ({"target_modules": r".*attn1\.to_.*"}, ["compat.module_missing"]),
        ({"target_modules": ["to_q", "to_k", "to_v"], "exclude_modules": ["to_v"]}, []),
        ({"target_modules": ["to_q", "to_k", "to_v"]}, ["compat.module_missing"]),
        ({"target_modules": ["to_q", 7]}, []),
    ],
)
def test_modules_that_the_metadata_of_diffusers_targets_are_expected(
    fields: dict[str, object], codes: list[str], harness: Harness, tmp_path: Path
) -> None:
    unet: Shapes = {f"{UNET}.{leaf}": (32, 32) for leaf in ("to_q", "to_k", "to_v")} | {"conv_in": (32, 4, 3, 3)}
    base = add_pipeline(harness, tmp_path, "UNet2DConditionModel", {"unet": unet})
    claims = {f"unet.{name}": value for name, value in ({"r": 4, "lora_alpha": 4, "use_dora": True} | fields).items()}
    metadata = {"lora_adapter_metadata": json.dumps(claims)}
    version = push(harness, {"x.safetensors": samples.safetensors(dora(), metadata)}, tmp_path, base)
    assert [f.code for f in version.verdicts[0].findings] == codes
    assert version.verdicts[0].outcome == ("warn" if codes else "pass")


PLAIN = {f"{UNET}.to_q": (32, 32), "conv_in": (32, 2, 3, 3)}


@pytest.mark.parametrize(("channels", "columns", "outcome"), [(4, 2, "pass"), (2, 2, "fail"), (4, 4, "fail")])
def test_pefts_pair_on_a_convolution_in_two_groups(
    channels: int, columns: int, outcome: str, harness: Harness, tmp_path: Path
) -> None:
    base = add_pipeline(harness, tmp_path, "UNet2DConditionModel", {"unet": PLAIN}, "StableDiffusionPipeline")
    tensors = pair("unet.conv_in", 32, channels)
    tensors["unet.conv_in.lora_A.weight"] = ("F32", (4, channels, 3, 3), None)
    tensors["unet.conv_in.lora_B.weight"] = ("F32", (32, columns, 1, 1), None)
    version = push(harness, {"x.safetensors": samples.safetensors(tensors)}, tmp_path, base)
    assert version.verdicts[0].outcome == outcome


@pytest.mark.parametrize("start", ["transformer.", "lora_transformer_"])
def test_embedders_of_image_models_are_linear(start: str, harness: Harness, tmp_path: Path) -> None:
    shapes: Shapes = {"x_embedder": (32, 4), "context_embedder": (32, 24), "proj_out": (4, 32)}
    base = add_pipeline(harness, tmp_path, "FluxTransformer2DModel", {"transformer": shapes})
    ends = (".lora_A", ".lora_B") if start == "transformer." else (".lora_down", ".lora_up")
    tensors: dict[str, Tensor] = {}
    for path, (rows, columns) in shapes.items():
        tensors |= pair(f"{start}{path}", rows, columns, ends)
    if start != "transformer.":
        tensors |= {f"{start}{path}.alpha": ("F32", (), struct.pack("<f", 4.0)) for path in shapes}
    version = push(harness, {"x.safetensors": samples.safetensors(tensors)}, tmp_path, base)
    assert version.verdicts[0].outcome == "pass", version.verdicts[0].summary
    turned = pair(f"{start}x_embedder", 4, 32, ends)
    version = push(harness, {"x.safetensors": samples.safetensors(tensors | turned)}, tmp_path / "turned", base)
    assert [f.code for f in version.verdicts[0].findings] == ["compat.shape"]


def test_a_dora_of_kohyas_names_in_part_is_unknown(filled_harness: Harness, tmp_path: Path) -> None:
    tensors = samples.tensors_of(non_peft_files.kohya())
    at = next(name.removesuffix(".alpha") for name in tensors if name.endswith("to_q.alpha"))
    tensors[f"{at}.dora_scale"] = ("F32", (32, 1), None)
    version = push(filled_harness, {"x.safetensors": samples.safetensors(tensors)}, tmp_path, "sd-tiny")
    verdict = version.verdicts[0]
    assert ([f.code for f in verdict.findings], verdict.outcome) == (["lora.magnitude_absent"], "unknown")


def test_an_image_adapter_does_not_fit_a_language_model(filled_harness: Harness, tmp_path: Path) -> None:
    version = push(filled_harness, {"x.safetensors": non_peft_files.kohya()}, tmp_path, "tiny-llama")
    assert [f.code for f in version.verdicts[0].findings] == ["compat.kind"]


def test_names_of_no_tool_are_a_finding_and_never_a_guess(filled_harness: Harness, tmp_path: Path) -> None:
    files = {"x.safetensors": samples.safetensors({"some.where.matrix": ("F32", (4, 4), None)})}
    version = push(filled_harness, files, tmp_path, "tiny-llama")
    assert (version.facts["format"], version.verdicts[0].outcome) == ("unknown", "fail")
    assert [f.code for f in version.verdicts[0].findings] == ["format.unknown"]


@pytest.mark.parametrize(("write", "tool"), [(non_peft_files.torchtune, "torchtune"), (non_peft_files.mlx, "mlx")])
@pytest.mark.parametrize("has_config", [True, False])
def test_another_tools_file_under_pefts_name_is_refused_with_its_tool(
    write: Callable[[samples.Base], dict[str, bytes]], tool: str, has_config: bool, filled_harness: Harness,
    tmp_path: Path,
) -> None:  # fmt: skip
    written = write(samples.llama())
    weights = next(data for path, data in written.items() if path.endswith(".safetensors"))
    config = {samples.CONFIG: written[samples.CONFIG]} if has_config else {}
    with pytest.raises(Invalid) as refused:
        push(filled_harness, {samples.WEIGHTS: weights, **config}, tmp_path, "tiny-llama")
    assert [r.code for r in refused.value.findings] == ["adapter.weights_misnamed"]
    assert refused.value.detail.startswith(f"adapter_model.safetensors has the tensor names of {tool} (")
    assert refused.value.next_step == f"rename it, such as to {tool}.safetensors, and push it again"


def test_an_adapter_of_nemo_is_refused_with_advice(filled_harness: Harness, tmp_path: Path) -> None:
    names = [f"decoder.layers.0.self_attention.linear_qkv.adapter.linear_{side}.weight" for side in ("in", "out")]
    files = {"x.safetensors": samples.safetensors(dict.fromkeys(names, ("F32", (4, 4), None)))}
    with pytest.raises(Invalid) as refused:
        push(filled_harness, files, tmp_path, "tiny-llama")
    assert [r.code for r in refused.value.findings] == ["format.convert_first"]
    assert "Megatron-Bridge" in refused.value.detail


@pytest.mark.parametrize(
    ("name", "advice"),
    [("x.nemo", "Megatron-Bridge"), ("__0_0.distcp", "Megatron-Bridge"), ("adapter_model.tensors", "PEFT adapter")],
)
def test_what_must_be_exported_first_is_refused_with_advice(
    filled_harness: Harness, tmp_path: Path, name: str, advice: str
) -> None:
    with pytest.raises(Invalid) as refused:
        push(filled_harness, {name: b"x"}, tmp_path, "tiny-llama")
    assert advice in refused.value.detail
    assert "adapter_model.safetensors" in refused.value.next_step


def test_a_gguf_model_is_no_adapter(filled_harness: Harness, tmp_path: Path) -> None:
    model = non_peft_files.gguf({"blk.0.attn_q.weight": ("F32", (4, 4), None)}, {"general.type": "model"})
    version = push(filled_harness, {"model.gguf": model}, tmp_path, "tiny-llama")
    assert [f.code for f in version.verdicts[0].findings] == ["format.gguf_not_adapter"]


def test_two_weights_files_of_which_none_is_pefts_are_refused(filled_harness: Harness, tmp_path: Path) -> None:
    files = {"a.safetensors": non_peft_files.kohya(), "b.safetensors": non_peft_files.kohya(64)}
    with pytest.raises(Invalid) as refused:
        push(filled_harness, files, tmp_path, "sd-tiny")
    assert [r.code for r in refused.value.findings] == ["adapter.weights_ambiguous"]


def test_pefts_names_without_its_configuration_are_refused(filled_harness: Harness, tmp_path: Path) -> None:
    files = {"lora.safetensors": samples.lora(samples.llama())[samples.WEIGHTS]}
    with pytest.raises(Invalid) as refused:
        push(filled_harness, files, tmp_path, "tiny-llama")
    assert "adapter.config_missing" in [r.code for r in refused.value.findings]


@pytest.mark.parametrize(
    ("alpha", "outcomes"),
    [
        (float("nan"), {"compat": "pass", "weights": "fail"}),
        (float("inf"), {"compat": "pass", "weights": "fail"}),
        (0.0, {"compat": "fail", "weights": "pass"}),
        (-1.0, {"compat": "warn", "weights": "pass"}),
    ],
)
def test_an_alpha_that_leaves_no_effect_fails_and_one_that_reverses_it_warns(
    filled_harness: Harness, tmp_path: Path, alpha: float, outcomes: dict[str, str]
) -> None:
    at = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    tensors = {
        f"{at}.lora_down.weight": ("F32", (4, 32), None), f"{at}.lora_up.weight": ("F32", (32, 4), None),
        f"{at}.alpha": ("F32", (), struct.pack("<f", alpha)),
    }  # fmt: skip
    version = push(filled_harness, {"x.safetensors": samples.safetensors(tensors)}, tmp_path, "sd-tiny")
    assert {v.check: v.outcome for v in version.verdicts if v.check in outcomes} == outcomes
    assert version.facts["scales"] == ([alpha / 4] if math.isfinite(alpha) else [])


def test_factors_of_two_ranks_or_of_another_rank_than_announced_are_a_no(
    filled_harness: Harness, tmp_path: Path
) -> None:
    files = non_peft_files.torchtune(samples.llama())
    written = json.loads(files["adapter_config.json"])
    other = {**files, "adapter_config.json": json.dumps({**written, "r": 3}).encode()}
    silent = {**files, "adapter_config.json": json.dumps({**written, "lora_alpha": None}).encode()}
    tensors = samples.tensors_of(files["adapter_0.safetensors"])
    name = next(name for name in tensors if name.endswith("lora_b.weight"))
    broken = {**files, "adapter_0.safetensors": samples.safetensors(
        {**tensors, name: ("F32", (tensors[name][1][0], 8), None)})}  # fmt: skip
    codes = [
        [
            f.code
            for f in push(filled_harness, each, tmp_path, "tiny-llama", AdapterName.parse(f"acme/x{n}"))
            .verdicts[0]
            .findings
        ]
        for n, each in enumerate((other, silent, broken))
    ]
    assert codes == [["lora.rank_differs_from_config"], ["format.alpha_absent"], ["lora.shape_invalid"]]


@pytest.mark.parametrize(
    ("keep", "code"),
    [(lambda name: "lora_" not in name, "lora.pair_incomplete"), (lambda _: True, "lora.shape_invalid")],
    ids=["alone", "too short"],
)
def test_a_magnitude_of_torchtune_that_belongs_to_no_pair_is_a_no(
    keep: Callable[[str], bool], code: str, filled_harness: Harness, tmp_path: Path
) -> None:
    files = non_peft_files.torchtune(samples.llama())
    tensors = samples.tensors_of(files["adapter_0.safetensors"])
    first = min(tensors).rpartition(".lora_")[0]
    tensors = {n: x for n, x in tensors.items() if not n.startswith(f"{first}.") or keep(n)}
    tensors[f"{first}.magnitude"] = ("F32", (7,), None)
    files["adapter_0.safetensors"] = samples.safetensors(tensors)
    version = push(filled_harness, files, tmp_path, "tiny-llama")
    assert [f.code for f in version.verdicts[0].findings] == [code]


def test_numbers_that_are_not_finite_are_found_in_every_format(filled_harness: Harness, tmp_path: Path) -> None:
    nan = b"\0\0\xc0\x7f" * 16
    at = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    tensors = {f"{at}.lora_down.weight": ("F32", (4, 32), None), f"{at}.lora_up.weight": ("F32", (32, 4), nan * 8)}
    version = push(filled_harness, {"x.safetensors": samples.safetensors(tensors)}, tmp_path, "sd-tiny")
    assert "fail" in [v.outcome for v in version.verdicts if v.check == "weights"]
