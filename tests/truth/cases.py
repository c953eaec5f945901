"""Groups of cases: an honest adapter on a base, and everything that is changed about it.

A case's id is `group/variant/mutation`, such as `lora/plain/drop-one:lora_A.weight`, and stays the same.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

from registry.bases import BaseSpec
from registry.client.local.base_folder import base_spec_from
from registry.versions.files import CONFIG, WEIGHTS
from tests.truth import architectures, methods, mutations, oracle
from tests.truth.mutations import Mutated, Tensors, Written


@dataclass
class Base:
    """A base on disk and in memory."""

    folder: Path
    subject: oracle.Subject

    @cached_property
    def spec(self) -> BaseSpec:
        return base_spec_from(self.folder, self.folder.name)[0]

    @cached_property
    def digest(self) -> str:
        """Of its configuration and weights."""
        files = sorted(path for path in self.folder.iterdir() if path.suffix in (".json", ".safetensors"))
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@dataclass(frozen=True)
class Case:
    """One adapter to evaluate. `honest`: PEFT itself saved it like this; `others`: more of its files, by path."""

    id: str
    tensors: Tensors
    written: Written
    honest: bool = False
    others: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> str:
        """Write the adapter into this folder; the digest of its files."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(self.written, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text)
        for path, content in self.others.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        parts = [(folder / WEIGHTS).read_bytes(), text.encode(), *self.others.values()]
        return hashlib.sha256(b"".join(parts)).hexdigest()


@dataclass
class Group:
    """The cases of one honest adapter. `tolerated`: see `oracle.ask`; `others`: see `Case`."""

    id: str
    base: Base
    tensors: Tensors
    written: Written
    changes: list[Mutated]
    tolerated: frozenset[str] = frozenset()
    others: Mapping[str, bytes] = field(default_factory=dict)
    saved_by_peft: bool = True

    def __iter__(self) -> Iterator[Case]:
        yield Case(f"{self.id}/honest", self.tensors, self.written, honest=self.saved_by_peft, others=self.others)
        for change, tensors, written in self.changes:
            yield Case(f"{self.id}/{change}", tensors, written, others=self.others)


@dataclass(frozen=True)
class Plan:
    """Groups on one base. `base` and `group` make them in a folder; errors are transformers' and PEFT's own."""

    id: str
    groups: tuple[str, ...]
    base: Callable[[Path], Base]
    group: Callable[[Base, str, Path], Group]


def plans() -> Iterator[Plan]:
    """The methods of PEFT on bases of three kinds, then LoRA on every architecture."""
    for kind in methods.BASES:
        groups = (f"{method.lower()}{kind and f'@{kind}'}/{name}" for method, name in methods.variants(kind))
        plan = f"methods@{kind}" if kind else "methods"
        yield Plan(plan, tuple(groups), functools.partial(methods_base, kind), of_method)
    for name, model_type, maker in architectures.names():
        yield Plan(
            name, tuple(f"{name}/{variant}" for variant in architectures.VARIANTS),
            functools.partial(architecture_base, model_type, maker), of_architecture,
        )  # fmt: skip


def methods_base(kind: str, folder: Path) -> Base:
    """A base of the groups of methods."""
    methods.make_base(folder, kind)
    model = getattr(transformers, methods.BASES[kind].maker).from_pretrained(folder).eval()
    ids = torch.tensor([[1, 3, 5, 7, 8, 11, 60, 23, 42, 90, 2, 33], [1, 44, 7, 8, 3, 5, 19, 71, 6, 17, 29, 80]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :4]
    return Base(folder, oracle.subject_of(model, inputs))


def of_method(base: Base, name: str, folder: Path) -> Group:
    """The group of one variant of a method."""
    method, variant, kind = methods.method_of(name), name.partition("/")[2], methods.BASES[methods.base_kind_of(name)]
    if method == "XLORA":  # PEFT takes it on a model without a cache only
        model = base.subject.copy()
        model.config.use_cache = False
        base = Base(base.folder, oracle.subject_of(model, base.subject.inputs))
    methods.make(base.subject.copy(), name, folder)
    tolerated = oracle.tolerance(base.subject, folder)
    inner = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*")}
    tensors, written = read(folder)
    changes = [*mutations.of_tensors(tensors, written, kind.names)]
    fields = _fields(method, variant, written)
    changes += mutations.of_configuration(tensors, written, fields, names=kind.names, other_task=kind.other_task)
    return Group(name, base, tensors, written, changes, tolerated, inner)


def architecture_base(model_type: str, maker: str, folder: Path) -> Base:
    """A tiny random model of this class."""
    model = architectures.build(model_type, maker, folder)
    return Base(folder, oracle.subject_of(model, architectures.inputs_of(model)))


def of_architecture(base: Base, name: str, folder: Path) -> Group:
    """The group of one kind of LoRA adapter on an architecture."""
    model = base.subject.copy()
    config = architectures.configuration(model, name.partition("/")[2])
    methods.make_from(model, config, folder, scale=architectures.SCALES.get(name, 0.05))
    tolerated = oracle.tolerance(base.subject, folder)
    tensors, written = read(folder)
    return Group(name, base, tensors, written, list(mutations.of_lora(tensors, written)), tolerated)


def read(folder: Path) -> tuple[Tensors, Written]:
    """The files of an adapter, which are removed."""
    tensors, written = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    shutil.rmtree(folder)
    return tensors, written


def _fields(method: str, variant: str, written: Written) -> dict[str, Any]:
    """Field → default: all fields of the method's configuration class; of a second variant, those that it sets."""
    kind = next(kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value == method)
    fields = [field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])]
    if variant != next(iter(methods.VARIANTS[method])):
        fields = [name for name in fields if name in methods.VARIANTS[method][variant]]
    return {name: written.get(name) for name in fields}
