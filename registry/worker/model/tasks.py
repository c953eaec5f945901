"""What a base model is for, by the class that its configuration names: the class to load, its inputs, its outputs.

    task         the tables of auto classes in transformers that the class is in, most specific first
    inputs       tokens where the model takes tokens; else features, samples or pixels made from the same numbers
    predictions  what of the output is compared: next tokens, labels, or the states of a model without a head

A class in no table is compared by whatever it returns. Only the library's own classes are used, never a repository's.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional
from transformers.models.auto import modeling_auto

Probe = tuple[int, ...]
Logits = list[torch.Tensor]
"""Per probe: fp32 [positions, features]. Positions are the probe's tokens where the model has an output for each."""


class Predictions(StrEnum):
    """What one row of the compared output is."""

    NEXT_TOKENS = "next tokens"
    LABELS = "labels"
    STATES = "states"


@dataclass(frozen=True, slots=True)
class ModelTask:
    """A kind of model. `adapters`: the `task_type` of its adapters in PEFT; empty: any.

    `classes`: transformers' tables `MODEL_FOR_…_MAPPING_NAMES`. `outputs`: fields of its output, the first that it has
    is compared; two joined by `+` are one. `alone`: it takes one probe at a time.
    `chooses`: it takes several texts for one answer.
    """

    name: str
    label: str
    adapters: tuple[str, ...]
    classes: tuple[str, ...]
    predictions: Predictions
    outputs: tuple[str, ...] = ("logits",)
    alone: bool = False
    chooses: bool = False

    @property
    def writes_text(self) -> bool:
        """Whether its output predicts the next token of a text."""
        return self.predictions is Predictions.NEXT_TOKENS

    @property
    def is_classifier(self) -> bool:
        """Whether PEFT has a task for such a model, and saves the head with the adapter."""
        return bool(self.name) and self.predictions is Predictions.LABELS

    def takes(self, task_type: str) -> bool:
        """Whether adapters of this PEFT task are for such a model."""
        return not task_type or not self.adapters or task_type in self.adapters


_STATES = ("logits", "prediction_logits", "last_hidden_state", "pooler_output", "logits_per_image", "predicted_depth")
_WRITERS = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
CAUSAL = ModelTask(
    "CAUSAL_LM", "causal language model", ("CAUSAL_LM", "FEATURE_EXTRACTION"), _WRITERS, Predictions.NEXT_TOKENS
)
DECODER = replace(CAUSAL, adapters=("CAUSAL_LM", "SEQ_2_SEQ_LM"))
"""In transformers' table of encoder-decoders, without an encoder: a writer of text from images or sound."""
ENCODER_DECODER = ModelTask(
    "SEQ_2_SEQ_LM", "encoder-decoder that writes text", ("SEQ_2_SEQ_LM", "CAUSAL_LM"), _WRITERS, Predictions.NEXT_TOKENS
)
ENCODER = ModelTask(
    "FEATURE_EXTRACTION", "model without a head", ("FEATURE_EXTRACTION",), (), Predictions.STATES, _STATES
)
ANY = ModelTask("", "model of a kind that is compared by its output", (), (), Predictions.STATES, _STATES)
TASKS = (
    ModelTask(
        "SEQ_CLS", "sequence classifier", ("SEQ_CLS",), ("SEQUENCE_CLASSIFICATION", "NEXT_SENTENCE_PREDICTION"),
        Predictions.LABELS, ("logits", "seq_relationship_logits"), alone=True,
    ),
    ModelTask("TOKEN_CLS", "token classifier", ("TOKEN_CLS",), ("TOKEN_CLASSIFICATION",), Predictions.LABELS),
    ModelTask(
        "QUESTION_ANS", "model that answers by a span of the text", ("QUESTION_ANS",),
        ("QUESTION_ANSWERING", "DOCUMENT_QUESTION_ANSWERING"), Predictions.LABELS,
        ("start_logits+end_logits", "logits", "question_answering_score"),
    ),
    ModelTask("", "model that chooses an answer", (), ("MULTIPLE_CHOICE",), Predictions.LABELS, chooses=True),
    ENCODER_DECODER,
    CAUSAL,
    ModelTask("", "masked language model", ("FEATURE_EXTRACTION", "CAUSAL_LM"), ("MASKED_LM",), Predictions.LABELS),
    ModelTask(
        "", "audio classifier", (), ("AUDIO_CLASSIFICATION", "AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR", "CTC"),
        Predictions.LABELS,
    ),
    ModelTask("", "image classifier", (), ("IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION"), Predictions.LABELS),
)  # fmt: skip
"""In this order: BART's class for text is in the tables of encoder-decoders and of masked models."""
_ENDINGS = {
    "ForCausalLM": CAUSAL, "LMHeadModel": CAUSAL, "ForConditionalGeneration": CAUSAL,
    "ForSequenceClassification": TASKS[0], "ForTokenClassification": TASKS[1], "ForQuestionAnswering": TASKS[2],
    "Model": ENCODER,
}  # fmt: skip
"""Ends of the names of classes that are in no table."""


def read_base_config(folder: Path) -> Any:
    """The configuration of the base in this folder. `ValueError` if it names kernels of a repository.

    transformers would download these and run their code, also where it may run no code of the folder.
    """
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for part in _parts(config):
        for field, value in vars(part).items():
            if field.endswith("_implementation_internal") and "/" in str(value):
                raise ValueError(f"{field.removesuffix('_internal').strip('_')} names kernels of a repository: {value}")
    return config


def class_of(config: Any) -> tuple[Any, ModelTask]:
    """The class that the configuration names, if it is one of transformers, else the auto class; and its task."""
    for name in getattr(config, "architectures", None) or ():
        maker = getattr(transformers, str(name), None)
        if isinstance(maker, type) and issubclass(maker, transformers.PreTrainedModel):
            return maker, task_of(str(name), is_encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)))
    writes = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if writes or type(config) not in transformers.MODEL_MAPPING:
        return transformers.AutoModelForCausalLM, CAUSAL
    return transformers.AutoModel, ENCODER


def class_for(config: Any, task_type: str) -> tuple[Any, ModelTask] | None:
    """The class of this architecture with the head of a classifying task of PEFT, and without any for
    `FEATURE_EXTRACTION`; None if transformers has none.
    """
    task = next((task for task in (ENCODER, *TASKS) if task_type and task.name == task_type), ANY)
    table_name = "MODEL_MAPPING" if task is ENCODER else f"MODEL_FOR_{(*task.classes, '')[0]}_MAPPING"
    table = getattr(transformers, table_name) if task is ENCODER or task.is_classifier else {}
    maker = table.get(type(config), None)
    maker = maker[0] if isinstance(maker, tuple) else maker  # of Funnel: with its decoder, and without
    return (maker, task) if maker is not None else None


def embedding_of(model: Any) -> torch.Tensor | None:
    """The table of its token embedding; None for a model that takes no tokens."""
    try:
        weight: torch.Tensor = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    return weight


def task_of(name: str, *, is_encoder_decoder: bool) -> ModelTask:
    """The task of the class with this name."""
    for task in TASKS:
        if name in _names_in(task.classes):
            if task is not ENCODER_DECODER or is_encoder_decoder:
                return task
            return DECODER if name in _names_in(("SEQ_TO_SEQ_CAUSAL_LM",)) else CAUSAL
    ending = next((task for end, task in _ENDINGS.items() if name.endswith(end)), ANY)
    return ENCODER_DECODER if ending is CAUSAL and is_encoder_decoder else ending


@cache
def _names_in(tables: Sequence[str]) -> frozenset[str]:
    names: set[str] = set()
    for table in tables:
        for value in getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {}).values():
            names |= {value} if isinstance(value, str) else set(value)
    return frozenset(names)


class ForwardPass:
    """Runs probes through models of one task. The bare model comes first: it decides which inputs it takes."""

    def __init__(self, model: Any, task: ModelTask) -> None:
        self.task = task
        names = inspect.signature(model.forward).parameters
        self._text = [name for name in ("input_ids", "attention_mask") if "input_ids" in names and name in names]
        self._decoder = [name for name in ("decoder_input_ids",) if name in names]
        others = [name for name in INPUTS if name in names]
        self._attempts = [others[:n] for n in range(len(others) + 1)] if self._text else [[name] for name in others]
        self._config = model.config

    @torch.inference_mode()
    def rows(self, model: Any, batch: Sequence[Probe], **kwargs: Any) -> Logits:
        """The output for probes of equal length, in one pass. `kwargs` go to the model (`adapter_names`)."""
        if self.task.alone and len(batch) > 1:  # a classifier without a padding token refuses more than one text
            return [self.rows(model, [probe], **kwargs)[0] for probe in batch]
        ids = torch.tensor(batch, dtype=torch.long, device=next(model.parameters()).device)
        output = self._run(model, ids, kwargs)
        cuts = bool(self._text or self._decoder)
        return [_matrix(row, len(batch[0]) if cuts else 0) for row in self._compared(output)[: len(batch)]]

    def rows_of_answer(self, model: Any, prompt: Probe, answer: Probe) -> torch.Tensor:
        """The output [answer + 1, vocabulary] that predicts each token of the answer, and what follows it."""
        if not self._decoder:
            return self.rows(model, [prompt + answer])[0][-len(answer) - 1 :]
        ids = torch.tensor([prompt], device=next(model.parameters()).device)
        start = getattr(self._config, "decoder_start_token_id", None) or 0
        inputs = self._inputs(ids, self._attempts[0]) | {"decoder_input_ids": ids.new_tensor([[start, *answer]])}
        with torch.inference_mode():
            return _matrix(self._compared(model(**_of_method(model, inputs)))[0], len(answer) + 1)

    def _run(self, model: Any, ids: torch.Tensor, kwargs: Mapping[str, Any]) -> Any:
        """The model's output. While it has not run yet, inputs are added until it does; then they stay the same."""
        error: Exception | None = None
        for extra in self._attempts:
            torch.manual_seed(0)  # some models hash or sample
            try:
                output = model(**_of_method(model, self._inputs(ids, extra)), **kwargs)
            except Exception as e:
                error = e  # the last attempt has the most inputs: what it lacks is the cause
            else:
                self._attempts = [extra]
                return output
        raise error or TypeError(f"{type(model).__name__} takes neither tokens nor any of {', '.join(INPUTS)}")

    def _inputs(self, ids: torch.Tensor, others: Sequence[str]) -> dict[str, torch.Tensor]:
        inputs = {name: INPUTS[name](self._config, ids) for name in others}
        tokens, eos = ids, getattr(self._config, "eos_token_id", None)
        if self.task.alone and self._decoder and type(eos) is int:  # they read the end's state
            tokens = torch.cat((ids[:, :-1], ids.new_full((len(ids), 1), eos)), dim=1)
        if self.task.chooses:
            tokens = torch.stack((tokens, tokens.flip(1)), dim=1)
        inputs |= {name: tokens if name == "input_ids" else torch.ones_like(tokens) for name in self._text}
        return inputs | dict.fromkeys(self._decoder, tokens)

    def _compared(self, output: Any) -> torch.Tensor:
        for fields in (*self.task.outputs, *_STATES):
            values = [getattr(output, field, None) for field in fields.split("+")]
            if all(isinstance(value, torch.Tensor) for value in values):
                return torch.stack(values, dim=-1) if len(values) > 1 else values[0]
        raise TypeError(f"{type(output).__name__} holds none of {', '.join((*self.task.outputs, *_STATES))}")


def _matrix(row: torch.Tensor, tokens: int) -> torch.Tensor:
    """The row as [positions, features]. `tokens`: prompt methods put more positions before those of the probe."""
    matrix = row.float().reshape(-1, row.shape[-1] if row.ndim else 1)
    return matrix[-tokens:] if tokens else matrix


def _of_method(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs as PEFT's methods for several tasks take them: with each row's task, the first.

    Multitask prompts precede the embeddings of a decoder's tokens, so the decoder takes these.
    """
    config = getattr(model, "active_peft_config", None)
    tasks = getattr(config, "num_tasks", None)
    if not tasks and not getattr(config, "n_tasks", None):
        return inputs
    ids = next(iter(inputs.values()))
    more: dict[str, Any] = {"task_ids": ids.new_zeros(len(ids), dtype=torch.long)}
    if tasks and "decoder_input_ids" in inputs:
        embeddings = model.word_embeddings(inputs["decoder_input_ids"])
        more |= {"decoder_input_ids": None, "decoder_inputs_embeds": embeddings}
    return inputs | more


def special_tokens(config: Any) -> frozenset[int]:
    """Numbers that the configuration gives a meaning (`image_token_id`, `eos_token_id` …): no text holds them."""
    numbers: set[int] = set()
    for part in _parts(config):
        for name, value in vars(part).items():
            if name.endswith(("_token_id", "_token_index", "_token_ids")):
                numbers |= {v for v in (value if isinstance(value, list | tuple) else [value]) if type(v) is int}
    return frozenset(numbers)


def _parts(config: Any) -> Iterator[Any]:
    """The configuration and those inside it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, transformers.PretrainedConfig):
            yield from _parts(value)


def _size(config: Any, *fields: str, default: int) -> int:
    """The first of these fields that any part of the configuration states as a size; of a pair its first number."""
    for field in fields:
        for part in _parts(config):
            value = getattr(part, field, None)
            value = value[0] if isinstance(value, list | tuple) and value else value
            if type(value) is int and value > 0:
                return value
    return default


def _noise(ids: torch.Tensor, *shape: int) -> torch.Tensor:
    """[batch, *shape]: numbers that depend on the probe's tokens alone."""
    generators = [torch.Generator().manual_seed(int(row.sum())) for row in ids]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(ids.device)


SAMPLES = 2000
"""Of a waveform at least: Moonshine's three convolutions make three positions of them."""


def _samples(config: Any, ids: torch.Tensor) -> torch.Tensor:
    """A waveform [samples], or a spectrogram [time, bins] where the configuration has bins."""
    bins, frames = _size(config, "num_mel_bins", default=0), _size(config, "max_length", default=0)
    if bins and frames:
        return _noise(ids, frames, bins)
    stride = 1
    for step in getattr(config, "conv_stride", None) or ():
        stride *= step
    return _noise(ids, max(stride * (ids.shape[1] + 1), SAMPLES))


def _features(config: Any, ids: torch.Tensor) -> torch.Tensor:
    """[bins, time] for Whisper and its like, whose encoder has a fixed length; else [time, bins]."""
    width = _size(config, "input_feat_per_channel", "feature_projection_input_dim", "input_dim", default=0)
    bins, positions = _size(config, "num_mel_bins", default=80), _size(config, "max_source_positions", default=0)
    if frames := _size(config, "audio_length_per_tok", default=0):  # the sound of each token is added to it
        return _noise(ids, bins, frames * ids.shape[1])
    return _noise(ids, bins, 2 * positions) if positions and not width else _noise(ids, 4 * ids.shape[1], width or bins)


def _tokens(_config: Any, ids: torch.Tensor) -> torch.Tensor:
    return ids


def _bounds(_config: Any, ids: torch.Tensor) -> torch.Tensor:
    return ids.new_zeros((*ids.shape, 4))


def _first_token(_config: Any, ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(ids).index_fill_(1, ids.new_zeros(1), 1)


def _image_embedding(config: Any, ids: torch.Tensor) -> torch.Tensor:
    """[1, hidden] for the place that `_first_token` marks, because a whole image takes more places than a probe has."""
    return _noise(ids, 1, _size(config, "embed_dim", "hidden_size", default=1))


def _pixels(config: Any, ids: torch.Tensor) -> torch.Tensor:
    side = _size(config, "image_size", default=224)
    images = _noise(ids, _size(config, "num_channels", "in_channels", default=3), side, side)
    if getattr(config, "model_type", "") in _SEVERAL_IMAGES:
        return images.unsqueeze(1)
    frames = getattr(config, "num_frames", None)
    return _frames(images, frames) if type(frames) is int else images


def _frames(images: torch.Tensor, count: int) -> torch.Tensor:
    """[batch, frames, channels, height, width]: the image moves by a pixel from frame to frame."""
    return torch.stack([images.roll(number, dims=-1) for number in range(count)], dim=1)


def _video(config: Any, ids: torch.Tensor) -> torch.Tensor:
    side = _size(config, "crop_size", "image_size", default=224)
    images = _noise(ids, _size(config, "in_chans", "num_channels", default=3), side, side)
    return _frames(images, _size(config, "frames_per_clip", "num_frames", default=2))


_SEVERAL_IMAGES = ("idefics", "instructblipvideo")
"""Model types that take several images, or frames, for a text."""


def _patches(config: Any, ids: torch.Tensor) -> torch.Tensor:
    """[patches, row + column + pixels] of Pix2Struct, all of them at the first row and column."""
    return functional.pad(_noise(ids, ids.shape[1], _size(config, "patch_embed_hidden_size", default=768)), (2, 0))


INPUTS: Mapping[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "bbox": _bounds, "global_attention_mask": _first_token, "pixel_values": _pixels, "input_features": _features,
    "input_values": _samples, "flattened_patches": _patches, "image_embeds_position_mask": _first_token,
    "image_embeds": _image_embedding, "qformer_input_ids": _tokens, "pixel_values_videos": _video,
    "image_attention_mask": lambda _config, ids: torch.ones_like(ids).unsqueeze(-1),
    "visual_feats": lambda config, ids: _noise(ids, 4, _size(config, "visual_feat_dim", default=2048)),
    "visual_pos": lambda config, ids: _noise(ids, 4, _size(config, "visual_pos_dim", default=4)),
}  # fmt: skip
"""Input → how to make it from the probe's numbers."""
