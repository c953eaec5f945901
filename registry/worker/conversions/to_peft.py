"""torchtune's and mlx-lm's adapters as PEFT's: values are moved, never computed.

torchtune   rows of lora_B for q and k stand in pairs (x0, y0, x1, y1 …), PEFT's in halves (x0, x1 … y0, y1 …):
            torchtune's tune_to_peft_adapter_weights (models/convert_weights.py)
mlx         A is [in, r] and B [r, out]; the multiplier `scale` becomes alpha = scale · rank
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from registry.adapters import read
from registry.adapters.formats import Format
from registry.adapters.formats.facts import FileModule
from registry.adapters.peft.names import PREFIX
from registry.adapters.read import NonPeftContents
from registry.bases import BaseSpec
from registry.client.local.adapter_folder import read_adapter
from registry.compat.paths import Paths
from registry.merging import renaming
from registry.merging.conversions import Converted, refusal
from registry.worker.conversions import to_canonical
from registry.worker.conversions.request import ConversionRequest, serve
from registry.worker.merge import adapters


def convert(request: ConversionRequest) -> Converted:
    """Write the adapter as PEFT's."""
    folder = read_adapter(Path(request.source))
    contents = read.read_by_names(folder.contents)
    if not isinstance(contents, NonPeftContents):
        raise refusal("this is already PEFT's format")
    file = contents.file
    stored = load_file(folder.path / read.weights_of(folder.files).path)
    paths, pairs = Paths(file.format, request.base.modules), {}
    for module in file.modules:
        matches = paths.of(module.path)
        if matches is None or len(matches) != 1 or matches[0] not in request.base.modules:
            raise refusal(f"{module.path} names no module of {request.base.name}")
        a, b = _pair(stored, module, file.format, matches[0], request.base)
        pairs[matches[0]] = (a, b, module)
    tensors: dict[str, Tensor] = {}
    for path, (a, b, _) in pairs.items():
        tensors |= {f"{PREFIX}{path}.lora_A.weight": a, f"{PREFIX}{path}.lora_B.weight": b}
    adapters.save_adapter(Path(request.out), tensors, _config(pairs, request.base, file.base_claimed))
    to_canonical.copy_others(folder, Path(request.out))
    return Converted(
        message=f"{len(pairs)} modules of {file.format} named as PEFT names them, rank {file.max_rank}",
        modules=len(pairs), rank=file.max_rank, tensors=len(tensors), renamed=len(tensors), error=0.0,
    )  # fmt: skip


def _pair(
    tensors: dict[str, Tensor], module: FileModule, format: Format, path: str, base: BaseSpec
) -> tuple[Tensor, Tensor]:
    if format.is_transposed:
        return tensors[f"{module.path}.lora_a"].T, tensors[f"{module.path}.lora_b"].T
    at = f"module.{module.path}" if f"module.{module.path}.lora_a.weight" in tensors else module.path
    a, b = tensors[f"{at}.lora_a.weight"], tensors[f"{at}.lora_b.weight"]
    heads = {"q_proj": base.heads, "k_proj": base.kv_heads}.get(path.rpartition(".")[2])
    return a, to_halves(b, heads) if heads else b


def to_halves(b: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from pairs to halves: row 2i to i, row 2i + 1 to half + i."""
    rows, rank = b.shape
    half = rows // heads // 2
    return b.reshape(heads, half, 2, rank).transpose(1, 2).reshape(rows, rank)


def _config(pairs: dict[str, tuple[Tensor, Tensor, FileModule]], base: BaseSpec, claimed: str) -> dict[str, Any]:
    ranks = {path: module.rank for path, (_, _, module) in pairs.items()}
    alphas = {path: (module.scale or 0.0) * module.rank for path, (_, _, module) in pairs.items()}
    rank, alpha = max(ranks.values()), max(alphas.values(), key=list(alphas.values()).count)
    return adapters.plain_config(claimed or base.name, "CAUSAL_LM") | {
        "r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": renaming.targets_of(set(pairs), base),
        "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
        "use_dora": False, "use_rslora": False,
    }  # fmt: skip


if __name__ == "__main__":
    serve(convert)
