"""Structure: the tensors that PEFT expects of an adapter on a base, by names and shapes, against those in its file.

PEFT injects the adapter's configuration into a copy of the base on the meta device: no weight is read, and PEFT's own
`get_peft_model_state_dict` says what belongs to the adapter. Some methods read values when they are injected, or make
some tensors only beside values (`needs_values` in registry/adapters/methods.py): of these the model is compared that
PEFT has loaded the adapter into. A field that an older PEFT lacks counts as None.
"""

import contextlib
import copy
import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import safe_open
from safetensors.torch import load_file

from registry.adapters.methods import find
from registry.adapters.peft.formulas import evaluate
from registry.digest import Digest
from registry.findings import Finding
from registry.versions.files import CONFIG, WEIGHTS
from registry.worker.smoke.result import exceptions_as, library_message, machine_fault

Shapes = dict[str, tuple[int, ...]]
SHOWN = 5
REMEMBERED_LIMIT = 1000
PEFT = f"PEFT {peft.__version__}"
FreeFields = Mapping[str, Callable[[Any], bool]]
"""Field → the values that make no difference."""
NO_SHAPE: FreeFields = {
    **dict.fromkeys(("lora_alpha", "alpha_pattern", "use_rslora"), lambda _value: True),
    **dict.fromkeys(
        ("base_model_name_or_path", "revision", "peft_version"), lambda value: value is None or isinstance(value, str)
    ),
    **dict.fromkeys(("inference_mode", "init_lora_weights"), lambda value: isinstance(value, bool)),
    "lora_dropout": lambda value: isinstance(value, int | float) and 0 <= value <= 1,
}
"""What changes neither names nor shapes of tensors."""


class NeedsValues(Exception):
    """PEFT cannot build this adapter on the meta device."""


class Structures:
    """The comparisons of this process with one base; those of equal configurations and headers are made once."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._remembered: dict[Digest, list[Finding]] = {}
        self.builds = 0

    def compare(self, folder: Path) -> list[Finding]:
        """The differences, or one finding that says that there are none.

        Raises `LibraryFailed` for a configuration that PEFT refuses, and `NeedsValues` if only the loaded adapter can
        be compared (`compare_loaded`).
        """
        config, shapes = read_config(folder), shapes_in_file(folder / WEIGHTS)
        key = _key(config, shapes)
        if key not in self._remembered:
            if evaluate(find(config.peft_type).needs_values, defaultdict(lambda: None, config.to_dict())):
                raise NeedsValues(f"it makes tensors of {config.peft_type.value} by the numbers of the base")
            self.builds += 1
            if len(self._remembered) >= REMEMBERED_LIMIT:
                self._remembered.clear()
            try:
                self._remembered[key] = _compare(_build(self._model, config), shapes)
            except Exception as e:
                if machine_fault(e):
                    raise
                raise NeedsValues(library_message(e)) from e
        return self._remembered[key]


def read_config(folder: Path) -> Any:
    """The configuration as PEFT's class for its method reads it. Raises `LibraryFailed`."""
    with exceptions_as("error", "config.not_loadable", CONFIG, f"{PEFT} refuses the configuration"):
        config = peft.PeftConfig.from_pretrained(str(folder))
        config = PEFT_TYPE_TO_CONFIG_MAPPING[config.peft_type].from_pretrained(str(folder))
    config.inference_mode = True
    return config


def shapes_in_file(weights: Path) -> Shapes:
    """The names and shapes in the header."""
    with safe_open(weights, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def compare_loaded(wrapped: Any, folder: Path) -> list[Finding]:
    """Do what `Structures.compare` does, with the model that PEFT has loaded the adapter into."""
    weights = folder / WEIGHTS
    return _compare(wrapped, shapes_in_file(weights), lambda: load_file(weights))


def _key(config: Any, shapes: Shapes) -> Digest:
    """A digest, because the names of a file's tensors may have megabytes."""
    text = json.dumps([fields_beside(config, NO_SHAPE), sorted(shapes.items())], sort_keys=True, default=repr)
    return Digest.of(text.encode())


def fields_beside(config: Any, free: FreeFields) -> dict[str, Any]:
    """The fields of a configuration that make a difference."""
    return {
        name: sorted(value, key=str) if isinstance(value, set) else value
        for name, value in config.to_dict().items()
        if name not in free or not free[name](value)
    }


def _build(model: Any, config: Any) -> Any:
    """The base's architecture with the adapter, on the meta device. Errors are transformers' and PEFT's own."""
    base_config = copy.deepcopy(model.config)
    vars(base_config).pop("quantization_config", None)  # packing changes the storage of weights, not the modules
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True  # others read the base's weights; names and shapes are the same
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(type(model)._from_config(base_config), config)


def _compare(
    wrapped: Any, shapes: Shapes, tensors: Callable[[], dict[str, torch.Tensor]] | None = None
) -> list[Finding]:
    """`tensors` reads the file's; without it, they are on the meta device as the model is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = wrapped.state_dict()
        saved = [_saved(wrapped, state, with_embeddings=embeddings) for embeddings in (False, True)]
        required, permitted = ({name: tuple(tensor.shape) for name, tensor in kind.items()} for kind in saved)
        findings = list(_differences(required, permitted, shapes))
        if findings and _is_renamed(wrapped, state, saved[0], shapes, tensors):
            findings = []
        elif not findings and tensors is None:
            findings = list(_not_loaded(wrapped, state, saved[0], shapes))
    message = f"{PEFT} expects the {len(shapes)} tensors of this file, by names and shapes, and no other"
    return findings or [Finding.of("info", "compat.peft_expects", WEIGHTS, message)]


def _saved(wrapped: Any, state: Mapping[str, torch.Tensor], *, with_embeddings: bool) -> dict[str, torch.Tensor]:
    """What PEFT would save, with the embeddings or the head that it chooses (`save_embedding_layers`)."""
    embeddings: bool | str = "auto" if with_embeddings else False
    with contextlib.suppress(NotImplementedError):  # a model without input embeddings, such as Hubert, has none to save
        return dict(peft.get_peft_model_state_dict(wrapped, state_dict=dict(state), save_embedding_layers=embeddings))
    return _saved(wrapped, state, with_embeddings=False)


def _not_loaded(
    wrapped: Any, state: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor], shapes: Shapes
) -> Iterator[Finding]:
    """What PEFT's loader does not find of a LoRA in its own names: of a few architectures it renames some of them."""
    if wrapped.peft_config["default"].peft_type != peft.PeftType.LORA:
        return
    key_of = {id(tensor): key for key, tensor in state.items()}
    expected = {key for tensor in saved.values() if ".lora_" in (key := key_of.get(id(tensor), ""))}
    result = _load(wrapped, shapes, None)
    if missing := sorted(expected.intersection(result.missing_keys) if result is not None else ()):
        message = f"{PEFT} saves {len(missing)} tensors under names that it does not load, {missing[0]} first"
        yield Finding.of("error", "compat.tensor_missing", missing[0], message, missing[0], "nothing")


def _is_renamed(
    wrapped: Any, state: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor], shapes: Shapes,
    tensors: Callable[[], dict[str, torch.Tensor]] | None,
) -> bool:  # fmt: skip
    """Whether PEFT's loader itself takes names of an older library for every tensor that it expects, and no other.

    A tensor that has the name of one of the base's would be loaded, too, and overwrite it.
    """
    if not (shapes.keys() - saved.keys()).isdisjoint(state):
        return False
    key_of = {id(tensor): key for key, tensor in state.items()}
    expected = {key_of.get(id(tensor), "") for tensor in saved.values()}
    result = _load(wrapped, shapes, tensors)
    if result is None:
        return False
    return "" not in expected and not result.unexpected_keys and expected.isdisjoint(result.missing_keys)


def _load(wrapped: Any, shapes: Shapes, tensors: Callable[[], dict[str, torch.Tensor]] | None) -> Any:
    """What PEFT's loader says of the file's tensors; None if it fails."""
    of_file = tensors() if tensors else {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        return peft.set_peft_model_state_dict(wrapped, of_file, low_cpu_mem_usage=tensors is None)
    except Exception as e:
        if machine_fault(e):
            raise
        return None


def _differences(required: Shapes, permitted: Shapes, shapes: Shapes) -> Iterator[Finding]:
    """`permitted` has what PEFT may store beside what it needs: the weights of a targeted embedding."""
    expectation = permitted | required
    differing = {name for name in expectation.keys() & shapes.keys() if expectation[name] != shapes[name]}
    for code, names, problem in (
        ("compat.tensor_missing", required.keys() - shapes.keys(), "expects tensors that the file does not hold"),
        ("lora.tensor_unknown", shapes.keys() - expectation.keys(), "expects none of these tensors of the file"),
        ("compat.shape", differing, "expects other shapes"),
    ):
        if names:
            examples = sorted(names)[:SHOWN]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            message = f"{PEFT} {problem}: {', '.join(examples)}{more}"
            expects = ", ".join(str(list(expectation[n])) for n in examples if n in expectation) or "nothing"
            holds = ", ".join(str(list(shapes[n])) for n in examples if n in shapes) or "nothing"
            yield Finding.of("error", code, examples[0], message, expects, holds)
