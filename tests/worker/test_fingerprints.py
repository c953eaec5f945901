"""The identity of real bases: the tiny family and its matches, packings, and what can go wrong while reading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry.bases import BaseMatch
from registry.bases.identity import Identity, compare
from registry.errors import Invalid
from registry.worker.model import fingerprints, identify
from registry.worker.model.fingerprints import BLOCK, Sketch
from registry.worker.model.weights import Weights
from tests import fixtures, non_peft_files
from tests.worker import models

SINGLE = "model.safetensors"
EXPECTED = {
    "llama-a": BaseMatch.EXACT,
    "llama-a-renamed": BaseMatch.EXACT,
    "llama-a-sharded": BaseMatch.EXACT,
    "llama-a-bf16": BaseMatch.OTHER_DTYPE,
    "llama-a-fp16": BaseMatch.OTHER_DTYPE,
    "llama-a-finetuned": BaseMatch.DESCENDANT,
    "llama-a-vocab520": BaseMatch.DESCENDANT,
    "llama-tied": BaseMatch.DESCENDANT,  # the same seed: all but the head are llama-a's
    "llama-b-other-weights": BaseMatch.UNRELATED,
    "llama-wide": BaseMatch.UNRELATED,
    "llama-deep": BaseMatch.UNRELATED,
    "llama-no-gqa": BaseMatch.UNRELATED,
    "qwen2-bias": BaseMatch.UNRELATED,
    "gpt2-conv1d": BaseMatch.UNRELATED,
    "mixtral-moe": BaseMatch.UNRELATED,
    "phi3-fused": BaseMatch.UNRELATED,
}


@pytest.fixture(scope="module")
def identity_of() -> Callable[[str], Identity]:
    return lambda name: fingerprints.identify(Weights.of(fixtures.tiny_bases() / name))


@pytest.fixture(scope="module")
def llama_a(identity_of: Callable[[str], Identity]) -> Identity:
    return identity_of("llama-a")


@pytest.mark.parametrize("name", EXPECTED)
def test_each_of_the_tiny_family_has_its_match(
    identity_of: Callable[[str], Identity], llama_a: Identity, name: str
) -> None:
    similarity = compare(llama_a, identity_of(name))
    assert similarity.match is EXPECTED[name], similarity
    assert Weights.of(fixtures.tiny_bases() / name).exact() == identity_of(name).exact


def test_the_descendants_say_what_differs(identity_of: Callable[[str], Identity], llama_a: Identity) -> None:
    assert compare(llama_a, identity_of("llama-a-finetuned")).changed == ("down_proj",)
    assert compare(llama_a, identity_of("llama-a-vocab520")).changed == ("embed_tokens", "lm_head")


def test_a_base_that_bitsandbytes_packed_is_a_quantized_variant(
    identity_of: Callable[[str], Identity], llama_a: Identity
) -> None:
    if not (fixtures.tiny_bases() / "llama-a-nf4").is_dir():
        pytest.skip("bitsandbytes is not installed: the family has no NF4 base")
    assert compare(llama_a, identity_of("llama-a-nf4")).match is BaseMatch.QUANTIZED


# ------------------------------------------------------------------ packings, written by hand
def packed(source: Path, folder: Path, pack: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> Path:
    """The base with every projection packed; what `pack` returns stands in its place."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    method = "bitsandbytes" if pack is not scaled_floats else "fp8"
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": pack is nf4}
    (folder / "config.json").write_text(json.dumps(config))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / SINGLE).items():
        tensors |= pack(name, tensor) if name.endswith("_proj.weight") else {name: tensor}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


def nf4(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """As bitsandbytes writes 4 bits: blocks of 64, two values a byte, the first one in the high half."""
    levels = torch.linspace(-1, 1, 16)
    blocks = tensor.reshape(-1, 64)
    absmax = blocks.abs().amax(1)
    nearest = (blocks / absmax[:, None])[..., None].sub(levels).abs().argmin(-1).view(-1).to(torch.uint8)
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(tensor.shape)})
    return {
        name: (nearest[::2] << 4 | nearest[1::2]).unsqueeze(1),
        f"{name}.absmax": absmax,
        f"{name}.quant_map": levels,
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8),
    }


def eight_bits(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = tensor.abs().amax(1)
    path = name.removesuffix(".weight")
    return {name: (tensor / rows[:, None] * 127).round().to(torch.int8), f"{path}.SCB": rows}


def scaled_floats(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = tensor.abs().amax() / 448
    return {name: (tensor / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale.reshape(1)}


def test_norms_are_those_of_the_tensors_and_of_what_packed_ones_unpack_to(base_folder: Path, tmp_path: Path) -> None:
    plain = fingerprints.identify(Weights.of(base_folder))
    for name, tensor in load_file(base_folder / SINGLE).items():
        assert plain.marks[name].norm == pytest.approx(float(tensor.float().norm()), rel=1e-4)
    identity = fingerprints.identify(Weights.of(packed(base_folder, tmp_path / "packed", nf4)))
    for name, mark in plain.marks.items():
        assert identity.marks[name].norm == pytest.approx(mark.norm, rel=0.1 if name.endswith("_proj.weight") else 1e-6)


@pytest.mark.parametrize("pack", [nf4, eight_bits, scaled_floats])
def test_packed_weights_are_unpacked_for_the_sketch(
    base_folder: Path, tmp_path: Path, pack: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]
) -> None:
    plain = fingerprints.identify(Weights.of(base_folder))
    identity = fingerprints.identify(Weights.of(packed(base_folder, tmp_path / "packed", pack)))
    assert identity.marks.keys() == plain.marks.keys()
    projections = [mark for name, mark in identity.marks.items() if name.endswith("_proj.weight")]
    assert all(mark.packed and mark.sketch for mark in projections)
    similarity = compare(plain, identity)
    assert (similarity.match, similarity.compared) == (BaseMatch.QUANTIZED, 16)
    assert similarity.mean is not None
    assert similarity.mean > 0.99
    unrelated = models.base(tmp_path / "unrelated", seed=5)
    assert compare(fingerprints.identify(Weights.of(unrelated)), identity).match is BaseMatch.UNRELATED


def test_a_pipeline_is_known_by_its_models_that_take_adapters(tmp_path: Path) -> None:
    folder = non_peft_files.pipeline(tmp_path / "sd")
    identity = fingerprints.identify(Weights.of(folder))
    at = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert sorted(identity.marks) == [f"{at}.{leaf}.weight" for leaf in ("to_k", "to_out.0", "to_q", "to_v")]
    assert identity.exact == Weights.of(folder).exact()
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in weights.items():
        assert identity.marks[f"unet.{name}"].norm == pytest.approx(float(tensor.norm()), rel=1e-4)
    other = fingerprints.identify(Weights.of(non_peft_files.pipeline(tmp_path / "wide", width=64)))
    assert compare(identity, other).match is BaseMatch.UNRELATED


# ------------------------------------------------------------------ reading
def test_names_without_the_head_models_prefix_and_another_order_give_the_same_identity(
    base_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((base_folder / "config.json").read_bytes())
    tensors = load_file(base_folder / SINGLE)
    bare = {name.removeprefix("model."): tensors[name] for name in reversed(tensors)}
    save_file(bare, tmp_path / SINGLE, metadata={"made": "by somebody else"})
    identity = fingerprints.identify(Weights.of(tmp_path))
    assert identity.marks == fingerprints.identify(Weights.of(base_folder)).marks
    assert identity.exact == fingerprints.identify(Weights.of(base_folder)).exact


def test_a_sketch_does_not_depend_on_the_pieces_in_which_it_is_fed() -> None:
    values = torch.randn(2 * BLOCK + 100, generator=torch.Generator().manual_seed(3))
    whole, pieces = Sketch(), Sketch()
    whole.add(values)
    pieces.add(values[:BLOCK])
    pieces.add(values[BLOCK:])
    assert whole.sums() == pieces.sums()
    assert whole.elements == len(values)


def test_the_signs_are_the_same_on_every_machine() -> None:
    sketch = Sketch()
    sketch.add(torch.arange(1, 129, dtype=torch.float32))
    assert sketch.sums()[:8] == [66, 68, -64, 64, -64, -64, 64, 64]


def test_values_that_are_not_finite_do_not_spoil_a_sketch() -> None:
    sketch = Sketch()
    sketch.add(torch.tensor([float("nan"), float("inf"), 1.0, 2.0]))
    assert all(abs(value) <= 2 for value in sketch.sums())


def test_a_process_of_its_own_reads_the_same_and_tells_how_far_it_is(base_folder: Path) -> None:
    read: list[int] = []
    identity = identify.identify(base_folder, read.append)
    assert identity == fingerprints.identify(Weights.of(base_folder))
    assert sum(read) == Weights.of(base_folder).size_bytes


def test_reading_ends_when_its_progress_does(base_folder: Path) -> None:
    def stop(_bytes: int) -> None:
        raise identify.Stopped

    with pytest.raises(identify.Stopped):
        identify.identify(base_folder, stop)


def test_a_folder_without_readable_weights_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="have no identity: there is no folder"):
        identify.identify(tmp_path / "nothing")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    folder = models.base(tmp_path / "shrinking")
    weights = Weights.of(folder)
    with open(folder / SINGLE, "r+b") as file:
        file.truncate((folder / SINGLE).stat().st_size - 1)
    with pytest.raises(Invalid, match="ended inside the tensor"):
        weights.exact()
