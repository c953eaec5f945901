"""The fingerprints of a base: digests that stay equal when only names, shards or packing differ.

`architecture` covers the sorted (tensor name, logical shape) and the configuration fields that change the mathematics,
not values, files or dtype. `tokenizer` covers what decides about tokens, not how a version of its library writes it.
`exact`, a Merkle root over the weights' bytes, is None until a worker has read them.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from registry.bases.modules import LogicalTensor
from registry.bases.tokenizers import normal_form
from registry.digest import Digest
from registry.errors import Invalid
from registry.findings import Finding
from registry.model import FrozenModel
from registry.versions.files import TOKENIZER

DEPTH_LIMIT = 64
"""Levels of objects and lists in a tokenizer.json."""
SAME_MEANING: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model"), "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "activation": ("hidden_act", "hidden_activation", "activation_function"),
    "norm_eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token"), "window": ("sliding_window",),
    "logit_cap": ("final_logit_softcapping",), "attention_cap": ("attn_logit_softcapping",),
    "query_scale": ("query_pre_attn_scalar",), "embedding_multiplier": ("embedding_multiplier",),
    "residual_multiplier": ("residual_multiplier",),
}  # fmt: skip
"""Our word → the fields, any of which says it. All change what the model computes from equal weights."""


class Fingerprints(FrozenModel):
    """What a base is, four ways. Two bases with equal `architecture` take the same adapters structurally."""

    architecture: Digest
    """Of tensor names, shapes and what changes the computation. Equal: the same adapters fit structurally."""
    tokenizer: Digest | None = None
    """Of the tokenizer without padding and truncation; null if there is none."""
    template: Digest | None = None
    """Of the chat template; null if there is none."""
    exact: Digest | None = None
    """Of the bytes of all weights; null until they were read."""


def architecture_fingerprint(
    tensors: Iterable[LogicalTensor], config: Mapping[str, Any], *, kv_heads: int, head_size: int, tied: bool
) -> Digest:
    """The digest of names, logical shapes and mathematics. Defaults that a configuration leaves out are passed in."""
    words: dict[str, Any] = {"model_type": str(config.get("model_type") or "")}
    for word, fields in SAME_MEANING.items():
        words[word] = next((config[f] for f in fields if config.get(f) is not None), None)
    words |= {"kv_heads": kv_heads, "head_size": head_size, "tied": tied, "rope": _rope(config)}
    shapes = sorted([t.name, list(t.shape)] for t in tensors)
    return _digest({"tensors": shapes, "words": {k: v for k, v in words.items() if v is not None}})


def tokenizer_fingerprint(tokenizer: bytes) -> Digest:
    """`Invalid` (BASE_INVALID) if the bytes are not a JSON object, or one of over `DEPTH_LIMIT` levels."""
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(tokenizer)
        if isinstance(parsed, dict) and _is_flat(parsed):
            return _digest(normal_form(parsed))
    raise Invalid.from_finding("BASE_INVALID", Finding("base.tokenizer_invalid", TOKENIZER, "is not a JSON object"))


def _is_flat(parsed: Mapping[str, Any]) -> bool:
    """Whether a document has few levels. Python refuses deep ones as well, but each version at another depth."""
    level: list[Any] = [parsed]
    for _ in range(DEPTH_LIMIT):
        items = (item for value in level for item in (value.values() if isinstance(value, dict) else value))
        level = [item for item in items if isinstance(item, dict | list)]
    return not level


def template_text(chat_template: str | None, tokenizer_config: bytes | None) -> str:
    """The chat template: its own file first, else the (default) one inside tokenizer_config.json; empty if none."""
    if chat_template:
        return _normal(chat_template)
    try:
        config = json.loads(tokenizer_config or b"{}")
    except (ValueError, RecursionError):
        return ""
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):
        templates = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        template = templates.get("default")
    return _normal(template) if isinstance(template, str) else ""


def _normal(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _rope(config: Mapping[str, Any]) -> Any:
    """The rotary settings in one form: transformers 4 wrote rope_theta and rope_scaling, 5 writes rope_parameters."""
    parameters = config.get("rope_parameters")
    scaling = config.get("rope_scaling")
    rope: dict[str, Any] = dict(parameters) if isinstance(parameters, dict) else {}
    if not rope:
        rope = dict(scaling) if isinstance(scaling, dict) else {}
        if config.get("rope_theta") is not None:
            rope["rope_theta"] = config["rope_theta"]
    kind = rope.pop("type", None) or rope.pop("rope_type", None) or "default"
    rope.pop("rope_type", None)
    if config.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    return {**rope, "kind": kind} if rope else None


def _digest(value: Any) -> Digest:
    """The digest of a JSON value with floats, which canonical JSON refuses: whole ones count as integers."""
    text = json.dumps(_whole(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Digest.of(text.encode())


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value
