"""What an adapter is, from its configuration and header. Faults: tests/bad_inputs/test_poisoned_adapters.py."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from registry.adapters.peft import LoraSpec
from registry.adapters.peft.config import AdapterConfig
from registry.adapters.peft.names import Names
from tests import effort, samples
from tests.domain.specs import lora_spec

BASE = samples.llama()
Q0 = "model.layers.0.self_attn.q_proj"


def test_a_module_has_its_sizes_rank_and_scale() -> None:
    spec = lora_spec(samples.lora(BASE, rank=8, alpha=16))
    module = next(m for m in spec.modules if m.path == "model.layers.0.self_attn.v_proj")
    assert (module.kind, module.rank, module.scale) == ("linear", 8, 2.0)
    assert (module.in_features, module.out_features) == (64, 32)
    assert (len(spec.modules), spec.rank, spec.dtypes) == (8, 8, ("F32",))
    assert spec.parameters == 4 * (8 * 64 + 64 * 8 + 8 * 64 + 32 * 8)
    assert spec.base_name == "tiny-llama"
    assert spec.is_plain
    assert spec.findings == ()


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    spec = lora_spec(samples.lora(BASE, rank=16, alpha=16, rslora=True))
    assert {m.scale for m in spec.modules} == {16 / math.sqrt(16)}


def test_patterns_give_rank_and_alpha_by_module() -> None:

    def narrow(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(4 if side == 8 else side for side in shape)

    files = samples.lora(
        BASE,
        config={"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"layers.0.self_attn.q_proj": 64}},
        change=lambda t: {
            name: ("F32", narrow(shape) if "v_proj" in name else shape, content)
            for name, (_, shape, content) in t.items()
        },
    )
    spec = lora_spec(files)
    scales = {m.path: (m.rank, m.scale) for m in spec.modules}
    assert scales[Q0] == (8, 8.0)
    assert scales["model.layers.1.self_attn.q_proj"] == (8, 2.0)
    assert scales["model.layers.0.self_attn.v_proj"] == (4, 4.0)
    assert spec.findings == ()


def test_an_absent_alpha_is_a_warning_and_pefts_default() -> None:
    spec = lora_spec(samples.lora(BASE, alpha=None))
    assert [(f.code, f.severity) for f in spec.findings] == [("lora.alpha_absent", "warning")]
    assert {m.scale for m in spec.modules} == {1.0}


def test_dora_magnitudes_belong_to_their_module() -> None:
    spec = lora_spec(samples.lora(BASE, dora=True))
    assert {m.magnitude_shape for m in spec.modules} == {(64,), (32,)}
    assert not spec.is_plain


def test_old_files_write_the_magnitude_with_weight_behind_it() -> None:
    renamed = samples.lora(
        BASE, dora=True, change=lambda t: {k + ".weight" if k.endswith("vector") else k: v for k, v in t.items()}
    )
    assert {m.magnitude_shape for m in lora_spec(renamed).modules} == {(64,), (32,)}


def test_saved_modules_and_trained_biases_are_full_tensors() -> None:
    spec = lora_spec(
        samples.lora(
            BASE,
            config={"modules_to_save": ["lm_head"], "bias": "all"},
            change=lambda t: {
                **t,
                "base_model.model.lm_head.weight": ("F32", (512, 64), None),
                f"base_model.model.{Q0}.base_layer.bias": ("F32", (64,), None),
            },
        )
    )
    assert {(p.path, p.name) for p in spec.full} == {("lm_head", "weight"), (Q0, "bias")}
    assert spec.findings == ()


def test_an_embedding_has_its_own_names_and_pefts_copy_beside_it() -> None:
    at = "base_model.model.model.embed_tokens"
    spec = lora_spec(
        samples.lora(
            BASE,
            targets=["q_proj", "embed_tokens"],
            change=lambda t: {
                **t,
                f"{at}.lora_embedding_A": ("F32", (8, 512), None),
                f"{at}.lora_embedding_B": ("F32", (64, 8), None),
                f"{at}.base_layer.weight": ("F32", (512, 64), None),
                f"{at}.base_layer.embed_norm.weight": ("F32", (64,), None),
                f"{at}.base_layer.eoi_embedding": ("F32", (64,), None),
            },
        )
    )
    module = next(m for m in spec.modules if m.kind == "embedding")
    assert (module.in_features, module.out_features) == (512, 64)
    names = sorted(f"{piece.path}.{piece.name}" for piece in spec.repeats)
    assert names == [f"model.embed_tokens.{name}" for name in ("embed_norm.weight", "eoi_embedding", "weight")]
    assert spec.findings == ()


@pytest.mark.parametrize("name", [
    "embed_tokens.base_layer.weight", "embed_tokens.embed_norm.weight", "embed_tokens.base_layer_norm.weight",
    "layers.0.self_attn.q_proj.base_layer.weight", "layers.0.self_attn.q_proj.base_layer.norm.weight",
])  # fmt: skip
def test_other_copies_of_base_tensors_are_refused(name: str) -> None:
    copy = {f"base_model.model.model.{name}": ("F32", (512, 64), None)}
    spec = lora_spec(samples.lora(BASE, targets=["q_proj"], change=lambda t: {**t, **copy}))
    assert {finding.code for finding in spec.findings} == {"compat.overwrites_base"}


@pytest.mark.parametrize(("key", "paths"), [
    ("embed_tokens", ["model.embed_tokens"]),
    ("tokens", ["model.embed_tokens", "model.position_tokens"]),  # PEFT compares the letters at the end of a path
])  # fmt: skip
def test_trained_tokens_are_rows_of_their_own(key: str, paths: list[str]) -> None:
    rows = {f"base_model.model.{path}.token_adapter.trainable_tokens_delta": ("F32", (2, 64), None) for path in paths}
    config = {"trainable_token_indices": {key: [5, 6]}}
    spec = lora_spec(samples.lora(BASE, config=config, change=lambda t: {**t, **rows}))
    assert [(p.path, p.shape) for p in spec.tokens] == [(path, (2, 64)) for path in paths]
    assert spec.findings == ()


def test_an_end_of_a_path_is_found_among_others_that_end_alike() -> None:
    names = {"embed_tokens": [5], "tokens": [5], "okens_x": [5], "zz": [5], "a.tokens": [5]}
    paths = ["model.position_tokens", "a.tokens", "tokens", "model.okens_x"]
    rows = {
        f"base_model.model.{path}.token_adapter.trainable_tokens_delta": ("F32", (1, 64), None)
        for path in (*paths, "model.kens", "model.toke")
    }
    config = {"trainable_token_indices": names}
    spec = lora_spec(samples.lora(BASE, config=config, change=lambda t: {**t, **rows}))
    assert {piece.path for piece in spec.tokens} == set(paths)
    assert [finding.actual.count("trainable_tokens_delta") for finding in spec.findings] == [2]


def test_names_of_trained_tokens_are_not_read_for_each_tensor() -> None:
    class Declared(dict[str, tuple[int, ...]]):
        def __iter__(self) -> Iterator[str]:
            yield from [*super().keys()]

    def read(count: int) -> None:
        declared = Declared((f"table{n}", (1,)) for n in range(count))
        names = Names(AdapterConfig(method="LORA").model_copy(update={"token_indices": declared}))
        for n in range(count):
            names.read(f"base_model.model.m{n}.x.token_adapter.trainable_tokens_delta")

    read(10)
    assert effort.lines(lambda: read(400)) < 2.5 * effort.lines(lambda: read(200))


def test_a_spec_survives_json() -> None:
    spec = lora_spec(samples.lora(BASE, dora=True, targets=samples.ALL_LINEAR))
    assert LoraSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64"])
def test_floating_point_types_are_taken(dtype: str) -> None:
    assert lora_spec(samples.lora(BASE, dtype=dtype)).dtypes == (dtype,)


def test_samples_are_equal_bytes_from_equal_arguments() -> None:
    assert samples.lora(BASE, seed=3) == samples.lora(BASE, seed=3) != samples.lora(BASE, seed=4)
