"""What each tensor of an adapter is, by its name; a name that no rule allows is unexpected and becomes a finding.

PEFT writes `base_model.model.` + the module's path + what the method adds: `.lora_A.weight`, `.ia3_l` … Whole tensors
are allowed only where the configuration announces them (`modules_to_save`, `bias`).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from registry.adapters import methods
from registry.adapters.peft.config import AdapterConfig
from registry.adapters.peft.targets import EMBEDDINGS, Endings, Targets

PREFIX = "base_model.model."
TOKEN_TABLES = ("wte", "word_embeddings", "embed_in", "shared")
"""What older architectures call `embed_tokens`, for which a bare list of `trainable_token_indices` stands."""
EXAMPLES = 3


def _either(marks: Iterable[str]) -> str:
    return "|".join(re.escape(mark) for mark in sorted(set(marks), reverse=True))


_PAIR_MARKS = [mark for method in methods.METHODS.values() for mark in method.pair_marks]
_MARKS = [mark for method in methods.METHODS.values() if not method.is_prompt for mark in method.marks]
_PAIR = re.compile(rf".+\.(?:{_either(_PAIR_MARKS)})\Z")
_WITH_ADAPTER_NAME = re.compile(
    rf"\.(?:{_either([*(mark.partition('.')[0] for mark in _PAIR_MARKS), 'modules_to_save'])})\.\w+"
)
_OF_SOME_METHOD = re.compile(rf"\.(?:lora_|{_either([*_MARKS, *_PAIR_MARKS])})")
_FULL = re.compile(r"(.+)\.(weight|bias)\Z")


class TensorRole(Enum):
    """What a tensor is to the adapter."""

    A = "a"
    B = "b"
    MAGNITUDE = "magnitude"
    BIAS = "bias"
    PIECE = "piece"
    FULL = "full"
    REPEAT = "repeat"
    TOKENS = "tokens"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class TensorName:
    """A read name. `order`: of a parameter in a fused block the depth of `base_layer` in the path, else -1."""

    role: TensorRole
    path: str = ""
    leaf: str = ""
    order: int = -1


_UNEXPECTED = TensorName(TensorRole.UNEXPECTED)


class Names:
    """Reads the names of one adapter's tensors, and remembers those that no rule allows."""

    def __init__(self, config: AdapterConfig) -> None:
        self._config = config
        self._targets = Targets(config)
        self._method = methods.find(config.method)
        self._pair = re.compile(rf"(.+)\.({_either(self._method.pair_marks)})\Z")
        self._token_endings = Endings(config.token_indices)  # PEFT: by letters, not by whole names
        self._saves_end = any(name.rpartition(".")[2] in EMBEDDINGS for name in config.saved_modules)
        self._unexpected_names: dict[str, list[str]] = {}

    def read(self, name: str) -> TensorName:
        """The role, module and leaf of one tensor's name."""
        shared = self._method.shared_marks
        if self._method.is_prompt:
            return self._of_prompt(name) or self._unexpected("unknown", name)
        if name.startswith("base_model.") and name[11:].startswith(shared) and shared:
            return TensorName(TensorRole.PIECE, "", name[11:])
        if not name.startswith(PREFIX):
            return self._unexpected("prefix", name)
        rest = name[len(PREFIX) :]
        if "_orig_mod." in rest:
            return self._unexpected("compiled", name)
        return self._method_tensor(rest) or self._announced(rest) or self._explained(rest, name)

    def _of_prompt(self, name: str) -> TensorName | None:
        """PEFT wraps no module for a prompt: a saved one, such as a classifier, lies directly under `base_model.`."""
        if name in self._method.marks:
            return TensorName(TensorRole.PIECE, "", name)
        path, _, leaf = name.removeprefix("base_model.").rpartition(".")
        saved = name.startswith("base_model.") and path and self._targets.saves(path)
        return TensorName(TensorRole.FULL, path, leaf) if saved else None

    def _method_tensor(self, rest: str) -> TensorName | None:
        if self._method.has_pairs:
            match = self._pair.match(rest)
            if not match:
                return None
            path, leaf = match[1], match[2]
            role = TensorRole(self._method.pair_marks[leaf])
            if role is TensorRole.BIAS and not self._config.lora_bias:
                return None
            depth = 0
            while path.endswith(".base_layer") and self._config.target_parameters:
                path, depth = path.removesuffix(".base_layer"), depth + 1
            return TensorName(role, path, leaf, depth if self._targets.parameters(path) else -1)
        for mark in self._method.marks:
            path, dot, leaf = rest.rpartition(f".{mark}")
            if dot and path:
                return TensorName(TensorRole.PIECE, path, mark + leaf)
        return None

    def _announced(self, rest: str) -> TensorName | None:
        """Trained tokens, saved modules and trained biases, if the configuration announces them."""
        path, dot, leaf = rest.rpartition(".token_adapter.")
        if dot and leaf == "trainable_tokens_delta":
            last = path.rpartition(".")[2]
            tied = self._config.ensure_weight_tying or last in EMBEDDINGS or last in TOKEN_TABLES
            if self._config.token_indices and (tied or any(self._token_endings.of(path))):
                return TensorName(TensorRole.TOKENS, path, leaf)
        path, _, leaf = rest.rpartition(".")
        if path and (self._targets.saves(path) or (self._config.ensure_weight_tying and self._ties(path))):
            return TensorName(TensorRole.FULL, path, leaf)
        inner = path.removesuffix(".base_layer")
        if leaf == "bias" and self._config.bias != "none" and (self._config.bias == "all" or inner != path):
            return TensorName(TensorRole.FULL, inner, leaf)
        return self._beside_embedding(rest)

    def _beside_embedding(self, rest: str) -> TensorName | None:
        """PEFT saves all of a targeted embedding: Inkling's has a norm inside, T5Gemma 2's a second parameter.

        If any target is called `embed_tokens` or `lm_head`, it saves the input and the output embedding whatever they
        are called. Which modules these are only the base says (registry/compat/modules.py). Source:
        peft/utils/save_and_load.py, get_peft_model_state_dict.
        """
        table, _, part = rest.partition(".base_layer.")
        may_save = self._targets.names_embeddings and (self._targets.covers(table) or self._config.ensure_weight_tying)
        if not part or not may_save or _OF_SOME_METHOD.search(rest):
            return None
        inner, _, leaf = part.rpartition(".")
        return TensorName(TensorRole.REPEAT, f"{table}.{inner}".removesuffix("."), leaf)

    def _ties(self, path: str) -> bool:
        """With `ensure_weight_tying`, saving one end of a tied pair saves the other as well."""
        return self._saves_end and path.rpartition(".")[2] in EMBEDDINGS

    def _explained(self, rest: str, name: str) -> TensorName:
        if _WITH_ADAPTER_NAME.search(rest) and not _PAIR.match(rest):
            return self._unexpected("adapter_name", name)
        if _FULL.match(rest) and not _OF_SOME_METHOD.search(rest):
            return self._unexpected("overwrites", name)
        return self._unexpected("unknown", name)

    def _unexpected(self, kind: str, name: str) -> TensorName:
        self._unexpected_names.setdefault(kind, []).append(name)
        return _UNEXPECTED

    def report(self, add: Callable[..., None]) -> None:
        """Report unknown names, one finding for each kind: `add(code, location, message, expected, actual)`."""
        for kind, names in self._unexpected_names.items():
            code, message, expected = _EXPLANATIONS[kind]
            count = f" ({len(names)} tensors)" if len(names) > 1 else ""
            add(code, names[0], f"{names[0]} {message}{count}", expected, ", ".join(names[:EXAMPLES]))


_MODULE, _METHOD = f"{PREFIX}<path of a module>", "only tensors of the adapter's method"
_EXPLANATIONS: dict[str, tuple[str, str, str]] = {
    "prefix": ("lora.prefix_invalid", "does not begin with 'base_model.model.': PEFT would load the file without an "
               "error and change nothing", _MODULE),
    "compiled": ("lora.compiled_prefix", "has '_orig_mod.' in it, left by torch.compile: it names no module of the "
                 "base; save the model uncompiled", _MODULE),
    "adapter_name": ("lora.adapter_name_inside", "has the adapter's own name in it, as a raw state_dict does: save "
                     "with save_pretrained instead", "lora_A.weight"),
    "overwrites": ("compat.overwrites_base", "would replace a tensor of the base itself, which all other adapters "
                   "share, and the configuration does not announce it in modules_to_save", _METHOD),
    "unknown": ("lora.tensor_unknown", "is no tensor of this method, and no rule allows it", _METHOD),
}  # fmt: skip
"""Kind of unexpected name → the code of its finding, why it is wrong, what was expected."""
