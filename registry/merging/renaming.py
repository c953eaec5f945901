"""Conversions that change names only: a new header over the same bytes, computed without reading a tensor.

No two tensors get one name. A repair changes what is certainly wrong (an adapter's name, torch.compile's and
Accelerate's prefixes, a prefix that leads to a module of the base, Tinker's name of the head), and never invents a
module.
"""

import json
import re
import struct
from collections.abc import Mapping

from registry.adapters.peft.names import PREFIX
from registry.adapters.safetensors import Header
from registry.bases import BaseSpec
from registry.errors import Invalid

_ADAPTER_NAME = re.compile(
    r"\.(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.(?!weight\Z|bias\Z)[A-Za-z0-9_-]+(?=\.weight\Z|\.bias\Z|\Z)"
)
_WRAPPERS = re.compile(r"(?:\A|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_TAIL = re.compile(r"\.(?:lora_(?:A|B)\.(?:weight|bias)|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?)\Z")
_PREFIXES = (PREFIX, f"{PREFIX}model.", "base_model.", "model.model.", "model.", "")
_TINKER_HEADS = {"model.unembed_tokens": "lm_head", "unembed_tokens": "lm_head"}
"""tinker-cookbook (weights/_merge_utils.py): the head stands inside the model, also where it is tied."""

_OLD = re.compile(r"(?P<at>.+?)(?:\.processor)?\.to_(?P<leaf>q|k|v|out)_lora\.(?P<half>down|up)\.weight\Z")
_OLD_TEXT = re.compile(
    r"(?P<at>text_encoder(?:_2)?\..+?)(?:_lora_linear_layer|_lora|\.lora_linear_layer|\.lora)\.(?P<half>down|up)\.weight\Z"
)
_LATE = re.compile(r"(?P<at>(?:unet|transformer)\..+?)\.lora\.(?P<half>down|up)\.weight\Z")
_BARE = re.compile(
    r"(?P<at>(?:(?:single_)?transformer_blocks\.\d+|time_text_embed|norm_out|proj_out)(?:\..+?)?)"
    r"\.lora_(?P<half>A|B|down|up)(?:\.[A-Za-z0-9_-]+)?\.weight\Z"
)
_HALVES = {"down": "lora_A.weight", "up": "lora_B.weight", "A": "lora_A.weight", "B": "lora_B.weight"}


def without_adapter_name(name: str) -> str:
    """A tensor's name without the adapter's own name in it."""
    return _ADAPTER_NAME.sub(r".\1", name)


def find_repairs(header: Header, base: BaseSpec) -> dict[str, str]:
    """Old name → repaired name, for every tensor whose name changes. `Invalid` if nothing does, or not all can be."""
    return _changes({info.name: _repaired(info.name, base) for info in header})


def path_of(name: str) -> str:
    """The module that a tensor of a factor pair updates; empty for other tensors."""
    tail = _TAIL.search(name)
    return name[: tail.start()].removeprefix(PREFIX) if tail else ""


def targets_of(paths: set[str], base: BaseSpec) -> list[str]:
    """`target_modules` for these modules: the last parts of their paths if these name no other module of the base."""
    leaves = {path.rpartition(".")[2] for path in paths}
    matches = {path for path in base.modules if path.rpartition(".")[2] in leaves}
    return sorted(leaves if matches == paths else paths)


def _changes(renamed: dict[str, str]) -> dict[str, str]:
    changed = {old: new for old, new in renamed.items() if old != new}
    if not changed:
        raise _refused("--repair found no name to fix", "if the check `compat` fails, save the adapter again")
    _demand_distinct(renamed)
    return changed


def _repaired(name: str, base: BaseSpec) -> str:
    repaired = without_adapter_name(_WRAPPERS.sub("", name))
    tail = _TAIL.search(repaired)
    if tail is None:
        return repaired
    path = repaired[: tail.start()]
    for prefix in _PREFIXES:
        inner = path.removeprefix(prefix)
        inner = _TINKER_HEADS.get(inner, inner)
        nested = f"model.language_model.{inner.removeprefix('model.')}"  # the text model of a multimodal one
        for candidate in (inner, f"model.{inner}", f"transformer.{inner}", nested):
            if path.startswith(prefix) and candidate in base.modules:
                return f"{PREFIX}{candidate}{tail[0]}"
    return repaired


def image_repairs(header: Header, base: BaseSpec) -> dict[str, str]:
    """Find the repairs of diffusers' names.

    An adapter's name in them, a component (`unet.`) that is missing, or `lora.down` beside `lora_A`.
    """
    return _changes({info.name: _repaired_image(info.name, base) for info in header})


def _repaired_image(name: str, base: BaseSpec) -> str:
    repaired = _with_peft_ends(without_adapter_name(name))
    tail = _TAIL.search(repaired)
    path = repaired[: tail.start()] if tail else ""
    if not path or path in base.modules:
        return repaired
    there = [component for component in base.components if f"{component}.{path}" in base.modules]
    return f"{there[0]}.{repaired}" if len(there) == 1 else repaired


def can_rename(header: Header) -> bool:
    """Whether today's diffusers names follow from these alone: those of 2023, or bare ones, where there is no alpha."""
    return all(any(names.match(info.name) for names in (_OLD, _OLD_TEXT, _LATE, _BARE)) for info in header)


def modern(name: str) -> str:
    """The name in today's diffusers of a name of 2023 or a bare one; any other name as it is."""
    match = _OLD.match(name)
    if match:
        at, leaf = match["at"], match["leaf"]
        if at.startswith("text_encoder"):
            return f"{at}.{'out' if leaf == 'out' else leaf}_proj.{_HALVES[match['half']]}"
        at = at if at.startswith(("unet.", "transformer.", "prior.")) else f"unet.{at}"
        return f"{at}.{'to_out.0' if leaf == 'out' else f'to_{leaf}'}.{_HALVES[match['half']]}"
    if bare := _BARE.match(name):
        return f"transformer.{bare['at']}.{_HALVES[bare['half']]}"
    return _with_peft_ends(name)


def _with_peft_ends(name: str) -> str:
    match = _OLD_TEXT.match(name) or _LATE.match(name)
    return f"{match['at']}.{_HALVES[match['half']]}" if match else name


def to_diffusers(header: Header) -> dict[str, str]:
    """Old name → name in today's diffusers, for every tensor."""
    renamed = {info.name: modern(info.name) for info in header}
    _demand_distinct(renamed)
    return renamed


def head_of(header: Header, names: Mapping[str, str], metadata: Mapping[str, str] | None = None) -> bytes:
    """The first bytes of the renamed file: length and header. What follows is the old file from `data_start` on.

    Padded with spaces to a multiple of eight, as the safetensors library does.
    """
    entries: dict[str, object] = {"__metadata__": dict(header.metadata if metadata is None else metadata)}
    for info in header:
        entry = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [info.start, info.end]}
        entries[names.get(info.name, info.name)] = entry
    if not entries["__metadata__"]:
        del entries["__metadata__"]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _demand_distinct(names: Mapping[str, str]) -> None:
    original_of: dict[str, str] = {}
    for old, new in names.items():
        if new in original_of:
            raise _refused(f"{old} and {original_of[new]} would both be called {new}")
        original_of[new] = old


def _refused(message: str, next_step: str = "") -> Invalid:
    return Invalid("CONVERSION_INVALID", message, next_step=next_step)
