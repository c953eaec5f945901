"""What the files of text trainers other than PEFT say: torchtune, mlx-lm and llama.cpp's GGUF adapters.

torchtune   lora_a.weight [r, in], lora_b.weight [out, r], magnitude; rank and alpha in adapter_config.json
mlx         lora_a [in, r], lora_b [r, out], m; `scale` is the multiplier, rank and scale in adapter_config.json
gguf        lora_a [r, in], lora_b [out, r] (as rows and columns); `adapter.lora.alpha` in the file
"""

import re
from collections.abc import Mapping
from typing import Any

from registry.adapters.formats import GGUF, MLX, UNKNOWN, Format
from registry.adapters.formats.facts import FileFacts, FileModule, fault_of_factors
from registry.adapters.formats.gguf import Gguf
from registry.adapters.peft.config import read_claim
from registry.adapters.safetensors import Header, TensorInfo
from registry.errors import Invalid
from registry.strict.fields import Fields
from registry.versions.files import CONFIG

RANK_LIMIT = 4096
NUMBER_LIMIT = 1e6

_HALF = re.compile(r"(?:module\.)?(?P<path>.+?)\.(?P<half>lora_a|lora_b|magnitude|m)(?:\.weight)?\Z")


def of_header(
    header: Header, format: Format, *, config: Mapping[str, Any] | None = None, gguf: Gguf | None = None
) -> FileFacts:
    """The facts of a header whose format is torchtune, mlx or gguf; of any other only sizes and counts.

    `Invalid` (CONFIG_INVALID) lists the fields of the configuration that are of a wrong kind.
    """
    alpha, multiplier, rule, base, rank = _scales(format, config or {}, gguf)
    groups: dict[str, dict[str, TensorInfo]] = {}
    for info in header:
        name = info.name.replace(".weight.lora_", ".lora_") if format == GGUF else info.name
        match = _HALF.match(name)
        if match and format != UNKNOWN:
            groups.setdefault(match["path"], {})[match["half"]] = info
    modules = [_module(path, halves, format, alpha, multiplier) for path, halves in sorted(groups.items())]
    kind = gguf.kinds[1] if gguf else str((config or {}).get("fine_tune_type") or "lora")
    return FileFacts(
        format=format,
        method=kind.lower()[:40] if format != UNKNOWN else "",
        modules=tuple(m for m in modules if m is not None),
        has_dora=any("magnitude" in h or "m" in h for h in groups.values()),
        alpha_rule=rule,
        base_claimed=base,
        claims=_claims(gguf),
        problems=("lora.rank_differs_from_config",)
        if any(m and m.rank not in (0, rank or m.rank) for m in modules)
        else (),
        dtypes=tuple(sorted({t.dtype for t in header})),
        tensors=len(header),
        parameters=sum(t.elements for t in header),
        size_bytes=header.size_bytes,
    )


def _module(
    path: str, halves: Mapping[str, TensorInfo], format: Format, alpha: float | None, multiplier: float | None
) -> FileModule | None:
    a, b = halves.get("lora_a"), halves.get("lora_b")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2:
        return FileModule(path=path, is_half=a is None or b is None)
    if format.is_transposed:
        return FileModule(path=path, rank=a.shape[1], in_features=a.shape[0], out_features=b.shape[1],
                          multiplier=multiplier, a=a.name, b=b.name, is_turned=True,
                          fault=fault_of_factors(halves, turned=True))  # fmt: skip
    return FileModule(path=path, rank=a.shape[0], in_features=a.shape[1], out_features=b.shape[0], alpha=alpha,
                      a=a.name, b=b.name, fault=fault_of_factors(halves))  # fmt: skip


def _scales(
    format: Format, config: Mapping[str, Any], gguf: Gguf | None
) -> tuple[float | None, float | None, str, str, int]:
    """(alpha, multiplier, where from, the claimed base, the claimed rank or 0) by each trainer's own rule."""
    if gguf is not None:
        alpha = gguf.number("adapter.lora.alpha")
        base = read_claim(gguf.text("general.base_model.0.name") or gguf.text("general.name"))[0].name
        return alpha, None, "adapter.lora.alpha" if alpha is not None else "", base, 0
    inner = config.get("lora_parameters") if format == MLX else config
    fields = Fields(inner if isinstance(inner, dict) else {})
    rank = fields.whole_number("rank" if format == MLX else "r", 1, RANK_LIMIT)
    alpha = fields.number("lora_alpha", NUMBER_LIMIT)
    multiplier = fields.number("scale", NUMBER_LIMIT) if format == MLX else None
    if fields.findings:
        first = fields.findings[0]
        message = f"{CONFIG}: {first.location} {first.message}"
        raise Invalid("CONFIG_INVALID", message, findings=fields.findings)
    claim, _ = read_claim(config.get("model") if format == MLX else config.get("base_model_name_or_path"))
    if format == MLX:
        return None, multiplier, "lora_parameters.scale" if multiplier is not None else "", claim.name, rank
    return alpha, None, "lora_alpha" if alpha is not None else "", claim.name, rank


def _claims(gguf: Gguf | None) -> dict[str, str]:
    if gguf is None:
        return {}
    keys = ("general.architecture", "general.type", "general.name", "general.license")
    return {key: gguf.text(key)[:300] for key in keys if gguf.text(key)}
