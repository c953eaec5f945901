"""The grid of modules, bars and heat maps."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cli.console import heatmap, output
from cli.console.heatmap import HeatMap
from registry.adapters import module_grid

NORMS = {"model.layers.0.self_attn.q_proj": 3.0, "model.layers.0.mlp.up_proj": 4.0, "model.layers.10.mlp.up_proj": 1.0,
       "model.layers.2.mlp.up_proj": None, "lm_head": 2.0}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "row", "column"),
    [
        ("model.layers.3.self_attn.q_proj", "3", "q_proj"),
        ("transformer.h.11.attn.c_attn", "11", "c_attn"),
        ("blk.7.attn_q", "7", "attn_q"),
        ("layers.3.attn.output_proj", "3", "output_proj"),
        ("model.layers.3.mlp.experts.7.w1", "3", "w1"),
        ("model.embed_tokens", "other", "embed_tokens"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", "down 1", "attn1.to_out.0"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "mid", "attn2.to_k"),
        ("lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k", "up 1", "attn1_to_k"),
        ("lora_te1_text_model_encoder_layers_5_self_attn_q_proj", "text 1 5", "self_attn_q_proj"),
        ("text_encoder.text_model.encoder.layers.5.self_attn.q_proj", "text 5", "q_proj"),
        ("transformer.transformer_blocks.12.attn.to_q", "transformer 12", "attn.to_q"),
        ("transformer.single_transformer_blocks.37.attn.to_q", "single transformer 37", "attn.to_q"),
        ("lora_unet_double_blocks_18_img_attn_qkv", "double 18", "img_attn_qkv"),
        ("diffusion_model.blocks.4.self_attn.q", "4", "q"),
    ],
)
def test_every_naming_of_modules_has_a_block_and_a_kind(path: str, row: str, column: str) -> None:
    assert module_grid.cell_of(path)[-2:] == (row, column)


def test_layers_are_in_order_and_shared_cells_are_joined() -> None:
    result = module_grid.grid(NORMS)
    assert (result.rows, result.columns) == (("0", "10", "other"), ("lm_head", "q_proj", "up_proj"))
    experts = {f"model.layers.0.mlp.experts.{n}.w1": float(n) for n in (3, 4)}
    assert module_grid.grid(experts).cells == {("0", "w1"): 5.0}
    assert module_grid.grid(experts, module_grid.mean).cells == {("0", "w1"): 3.5}


def test_bars_are_proportional_and_the_largest_fills_the_line() -> None:
    sizes = module_grid.totals(module_grid.grid(NORMS), by="row")
    assert [size for _, size in sizes] == [math.hypot(3, 4), 1.0, 2.0]
    first, second, _ = map(output.unstyled, heatmap.bars(sizes, lambda _, size: f"{size:g}"))
    assert first == f"    0 {'█' * heatmap.BAR_WIDTH} 5"
    assert second == f"   10 {'█' * (heatmap.BAR_WIDTH // 5)}{' ' * (heatmap.BAR_WIDTH * 4 // 5)} 1"
    many = module_grid.grid({f"layers.{n}.x": 1.0 for n in range(100)})
    assert heatmap.bars(module_grid.totals(many, by="row"), lambda *_: "")[-1] == "and 52 more"


def test_an_svg_shows_every_number_and_escapes_every_text(tmp_path: Path) -> None:
    heatmap.write(tmp_path / "a.svg", HeatMap("<script>", "&", module_grid.grid({"a.layers.0.<b>": 1.0}), 0.0, 1.0))
    texts = [text.text or "" for text in ElementTree.parse(tmp_path / "a.svg").iter() if text.tag.endswith("text")]
    assert texts == ["<script>", "&; pale is 0, dark is 1", "<b>", "layer 0", "1"]


def test_cells_go_from_pale_to_dark(tmp_path: Path) -> None:
    cells = module_grid.grid({"layers.0.q": 0.0, "layers.1.q": 2.0})
    heatmap.write(tmp_path / "a.svg", HeatMap("norms", "", cells, 0.0, 2.0))
    shapes = [shape.attrib for shape in ElementTree.parse(tmp_path / "a.svg").iter() if shape.tag.endswith("rect")]
    assert [shape["fill"] for shape in shapes] == ["rgb(240,244,250)", "rgb(20,60,130)"]
