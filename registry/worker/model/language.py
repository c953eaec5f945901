"""One base in memory: load it, tokenise the probes, run them, and tell whether its numbers are still the same.

Invariants
- Loading runs no code from the base's folder and asks no network: files of this folder only.
- On a CPU it computes in fp32; on a GPU in the number format of the base's record, placed by `device_map`. A packed
  (quantized) base is loaded as its configuration says.
- `LoadedBase.load` runs no forward and starts no thread, so that its process may fork afterwards.
- `fingerprint` covers every parameter and buffer that the base had when it was loaded, wherever an adapter moved it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers

from registry.files import SENTENCEPIECE, TOKENIZER, VOCABULARY
from registry.worker.devices import CPU
from registry.worker.model import probes

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

Logits = list[torch.Tensor]
"""Per probe: fp32 [tokens, vocabulary] (or [tokens, hidden] of a base without a language head)."""


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A loaded base. `originals` are its parameters and buffers by name, as the objects that they were at first."""

    name: str
    model: Any
    originals: dict[str, torch.Tensor]
    probes: list[tuple[int, ...]]
    probe_kind: str
    vocabulary: int
    task: str
    load_seconds: float
    tokenizer: Any = None
    dtype: str = "float32"
    device: str = "cpu"

    @classmethod
    def load(cls, folder: Path, name: str, *, device: str = CPU, dtype: str = "") -> LoadedBase:
        """The base in this folder. Errors are transformers' own: the caller reports them.

        `dtype` is safetensors' name of the record's number format (BF16, F16, F32); it counts on a GPU only.
        """
        started = perf_counter()
        target_dtype = torch.float32 if device == CPU else DTYPES.get(dtype.upper(), torch.bfloat16)
        placed = {} if device == CPU else {"device_map": "auto" if device == "cuda" else {"": device}}
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        maker, task = class_of(config)
        model = maker.from_pretrained(
            folder, config=config, dtype=target_dtype, local_files_only=True, trust_remote_code=False, **placed
        )
        model.eval()
        model.requires_grad_(False)
        _demand_whole(model)
        _keep_layout(model)
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        tokenizer = _tokenizer_of(folder)
        prompts, kind = _probes_of(tokenizer, vocabulary)
        return cls(
            name=name,
            model=model,
            originals={**dict(model.named_parameters()), **dict(model.named_buffers())},
            probes=prompts,
            probe_kind=kind,
            vocabulary=vocabulary,
            task=task,
            load_seconds=perf_counter() - started,
            tokenizer=tokenizer,
            dtype=str(target_dtype).removeprefix("torch."),
            device=device,
        )

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.originals.values())

    def logits(self, prompts: Sequence[tuple[int, ...]]) -> Logits:
        return logits(self.model, prompts)

    def fingerprint(self) -> dict[str, int]:
        """An integer sum of the bits of each tensor: any single changed bit changes it. 0.1 s for 135M parameters."""
        return {name: bit_sum(tensor) for name, tensor in self.originals.items()}


@torch.inference_mode()
def logits(model: Any, prompts: Sequence[tuple[int, ...]]) -> Logits:
    """The model's answer to each probe. Those of one length are one batch, so that no padding plays a part."""
    answers: dict[int, torch.Tensor] = {}
    for length in dict.fromkeys(len(tokens) for tokens in prompts):
        places = [i for i, tokens in enumerate(prompts) if len(tokens) == length]
        answers |= zip(places, rows(model, [prompts[i] for i in places]), strict=True)
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def rows(model: Any, batch: Sequence[tuple[int, ...]], **how: Any) -> Logits:
    """The model's answer to rows of equal length, in one pass. `how` goes to the model (`adapter_names`)."""
    ids = torch.tensor(batch, dtype=torch.long, device=next(model.parameters()).device)
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **how)
    values = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
    return [row[-len(tokens) :].float() for row, tokens in zip(values, batch, strict=True)]  # prompt methods add tokens


def _demand_whole(model: Any) -> None:
    """Layers that do not fit on the GPUs would be loaded in each forward pass and could not be checked."""
    away = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if away:
        raise MemoryError(f"{len(away)} of the base's tensors do not fit on the devices here, {away[0]} first")


def _keep_layout(model: Any) -> None:
    """Four-bit weights stay as they lie in the base's files.

    On a CPU with AVX-512 bitsandbytes lays them out anew in their first forward; PEFT's loading then asks for the
    state, which turns the layout back but (in 0.50) not the scales: the base itself would answer differently.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def class_of(config: Any) -> tuple[Any, str]:
    """The class that the configuration names, if it is transformers' own, and the adapters' task that it serves."""
    for name in getattr(config, "architectures", None) or ():
        maker = getattr(transformers, str(name), None)
        if isinstance(maker, type) and issubclass(maker, transformers.PreTrainedModel):
            return maker, "CAUSAL_LM" if str(name).endswith(("ForCausalLM", "LMHeadModel")) else ""
    return transformers.AutoModelForCausalLM, "CAUSAL_LM"


def _tokenizer_of(folder: Path) -> Any:
    """The base's tokenizer; None where it has none, or one that does not load without code of its own."""
    if not any((folder / name).is_file() for name in (TOKENIZER, SENTENCEPIECE, VOCABULARY)):
        return None
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _probes_of(tokenizer: Any, vocabulary: int) -> tuple[list[tuple[int, ...]], str]:
    if tokenizer is None:
        return probes.numbered(vocabulary), "numbers"
    prompts = probes.tokenised(lambda text: tokenizer(text)["input_ids"])
    if not all(tokens and max(tokens) < vocabulary for tokens in prompts):
        return probes.numbered(vocabulary), "numbers"
    return prompts, "text"


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sum(tensor: torch.Tensor) -> int:
    """A weighted sum would also see swapped elements; the base's logits, compared bit by bit, see those."""
    flat = tensor.detach().contiguous().view(-1)
    size = flat.element_size()
    if (flat.numel() * size) % 8 == 0 and (flat.storage_offset() * size) % 8 == 0 and flat.data_ptr() % 8 == 0:
        return int(flat.view(torch.int64).sum())  # modulo 2**64; a quarter of the time of 16-bit integers
    return int(flat.view(_INTEGERS[size]).sum(dtype=torch.int64))
