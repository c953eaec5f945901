"""A tiny random model of any architecture of the installed transformers, made from its configuration class.

Sizes are recognized by the names of fields, in nested configurations too; `OVERRIDES` has what those rules get wrong.
The names, shapes and fusions are those of the library's own classes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from registry.worker.model import tasks

PARAMETERS_LIMIT = 8_000_000
VOCABULARY = 128
SIZES: tuple[tuple[str, int], ...] = (
    (r"(type_vocab_size|num_labels|pruned_heads|num_channels|num_mel_bins)", 0),
    (r"(.*_)?vocab_size(_.*)?", VOCABULARY),
    (r"(.*_)?num_key_value_heads|multi_query_group_num|num_kv_heads|n_kv_heads", 2),
    (r".*(attention_heads|num_heads|n_head|n_heads|num_heads|swa_num_attention_heads)", 4),
    (r".*(hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|depth|attention_layers)", 2),
    (r"rotary_dim", 4), (r"qk_head_dim", 16),
    (r"(.*_)?(head_dim|attention_head_size|d_kv|kv_channels|qk_nope_head_dim|v_head_dim|head_size)", 8),
    (r".*(kv_lora_rank|q_lora_rank|o_lora_rank|lora_rank)", 8),
    (r".*(intermediate_size|ffn_dim|d_ff|ffn_hidden_size|inner_dim|mlp_dim|feed_forward_size|ffn_size)(_mlp)?", 48),
    (r"n_inner", 48),
    (r".*(num_experts_per_tok|moe_topk|top_k_experts|moe_top_k|num_experts_per_token|experts_top_k)", 2),
    (r".*(num_experts|n_routed_experts|num_local_experts|moe_num_experts|n_experts)", 4),
    (r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|model_dim|dim|emb_dim|word_embed_proj_dim|hidden_dim|embedding_size|"
     r"embedding_dim|embedding_hidden_size|out_hidden_size|projection_dim|output_dim|proj_dim|d_embed)", 32),
    (r"(.*_)?(max_position_embeddings|n_positions|max_target_positions|max_source_positions|n_ctx|seq_length)", 128),
    (r"(.*_)?(sliding_window|attention_window|local_attention|window_size)", 16),
    (r"image_size", 32), (r"patch_size", 8), (r"n_group|topk_group|num_nextn_predict_layers", 1),
)  # fmt: skip
"""Pattern of a field's whole name → its tiny size; 0 leaves the default. The first that matches holds."""

UNSET = {"head_dim": 8, "num_key_value_heads": 4}
"""Fields without a default that some classes need."""


def _sections(*sizes: int, **more: Any) -> dict[str, Any]:
    """Rotary embeddings whose dimensions are shared out to time, height and width."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sizes), **more}}


_SECTIONS = {"text_config": _sections(2, 1, 1)}
_BY_LAYER = {"rope_parameters": {"full_attention": _sections(2, 1, 1)["rope_parameters"]}}
_NEMOTRON_H = {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2}
_INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 4, "hc_lowrank": 8,
}  # fmt: skip
_CONVOLUTIONS = {"num_filters": 4, "depths": [1] * 7}
_SLIDING = {
    "num_key_value_heads": 4, "head_dim": 16, "index_head_dim": 16, "index_n_heads": 2, "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4, "swa_q_lora_rank": 8, "swa_kv_lora_rank": 8, "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8,
}  # fmt: skip

OVERRIDES: dict[str, dict[str, Any]] = {
    "qwen2_vl": _SECTIONS,
    "qwen2_5_vl": _SECTIONS,
    "paddleocr_vl": _SECTIONS,
    "glm4v": _SECTIONS,
    "glmga": _SECTIONS,
    "hunyuan_vl": _SECTIONS,
    "glm4v_moe": {"text_config": _sections(1, 1, 0, partial_rotary_factor=0.5)},
    "qwen2_5_omni_thinker": _SECTIONS | {"vision_start_token_id": 101},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 101},
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "bros": {"hidden_size": 128},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1},
    "esmc": {"vocab_size": VOCABULARY},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "neomme": {"head_dim": 16},
    "step3p7": {"text_config": {"sliding_window": 16}},
    "glm46v": _SECTIONS,
    "glm_ocr": _SECTIONS,
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ernie4_5_moe": {"moe_k": 2},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "nemotron_h": _NEMOTRON_H,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "mobilebert": {"embedding_size": 16, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48},
    "xmod": {"default_language": "en_XX"},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {"sliding_window": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8}},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "chameleon": {
        "vocabulary_map": {"<image>": 100},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_embeddings": 64},
    },
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "bailing_hybrid": {"n_group": 1, "topk_group": 1, "layer_types": ["linear_attention", "full_attention"]},
    "mistral4": {"head_dim": 16},
    "ernie4_5_vl_moe": {"text_config": _sections(1, 1, 2) | {"moe_k": 2}},
    "cohere_compass": {"text_config": _BY_LAYER},
    "cohere_compass_text": _BY_LAYER,
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}, "vision_config": {"image_size": [32, 32]}},
    "fun_asr_nano": {
        "adaptor_config": {"intermediate_size": 8}, "audio_config": {"num_timestamp_prediction_layers": 1},
    },
    "nemotron_h_omni": {"text_config": _NEMOTRON_H},
    "nemo_speechlm": {"text_config": _NEMOTRON_H},
    "apertus1p5": {
        "text_config": {"vocab_size": 256}, "image_token_offset": 128, "audio_token_offset": 192,
        "vision_config": {"codebook_size": 64, "base_channels": 32, "num_res_blocks": 1},
        "audio_config": {"codebook_size": 32, "num_filters": 4},
    },
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
        "vision_config": {"sam_config": {"downsample_channels": [32, 32], "global_attn_indexes": [1]}},
    },
    "unlimited_ocr": {"vision_config": {"sam_config": {"downsample_channels": [32, 32], "global_attn_indexes": [1]}}},
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16, "global_head_dim": 8},
    },
    "granite4_vision": {
        "vision_config": {"hidden_size": 64}, "downsample_rate": "1/2", "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [1],
    },
    "qwen4_exp": _INDEXER,
    "qwen4_exp_text": _INDEXER,
    "vibevoice": {"audio_config": _CONVOLUTIONS, "semantic_model_config": _CONVOLUTIONS},
    "vibevoice_asr": {
        "acoustic_tokenizer_encoder_config": _CONVOLUTIONS, "semantic_tokenizer_encoder_config": _CONVOLUTIONS,
    },
    "dots3_note_text": _SLIDING,
    "dots3_note": _SLIDING,
    "janus": {"vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}},
    "florence2": {
        "vision_config": {"depths": [1] * 4, "embed_dim": [8] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4},
    },
    "blip-2": {"image_token_index": 100},
    "instructblip": {"image_token_index": 100},
    "instructblipvideo": {"video_token_index": 100},
    "blt": {
        "encoder_hash_byte_group_vocab": 64, "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32}, "use_cache": False,
    },
    "zamba": {
        "num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4,
    },
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2},
    "kyutai_speech_to_text": {"codec_config": {"upsample_groups": 32, "num_filters": 4}},
}  # fmt: skip
"""Model type → fields of its configuration class."""

HEADS = (
    ("CAUSAL_LM", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    ("IMAGE_TEXT", modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    ("SEQ_2_SEQ_LM", modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    ("FEATURE_EXTRACTION", modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    ("SPEECH", modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES),
    ("SEQ_CLS", modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    ("TOKEN_CLS", modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    ("QUESTION_ANS", modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
)  # fmt: skip
EXTRA_HEADS = ("bert", "modernbert", "llama", "qwen2", "gpt2", "roberta", "t5", "deberta-v2")
"""Model types that get their classifiers too, not only the first head of `HEADS`."""


VARIANTS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"}, "default": {},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "bias": {"target_modules": "all-linear", "bias": "all"}, "saved-head": {"target_modules": "all-linear"},
    "embedding": {}, "tokens": {"target_modules": "all-linear"},
}  # fmt: skip
"""Name → fields of the LoRA configuration; the last three need the names of modules too."""
SCALES = {"cpmant/embedding": 0.01}
"""Of random numbers that leave a base able to do something; others take the default."""


def configuration(model: Any, variant: str) -> peft.LoraConfig:
    """The LoRA configuration of this variant. Errors say what the model lacks."""
    fields = dict(VARIANTS[variant])
    task = task_of(model)
    paths = {id(module): path for path, module in model.named_modules()}
    if variant == "saved-head":
        head = model.get_output_embeddings()
        linear = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        path = paths.get(id(head)) if head is not None else linear[-1]
        fields["modules_to_save"] = [str(path).rpartition(".")[2]]
    if variant in ("embedding", "tokens"):
        table = paths.get(id(model.get_input_embeddings()))
        if table is None:
            raise ValueError("its input embeddings are not one of its modules")
        leaf = table.rpartition(".")[2]
        if variant == "embedding":
            fields["target_modules"] = [leaf]
        else:
            fields["trainable_token_indices"] = {leaf: [5, 7]}
    if fields.get("target_modules") == "all-linear":  # what PEFT refuses to wrap, and what it saves whole for a task
        mamba = any(path.endswith("conv1d") for path in paths.values())
        heads = task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
        fields["exclude_modules"] = [
            *(("out_proj", "conv1d") * mamba),
            *(("score", "classifier", "qa_outputs") * heads),
        ]
    return peft.LoraConfig(r=4, task_type=task, **fields)


def task_of(model: Any) -> str | None:
    """The task of its adapters; None where PEFT's class for the task passes inputs on that the model does not take."""
    task = _task(type(model).__name__)
    takes = "inputs_embeds" in inspect.signature(model.forward).parameters
    return task if takes or task not in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else None


def _task(maker: str) -> str | None:
    if maker.endswith(("SequenceClassification", "TokenClassification", "QuestionAnswering")):
        return {"S": "SEQ_CLS", "T": "TOKEN_CLS", "Q": "QUESTION_ANS"}[re.split("For", maker)[-1][0]]
    if maker in SEQ_2_SEQ:
        return "SEQ_2_SEQ_LM"
    return None if maker.endswith("MaskedLM") else "CAUSAL_LM"


SEQ_2_SEQ = frozenset(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values())


def names() -> Iterator[tuple[str, str, str]]:
    """(id, model type, class) of every architecture with a text model. An id is the model type or the class."""
    types: set[str] = set()
    for kind, mapping in HEADS:
        for model_type, value in mapping.items():
            maker = value if isinstance(value, str) else value[0]
            if model_type not in types:
                types.add(model_type)
                yield model_type, model_type, maker
            elif kind in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS") and model_type in EXTRA_HEADS:
                yield maker, model_type, maker


def config_of(kind: Any, model_type: str) -> Any:
    """A tiny configuration for this class. Errors are transformers' own."""
    maker = kind.config_class or CONFIG_MAPPING[model_type]
    return maker(**_merge(_tiny(maker()), OVERRIDES.get(model_type, {})))


def _tiny(config: Any) -> dict[str, Any]:
    """The fields whose values change, and those of the configurations inside it."""
    fields = _shrink(config.to_dict())
    for name in getattr(config, "sub_configs", {}):
        value = getattr(config, name, None)
        if value is not None:
            stated = getattr(getattr(config, "sub_configs_defaults", {}).get(name), "init_kwargs", {})
            fields[name] = stated | _tiny(value) | {"model_type": value.model_type}
    return fields


def _shrink(written: dict[str, Any]) -> dict[str, Any]:
    """The fields whose values change, and nested ones that are not configurations of their own."""
    fields: dict[str, Any] = {}
    layers = next(
        (written[n] for n in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if n in written), None
    )
    for name, value in written.items():
        if value is None and name in UNSET:
            fields[name] = UNSET[name]
        elif type(value) is int:
            if re.fullmatch(r".*(token_id|token_index|_idx)", name):
                if value >= VOCABULARY:
                    fields[name] = VOCABULARY - 1 - sum(map(ord, name)) % 16
                continue
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), 0)
            if size == 2 and "k" in name and "head" in name and value == written.get("num_attention_heads"):
                size = 4  # as many as attention heads, in the real models too
            if size and value > size:
                fields[name] = size
        elif isinstance(value, list) and value and len(value) == layers:
            other = next((item for item in value if item != value[0]), value[0])
            fields[name] = [value[0], other]
        elif isinstance(value, dict) and "mrope_section" in value:
            half = 4 if value.get("partial_rotary_factor", 1.0) == 1.0 else 2
            fields[name] = value | {"mrope_section": [half // 2, half // 4 or 1, half // 4]}
        elif isinstance(value, list) and name.endswith("token_id"):
            fields[name] = value[0] if value[0] < VOCABULARY else 2
    return fields


def _merge(fields: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in more.items():
        merged[name] = (
            _merge(merged[name], value) if isinstance(value, dict) and isinstance(merged.get(name), dict) else value
        )
    return merged


def build(model_type: str, maker: str, folder: Path) -> Any:
    """Save a tiny random model of this class, and load it again. Errors are transformers' own."""
    kind = getattr(transformers, maker)
    config = config_of(kind, model_type)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > PARAMETERS_LIMIT:
        raise ValueError(f"{size} parameters are not tiny")
    if getattr(config, "pad_token_id", None) is None and re.search("SequenceClassification", maker):
        config.pad_token_id = 0
    torch.manual_seed(0)
    kind(config).eval().save_pretrained(folder)
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def inputs_of(model: Any) -> dict[str, Any]:
    """Inputs of the model's forward pass: text, a decoder's beginning, and what else the worker makes if it must."""
    ids = torch.tensor([[5, 7, 9, 11, 60, 23, 42, 90, 13, 33], [44, 7, 8, 3, 5, 19, 71, 6, 17, 29]])
    names = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        classifies = type(model).__name__.endswith("SequenceClassification")
        if classifies:  # it reads the state at the end of the text
            ids[:, -1] = model.config.eos_token_id
        inputs["decoder_input_ids"] = ids if classifies else ids[:, :4]
    makers = [(name, make) for name, make in tasks.INPUTS.items() if name in names]
    stated = {name: value for name, value in inputs.items() if name in names}
    choices = [makers[:number] for number in range(len(makers) + 1)] if "input_ids" in names else [[m] for m in makers]
    attempts = [inputs, *(stated | {name: make(model.config, ids) for name, make in choice} for choice in choices)]
    return next((attempt for attempt in attempts if runs(model, attempt)), inputs)


@torch.inference_mode()
def runs(model: Any, inputs: dict[str, Any]) -> bool:
    """Whether these inputs are enough."""
    try:
        model(**inputs)
    except Exception:
        return False
    return True
