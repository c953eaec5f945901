"""One base in memory: load it, tokenise the probes, run them, and tell whether its numbers are still the same.

Invariants
- Loading runs no code from the base's folder and asks no network: files of this folder only.
- `Base.load` runs no forward and starts no thread, so that its process may fork afterwards.
- `fingerprint` covers every parameter and buffer that the base had when it was loaded, wherever an adapter moved it.

Example
    >>> base = Base.load(Path("models/tiny"), "tiny")
    >>> before = base.logits(base.probes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers

from registry.worker import probes

Logits = list[torch.Tensor]
"""Per probe: fp32 [tokens, vocabulary] (or [tokens, hidden] of a base without a language head)."""


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base. `originals` are its parameters and buffers by name, as the objects that they were at first."""

    name: str
    model: Any
    originals: dict[str, torch.Tensor]
    probes: list[tuple[int, ...]]
    probe_kind: str
    vocabulary: int
    task: str
    load_seconds: float

    @classmethod
    def load(cls, folder: Path, name: str) -> Base:
        """The base in this folder, in fp32 on the CPU. Errors are transformers' own: the caller reports them."""
        started = perf_counter()
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        maker, task = _class_of(config)
        model = maker.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        model.eval()
        model.requires_grad_(False)
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        asked, kind = _probes_of(folder, vocabulary)
        return cls(
            name=name,
            model=model,
            originals={**dict(model.named_parameters()), **dict(model.named_buffers())},
            probes=asked,
            probe_kind=kind,
            vocabulary=vocabulary,
            task=task,
            load_seconds=perf_counter() - started,
        )

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.originals.values())

    def logits(self, asked: Sequence[tuple[int, ...]]) -> Logits:
        return logits(self.model, asked)

    def fingerprint(self) -> dict[str, int]:
        """An integer sum of the bits of each tensor: any single changed bit changes it. 0.1 s for 135M parameters."""
        return {name: _bit_sum(tensor) for name, tensor in self.originals.items()}


@torch.inference_mode()
def logits(model: Any, asked: Sequence[tuple[int, ...]]) -> Logits:
    """The model's answer to each probe, one probe at a time, so that no padding plays a part."""
    answers = []
    for tokens in asked:
        ids = torch.tensor([tokens], dtype=torch.long, device=next(model.parameters()).device)
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        values = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
        answers.append(values[0, -len(tokens) :].float())  # prompt methods put virtual tokens in front
    return answers


def _class_of(config: Any) -> tuple[Any, str]:
    """The class that the configuration names, if it is transformers' own, and the adapters' task that it serves."""
    for name in getattr(config, "architectures", None) or ():
        maker = getattr(transformers, str(name), None)
        if isinstance(maker, type) and issubclass(maker, transformers.PreTrainedModel):
            return maker, "CAUSAL_LM" if str(name).endswith(("ForCausalLM", "LMHeadModel")) else ""
    return transformers.AutoModelForCausalLM, "CAUSAL_LM"


def _probes_of(folder: Path, vocabulary: int) -> tuple[list[tuple[int, ...]], str]:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return probes.numbered(vocabulary), "numbers"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    asked = [tuple(tokenizer(text)["input_ids"][: probes.TOKENS_LIMIT]) for text in probes.TEXTS]
    if not all(tokens and max(tokens) < vocabulary for tokens in asked):
        return probes.numbered(vocabulary), "numbers"
    return asked, "text"


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bit_sum(tensor: torch.Tensor) -> int:
    """A weighted sum would also see swapped elements; the base's logits, compared bit by bit, see those."""
    bits = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64))
