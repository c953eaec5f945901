"""Which modules of a base the tools' paths mean: Flux's fused matrices, Stability's counted blocks, flat names."""

from __future__ import annotations

import pytest

from registry.adapters import formats
from registry.compat.paths import Paths

ATTENTION = "transformer_blocks.0.attn1.to_q"
SDXL = [
    *(f"unet.down_blocks.{b}.resnets.{r}.{leaf}" for b in range(3) for r in range(2) for leaf in ("conv1", "conv2")),
    *(f"unet.down_blocks.{b}.attentions.{r}.{ATTENTION}" for b in (1, 2) for r in range(2)),
    *(f"unet.down_blocks.{b}.downsamplers.0.conv" for b in (0, 1)),
    *(f"unet.up_blocks.{b}.resnets.{r}.conv1" for b in range(3) for r in range(3)),
    *(f"unet.up_blocks.{b}.attentions.{r}.{ATTENTION}" for b in (0, 1) for r in range(3)),
    *(f"unet.up_blocks.{b}.upsamplers.0.conv" for b in (0, 1)),
    f"unet.mid_block.attentions.0.{ATTENTION}", "unet.mid_block.resnets.1.conv1",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
]  # fmt: skip
FLUX = [
    *(f"transformer.transformer_blocks.0.attn.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")),
    *(
        f"transformer.single_transformer_blocks.1.{leaf}"
        for leaf in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ),
]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", f"unet.down_blocks.1.attentions.0.{ATTENTION}"),
        ("lora_unet_input_blocks_8_1_transformer_blocks_0_attn1_to_q", f"unet.down_blocks.2.attentions.1.{ATTENTION}"),
        ("lora_unet_output_blocks_5_1_transformer_blocks_0_attn1_to_q", f"unet.up_blocks.1.attentions.2.{ATTENTION}"),
        ("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", f"unet.mid_block.attentions.0.{ATTENTION}"),
        ("lora_unet_middle_block_2_in_layers_2", "unet.mid_block.resnets.1.conv1"),
        ("lora_unet_input_blocks_2_0_out_layers_3", "unet.down_blocks.0.resnets.1.conv2"),
        ("lora_unet_input_blocks_3_0_op", "unet.down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_output_blocks_2_2_conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", SDXL[-2]),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", SDXL[-1]),
        ("lora_te1_encoder_layers_0_self_attn_q_proj", SDXL[-2]),
    ],
)
def test_kohyas_flat_names_mean_one_module_of_an_sdxl(written: str, meant: str) -> None:
    assert Paths(formats.KOHYA, SDXL).of(written) == (meant,)


def test_comfys_text_encoders_are_those_of_the_pipeline() -> None:
    names = ("clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
             "clip_g.transformer.text_model.encoder.layers.0.mlp.fc1")  # fmt: skip
    paths = Paths(formats.COMFY, SDXL)
    assert [paths.of(f"text_encoders.{name}") for name in names] == [(SDXL[-2],), (SDXL[-1],)]


@pytest.mark.parametrize(
    "written", ["lora_unet_input_blocks_99_1_x", "lora_unet_nothing", "lora_unet_joint_blocks_0_x"]
)
def test_a_name_that_no_rule_translates_means_nothing(written: str) -> None:
    assert Paths(formats.KOHYA, SDXL).of(written) is None


@pytest.mark.parametrize(
    ("format_name", "written"),
    [
        ("bfl", "double_blocks.0.img_attn.qkv"),
        ("comfy", "diffusion_model.double_blocks.0.img_attn.qkv"),
        ("kohya", "lora_unet_double_blocks_0_img_attn_qkv"),
        ("xlabs", "double_blocks.0.processor.qkv_lora1"),
    ],
)
def test_the_fused_matrix_of_flux_is_three_modules_in_every_spelling(format_name: str, written: str) -> None:
    assert Paths(formats.named(format_name), FLUX).of(written) == tuple(FLUX[:3])


@pytest.mark.parametrize("second", ["text_encoder_2", "text_encoder_3"])
def test_kohyas_name_of_t5_means_it_wherever_the_pipeline_has_it(second: str) -> None:
    t5 = f"{second}.encoder.block.0.layer.0.SelfAttention.q"
    assert Paths(formats.KOHYA, [*FLUX, t5]).of("lora_te3_encoder_block_0_layer_0_SelfAttention_q") == (t5,)


def test_linear1_of_a_single_block_is_four_modules() -> None:
    assert Paths(formats.BFL, FLUX).of("single_blocks.1.linear1") == tuple(FLUX[4:])


def test_the_text_model_that_libraries_add_and_drop_does_not_count() -> None:
    bare = ["text_encoder.encoder.layers.0.self_attn.q_proj"]
    assert Paths(formats.DIFFUSERS, bare).of("text_encoder.text_model.encoder.layers.0.self_attn.q_proj") == tuple(bare)
    assert Paths(formats.DIFFUSERS, SDXL).of(bare[0]) == (SDXL[-2],)


def test_torchtune_and_gguf_name_the_modules_of_a_language_model_their_own_way() -> None:
    meant = ("model.layers.3.self_attn.o_proj",)
    assert Paths(formats.TORCHTUNE, []).of("layers.3.attn.output_proj") == meant
    assert Paths(formats.GGUF, []).of("blk.3.attn_output") == meant
    assert Paths(formats.GGUF, []).of("blk.3.ffn_gate_exps") is None


@pytest.mark.parametrize(("written", "meant"), [
    ("self_attn_q", "attn1.to_q"), ("cross_attn_o", "attn2.to_out.0"), ("cross_attn_k_img", "attn2.add_k_proj"),
    ("ffn_0", "ffn.net.0.proj"), ("ffn_2", "ffn.net.2"),
])  # fmt: skip
def test_flat_names_of_wans_own_code_mean_modules_of_diffusers(written: str, meant: str) -> None:
    modules = [
        f"transformer.blocks.3.{leaf}"
        for leaf in ("attn1.to_q", "attn2.to_out.0", "attn2.add_k_proj", "ffn.net.0.proj", "ffn.net.2")
    ]
    expected = (f"transformer.blocks.3.{meant}",)
    assert Paths(formats.KOHYA, modules).of(f"lora_unet_blocks_3_{written}") == expected
