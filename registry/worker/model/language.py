"""A base language model in memory: load it, tokenize the probes, run them, and detect changes of its numbers.

- Loading runs no code from the base's folder and makes no network request.
- On a CPU it computes in fp32; on a GPU in the number format of the base's record, placed by `device_map`.
- `LoadedBase.load` runs no forward pass and starts no thread, so its process may fork afterwards.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import torch
import transformers

from registry.versions.files import SENTENCEPIECE, TOKENIZER, VOCABULARY
from registry.worker.devices import CPU
from registry.worker.model import tasks
from registry.worker.model.tasks import ForwardPass, Logits, ModelTask, Probe

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A loaded base. `originals`: its parameters and buffers by name, as the objects first loaded."""

    name: str
    model: Any
    originals: dict[str, torch.Tensor]
    probes: list[Probe]
    probe_kind: str
    vocabulary: int
    forward: ForwardPass
    load_seconds: float
    tokenizer: Any = None
    dtype: str = "float32"
    device: str = "cpu"

    @classmethod
    def load(cls, folder: Path, name: str, *, device: str = CPU, dtype: str = "") -> Self:
        """Load the base in this folder. Errors are transformers' own.

        `dtype`: safetensors' name of the record's number format (BF16, F16, F32), for a GPU.
        """
        started = perf_counter()
        target_dtype = torch.float32 if device == CPU else DTYPES.get(dtype.upper(), torch.bfloat16)
        placed = {} if device == CPU else {"device_map": "auto" if device == "cuda" else {"": device}}
        config = tasks.read_base_config(folder)
        maker, task = tasks.class_of(config)
        model = maker.from_pretrained(
            folder, config=config, dtype=target_dtype, local_files_only=True, trust_remote_code=False, **placed
        )
        model.eval()
        model.requires_grad_(False)
        _demand_whole(model)
        _keep_layout(model)
        table = tasks.embedding_of(model)
        vocabulary = len(table) if table is not None else int(getattr(config, "vocab_size", None) or 0)
        tokenizer = _tokenizer_of(folder)
        prompts, kind = _probes_of(tokenizer, vocabulary, tasks.special_tokens(config))
        return cls(
            name=name, model=model, originals={**dict(model.named_parameters()), **dict(model.named_buffers())},
            probes=prompts, probe_kind=kind, vocabulary=vocabulary, forward=ForwardPass(model, task),
            load_seconds=perf_counter() - started,
            tokenizer=tokenizer, dtype=str(target_dtype).removeprefix("torch."), device=device,
        )  # fmt: skip

    def as_class_of(self, task_type: str, labels: int) -> Self | None:
        """This base as the class for this task: with a new head of a classifying one instead of its own, or without it.

        The weights are shared, not copied. None if transformers has no such class, or the base is on several devices.
        """
        config = copy.deepcopy(self.model.config)
        config.num_labels = labels
        choice, devices = tasks.class_for(config, task_type), {p.device for p in self.model.parameters()}
        if choice is None or len(devices) > 1:
            return None
        maker, task = choice
        torch.manual_seed(0)
        model = maker.from_pretrained(
            None, config=config, state_dict=self.model.state_dict(), dtype=getattr(torch, self.dtype),
            **({} if self.device == CPU else {"device_map": {"": devices.pop()}}),
        ).eval().requires_grad_(False)  # fmt: skip
        originals = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return replace(self, model=model, originals=originals, forward=ForwardPass(model, task))

    @property
    def task(self) -> ModelTask:
        """What the model is for."""
        return self.forward.task

    @property
    def parameters(self) -> int:
        """Number of parameters of the base."""
        return sum(tensor.numel() for tensor in self.originals.values())

    def logits(self, prompts: Sequence[Probe], model: Any = None) -> Logits:
        """The output for each probe, of the bare base or of `model`. Probes of one length are a batch: no padding."""
        answers: dict[int, torch.Tensor] = {}
        for length in dict.fromkeys(len(tokens) for tokens in prompts):
            indices = [i for i, tokens in enumerate(prompts) if len(tokens) == length]
            batch = [prompts[i] for i in indices]
            answers |= zip(indices, self.rows(batch, model), strict=True)
        return [answers[i] for i in range(len(prompts))]

    def rows(self, batch: Sequence[Probe], model: Any = None, **kwargs: Any) -> Logits:
        """The output for probes of equal length, in one pass. `kwargs` go to the model (`adapter_names`)."""
        return self.forward.rows(self.model if model is None else model, batch, **kwargs)

    def fingerprint(self) -> dict[str, int]:
        """An integer sum of the bits of each tensor, which any single changed bit changes."""
        return {name: bit_sum(tensor) for name, tensor in self.originals.items()}


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


def _tokenizer_of(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in (TOKENIZER, SENTENCEPIECE, VOCABULARY)):
        return None
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _probes_of(tokenizer: Any, vocabulary: int, special: Collection[int] = ()) -> tuple[list[Probe], str]:
    if tokenizer is None:
        return number_probes(vocabulary, special), "numbers"
    prompts = text_probes(lambda text: tokenizer(text)["input_ids"])
    if not all(tokens and max(tokens) < vocabulary for tokens in prompts):
        return number_probes(vocabulary, special), "numbers"
    return prompts, "text"


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sum(tensor: torch.Tensor) -> int:
    """An integer sum of the tensor's bits. It does not see swapped elements; the base's logits do."""
    flat = tensor.detach().contiguous().view(-1)
    size = flat.element_size()
    if (flat.numel() * size) % 8 == 0 and (flat.storage_offset() * size) % 8 == 0 and flat.data_ptr() % 8 == 0:
        return int(flat.view(torch.int64).sum())  # modulo 2**64; a quarter of the time of 16-bit integers
    return int(flat.view(_INTEGERS[size]).sum(dtype=torch.int64))


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

NUMBERS = 512
"""Numbers that probes have where a model takes no tokens: its input is made from them."""
_STEP = 13  # coprime to ordinary vocabulary sizes, so that the numbers spread


def text_probes(tokens_of: Callable[[str], Sequence[int]]) -> list[Probe]:
    """Tokenize the texts, the short ones first. Each group is cut to one length, so it is one batch without padding."""
    prompts: list[Probe] = []
    for texts in (SHORT, LONG):
        group = [tuple(tokens_of(text)) for text in texts]
        length = min(TOKENS_LIMIT, *map(len, group))
        prompts += [tokens[:length] for tokens in group]
    return prompts


def number_probes(vocabulary: int, special: Collection[int] = ()) -> list[Probe]:
    """Probes for a base without a tokenizer: fixed token numbers below `vocabulary`, none of the `special` ones."""
    count = vocabulary or NUMBERS
    plain = [number for number in range(count) if number not in special] or [0]
    numbers = [[(3 + start + _STEP * i) % count for i in range(16)] for start in (0, 5, 9)]
    return [tuple(plain[n % len(plain)] if n in special else n for n in row) for row in numbers]


def with_tokens(probes: list[Probe], special: Probe, vocabulary: int) -> list[Probe]:
    """Add a probe with the tokens that activate the adapter (aLoRA, trained tokens)."""
    usable = tuple(token for token in special if 0 <= token < vocabulary)[:TOKENS_LIMIT]
    return [*probes, (*probes[0][:8], *usable, *probes[0][8:16])] if usable else probes
