"""What a tokenizer.json says about the tokens of a text, in one form for all versions of the library that wrote it.

Loading and saving a tokenizer rewrites the file. The tokenizers library writes out defaults that older files leave out,
pairs of merges that older files hold as one text, and the two words that replaced `add_prefix_space` of Metaspace;
transformers adds a template of special tokens that has none. None of it changes a token (tokenizers 0.23).
"""

from collections.abc import Mapping
from typing import Any

_NO_TOKENS = ("version", "padding", "truncation", "decoder", "trim_offsets", "str_rep")
"""Fields that change no token of a text: decoders and offsets concern what comes out."""
_DEFAULTS: Mapping[str, Any] = {
    "byte_fallback": False, "ignore_merges": False, "fuse_unk": False, "use_regex": True, "split": True,
    "prepend_scheme": "always", "continuing_subword_prefix": "", "end_of_word_suffix": "",
}  # fmt: skip
_STEPS = ("normalizer", "pre_tokenizer", "post_processor")


def normal_form(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of this tokenizer.json that decide about tokens. Tables (`vocab`, `added_tokens`) stay as they are."""
    parts = _without_defaults(tokenizer)
    parts |= {name: _step(parts[name]) for name in _STEPS if name in parts}
    parts["post_processor"] = [step for step in _processors(parts.get("post_processor")) if _adds_tokens(step)]
    model = parts.get("model")
    if isinstance(model, dict):
        model = parts["model"] = _without_defaults(model)
        if isinstance(merges := model.get("merges"), list):
            model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    return parts


def _without_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in fields.items()
        if value is not None and name not in _NO_TOKENS and not (name in _DEFAULTS and value == _DEFAULTS[name])
    }  # fmt: skip


def _step(value: Any) -> Any:
    """A normalizer, pre-tokenizer or post-processor, and those inside it."""
    if isinstance(value, list):
        return [_step(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = dict(value)
    if fields.get("type") == "Metaspace" and isinstance(before := fields.pop("add_prefix_space", None), bool):
        fields.setdefault("prepend_scheme", "always" if before else "never")
    return {name: _step(item) for name, item in _without_defaults(fields).items()}


def _processors(value: Any) -> list[Any]:
    if isinstance(value, dict) and isinstance(steps := value.get("processors"), list):
        return steps
    return [] if value is None else [value]


def _adds_tokens(processor: Any) -> bool:
    """Byte-level ones move offsets; a template of the text alone adds nothing."""
    if not isinstance(processor, dict) or processor.get("type") == "ByteLevel":
        return not isinstance(processor, dict)
    single = processor.get("single")
    return processor.get("special_tokens") != {} or not isinstance(single, list) or len(single) != 1
