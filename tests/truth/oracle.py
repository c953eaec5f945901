"""The oracle: what PEFT itself says about an adapter on a base.

Yes means: PEFT's configuration class reads the configuration, its loader finds every tensor that it expects and no
other, two loads answer alike, and the outputs are finite and differ from the bare base's. Anything else is no.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors import safe_open

SECONDS_LIMIT = 20
"""PEFT's answer must come within this time of a processor; later is no."""
NO_EFFECT = 1e-6
"""Relative change of the outputs that may be rounding."""

FILE_NOT_FINITE = "the file holds NaN or infinite numbers"
STRUCTURE = frozenset({"config", "load", "missing", "unexpected", "random"})
"""Reasons that headers and configuration show; the others need numbers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`why`: config, load, missing, unexpected, random, forward, not_finite, no_effect; empty for yes."""

    why: str = ""
    message: str = ""

    @property
    def is_yes(self) -> bool:
        return not self.why


@dataclass(frozen=True, slots=True)
class Subject:
    """A base in memory. `inputs` fit its task; `answers`: its outputs for them."""

    model: Any
    inputs: dict[str, Any]
    answers: torch.Tensor
    copy: Callable[[], Any]
    """Make a copy of the model."""


class TooSlow(Exception):
    """PEFT did not answer within the limit."""


def subject_of(model: Any, inputs: dict[str, Any]) -> Subject:
    """The base with its own outputs. Errors are the model's own."""
    answers = outputs(model, inputs)
    return Subject(model, inputs, answers, _copier(model, inputs, answers))


class _Pickler(pickle.Pickler):
    """Leaves tensors out, in `tensors`."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=5)
        self.tensors: dict[int, torch.Tensor] = {}

    def persistent_id(self, item: Any) -> int | None:
        if not isinstance(item, torch.Tensor):
            return None
        self.tensors[id(item)] = item
        return id(item)


class _Unpickler(pickle.Unpickler):
    """Puts copies of these tensors in."""

    def __init__(self, stream: io.BytesIO, tensors: dict[int, torch.Tensor]) -> None:
        super().__init__(stream)
        self._tensors, self._copies = tensors, dict[int, Any]()

    def persistent_load(self, number: int) -> torch.Tensor:
        return copy.deepcopy(self._tensors[number], self._copies)


def _copier(model: Any, inputs: dict[str, Any], answers: torch.Tensor) -> Callable[[], Any]:
    """What copies the model: by pickle, four times as fast as `copy.deepcopy`, where that does the same."""
    pickler = _Pickler(stream := io.BytesIO())

    def unpickled() -> Any:
        return _Unpickler(io.BytesIO(stream.getvalue()), pickler.tensors).load()

    try:
        pickler.dump(model)
        if torch.equal(outputs(unpickled(), inputs), answers):
            return unpickled
    except Exception:  # closures, locks
        pass
    return functools.partial(copy.deepcopy, model)


def ask(subject: Subject, folder: Path, *, tolerated: frozenset[str] = frozenset()) -> Answer:
    """PEFT's answer. `tolerated`: tensors that its own honest file has too many, or lacks."""
    try:
        with deadline(SECONDS_LIMIT):
            return _ask(subject, folder, tolerated)
    except TooSlow:
        return Answer("forward", f"no answer within {SECONDS_LIMIT} s")


def _ask(subject: Subject, folder: Path, tolerated: frozenset[str]) -> Answer:
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except Exception as e:
        return Answer("config", one_line(e))
    inputs = invoking(config, subject)
    bare = subject.answers if inputs is subject.inputs else outputs(subject.model, inputs)
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        try:
            wrapped, missing, unexpected = load(subject.copy(), folder)
        except Exception as e:
            return Answer("load", one_line(e))
        if config.is_prompt_learning:  # PEFT loads these apart, and still lists them; `differences` sees the others
            unexpected = []
        if missing:
            return Answer("missing", f"{len(missing)} missing: {', '.join(missing[:3])}")
        unexpected = [name for name in unexpected if name not in tolerated]
        if unexpected:
            return Answer("unexpected", f"{len(unexpected)} unexpected: {', '.join(unexpected[:3])}")
        surplus, absent = differences(wrapped, folder)
        if surplus - tolerated:
            return Answer(
                "unexpected", f"copied over the base or dropped: {', '.join(sorted(surplus - tolerated)[:3])}"
            )
        if absent - tolerated:
            return Answer("missing", f"keeps initial numbers: {', '.join(sorted(absent - tolerated)[:3])}")
        try:
            answers.append(outputs(wrapped, extra_inputs(config, wrapped, inputs)))
        except Exception as e:
            return Answer("forward", one_line(e))
    if not all(bool(torch.isfinite(values).all()) for values in answers):
        return Answer("not_finite", "the outputs are not finite")
    if moved(answers[0], answers[1]):
        return Answer("random", "two loads answer differently")
    if answers[0].shape == bare.shape and not moved(answers[0], bare):
        return Answer("no_effect", "the outputs are those of the base")
    return Answer()


def load(model: Any, folder: Path) -> tuple[Any, list[str], list[str]]:
    """The model with the adapter, and what PEFT says is missing and unexpected."""
    results: list[Any] = []
    with _recorded(results), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        wrapped = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=False, torch_device="cpu")
    wrapped.eval()
    prefix = "Found missing adapter keys while loading the checkpoint: "
    missing = [text.removeprefix(prefix) for w in heard if (text := str(w.message)).startswith(prefix)]
    return wrapped, missing, [key for result in results for key in result.unexpected_keys]


@contextlib.contextmanager
def _recorded(results: list[Any]) -> Iterator[None]:
    original = peft.PeftModel.load_adapter

    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        results.append(result)
        return result

    peft.PeftModel.load_adapter = recording
    try:
        yield
    finally:
        peft.PeftModel.load_adapter = original


def differences(wrapped: Any, folder: Path) -> tuple[set[str], set[str]]:
    """Tensors of the file that PEFT would not write after loading it; those that it would, and the file lacks."""
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
    return names - expected, expected - names


def is_finite(folder: Path) -> bool:
    """Whether every number of the file is finite. Some attention kernels hide NaN, so the outputs need not show it."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        tensors = (file.get_tensor(name) for name in file.keys())  # noqa: SIM118
        return all(bool(t.float().isfinite().all()) for t in tensors if t.is_floating_point())


def tolerance(subject: Subject, folder: Path, *, older: bool = False) -> frozenset[str]:
    """The names by which an honest file differs from what PEFT would write after loading it.

    `older`: it has an older library's names, which PEFT may rename, but not drop.
    """
    try:
        wrapped, _, unexpected = load(subject.copy(), folder)
    except Exception:
        if older:
            return frozenset()
        raise
    surplus, absent = differences(wrapped, folder)
    return frozenset(surplus | absent | ({*unexpected} if not older else set()))


@torch.inference_mode()
def outputs(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The first tensor of floating-point outputs, the last tokens only where prompt methods add some."""
    torch.manual_seed(0)
    out = model(**inputs)
    for name in ("logits", "start_logits", "prediction_logits", "last_hidden_state"):
        values = getattr(out, name, None)
        if isinstance(values, torch.Tensor):
            ends = getattr(out, "end_logits", None)  # Splinter has a head for each
            return (torch.cat([values, ends], dim=-1) if torch.is_tensor(ends) else values).float()
    return next(v for v in out.to_tuple() if torch.is_tensor(v) and v.is_floating_point()).float()


def invoking(config: Any, subject: Subject) -> dict[str, Any]:
    """The base's inputs with the tokens in them that an aLoRA waits for."""
    tokens, ids = getattr(config, "alora_invocation_tokens", None), subject.inputs.get("input_ids")
    vocabulary = getattr(subject.model.config, "vocab_size", 0)
    if ids is None or not isinstance(tokens, list) or not 0 < len(tokens) < ids.shape[1]:
        return subject.inputs
    if not all(type(token) is int and 0 <= token < vocabulary for token in tokens):
        return subject.inputs
    ids = ids.clone()
    ids[:, 1 : 1 + len(tokens)] = torch.tensor(tokens)
    return subject.inputs | {"input_ids": ids}


def extra_inputs(config: Any, wrapped: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with what the forward pass of some methods needs, or takes in another form."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind not in ("POLY", "MULTITASK_PROMPT_TUNING"):
        return inputs
    more = {"task_ids": torch.zeros(next(iter(inputs.values())).shape[0], dtype=torch.long)}
    if kind == "MULTITASK_PROMPT_TUNING" and "decoder_input_ids" in inputs:  # its prompt precedes their embeddings
        ids = inputs["decoder_input_ids"]
        more |= {"decoder_input_ids": None, "decoder_inputs_embeds": wrapped.word_embeddings(ids)}
    return inputs | more


def moved(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two outputs differ by more than rounding."""
    if a.shape != b.shape:
        return True
    return float((a - b).abs().max()) > NO_EFFECT * max(float(b.abs().max()), 1e-12)


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raise `TooSlow` in the block after so many seconds of this process's own work."""

    def ring(_number: int, _frame: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
