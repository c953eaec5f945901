"""Bases from configuration and headers: modules, sizes, fingerprints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from registry import bases
from registry.adapters import safetensors
from registry.bases import BaseSpec
from registry.bases.fingerprints import DEPTH_LIMIT, template_text, tokenizer_fingerprint
from registry.digest import Digest
from registry.errors import Invalid
from tests import samples
from tests.domain.specs import base_spec

LLAMA = samples.llama()


def spec_of(shapes: Mapping[str, tuple[str, tuple[int, ...]]], **config: Any) -> BaseSpec:
    """The spec of a base with these tensors: name → (dtype, shape)."""
    header = safetensors.read_bytes(
        samples.safetensors({name: (dtype, shape, None) for name, (dtype, shape) in shapes.items()}), file="m"
    )
    fields = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "head_dim": 16,
              "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
              "num_hidden_layers": 1, **config}  # fmt: skip
    return bases.base_spec("made-up", fields, [header])


def test_a_llama_has_its_modules_and_sizes() -> None:
    spec = base_spec(LLAMA)
    assert (spec.architecture, spec.model_type, spec.hidden, spec.layers) == ("LlamaForCausalLM", "llama", 64, 4)
    assert (spec.heads, spec.kv_heads, spec.head_size, spec.vocab, spec.tied) == (4, 2, 16, 512, False)
    k_proj = spec.modules["model.layers.0.self_attn.k_proj"]
    assert (k_proj.kind, k_proj.in_features, k_proj.out_features, k_proj.bias) == ("linear", 64, 32, False)
    assert spec.modules["model.embed_tokens"].kind == "embedding"
    assert spec.modules["model.norm"].kind == "norm"
    assert spec.parameters == 213568
    assert spec.dtype == "F32"
    assert spec.names_known


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("transformer.x_embedder", "linear"), ("transformer.context_embedder", "linear"),
        ("electra.embeddings_project", "linear"), ("albert.encoder.embedding_hidden_mapping_in", "linear"),
        ("gpt_neox.embed_in", "embedding"), ("model.decoder.embed_positions", "embedding"),
        ("bert.embeddings.token_type_embeddings", "embedding"), ("transformer.wpe", "embedding"),
        ("text_encoder.embeddings.position_embedding", "embedding"), ("shared", "embedding"),
    ],
)  # fmt: skip
def test_a_name_with_embed_in_it_is_a_table_of_rows_only_where_a_library_has_one(path: str, kind: str) -> None:
    spec = spec_of({f"{path}.weight": ("F32", (64, 48))}, model_type="")
    assert (spec.modules[path].kind, spec.modules[path].in_features) == (kind, 64 if kind == "embedding" else 48)


def test_a_spec_survives_json_and_has_a_digest() -> None:
    spec = base_spec(LLAMA)
    assert BaseSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.fingerprint == spec.fingerprints.architecture


def test_a_tied_head_that_no_file_holds_is_a_module_all_the_same() -> None:
    spec = base_spec(samples.llama(tied=True))
    head = spec.modules["lm_head"]
    assert (spec.tied, head.in_features, head.out_features) == (True, 64, 512)
    assert spec.parameters == 213568 - 512 * 64


@pytest.mark.parametrize("prefix", [True, False])
def test_gpt2_matrices_are_transposed_and_the_prefix_may_be_missing(prefix: bool) -> None:
    spec = base_spec(samples.gpt2(prefix=prefix))
    module = spec.modules["transformer.h.0.attn.c_attn"]
    assert (module.kind, module.in_features, module.out_features, module.bias) == ("conv1d", 64, 192, True)
    assert spec.modules["lm_head"].out_features == 512
    assert spec.fingerprint == base_spec(samples.gpt2()).fingerprint


def test_experts_are_one_module_and_their_file_names_stay_beside_it() -> None:
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("F32", (512, 64))}
    for n in range(3):
        at = f"model.layers.0.block_sparse_moe.experts.{n}"
        shapes |= {f"{at}.w1.weight": ("F32", (96, 64)), f"{at}.w2.weight": ("F32", (64, 96)),
                   f"{at}.w3.weight": ("F32", (96, 64))}  # fmt: skip
    shapes["model.layers.0.block_sparse_moe.gate.weight"] = ("F32", (3, 64))
    spec = spec_of(shapes, architectures=["MixtralForCausalLM"], model_type="mixtral")
    fused = spec.modules["model.layers.0.mlp.experts"]
    assert (fused.kind, fused.in_features, fused.out_features, fused.count) == ("experts", 64, 96, 3)
    assert spec.modules["model.layers.0.block_sparse_moe.experts.*.w2"].in_features == 96
    assert spec.modules["model.layers.0.mlp.gate"].kind == "other"
    assert len(spec.modules) == 7


# ---------------------------------------------------------------------- packed bases
Q = "model.layers.0.self_attn.q_proj"


def test_nf4_shapes_come_from_the_configuration_and_are_unknown_without_it() -> None:
    packed = {
        f"{Q}.weight": ("U8", (2048, 1)),
        f"{Q}.weight.absmax": ("F32", (64,)),
        f"{Q}.weight.quant_state.bitsandbytes__nf4": ("U8", (77,)),
    }
    packing = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    module = spec_of(packed, quantization_config=packing).modules[Q]
    assert (module.in_features, module.out_features, module.is_known) == (64, 64, True)
    unknown = spec_of(packed, quantization_config=packing, num_attention_heads=None).modules[Q]
    assert (unknown.is_known, unknown.in_features) == (False, 0)
    lying = spec_of(packed, quantization_config=packing, head_dim=32).modules[Q]
    assert not lying.is_known


@pytest.mark.parametrize(
    ("method", "packed"),
    [
        ({"quant_method": "gptq", "bits": 4},
         {f"{Q}.qweight": ("I32", (8, 64)), f"{Q}.scales": ("F16", (1, 64)), f"{Q}.g_idx": ("I32", (64,))}),
        ({"quant_method": "awq", "bits": 4},
         {f"{Q}.qweight": ("I32", (64, 8)), f"{Q}.scales": ("F16", (1, 64)), f"{Q}.qzeros": ("I32", (1, 8))}),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
         {f"{Q}.weight_packed": ("I32", (64, 8)), f"{Q}.weight_scale": ("F16", (64, 1)),
          f"{Q}.weight_shape": ("I64", (2,))}),
        ({"quant_method": "fp8"}, {f"{Q}.weight": ("F8_E4M3", (64, 64)), f"{Q}.weight_scale_inv": ("F32", (1, 1))}),
        ({"quant_method": "bitsandbytes"}, {f"{Q}.weight": ("I8", (64, 64)), f"{Q}.SCB": ("F32", (64,))}),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"},
         {f"{Q}.weight": ("U8", (64, 32)), f"{Q}.weight_scale": ("F8_E4M3", (64, 4)),
          f"{Q}.weight_scale_2": ("F32", ()), f"{Q}.input_scale": ("F32", ())}),
        ({"quant_method": "bitnet"}, {f"{Q}.weight": ("U8", (16, 64)), f"{Q}.weight_scale": ("BF16", (1,))}),
        ({"group_size": 64, "bits": 4},
         {f"{Q}.weight": ("U32", (64, 8)), f"{Q}.scales": ("BF16", (64, 1)), f"{Q}.biases": ("BF16", (64, 1))}),
    ],
)  # fmt: skip
def test_a_packed_matrix_counts_as_the_matrix_it_stands_for(
    method: dict[str, Any], packed: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    plain = spec_of({f"{Q}.weight": ("F32", (64, 64))})
    spec = spec_of(packed, quantization_config=method)
    module = spec.modules[Q]
    assert (module.in_features, module.out_features, module.is_known) == (64, 64, True)
    assert spec.quantization == method.get("quant_method", "mlx")
    assert spec.fingerprint == plain.fingerprint
    assert spec.parameters == plain.parameters


@pytest.mark.parametrize(
    ("method", "name", "dtype", "shape"),
    [
        ("aqlm", "codes", "I8", (64, 8, 1)), ("vptq", "indices", "I32", (1, 8, 64)), ("hqq", "W_q", "U8", (32, 64)),
        ("spqr", "dense_weights", "I64", (16, 16)), ("quanto", "weight._data", "I8", (64, 64)),
        ("torchao", "_weight_qdata", "U8", (64, 32)), ("fp_quant", "qweight", "U8", (64, 32)),
        ("modelopt", "weight", "U8", (48, 32)), ("modelopt", "weight", "U8", (64, 0)),
        ("bitnet", "weight", "U8", (0, 64)),
    ],
)  # fmt: skip
def test_a_matrix_that_is_packed_in_another_way_is_a_module_of_unknown_size(
    method: str, name: str, dtype: str, shape: tuple[int, ...]
) -> None:
    spec = spec_of({f"{Q}.{name}": (dtype, shape)}, quantization_config={"quant_method": method})
    assert not spec.modules[Q].is_known


def test_a_packed_token_embedding_leaves_the_vocabulary_to_the_configuration() -> None:
    packing = {"group_size": 64, "bits": 6}
    spec = spec_of({"model.embed_tokens.weight": ("U32", (512, 12))}, quantization_config=packing)
    assert (spec.vocab, spec.modules["lm_head"].out_features, spec.modules["lm_head"].in_features) == (512, 512, 64)


# ---------------------------------------------------------------------- fingerprints
def test_names_shards_types_and_values_do_not_change_the_architecture() -> None:
    first = base_spec(LLAMA).fingerprint
    for other in (samples.llama("other"), samples.llama(shards=3), samples.llama(dtype="BF16"), samples.llama(seed=9)):
        assert base_spec(other).fingerprint == first


@pytest.mark.parametrize(
    "change", [{"hidden": 96}, {"layers": 6}, {"kv_heads": 4}, {"tied": True}, {"vocab": 520}, {"intermediate": 96}]
)
def test_every_size_changes_the_architecture(change: dict[str, Any]) -> None:
    assert base_spec(samples.llama(**change)).fingerprint != base_spec(LLAMA).fingerprint


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda c: {**c, "transformers_version": "4.0.0", "_name_or_path": "x", "use_cache": False}, True),
        (lambda c: {k: v for k, v in c.items() if k != "rope_parameters"} | {"rope_theta": 10000.0}, True),
        (lambda c: {**c, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, False),
        (lambda c: {**c, "hidden_act": "gelu"}, False),
        (lambda c: {**c, "rms_norm_eps": 1e-5}, False),
        (lambda c: {**c, "sliding_window": 128}, False),
    ],
)
def test_mathematics_changes_the_architecture_and_housekeeping_does_not(
    change: Callable[[dict[str, Any]], dict[str, Any]], same: bool
) -> None:
    header = safetensors.read_bytes(LLAMA.files["model.safetensors"], file="m")
    changed = bases.base_spec("x", change(LLAMA.config), [header])
    assert (changed.fingerprint == base_spec(LLAMA).fingerprint) is same


def _word_pieces(pre: dict[str, Any], post: dict[str, Any] | None, **model: Any) -> dict[str, Any]:
    """A tokenizer.json of byte pairs as libraries of 2023 wrote it."""
    vocabulary = {word: number for number, word in enumerate(("a", "b", "ab", "split"))}
    pairs = {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocabulary, "merges": ["a b"], **model}
    return {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre, "post_processor": post, "decoder": pre,
            "model": pairs}  # fmt: skip


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
ALONE: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {},
}
START = {**ALONE, "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, *ALONE["single"]],
         "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}}}  # fmt: skip
WORDS = {"type": "Metaspace", "replacement": "_", "add_prefix_space": True}
REWRITTEN = {
    "used": ({"padding": {"strategy": "BatchLongest"}, "truncation": {"max_length": 8}}, {}),
    "defaults": ({"pre_tokenizer": {**BYTES, "use_regex": True}, "normalizer": None},
                 {"byte_fallback": False, "ignore_merges": False, "fuse_unk": False, "end_of_word_suffix": ""}),
    "pairs": ({}, {"merges": [["a", "b"]]}),
    "decoder": ({"decoder": {**BYTES, "add_prefix_space": True}}, {}),
    "template": ({"post_processor": ALONE}, {}),
    "offsets": ({"post_processor": BYTES}, {}),
    "both": ({"post_processor": {"type": "Sequence", "processors": [BYTES, ALONE]}}, {}),
}  # fmt: skip
"""What loading and saving with transformers 5 and tokenizers 0.23 does to a file: fields of the file, of its model."""
OTHER_TOKENS = {
    "start": ({"post_processor": START}, {}),
    "twice": ({"post_processor": {**ALONE, "single": ALONE["single"] * 2}}, {}),
    "spaces": ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, {}),
    "no regex": ({"pre_tokenizer": {**BYTES, "use_regex": False}}, {}),
    "normalizer": ({"normalizer": {"type": "Lowercase"}}, {}),
    "added": ({"added_tokens": [{"id": 4, "content": "c"}]}, {}),
    "merges": ({}, {"merges": []}),
    "vocabulary": ({}, {"vocab": {"a": 0, "b": 1, "ab": 2}}),
    "fallback": ({}, {"byte_fallback": True}),
}


def _fingerprint(tokenizer: dict[str, Any]) -> Digest:
    return tokenizer_fingerprint(json.dumps(tokenizer, indent=2).encode())


@pytest.mark.parametrize(("fields", "model"), REWRITTEN.values(), ids=REWRITTEN)
def test_a_tokenizer_saved_again_has_the_same_fingerprint(fields: dict[str, Any], model: dict[str, Any]) -> None:
    assert _fingerprint(_word_pieces(BYTES, None, **model) | fields) == _fingerprint(_word_pieces(BYTES, None))


@pytest.mark.parametrize(("fields", "model"), OTHER_TOKENS.values(), ids=OTHER_TOKENS)
def test_a_tokenizer_of_other_tokens_has_another_fingerprint(fields: dict[str, Any], model: dict[str, Any]) -> None:
    assert _fingerprint(_word_pieces(BYTES, None, **model) | fields) != _fingerprint(_word_pieces(BYTES, None))


def test_both_ways_to_write_the_spaces_of_metaspace_have_one_fingerprint() -> None:
    newer = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    assert _fingerprint(_word_pieces(WORDS, None)) == _fingerprint(_word_pieces(newer, None))
    never = WORDS | {"add_prefix_space": False}
    assert _fingerprint(_word_pieces(never, None)) == _fingerprint(
        _word_pieces(newer | {"prepend_scheme": "never"}, None)
    )
    assert _fingerprint(_word_pieces(never, None)) != _fingerprint(_word_pieces(WORDS, None))


@pytest.mark.security
@pytest.mark.parametrize("levels", [DEPTH_LIMIT + 1, 900, 100_000])
def test_a_tokenizer_of_many_levels_is_invalid(levels: int) -> None:
    tokenizer_fingerprint(nested(DEPTH_LIMIT))
    with pytest.raises(Invalid, match=r"tokenizer\.json"):
        tokenizer_fingerprint(nested(levels))


def nested(levels: int) -> bytes:
    return b'{"normalizer":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_a_template_is_the_same_wherever_it_is_stored() -> None:
    stored = json.dumps({"chat_template": "{{ x }}\r\n"}).encode()
    named = json.dumps({"chat_template": [{"name": "default", "template": "{{ x }}"}]}).encode()
    assert template_text("{{ x }}\n", None) == template_text(None, stored) == template_text(None, named) == "{{ x }}"
    assert template_text(None, b"not json") == ""


# ---------------------------------------------------------------------------- refused
def test_impossible_sizes_and_doubled_tensors_are_refused() -> None:
    header = safetensors.read_bytes(LLAMA.files["model.safetensors"], file="m")
    for config, headers in (
        ({**LLAMA.config, "hidden_size": -1}, [header]),
        ({**LLAMA.config, "hidden_size": "64"}, [header]),
        ({**LLAMA.config, "num_hidden_layers": True}, [header]),
        (LLAMA.config, [header, header]),
        (LLAMA.config, []),
    ):
        with pytest.raises(Invalid) as caught:
            bases.base_spec("x", config, headers)
        assert caught.value.code == "BASE_INVALID"


@pytest.mark.parametrize(
    "path", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", ".x.safetensors"]
)
def test_an_index_names_weight_files_beside_it_and_nothing_else(path: str) -> None:
    with pytest.raises(Invalid):
        bases.shards(json.dumps({"weight_map": {"a": path}}).encode())


def test_an_index_is_read() -> None:
    index = samples.llama(shards=2).files["model.safetensors.index.json"]
    assert bases.shards(index) == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for broken in (b"", b"[]", b'{"weight_map": []}', b"{}"):
        with pytest.raises(Invalid):
            bases.shards(broken)


def test_a_base_that_needs_code_of_its_own_is_marked() -> None:
    assert spec_of({"a.weight": ("F32", (4, 4))}, auto_map={"AutoModel": "x.Y"}).needs_code
    assert not base_spec(LLAMA).needs_code


def test_the_layers_of_each_part_are_read_and_the_most_count() -> None:
    """LXMERT writes the layers of its encoders for the text, for the image and for both as one object."""
    parts = {"vision": 5, "cross_encoder": 5, "language": 9}
    assert spec_of({"a.weight": ("F32", (4, 4))}, num_hidden_layers=parts).layers == 9


def test_a_size_for_each_layer_is_read_and_the_largest_counts() -> None:
    assert spec_of({"a.weight": ("F32", (4, 4))}, intermediate_size=[128, 256]).intermediate == 256
    for sizes in ([], [0, 4], [4, "8"], [[4]]):
        with pytest.raises(Invalid, match="intermediate_size"):
            spec_of({"a.weight": ("F32", (4, 4))}, intermediate_size=sizes)


def test_a_model_without_a_size_of_heads_writes_zero() -> None:
    spec = spec_of({"a.weight": ("F32", (4, 4))}, head_dim=0)
    assert spec.head_size == spec.hidden // spec.heads


@pytest.mark.parametrize("part", ["text_config", "llm_config", "language_config", "thinker_config"])
def test_sizes_are_those_of_the_language_model_inside(part: str) -> None:
    inner = {part: {"hidden_size": 32, "num_hidden_layers": 7, "architectures": ["Qwen2ForCausalLM"]}}
    for fields in (inner, {"thinker_config": inner}):
        spec = spec_of({"a.weight": ("F32", (4, 4))}, **fields)
        assert (spec.architecture, spec.text_architecture) == ("LlamaForCausalLM", "Qwen2ForCausalLM")
        assert (spec.hidden, spec.layers, spec.heads, spec.names_known) == (32, 7, 4, False)


def test_a_tied_head_has_the_bias_that_its_file_holds() -> None:
    tensors = {"transformer.w.weight": ("F32", (512, 16)), "lm_head.bias": ("F32", (512,))}
    spec = spec_of(tensors, architectures=["CTRLLMHeadModel"], model_type="ctrl")
    assert (spec.tied, spec.modules["lm_head"].bias) == (True, True)
    assert not base_spec(LLAMA).modules["lm_head"].bias


def test_a_tied_head_is_as_wide_as_the_embedding() -> None:
    projected = {"model.decoder.embed_tokens.weight": ("F32", (512, 16))}
    spec = spec_of(projected, architectures=["OPTForCausalLM"], model_type="opt", word_embed_proj_dim=16)
    head = spec.modules["lm_head"]
    assert (spec.tied, head.in_features, head.out_features) == (True, 16, 512)


def test_the_head_of_gpt_neox_has_the_name_that_the_library_gives_it() -> None:
    tensors = {"gpt_neox.embed_in.weight": ("F32", (512, 64)), "embed_out.weight": ("F32", (512, 64))}
    spec = spec_of(tensors, architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox")
    assert {path: module.kind for path, module in spec.modules.items()} == {
        "gpt_neox.embed_in": "embedding", "lm_head": "linear",
    }  # fmt: skip
    assert not spec.tied
