"""From the tensors of a base's files to the modules of the model that a library makes of them.

Shapes are logical: packed weights count as the matrix they stand for; where nothing tells, sizes are 0 and `is_known`
is false. `in_features` and `out_features` mean the same for every kind, also for a GPT-2 Conv1D, stored as [in, out].
Paths are those of the Python model (transformers 5): a missing `transformer.` is added, and
`block_sparse_moe.experts.0.w1` … become one `mlp.experts`; the file's own expert names stay beside it with `*`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from registry.adapters.safetensors import TensorInfo
from registry.model import FrozenModel

Kind = Literal["linear", "conv1d", "embedding", "norm", "conv", "experts", "parameter", "other"]
Shape = tuple[int, ...]


class ModuleShape(FrozenModel):
    """One module. Sizes count features; an embedding has in = rows (vocabulary) and out = width.

    For `experts` in = hidden and out = intermediate size of one of `count` experts. `bias`: it has one.
    `is_known` false: header and configuration do not say the sizes.
    Of a convolution, in = channels of one of its `groups`, whose number no header says (0), and `kernel` the sizes
    behind the channels.
    """

    kind: Kind
    """Kind of layer."""
    in_features: int = 0
    """Inputs; of an embedding, its rows; of experts, the hidden size. 0 if unknown."""
    out_features: int = 0
    """Outputs; of an embedding, its width; of experts, the size of one. 0 if unknown."""
    bias: bool = False
    """Whether it has a bias."""
    dtype: str = ""
    """Number format, as safetensors writes it: `F32`, `BF16` …"""
    count: int = 1
    """Number of experts; 1 for other kinds."""
    is_known: bool = True
    """False if header and configuration do not say the sizes."""
    kernel: tuple[int, ...] = ()
    """Of a convolution, the sizes behind the channels."""
    groups: int = 0
    """Of a convolution, how many groups its channels are in; 0 if unknown."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the configuration tells about sizes (0 where it is silent) and packing."""

    model_type: str
    is_head_model: bool
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    quantization: str
    bits: int
    is_image: bool = False
    """Of diffusers, whose experts are modules of their own, as the files have them (HiDream)."""


@dataclass(frozen=True, slots=True)
class LogicalTensor:
    """One tensor of the base as the model sees it. `shape` is empty if it is unknown."""

    name: str
    shape: Shape
    dtype: str
    elements: int


PREFIXES = {
    "gpt2": "transformer", "gptj": "transformer", "gpt_neo": "transformer", "bloom": "transformer",
    "falcon": "transformer", "gpt_bigcode": "transformer", "codegen": "transformer", "mpt": "transformer",
    "gpt_neox": "gpt_neox", "opt": "model", "llama": "model", "mistral": "model", "qwen2": "model", "qwen3": "model",
    "gemma": "model", "gemma2": "model", "phi": "model", "phi3": "model",
}  # fmt: skip
"""Model type → what a head model puts before the names of its body; files saved from the bare body lack it."""

_MORE_NAMES = """
    gemma3_text olmo olmo2 olmo3 granite starcoder2 stablelm cohere cohere2 smollm3 mixtral qwen2_moe qwen3_moe
    deepseek_v2 deepseek_v3 nemotron ministral exaone4 glm glm4 helium
"""
KNOWN_NAMES = frozenset(PREFIXES) | frozenset(_MORE_NAMES.split())
"""Model types whose Python modules are named as their files (after the rules below). For others, names are assumed."""

HEAD, OLD_HEAD = "lm_head", "embed_out"
"""The output embedding, and how transformers 4 called that of GPT-NeoX: files still do."""
_HEADS = (HEAD, "score", "classifier", "qa_outputs")
_CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_LEAVES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_EMBEDDING_LEAVES = frozenset({"wte", "wpe", "shared", "word_embeddings", "embed_in", "tokens_embed"})
_EMBEDDING_NAMES = """
    addition_t_embedding additional_embedding audio_embeddings char_position_embeddings
    class_embedding cls_embed code_embedding codec_embed codec_embedding col_position_embeddings column_embedder
    column_embeddings cond_type_embed controlnet_mode_embedder denoising_class_embed dist_bin_pairwise_embed
    distance_embedding down_embed embed embed_audio_tokens embed_char embed_global embed_image_indicator
    embed_positions embed_speaker embed_text_tokens embed_timestep embed_tokens embed_tokens_per_layer embedding
    embedding_table embeddings encoder_hash_tok_embedding entity_embeddings fps_embedding generation_embeddings
    h_position_embeddings input_embedding input_embeds_layer label_embed label_embeddings lang_embeddings
    language_embedding language_id_embedding level_embed ngram_embedding ngram_embeddings no_mask_embed
    not_a_point_embed num_speakers_embed point_embed pos_embed pos_embedding position_embedding
    position_embedding_table position_embeddings position_embeds_layer positions_embed prior_token_embedding
    prompt_embedding pronunciation_embed queries_embedder query_embed query_position_embeddings
    query_refpoint_embeddings reference_point_embed rel_attn_embed rel_embeddings relative_attention_bias row_embedder
    row_embeddings row_position_embeddings segment_embedding shape_embed speaker_embedding speaker_id_embedding
    style_embedder task_type_embeddings text_embed_tokens text_position_embedding text_token_embedding tgt_embed
    tile_embedding tok_embeddings token_embedding token_type_embeddings unit_embedding up_embed value_embeddings
    visual_embeddings_table visual_position_embeddings visual_token_type_embeddings w_position_embeddings
    weight_embedding word_embedding x_position_embeddings y_position_embeddings
"""
_EMBEDDINGS = _EMBEDDING_LEAVES | frozenset(_EMBEDDING_NAMES.split())
"""What transformers 5 and diffusers 0.42 call a table of rows (`nn.Embedding`).

Other names with "embed" in them, such as Flux's `x_embedder` and ELECTRA's `embeddings_project`, are linear.
"""
_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
_EXPERT = re.compile(r"(.+)\.experts\.(\d{1,6})\.(.+)\Z")
_SIDE = re.compile(
    r"\.(absmax|nested_absmax|quant_map|nested_quant_map|quant_state\..+|SCB|weight_format|scales|qzeros|g_idx"
    r"|weight_scale(_2|_inv)?|biases|weight_zero_point|weight_shape|weight_g_idx|weight_global_scale|input_scale"
    r"|input_global_scale|activation_scale|k_scale|v_scale)\Z|_scales\Z"
)
_PACKED_DTYPES = frozenset({"U8", "I16", "I32", "U32"})
"""Of matrices with several numbers in each integer: bitsandbytes, ModelOpt's NVFP4, BitNet, HIGGS, MLX."""
_UNREADABLE = frozenset({"codes", "indices", "W_q", "dense_weights", "_data", "_weight_qdata"})
"""What AQLM, VPTQ, HQQ, SpQR, Quanto and TorchAO store for a matrix. Its sizes are not those of the matrix."""
_GATES, _DOWNS = ("w1", "w3", "gate_proj", "up_proj"), ("w2", "down_proj")


def logical(tensors: Iterable[TensorInfo], facts: Facts) -> list[LogicalTensor]:
    """The tensors with their logical names and shapes, without the side tensors of quantization."""
    weights = [t for t in tensors if not _SIDE.search(t.name)]
    prefix = _missing_prefix([t.name for t in weights], facts)
    return [_unpacked(t, _name(t.name, prefix), facts) for t in weights]


def _name(name: str, prefix: str) -> str:
    if name.startswith(OLD_HEAD):
        return f"{HEAD}{name.removeprefix(OLD_HEAD)}"
    return name if name.startswith(_HEADS) else f"{prefix}{name}"


def side_names(tensors: Iterable[TensorInfo], facts: Facts) -> dict[str, str]:
    """File name → the model's name of the side tensors of quantization (`absmax`, `scales` …)."""
    names = [t.name for t in tensors]
    prefix = _missing_prefix([name for name in names if not _SIDE.search(name)], facts)
    return {name: _name(name, prefix) for name in names if _SIDE.search(name)}


def modules(tensors: Iterable[LogicalTensor], facts: Facts) -> dict[str, ModuleShape]:
    """Path → module, in the order of the names; a tied `lm_head`, absent from every file, is added."""
    weights: dict[str, LogicalTensor] = {}
    biases: set[str] = set()
    single: dict[str, ModuleShape] = {}
    for tensor in sorted(tensors, key=lambda t: t.name):
        path, _, leaf = tensor.name.rpartition(".")
        if leaf == "weight":
            weights[path] = tensor
        elif leaf == "bias":
            biases.add(path)
        elif len(tensor.shape) == 3 or is_expert_bias(tensor.name, tensor.shape):  # a fused block: [experts, a, b]
            count, rows, columns = (1, *tensor.shape)[-3:]
            single[tensor.name] = ModuleShape(
                kind="parameter", in_features=columns, out_features=rows, count=count, dtype=tensor.dtype
            )
    by_path = {path: _module(path, t, path in biases, facts) for path, t in weights.items()} | single
    if facts.is_head_model and not any(path.startswith(_HEADS) for path in by_path):
        tables = (m for path, m in by_path.items() if m.kind == "embedding" and m.is_known and is_token_table(path))
        rows, width = max(((m.in_features, m.out_features) for m in tables), default=(facts.vocab, facts.hidden))
        by_path[HEAD] = ModuleShape(kind="linear", in_features=width, out_features=rows, bias=HEAD in biases)
    return by_path if facts.is_image else _with_experts(by_path)


def is_expert_bias(name: str, shape: Sequence[int]) -> bool:
    """Whether this is one matrix with the biases of all experts of a block, as GPT-OSS has them: [experts, out].

    PEFT changes it as it does the matrix of a linear module: peft/tuners/lora/layer.py, `ParamWrapper`.
    """
    return len(shape) == 2 and name.rpartition(".")[0].endswith(".experts") and name.endswith("_bias")


def is_token_table(path: str) -> bool:
    """Whether the module at this path holds a row for each token."""
    return path.rpartition(".")[2] in (_EMBEDDING_LEAVES - {"wpe"}) | {"embed_tokens"}


def _missing_prefix(names: list[str], facts: Facts) -> str:
    prefix = PREFIXES.get(facts.model_type, "")
    if not prefix or not facts.is_head_model or any(n.startswith(f"{prefix}.") for n in names):
        return ""
    return f"{prefix}."


def _module(path: str, tensor: LogicalTensor, bias: bool, facts: Facts) -> ModuleShape:
    leaf = path.rpartition(".")[2]
    shape, kind = tensor.shape, _kind(leaf, tensor, facts)
    if not shape:
        return ModuleShape(kind=kind, bias=bias, dtype=tensor.dtype, is_known=False)
    if kind in ("conv1d", "embedding"):
        rows, columns = shape[0], shape[1]
        return ModuleShape(kind=kind, in_features=rows, out_features=columns, bias=bias, dtype=tensor.dtype)
    columns = shape[1] if len(shape) > 1 else shape[0]
    return ModuleShape(
        kind=kind, in_features=columns, out_features=shape[0], bias=bias, dtype=tensor.dtype, kernel=shape[2:]
    )


def _kind(leaf: str, tensor: LogicalTensor, facts: Facts) -> Kind:
    if len(tensor.shape) == 1:
        return "norm"
    if len(tensor.shape) > 2:
        return "conv"
    if leaf in _EMBEDDINGS:
        return "embedding"
    if facts.model_type in _CONV1D_TYPES and leaf in _CONV1D_LEAVES:
        return "conv1d"
    return "other" if leaf in _ROUTERS else "linear"


def _with_experts(by_path: dict[str, ModuleShape]) -> dict[str, ModuleShape]:
    """Fold numbered experts: one entry with `*` for each file name, and the fused module of the Python model."""
    result: dict[str, ModuleShape] = {}
    counts: dict[str, int] = {}
    for path, module in by_path.items():
        match = _EXPERT.match(path)
        if not match:
            result[path.replace(".block_sparse_moe.", ".mlp.")] = module
            continue
        starred = f"{match[1]}.experts.*.{match[3]}"
        counts[starred] = counts.get(starred, 0) + 1
        result[starred] = module.model_copy(update={"count": counts[starred]})
    for starred, count in counts.items():
        leaf = starred.rpartition(".")[2]
        if leaf in _GATES[::2]:
            fused = starred.partition(".*.")[0].replace(".block_sparse_moe.", ".mlp.")
            result[fused] = result[starred].model_copy(update={"kind": "experts", "count": count})
    return result


def _packs(stored: Shape, matrix: Shape) -> bool:
    """Whether the matrix may be stored so: flat, two numbers a byte (bitsandbytes), or with one axis packed."""
    (rows, columns), (outputs, inputs) = stored, matrix
    if columns == 1 or 0 in stored:
        return 2 * rows * columns == outputs * inputs
    return (rows == outputs and inputs % columns == 0) or (columns == inputs and outputs % rows == 0)


def _unpacked(tensor: TensorInfo, name: str, facts: Facts) -> LogicalTensor:
    """The tensor under its logical name (`.weight`) and shape."""
    path, _, leaf = name.rpartition(".")
    shape, bits = tensor.shape, facts.bits
    per_word = 32 // bits if bits and 32 % bits == 0 else 0
    if facts.quantization and (leaf in _UNREADABLE or (leaf == "qweight" and tensor.dtype != "I32")):
        return LogicalTensor(f"{path.removesuffix('.weight')}.weight", (), tensor.dtype, tensor.elements)
    if leaf == "qweight" and len(shape) == 2:
        name = f"{path}.weight"
        if facts.quantization == "awq":
            shape = (shape[1] * per_word, shape[0])
        else:
            shape = (shape[1], shape[0] * per_word)
    elif leaf == "weight_packed" and len(shape) == 2:
        name = f"{path}.weight"
        shape = (shape[0], shape[1] * (per_word if tensor.dtype == "I32" else 2))
    elif name.endswith("_blocks") and len(shape) == 4:
        name, shape = name.removesuffix("_blocks"), (shape[0], shape[1], shape[2] * 32)
    elif leaf == "weight" and len(shape) == 2 and tensor.dtype in _PACKED_DTYPES:
        matrix = _configured(path, facts)
        factor = 2 if tensor.dtype == "U8" else per_word or 1
        if not matrix or not _packs(shape, matrix):
            return LogicalTensor(name, (), tensor.dtype, factor * tensor.elements)
        shape = matrix
    if 0 in shape and tensor.elements:
        return LogicalTensor(name, (), tensor.dtype, 0)
    elements = 1
    for side in shape:
        elements *= side
    return LogicalTensor(name, shape, tensor.dtype, elements)


def _configured(path: str, facts: Facts) -> Shape:
    """[out, in] of a well-known projection from the configuration alone; empty if it does not tell."""
    query, kv = facts.heads * facts.head_size, facts.kv_heads * facts.head_size
    sizes: dict[str, Shape] = {
        "q_proj": (query, facts.hidden), "k_proj": (kv, facts.hidden), "v_proj": (kv, facts.hidden),
        "o_proj": (facts.hidden, query), "gate_proj": (facts.intermediate, facts.hidden),
        "up_proj": (facts.intermediate, facts.hidden), "down_proj": (facts.hidden, facts.intermediate),
        "qkv_proj": (query + 2 * kv, facts.hidden), "gate_up_proj": (2 * facts.intermediate, facts.hidden),
        "embed_tokens": (facts.vocab, facts.hidden), HEAD: (facts.vocab, facts.hidden),
    }  # fmt: skip
    shape = sizes.get(path.rpartition(".")[2], ())
    return shape if all(shape) else ()


def facts_of(config: Mapping[str, Any], number: Callable[..., int]) -> Facts:
    """The facts in a configuration; `number(*fields)` is the first of these fields that is a size, or 0."""
    heads, hidden = number("num_attention_heads", "n_head", "num_heads"), number("hidden_size", "n_embd", "d_model")
    quantization = config.get("quantization_config")
    quantization = quantization if isinstance(quantization, dict) else {}
    method = quantization.get("quant_method") or ("mlx" if "bits" in quantization else "")
    architectures = config.get("architectures")
    first = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    inner = number("intermediate_size", "n_inner", "ffn_dim")
    return Facts(
        model_type=str(config.get("model_type") or "")[:64],
        is_head_model=first.endswith(("ForCausalLM", "LMHeadModel", "DoubleHeadsModel", "ForConditionalGeneration")),
        hidden=hidden, intermediate=inner, heads=heads,
        kv_heads=number("num_key_value_heads", "num_kv_heads") or heads,
        head_size=(number("head_dim") if config.get("head_dim") else 0) or (hidden // heads if heads else 0),
        vocab=number("vocab_size"),
        quantization=str(method)[:40], bits=_bits(quantization),
    )  # fmt: skip


def _bits(quantization: Mapping[str, Any]) -> int:
    bits = quantization.get("bits")
    groups = quantization.get("config_groups")
    if bits is None and isinstance(groups, dict) and groups:
        group = next(iter(groups.values()))
        weights = group.get("weights") if isinstance(group, dict) else None
        bits = weights.get("num_bits") if isinstance(weights, dict) else None
    return bits if type(bits) is int and 0 < bits <= 32 else 4
