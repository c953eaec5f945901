"""A base language model in memory: load it, tokenize the probes, run them, and detect changes of its numbers.

- Loading runs no code from the base's folder and makes no network request.
- On a CPU it computes in fp32; on a GPU in the number format of the base's record, placed by `device_map`.
- `LoadedBase.load` runs no forward pass and starts no thread, so its process may fork afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers

from registry.files import SENTENCEPIECE, TOKENIZER, VOCABULARY
from registry.worker.devices import CPU

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

Probe = tuple[int, ...]
Logits = list[torch.Tensor]
"""Per probe: fp32 [tokens, vocabulary] (or [tokens, hidden] of a base without a language head)."""


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A loaded base. `originals`: its parameters and buffers by name, as the objects first loaded."""

    name: str
    model: Any
    originals: dict[str, torch.Tensor]
    probes: list[Probe]
    probe_kind: str
    vocabulary: int
    task: str
    load_seconds: float
    tokenizer: Any = None
    dtype: str = "float32"
    device: str = "cpu"

    @classmethod
    def load(cls, folder: Path, name: str, *, device: str = CPU, dtype: str = "") -> LoadedBase:
        """Load the base in this folder. Errors are transformers' own.

        `dtype`: safetensors' name of the record's number format (BF16, F16, F32), for a GPU.
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
            name=name, model=model, originals={**dict(model.named_parameters()), **dict(model.named_buffers())},
            probes=prompts, probe_kind=kind, vocabulary=vocabulary, task=task, load_seconds=perf_counter() - started,
            tokenizer=tokenizer, dtype=str(target_dtype).removeprefix("torch."), device=device,
        )  # fmt: skip

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.originals.values())

    def logits(self, prompts: Sequence[Probe]) -> Logits:
        """The bare base's logits for each prompt."""
        return logits(self.model, prompts)

    def fingerprint(self) -> dict[str, int]:
        """An integer sum of the bits of each tensor, which any single changed bit changes."""
        return {name: bit_sum(tensor) for name, tensor in self.originals.items()}


@torch.inference_mode()
def logits(model: Any, prompts: Sequence[Probe]) -> Logits:
    """The model's logits for each prompt. Prompts of one length are one batch, so padding has no influence."""
    answers: dict[int, torch.Tensor] = {}
    for length in dict.fromkeys(len(tokens) for tokens in prompts):
        indices = [i for i, tokens in enumerate(prompts) if len(tokens) == length]
        answers |= zip(indices, rows(model, [prompts[i] for i in indices]), strict=True)
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def rows(model: Any, batch: Sequence[Probe], **kwargs: Any) -> Logits:
    """The model's logits for rows of equal length, in one pass. `kwargs` go to the model (`adapter_names`)."""
    ids = torch.tensor(batch, dtype=torch.long, device=next(model.parameters()).device)
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **kwargs)
    values = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
    return [row[-len(tokens) :].float() for row, tokens in zip(values, batch, strict=True)]  # prompt methods add tokens


def _demand_whole(model: Any) -> None:
    """Refuse layers that do not fit on the GPUs: each forward pass would load them, and no check could see them."""
    away = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if away:
        raise MemoryError(f"{len(away)} of the base's tensors do not fit on the devices here, {away[0]} first")


def _keep_layout(model: Any) -> None:
    """Keep four-bit weights in the layout of the base's files.

    On a CPU with AVX-512 bitsandbytes changes the layout in their first forward pass. PEFT's loading then reads the
    state, which restores the layout but (in 0.50) not the scales: the base itself would answer differently.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def class_of(config: Any) -> tuple[Any, str]:
    """The class that the configuration names, if it is one of transformers, and the task of its adapters."""
    for name in getattr(config, "architectures", None) or ():
        maker = getattr(transformers, str(name), None)
        if isinstance(maker, type) and issubclass(maker, transformers.PreTrainedModel):
            return maker, "CAUSAL_LM" if str(name).endswith(("ForCausalLM", "LMHeadModel")) else ""
    return transformers.AutoModelForCausalLM, "CAUSAL_LM"


def _tokenizer_of(folder: Path) -> Any:
    """The base's tokenizer; None if it has none."""
    if not any((folder / name).is_file() for name in (TOKENIZER, SENTENCEPIECE, VOCABULARY)):
        return None
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _probes_of(tokenizer: Any, vocabulary: int) -> tuple[list[Probe], str]:
    if tokenizer is None:
        return number_probes(vocabulary), "numbers"
    prompts = text_probes(lambda text: tokenizer(text)["input_ids"])
    if not all(tokens and max(tokens) < vocabulary for tokens in prompts):
        return number_probes(vocabulary), "numbers"
    return prompts, "text"


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sum(tensor: torch.Tensor) -> int:
    """An integer sum of the tensor's bits. It does not see swapped elements; the base's logits do."""
    flat = tensor.detach().contiguous().view(-1)
    size = flat.element_size()
    if (flat.numel() * size) % 8 == 0 and (flat.storage_offset() * size) % 8 == 0 and flat.data_ptr() % 8 == 0:
        return int(flat.view(torch.int64).sum())  # modulo 2**64; a quarter of the time of 16-bit integers
    return int(flat.view(_INTEGERS[size]).sum(dtype=torch.int64))


# ------------------------------------------------------------------ probes
SHORT: tuple[str, ...] = (
    "The train to the coast leaves at nine, and the last one comes back before midnight.",
    "Customer: My order has not arrived yet. What can I do?\nShop:",
    "def area(width, height):\n    return width * height\n\n\ndef volume(",
)
LONG: tuple[str, ...] = (
    "Bread needs four things: flour, water, salt and time. Mix them in the evening, let the dough rest in a cool place "
    "over night, and bake it in the morning until the crust is dark and sounds hollow when you knock on it.",
    "The committee met on Tuesday to discuss the budget for the coming year. After two hours it agreed on a smaller "
    "sum for the library, put off the question of the bridge, and thanked the treasurer for her patient work.",
    "Light from the sun takes about eight minutes to reach the earth. The moon, which is much closer, sends us only "
    "what it reflects, and so we always see its surface as it was a little more than a second ago.",
)
"""Neutral texts: sentences, a customer's question, code, and three paragraphs. Never changed, so reports compare."""

TOKENS_LIMIT = 64
"""Tokens kept of one probe: enough to tell adapters apart, short enough for a CPU."""

_STEP = 13  # coprime to ordinary vocabulary sizes, so that the numbers spread


def text_probes(tokens_of: Callable[[str], Sequence[int]]) -> list[Probe]:
    """Tokenize the texts, the short ones first. Each group is cut to one length, so it is one batch without padding."""
    prompts: list[Probe] = []
    for texts in (SHORT, LONG):
        group = [tuple(tokens_of(text)) for text in texts]
        length = min(TOKENS_LIMIT, *map(len, group))
        prompts += [tokens[:length] for tokens in group]
    return prompts


def number_probes(vocabulary: int) -> list[Probe]:
    """Probes for a base without a tokenizer: fixed token numbers below `vocabulary`."""
    return [tuple((3 + start + _STEP * i) % vocabulary for i in range(16)) for start in (0, 5, 9)]


def with_tokens(probes: list[Probe], special: Probe, vocabulary: int) -> list[Probe]:
    """Add a probe with the tokens that activate the adapter (aLoRA, trained tokens)."""
    usable = tuple(token for token in special if 0 <= token < vocabulary)[:TOKENS_LIMIT]
    return [*probes, (*probes[0][:8], *usable, *probes[0][8:16])] if usable else probes
