"""Image adapters under today's diffusers names, by diffusers' converters: all of it arrives, or it is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from registry import compat
from registry.adapters.read import NonPeftContents
from registry.client.local.adapter_folder import read_adapter
from registry.client.local.base_folder import base_spec_from
from registry.engines.version_facts import facts_of
from registry.errors import Invalid
from registry.evaluation.thresholds import Thresholds
from registry.merging import conversions
from registry.merging.conversions import Conversion, Converted
from registry.worker.conversions.request import ConversionRequest
from tests import fixtures

diffusers = pytest.importorskip("diffusers", reason="the images extra (diffusers) is not installed")
import torch
import transformers
from safetensors.torch import load_file, save_file

from registry.worker.conversions import to_diffusers
from registry.worker.model import image_updates
from registry.worker.model.image import Pipeline
from registry.worker.model.image_updates import ScaledPair
from registry.worker.smoke.image import ImageTest

pytestmark = pytest.mark.slow


def converted(source: Path, base: Path, out: Path) -> Converted:
    """One of them in a process of its own, as a worker does it; a process costs seconds of imports."""
    spec, _ = base_spec_from(base, base.name)
    conversion = Conversion(to="diffusers", into="acme/made")
    conversions.runs_on(read_adapter(source).contents, conversion, spec)
    order = ConversionRequest(conversion=conversion, source=str(source), out=str(out), base=spec)
    return order.run(threads=1) if source.name == "kohya-sd" else to_diffusers.convert(order)


def test_what_diffusers_can_convert_arrives_whole_and_what_it_loses_is_refused(tmp_path: Path) -> None:
    reports, refused = {}, {}
    for name, entry in fixtures.manifest(fixtures.images()).items():
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(fixtures.images() / entry["file"], folder)
        base = fixtures.image_bases() / f"{entry['family']}-tiny"
        if name in ("kohya-sd-stripped-metadata", "lycoris-lokr", "diffusers-peft-no-metadata"):
            continue  # the same names as another entry
        try:
            reports[name] = converted(folder, base, tmp_path / f"{name}-made")
        except Invalid as e:
            refused[name] = e.detail
            continue
        facts = facts_of(read_adapter(tmp_path / f"{name}-made").contents)
        assert (facts["format"], facts["scales"]) == ("diffusers", [1.0])
    assert set(reports) == {"diffusers-old", "kohya-sd", "flux-kohya", "flux-xlabs", "flux-comfy",
                            "qwen-image-diffsynth", "qwen-image-lightning"}  # fmt: skip
    assert all(report.error is not None and report.error < 1e-6 for report in reports.values())
    assert "it already has diffusers' names" in refused["qwen-image-diffusers"]
    assert "diffusers cannot convert it" in refused["flux-bfl-control"]
    assert "no converter for lycoris" in refused["lycoris-loha"]


def kohya_of_all(
    modules: Iterable[tuple[str, torch.nn.Module]], start: str, alphas: Sequence[float]
) -> dict[str, torch.Tensor]:
    """A kohya file with a pair of rank 4 for every matrix, and these alphas in turn."""
    tensors: dict[str, torch.Tensor] = {}
    for number, (path, module) in enumerate(modules):
        if not isinstance(module, torch.nn.Linear) or "time" in path or "embeddings" in path:
            continue
        name = start + path.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, module.in_features) * 0.1
        tensors[f"{name}.lora_up.weight"] = torch.randn(module.out_features, 4) * 0.1
        tensors[f"{name}.alpha"] = torch.tensor(alphas[number % len(alphas)])
    return tensors


def smoke_codes(base: Path, adapter: Path) -> list[str]:
    """The codes of the findings of a smoke test."""
    return [f.code for f in ImageTest(Pipeline.load(base, base.name), adapter, Thresholds()).run().findings]


def sizes_of_updates(tensors: dict[str, torch.Tensor], halves: tuple[str, str]) -> list[float]:
    """The norm of every update, alpha / rank · B · A."""
    down, up = halves
    sizes = []
    for name, a in tensors.items():
        if name.endswith(down):
            path = name.removesuffix(down)
            scale = float(tensors.get(f"{path}.alpha", torch.tensor(float(a.shape[0])))) / a.shape[0]
            sizes.append(scale * float((tensors[f"{path}{up}"].double() @ a.double()).norm()))
    return sorted(sizes)


@pytest.mark.parametrize("alphas", [(1.0,), (1.0, 4.0, 2.0, 16.0, 3.0)])
def test_alphas_of_every_pair_count_in_the_feed_forward_layers_too(alphas: tuple[float, ...], tmp_path: Path) -> None:
    torch.manual_seed(7)
    base = fixtures.image_bases() / "sd-tiny"
    unet = diffusers.UNet2DConditionModel.from_pretrained(base / "unet")
    text = transformers.CLIPTextModel.from_pretrained(base / "text_encoder")
    tensors = kohya_of_all(unet.named_modules(), "lora_unet_", alphas)
    tensors |= kohya_of_all(text.named_modules(), "lora_te_", alphas)
    assert any("ff_net_2" in name for name in tensors)
    assert any("mlp_fc1" in name for name in tensors)
    (tmp_path / "kohya").mkdir()
    save_file(tensors, tmp_path / "kohya" / "kohya.safetensors", metadata={"ss_network_module": "networks.lora"})
    report = converted(tmp_path / "kohya", base, tmp_path / "made")
    assert report.error is not None
    assert report.error < 1e-6
    converted_tensors = load_file(tmp_path / "made" / to_diffusers.FILE)
    sizes = sizes_of_updates(converted_tensors, (".lora_A.weight", ".lora_B.weight"))
    assert sizes == pytest.approx(sizes_of_updates(tensors, (".lora_down.weight", ".lora_up.weight")), rel=1e-5)
    assert smoke_codes(base, tmp_path / "made") == []
    assert smoke_codes(base, tmp_path / "kohya") == (["smoke.wrong_strength"] if len(alphas) > 1 else [])
    if len(alphas) > 1:  # diffusers 0.42 itself gives attention layers the default alpha where alphas differ
        return

    def computed(source: Path | None) -> torch.Tensor:
        parts = {"tokenizer": None, "scheduler": None, "safety_checker": None, "feature_extractor": None, "vae": None}
        models = {
            "unet": diffusers.UNet2DConditionModel.from_pretrained(base / "unet"),
            "text_encoder": transformers.CLIPTextModel.from_pretrained(base / "text_encoder"),
        }
        pipeline = diffusers.StableDiffusionPipeline(**models, **parts, requires_safety_checker=False)
        if source:
            pipeline.load_lora_weights(source)
        words = pipeline.text_encoder(torch.tensor([[1, 5, 9, 2]])).last_hidden_state
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        return pipeline.unet(noise, 10, words).sample

    with torch.no_grad():
        plain, kohya, ours = computed(None), computed(tmp_path / "kohya"), computed(tmp_path / "made")
    assert (kohya - plain).abs().max() > 1e-3
    assert torch.allclose(kohya, ours, atol=1e-5)


def test_every_module_of_onetrainers_flux_files_arrives(tmp_path: Path) -> None:
    base = fixtures.image_bases() / "flux-tiny"
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(base / "transformer")
    tensors = kohya_of_all(transformer.named_modules(), "lora_transformer_", (1.0, 8.0))
    assert any("ff_net_2" in name for name in tensors)
    (tmp_path / "made-by-onetrainer").mkdir()
    save_file(tensors, tmp_path / "made-by-onetrainer" / "lora.safetensors")
    report = converted(tmp_path / "made-by-onetrainer", base, tmp_path / "made")
    assert (report.error or 0) < 1e-6
    assert report.modules == len(tensors) // 3
    state = load_file(tmp_path / "made" / to_diffusers.FILE)
    diffusers.FluxPipeline.load_lora_into_transformer(state, None, transformer)
    loaded = {name for name, _ in transformer.named_parameters() if ".lora_" in name}
    assert {name.removeprefix("transformer.") for name in state} == {
        name.replace(".default_0.", ".") for name in loaded
    }


def test_kohyas_file_for_a_flux_of_another_width_is_refused_with_the_widths(tmp_path: Path) -> None:
    base = fixtures.image_bases() / "flux-tiny"
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(base / "transformer")
    width, name = transformer.inner_dim, "lora_unet_single_blocks_0_linear1"
    tensors = {f"{name}.lora_down.weight": torch.randn(4, width), f"{name}.lora_up.weight": torch.randn(7 * width, 4),
               f"{name}.alpha": torch.tensor(4.0)}  # fmt: skip
    (tmp_path / "kohya").mkdir()
    save_file(tensors, tmp_path / "kohya" / "kohya.safetensors", metadata={"ss_network_module": "networks.lora"})
    with pytest.raises(Invalid, match=f"cannot convert it: .* Flux models of width 3072, and flux-tiny has {width}"):
        converted(tmp_path / "kohya", base, tmp_path / "made")


def test_single_blocks_of_x_labs_arrive_and_unknown_names_are_not_called_absent(tmp_path: Path) -> None:
    base = fixtures.image_bases() / "flux-tiny"
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(base / "transformer")
    width, block = transformer.inner_dim, transformer.single_transformer_blocks[0]
    sizes = {"qkv": (3 * width, width), "proj": (width, block.proj_out.in_features)}
    tensors: dict[str, torch.Tensor] = {}
    for number in range(len(transformer.single_transformer_blocks)):
        for name, (rows, columns) in sizes.items():
            start = f"single_blocks.{number}.processor.{name}_lora"
            tensors |= {f"{start}.down.weight": torch.randn(4, columns) * 0.1,
                        f"{start}.up.weight": torch.randn(rows, 4) * 0.1}  # fmt: skip
    for name in ("qkv_lora1", "proj_lora1"):  # without these names the format is another one
        start, rows = f"double_blocks.0.processor.{name}", 3 * width if "qkv" in name else width
        tensors |= {f"{start}.down.weight": torch.randn(4, width) * 0.1,
                    f"{start}.up.weight": torch.randn(rows, 4) * 0.1}  # fmt: skip
    (tmp_path / "xlabs").mkdir()
    save_file(tensors, tmp_path / "xlabs" / "xlabs.safetensors")
    assert "smoke.tensors_not_loaded" not in smoke_codes(base, tmp_path / "xlabs")
    contents = read_adapter(tmp_path / "xlabs").contents
    assert isinstance(contents, NonPeftContents)
    assert "format.names_unmapped" not in [f.code for f in compat.check(contents, base_spec_from(base, base.name)[0])]
    modules = tuple(module.model_copy(update={"path": f"nowhere.{module.path}"}) for module in contents.file.modules)
    unknown = contents.file.model_copy(update={"modules": modules})
    paths = {"transformer.proj_out"}
    other = {"transformer.x": ScaledPair(torch.ones(1, 1), torch.ones(1, 1))}
    for updates, absent in ((other, 0), (dict[str, ScaledPair](), 2 * len(unknown.modules))):
        assert len(image_updates.compare(unknown, tensors.__getitem__, updates, paths).absent) == absent


# ------------------------------------------------------------------ SDXL
SGM_BLOCKS = (
    (re.compile(r"down_blocks\.(\d)\.attentions\.(\d)"), "input_blocks", 1),
    (re.compile(r"up_blocks\.(\d)\.attentions\.(\d)"), "output_blocks", 0),
)
"""In diffusers' U-Net, the original model's name for them, and the number of its first one."""


def sgm_name(path: str) -> str:
    """The original model's name of a module in an attention of diffusers' U-Net with two layers in each block."""
    for pattern, name, first in SGM_BLOCKS:
        if match := pattern.match(path):
            return f"{name}.{3 * int(match[1]) + int(match[2]) + first}.1{path[match.end() :]}"
    return path.replace("mid_block.attentions.0", "middle_block.1")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SDXL: a U-Net and two text encoders."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("sdxl") / "sdxl-tiny"
    diffusers.UNet2DConditionModel(
        sample_size=16, layers_per_block=2, block_out_channels=(32, 64), norm_num_groups=8, cross_attention_dim=64,
        attention_head_dim=8, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80, transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "projection_dim": 32, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    config = transformers.CLIPTextConfig(**sizes)
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder_2")
    return folder


def latents(base: Path, source: Path | None) -> torch.Tensor:
    """The latent image of SDXL's own pipeline after two steps, with the LoRA in this folder."""
    encoders = transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection
    first, two = (kind.from_pretrained(base / part) for kind, part in zip(encoders, ENCODERS, strict=True))
    pipeline = diffusers.StableDiffusionXLPipeline(
        unet=diffusers.UNet2DConditionModel.from_pretrained(base / "unet"), text_encoder=first, text_encoder_2=two,
        tokenizer=None, tokenizer_2=None, scheduler=diffusers.EulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8), add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    if source:
        pipeline.load_lora_weights(source, weight_name=next(source.glob("*.safetensors")).name)
    words = torch.tensor([[1, 5, 9, 2]])
    second = two(words)
    prompt = torch.cat([first(words).last_hidden_state, second.last_hidden_state], dim=-1)
    images = pipeline(
        prompt_embeds=prompt, pooled_prompt_embeds=second.text_embeds, num_inference_steps=2, guidance_scale=1.0,
        height=16, width=16, output_type="latent", generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    assert torch.isfinite(images).all()
    return images


ENCODERS = ("text_encoder", "text_encoder_2")


def kohya_of_sdxl(sdxl: Path, folder: Path, alphas: Sequence[float]) -> dict[str, torch.Tensor]:
    """A file of kohya for SDXL, with pairs in the U-Net and in both text encoders, as its tools name them."""
    torch.manual_seed(7)
    unet = diffusers.UNet2DConditionModel.from_pretrained(sdxl / "unet")
    attentions = [(sgm_name(path), module) for path, module in unet.named_modules() if ".attentions." in path]
    tensors = kohya_of_all(attentions, "lora_unet_", alphas)
    for number, kind in enumerate((transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection), start=1):
        layers = kind.from_pretrained(sdxl / ENCODERS[number - 1]).named_modules()
        names = [(f"text_model.{path.removeprefix('text_model.')}", m) for path, m in layers if ".layers." in path]
        assert names
        tensors |= kohya_of_all(names, f"lora_te{number}_", alphas)
    assert any("input_blocks_4_1_transformer_blocks_1_attn2" in name for name in tensors)
    folder.mkdir()
    save_file(tensors, folder / "kohya.safetensors", metadata={"ss_network_module": "networks.lora"})
    return tensors


def test_alphas_of_an_sdxl_file_count_after_its_conversion_only(sdxl: Path, tmp_path: Path) -> None:
    tensors = kohya_of_sdxl(sdxl, tmp_path / "kohya", (1.0, 4.0, 2.0))
    smoke = ImageTest(Pipeline.load(sdxl, "sdxl-tiny"), tmp_path / "kohya", Thresholds()).run()
    assert [(f.code, f.severity) for f in smoke.findings] == [("smoke.wrong_strength", "error")]
    finding = smoke.findings[0]
    alpha = float(tensors[f"{finding.location}.alpha"])
    assert float(finding.expected) == alpha / 4
    assert float(finding.actual) in {other / 4 for other in (1.0, 4.0, 2.0)} - {alpha / 4}
    report = converted(tmp_path / "kohya", sdxl, tmp_path / "made")
    assert report.modules == len(tensors) // 3
    assert smoke_codes(sdxl, tmp_path / "made") == []


def test_sdxl_renders_the_same_with_a_converted_kohya_adapter(sdxl: Path, tmp_path: Path) -> None:
    kohya_of_sdxl(sdxl, tmp_path / "kohya", (4.0,))
    assert smoke_codes(sdxl, tmp_path / "kohya") == []
    report = converted(tmp_path / "kohya", sdxl, tmp_path / "made")
    assert (report.error or 0) < 1e-6
    converted_tensors = load_file(tmp_path / "made" / to_diffusers.FILE)
    assert {name.partition(".")[0] for name in converted_tensors} == {"unet", *ENCODERS}
    unet = diffusers.UNet2DConditionModel.from_pretrained(sdxl / "unet")
    paths = {path for path, _ in unet.named_modules()}
    assert {
        name.split(".lora_")[0].removeprefix("unet.") for name in converted_tensors if name.startswith("unet.")
    } <= paths
    with torch.no_grad():
        plain, kohya, ours, again = (latents(sdxl, tmp_path / name if name else None)
                                     for name in ("", "kohya", "made", "made"))  # fmt: skip
    assert torch.equal(ours, again)
    assert (ours - plain).abs().max() > 1e-3
    assert torch.allclose(kohya, ours, atol=1e-5)
