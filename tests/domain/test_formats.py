"""Formats of adapters, recognized from names alone, and the facts of image files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from registry.adapters import formats, safetensors
from registry.adapters.formats import images as image_facts
from registry.adapters.formats.facts import FileFacts
from registry.bases import BaseSpec
from registry.bases.fingerprints import Fingerprints
from registry.bases.modules import Kind, ModuleShape
from registry.compat.files import check_file
from registry.digest import Digest
from tests import samples
from tests.samples import Tensor

R, D = 4, 32
UNET = "down_blocks.0.attentions.0.transformer_blocks.0"
ATTENTION = [f"{UNET}.{attn}.{leaf}" for attn in ("attn1", "attn2") for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
TEXT = [f"text_model.encoder.layers.{n}.self_attn.{leaf}" for n in (0, 1) for leaf in ("q_proj", "v_proj")]
FLUX = [
    *(f"transformer_blocks.{n}.attn.{leaf}" for n in (0, 1) for leaf in ("to_q", "to_k", "add_q_proj")),
    *(f"single_transformer_blocks.{n}.attn.{leaf}" for n in (0, 1) for leaf in ("to_q", "to_v")),
]
QWEN = ["attn.to_q", "attn.add_k_proj", "img_mlp.net.2"]
KOHYA_METADATA = {
    "ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "2",
    "ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.trigger_phrase": "toy style", "ss_tag_frequency": '{"img": {"a photo of Ann": 3}}',
    "ss_dataset_dirs": '{"10_ann": {"n_repeats": 10}}', "ss_output_name": "ann-private",
}  # fmt: skip


def pair(at: str, a: str, b: str, width: int = D) -> dict[str, Tensor]:
    return {f"{at}{a}": ("F32", (R, width), None), f"{at}{b}": ("F32", (D, R), None)}


def peft_pairs(prefix: str, modules: list[str]) -> dict[str, Tensor]:
    return {k: v for m in modules for k, v in pair(f"{prefix}{m}", ".lora_A.weight", ".lora_B.weight").items()}


def kohya_pairs(prefix: str, modules: list[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module in modules:
        at = prefix + module.replace(".", "_")
        tensors |= pair(at, ".lora_down.weight", ".lora_up.weight")
        tensors[f"{at}.alpha"] = ("F32", (), struct.pack("<f", 2.0))
    return tensors


def old_diffusers() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module in ATTENTION:
        head, leaf = module.removesuffix(".0").rsplit(".", 1)
        tensors |= pair(f"unet.{head}.processor.{leaf}_lora", ".down.weight", ".up.weight")
    return tensors


def lycoris(parts: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module in ATTENTION:
        at = "lora_unet_" + module.replace(".", "_")
        tensors |= {f"{at}.{part}": ("F32", shape, None) for part, shape in parts.items()}
        tensors[f"{at}.alpha"] = ("F16", (), struct.pack("<e", 2.0))
    return tensors


def bfl() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for side in ("img", "txt"):
        for leaf in ("qkv", "proj"):
            at = f"double_blocks.0.{side}_attn.{leaf}"
            tensors |= pair(at, ".lora_A.weight", ".lora_B.weight")
            tensors[f"{at}.lora_B.bias"] = ("F32", (D,), None)
        tensors[f"double_blocks.0.{side}_attn.norm.query_norm.scale"] = ("F32", (16,), None)
    return tensors


def xlabs() -> dict[str, Tensor]:
    parts = ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2")
    pairs = [pair(f"double_blocks.0.processor.{p}", ".down.weight", ".up.weight") for p in parts]
    return {k: v for tensors in pairs for k, v in tensors.items()}


LOHA = {"hada_w1_a": (D, R), "hada_w1_b": (R, D), "hada_w2_a": (D, R), "hada_w2_b": (R, D)}
GLORA = {"a1.weight": (D, R), "a2.weight": (R, D), "b1.weight": (D, R), "b2.weight": (R, D), "bm.weight": (R, R, 3, 3)}
FILES: dict[str, tuple[str, str, str, Callable[[], dict[str, Tensor]]]] = {
    "diffusers": ("diffusers", "sd", "lora",
                  lambda: peft_pairs("unet.", ATTENTION) | peft_pairs("text_encoder.", TEXT)),
    "diffusers 2023": ("diffusers-old", "sd", "lora", old_diffusers),
    "kohya SD": ("kohya", "sd", "lora", lambda: kohya_pairs("lora_unet_", ATTENTION) | kohya_pairs("lora_te_", TEXT)),
    "kohya SDXL": ("kohya", "", "lora", lambda: kohya_pairs("lora_te1_", TEXT) | kohya_pairs("lora_te2_", TEXT)),
    "LyCORIS LoHa": ("lycoris", "sd", "loha", lambda: lycoris(LOHA)),
    "LyCORIS LoKr": ("lycoris", "sd", "lokr", lambda: lycoris({"lokr_w1": (4, 4), "lokr_w2": (8, 8)})),
    "LyCORIS LoCon": ("lycoris", "sd", "locon",
                      lambda: kohya_pairs("lora_unet_", ATTENTION) | lycoris({"lora_mid.weight": (R, R, 3, 3)})),
    "LyCORIS full": ("lycoris", "sd", "full", lambda: lycoris({"diff": (D, D), "diff_b": (D,)})),
    "LyCORIS GLoRA": ("lycoris", "sd", "glora", lambda: lycoris(GLORA)),
    "LyCORIS IA3": ("lycoris", "sd", "ia3", lambda: lycoris({"weight": (D,), "on_input": ()})),
    "LyCORIS BOFT": ("lycoris", "sd", "oft", lambda: lycoris({"oft_blocks": (2, 4, 8, 8), "rescale": (D, 1)})),
    "Flux, diffusers": ("diffusers", "flux", "lora", lambda: peft_pairs("transformer.", FLUX)),
    "Flux, kohya": ("kohya", "flux", "lora", lambda: kohya_pairs("lora_unet_", ["double_blocks.0.img_attn.qkv"])),
    "Flux, Black Forest Labs": ("bfl", "flux", "lora", bfl),
    "Flux, X-Labs": ("xlabs", "flux", "lora", xlabs),
    "Flux, ComfyUI": ("comfy", "flux", "lora",
                      lambda: peft_pairs("diffusion_model.", ["double_blocks.0.img_attn.qkv"])),
    "Flux, OneTrainer": ("kohya", "flux", "lora", lambda: kohya_pairs("lora_transformer_", FLUX)),
    "Flux, OneTrainer with the original names": (
        "bfl", "flux", "lora",
        lambda: peft_pairs("", ["double_blocks.0.img_attn.qkv"])
        | {"double_blocks.0.img_attn.qkv.alpha": ("F32", (), struct.pack("<f", 2.0))},
    ),
    "SDXL, OneTrainer for ComfyUI": (
        "comfy", "sd", "lora",
        lambda: peft_pairs("diffusion_model.", ["input_blocks.4.1.proj_in"])
        | peft_pairs("text_encoders.clip_g.transformer.", TEXT),
    ),
    "OneTrainer OFT": ("lycoris", "sd", "oft", lambda: lycoris({"oft_R.weight": (4, 28)})),
    "Qwen-Image, DiffSynth-Studio": ("bare", "qwen-image", "lora",
                                     lambda: {k.replace(".weight", ".default.weight"): v
                                              for k, v in peft_pairs("transformer_blocks.0.", QWEN).items()}),
    "Qwen-Image, lightx2v": ("bare", "", "lora",
                             lambda: pair("transformer_blocks.0.attn.to_q", ".lora_down.weight", ".lora_up.weight")
                             | {"transformer_blocks.0.attn.to_q.alpha": ("F32", (), struct.pack("<f", 2.0))}),
    "SD3, diffusers": ("diffusers", "", "lora", lambda: peft_pairs("transformer.", ["transformer_blocks.0.attn.to_q"])),
    "SD3, kohya": ("kohya", "sd3", "lora", lambda: kohya_pairs("lora_unet_", ["joint_blocks.0.x_block.attn.qkv"])),
    "Wan, ComfyUI": ("comfy", "wan", "lora", lambda: peft_pairs("diffusion_model.", ["blocks.0.self_attn.q"])),
    "Wan, musubi": ("kohya", "wan", "lora", lambda: kohya_pairs("lora_unet_", ["blocks.0.self_attn.q"])),
}  # fmt: skip


def read(names: dict[str, Tensor], metadata: dict[str, str] | None = None) -> tuple[safetensors.Header, bytes]:
    data = samples.safetensors(names, metadata)
    return safetensors.read_bytes(data, file="x.safetensors"), data


def facts_of(names: dict[str, Tensor], metadata: dict[str, str] | None = None, *, values: bool = False) -> FileFacts:
    header, data = read(names, metadata)
    reader = (lambda at, n: data[at : at + n]) if values else None
    return image_facts.of_header(header, formats.of_header(header).format, read=reader)


@pytest.mark.parametrize("name", FILES)
def test_every_image_format_is_recognized_with_its_family_and_method(name: str) -> None:
    format_name, family, method, make = FILES[name]
    header, _ = read(make())
    recognized = formats.of_header(header)
    facts = image_facts.of_header(header, recognized.format)
    assert (recognized.format.name, facts.family, facts.method) == (format_name, family, method)
    assert recognized.format.is_image
    assert recognized.evidence in make()


@pytest.mark.parametrize(
    ("format_name", "name"),
    [
        ("peft", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
        ("peft", "base_model.model.model.layers.0.mlp.down_proj.ia3_l"),
        ("peft", "base_model.vera_A"),
        ("peft", "prompt_embeddings"),
        ("torchtune", "layers.0.attn.q_proj.lora_a.weight"),
        ("mlx", "model.layers.0.self_attn.q_proj.lora_a"),
        ("gguf", "blk.0.attn_q.weight.lora_a"),
        ("gguf", "token_embd.weight.lora_b"),
        (
            "nemo",
            "model.language_model.encoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight",
        ),
        ("nemo", "decoder.layers.0.self_attention.linear_qkv.adapter.linear_out.weight"),
    ],
)
def test_the_formats_of_text_models_are_recognized(format_name: str, name: str) -> None:
    recognized = formats.recognize([name]).format
    assert recognized == formats.named(format_name)
    assert not recognized.is_image


@pytest.mark.parametrize(
    "name",
    [
        "transformer.layers.0.self_attn.q_proj.lora_A.weight",
        "transformer.h.0.attn.c_attn.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "q_proj.lora_A.weight",
        "weight",
        "",
        "lora_unet_a b.lora_down.weight",
        "base_model.model.a b",
        "x" * 10_000,
        "lora_unet_" * 2000 + ".lora_down.weightx",
    ],
)
def test_what_no_tool_writes_is_unknown_and_never_a_guess(name: str) -> None:
    recognized = formats.recognize([name])
    assert recognized.format == formats.UNKNOWN
    assert recognized.message.startswith("unknown format")
    assert recognized.format.advice


@pytest.mark.parametrize(
    "module",
    [
        "joint_transformer_blocks.0.attn.to_q", "layers.0.attn.to_q", "layers.0.attention.to_q", "x_embedder",
        "all_x_embedder.2-1", "time_caption_embed.timestep_embedder.linear_1",
        "time_condition_embed.text_embedder.linear_1",
        "vace_blocks.0.attn1.to_q", "double_stream_modulation_img.linear",
        "visual_transformer_blocks.0.self_attention.to_query",
        "double_stream_blocks.0.block.attn1.to_q", "patch_embed.proj", "distilled_guidance_layer.layers.0.linear_1",
    ],
)  # fmt: skip
def test_modules_of_every_family_of_transformers_are_names_of_diffusers(module: str) -> None:
    assert formats.recognize([f"transformer.{module}.lora_A.weight"]).format == formats.DIFFUSERS


def test_one_unexpected_name_makes_the_format_unknown_and_is_named() -> None:
    recognized = formats.recognize([*peft_pairs("unet.", ATTENTION), "stray.tensor"])
    assert (recognized.format, recognized.unexpected) == (formats.UNKNOWN, ("stray.tensor",))


def test_two_formats_in_one_file_are_unknown() -> None:
    recognized = formats.recognize([*peft_pairs("unet.", ATTENTION), *bfl()])
    assert recognized.format == formats.UNKNOWN
    assert "bfl and diffusers are mixed" in recognized.message


def test_no_tensors_are_unknown() -> None:
    assert formats.recognize([]).format == formats.UNKNOWN


# --------------------------------------------------------------------- facts of images
def test_alphas_are_unknown_without_values_and_exact_with_them() -> None:
    names = kohya_pairs("lora_unet_", ATTENTION)
    assert {m.alpha for m in facts_of(names).modules} == {None}
    facts = facts_of(names, values=True)
    assert {(m.rank, m.alpha) for m in facts.modules} == {(R, 2.0)}
    assert len(facts.modules) == len(ATTENTION)


@pytest.mark.parametrize(
    ("dtype", "raw"),
    [
        ("F16", struct.pack("<e", 0.5)),
        ("BF16", struct.pack("<f", 0.5)[2:]),
        ("F64", struct.pack("<d", 0.5)),
        ("I64", struct.pack("<q", 3)),
    ],
)
def test_alphas_are_read_in_every_type(dtype: str, raw: bytes) -> None:
    names = {
        **pair("lora_unet_mid_block", ".lora_down.weight", ".lora_up.weight"),
        "lora_unet_mid_block.alpha": (dtype, (), raw),
    }
    assert facts_of(names, values=True).modules[0].alpha == (3.0 if dtype == "I64" else 0.5)


def test_only_alphas_are_read() -> None:
    header, data = read(kohya_pairs("lora_unet_", ATTENTION))
    read_bytes: list[int] = []

    def reader(at: int, length: int) -> bytes:
        read_bytes.append(length)
        return data[at : at + length]

    image_facts.of_header(header, formats.of_header(header).format, read=reader)
    assert read_bytes == [4] * len(ATTENTION)


def test_alpha_comes_from_the_metadata_of_diffusers() -> None:
    lora_metadata: dict[str, Any] = {"unet.r": R, "unet.lora_alpha": 16, "text_encoder.lora_alpha": 8}
    names = peft_pairs("unet.", ATTENTION) | peft_pairs("text_encoder.", TEXT)
    facts = facts_of(names, {"lora_adapter_metadata": json.dumps(lora_metadata)})
    assert {m.alpha for m in facts.modules if m.path.startswith("unet.")} == {16.0}
    assert {m.alpha for m in facts.modules if m.path.startswith("text_encoder.")} == {8.0}
    assert facts.alpha_rule == "metadata"


def test_patterns_and_rslora_in_the_metadata_of_diffusers_count() -> None:
    lora_metadata = {"unet.lora_alpha": 16, "unet.alpha_pattern": {"to_q": 2}, "text_encoder.lora_alpha": 8,
            "text_encoder.use_rslora": True}  # fmt: skip
    names = peft_pairs("unet.", ATTENTION) | peft_pairs("text_encoder.", TEXT)
    facts = facts_of(names, {"lora_adapter_metadata": json.dumps(lora_metadata)})
    assert {m.scale for m in facts.modules if m.path.endswith("to_q")} == {2 / R}
    assert {m.scale for m in facts.modules if m.path.startswith("text_encoder.")} == {8 / R**0.5}


@pytest.mark.parametrize(
    ("alpha", "problems"), [(R, ()), (True, ("image.scale_in_metadata",)), (16, ("image.scale_in_metadata",))]
)
def test_a_scale_that_no_tensor_states_is_a_problem(alpha: object, problems: tuple[str, ...]) -> None:
    """ComfyUI reads no metadata. PEFT computes with true as an alpha of 1."""
    claims = f'{{"unet.r": {R}, "unet.lora_alpha": {json.dumps(alpha)}}}'
    names = peft_pairs("unet.", ATTENTION)
    assert facts_of(names, {"lora_adapter_metadata": claims}).problems == problems
    repeated = claims[:-1] + f', "unet.r": {R}}}'
    assert facts_of(names, {"lora_adapter_metadata": repeated}).problems == problems, "Python takes the last one"


@pytest.mark.parametrize(("numbers", "absent"), [((0, 1), 0), ((0,), 1), ((), 0)])
def test_modules_without_a_magnitude_beside_others_with_one_are_named(numbers: tuple[int, ...], absent: int) -> None:
    modules = [f"unet.down_blocks.{n}.attn1.to_q" for n in range(2)]
    names = pair(modules[0], ".lora_A.weight", ".lora_B.weight") | pair(modules[1], ".lora_A.weight", ".lora_B.weight")
    names |= {f"{modules[n]}.lora_magnitude_vector": ("F32", (D,), None) for n in numbers}
    assert facts_of(names).magnitudes_absent == tuple(modules[1 : 1 + absent])


@pytest.mark.parametrize("broken", ["{", "[1]", '{"a": 1,}', "[" * 5000])
def test_broken_metadata_is_no_error_and_no_claim(broken: str) -> None:
    facts = facts_of(peft_pairs("unet.", ATTENTION), {"lora_adapter_metadata": broken})
    assert {m.alpha for m in facts.modules} == {float(R)}
    assert facts.alpha_rule.startswith("no alpha in the file")


def test_training_facts_are_kept_and_private_texts_are_only_named() -> None:
    facts = facts_of(kohya_pairs("lora_unet_", ATTENTION), KOHYA_METADATA)
    assert facts.trigger_words == "toy style"
    assert facts.claims["ss_network_module"] == "networks.lora"
    assert set(facts.private_texts) == {"ss_tag_frequency", "ss_dataset_dirs", "ss_output_name"}
    assert "Ann" not in facts.model_dump_json()
    assert "ann-private" not in facts.model_dump_json()


def test_an_uploaders_text_does_not_steer_a_terminal() -> None:
    metadata = KOHYA_METADATA | {"modelspec.trigger_phrase": "toy\x1b[2J\nstyle", "modelspec.title": "a\x9bb"}
    facts = facts_of(kohya_pairs("lora_unet_", ATTENTION), metadata)
    assert (facts.trigger_words, facts.claims["modelspec.title"]) == ("toy [2J style", "a b")


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (96, "sd")])
def test_the_width_of_cross_attention_tells_the_family(width: int, family: str) -> None:
    facts = facts_of(pair(f"unet.{UNET}.attn2.to_k", ".lora_A.weight", ".lora_B.weight", width))
    assert facts.family == family
    assert str(width) in facts.family_evidence


def test_dora_and_components_are_seen() -> None:
    names = kohya_pairs("lora_unet_", ATTENTION) | kohya_pairs("lora_te_", TEXT)
    names["lora_unet_" + ATTENTION[0].replace(".", "_") + ".dora_scale"] = ("F32", (D, 1), None)
    facts = facts_of(names)
    assert facts.has_dora
    assert "image.dora_scale" in facts.problems
    assert facts.components == ("text_encoder", "unet")


@pytest.mark.parametrize(("kind", "of_base", "kernel", "mid", "fits"), [
    ("conv", (3, 3), (3, 3), False, True), ("conv", (3, 3), (5, 5), False, False), ("conv", (3, 3), (), False, False),
    ("conv", (3, 3), (1, 1), True, True), ("conv", (3, 3), (1, 1), False, False), ("conv", (), (3, 3), False, True),
    ("linear", (), (1, 1), False, True), ("linear", (), (3, 3), False, False),
])  # fmt: skip
def test_a_pair_for_a_convolution_has_the_kernel_of_the_base(
    kind: Kind, of_base: tuple[int, ...], kernel: tuple[int, ...], mid: bool, fits: bool
) -> None:
    """A base's record may have no kernel, if it is old. With `mid`, a third factor has the kernel."""
    at = "lora_unet_mid_block_resnets_0_conv1"
    tensors: dict[str, Tensor] = {
        f"{at}.lora_down.weight": ("F32", (R, D, *kernel), None),
        f"{at}.lora_up.weight": ("F32", (D, R, *(1 for _ in kernel)), None),
    }
    if mid:
        tensors[f"{at}.lora_mid.weight"] = ("F32", (R, R, 3, 3), None)
    module = ModuleShape(kind=kind, in_features=D, out_features=D, kernel=of_base)
    base = BaseSpec(
        name="sd", components=("unet",), modules={"unet.mid_block.resnets.0.conv1": module},
        fingerprints=Fingerprints(architecture=Digest.of(b"sd")),
    )  # fmt: skip
    codes = {finding.code for finding in check_file(facts_of(tensors), base) if finding.severity == "error"}
    assert codes == (set() if fits else {"compat.shape"})


@pytest.mark.parametrize(
    "path",
    [
        "blocks.0.attn1.to_q", "blocks.0.ffn.net.2", "proj_out", "condition_embedder.time_embedder.linear_1",
        "transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "norm_out.linear",
        "x_embedder", "context_embedder", "time_text_embed.text_embedder.linear_1",
    ],
)  # fmt: skip
def test_names_of_diffusers_after_the_prefix_of_comfyui_or_kohya_are_seen(path: str) -> None:
    for stem in (f"diffusion_model.{path}", f"lora_unet_{path.replace('.', '_')}"):
        assert "image.foreign_names" in facts_of(pair(stem, ".lora_down.weight", ".lora_up.weight")).problems


@pytest.mark.parametrize(
    "path",
    [
        "blocks.0.self_attn.q", "blocks.0.cross_attn.k_img", "blocks.0.ffn.2", "head.head", "time_embedding.0",
        "double_blocks.0.img_attn.qkv", "final_layer.linear", "img_in", "time_in.in_layer",
    ],
)  # fmt: skip
def test_the_original_names_after_the_prefix_of_comfyui_or_kohya_are_in_order(path: str) -> None:
    for stem in (f"diffusion_model.{path}", f"lora_unet_{path.replace('.', '_')}"):
        assert "image.foreign_names" not in facts_of(pair(stem, ".lora_down.weight", ".lora_up.weight")).problems
