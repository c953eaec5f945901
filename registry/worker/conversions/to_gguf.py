"""A PEFT adapter as GGUF for llama.cpp and Ollama: its names, its row order, the scale in B, written by `gguf`.

llama.cpp multiplies by alpha / rank and ignores rsLoRA and patterns, so the canonical form comes first. For the
architecture `llama` its converter reorders the rows of q and k from halves to pairs (convert_hf_to_gguf.py:
LlamaModel.permute), and so those of lora_B. Tensors are F16 where the original is F16, else F32: nothing is rounded.
"""

from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file
from torch import Tensor

from registry.client.local.adapter_folder import read_adapter
from registry.merging import conversions
from registry.merging.conversions import Converted, refusal
from registry.versions.files import WEIGHTS
from registry.worker.conversions import to_canonical
from registry.worker.conversions.request import ConversionRequest, serve

FILE = "lora-adapter.gguf"


def convert(request: ConversionRequest) -> Converted:
    """Write the adapter as one GGUF file. A module without a name in llama.cpp is a refusal."""
    folder, out, base = read_adapter(Path(request.source)), Path(request.out), request.base
    spec = folder.peft.lora
    tensors, _ = to_canonical.fold_scales(spec, load_file(folder.path / WEIGHTS), spec.rank)
    architecture = conversions.GGUF_ARCHITECTURES[base.model_type]
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(numbers[architecture], base.layers)
    out.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(out / FILE, architecture)
    writer.add_type("adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(spec.rank))
    writer.add_name(request.conversion.into)
    writer.add_string("general.base_model.0.name", base.name)
    for module in spec.modules:
        name = table.get_name(module.path)
        if name is None:
            raise refusal(f"llama.cpp has no name for {module.path} in the architecture {architecture}")
        a, b = (tensors[half] for half in to_canonical.names_of(module, tensors)[:2])
        heads = {"q_proj": base.heads, "k_proj": base.kv_heads}.get(module.path.rpartition(".")[2])
        if architecture == "llama" and heads:
            b = to_pairs(b, heads)
        for half, tensor in (("lora_a", a), ("lora_b", b)):
            dtype = torch.float16 if tensor.dtype == torch.float16 else torch.float32
            writer.add_tensor(f"{name}.weight.{half}", tensor.to(dtype).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Converted(
        message=f"{len(spec.modules)} modules of rank {spec.rank} written for llama.cpp's architecture {architecture}",
        modules=len(spec.modules), rank=spec.rank, tensors=2 * len(spec.modules), renamed=2 * len(spec.modules),
        error=0.0,
    )  # fmt: skip


def to_pairs(b: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from halves to pairs: row i to 2i, row half + i to 2i + 1."""
    rows, rank = b.shape
    return b.reshape(heads, 2, rows // heads // 2, rank).transpose(1, 2).reshape(rows, rank)


if __name__ == "__main__":
    serve(convert)
