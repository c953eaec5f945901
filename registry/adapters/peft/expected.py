"""The tensors that PEFT expects of a method on a module, by the method's row (registry/adapters/methods.py).

`ExpectedTensors.of_module` and `.shared` answer name → shape; a size of `ANY` is one that headers do not show.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from registry.adapters.methods import TensorRule, find
from registry.adapters.peft import fields
from registry.adapters.peft.config import AdapterConfig
from registry.adapters.peft.formulas import ANY, evaluate
from registry.adapters.peft.targets import Choice
from registry.strict import patterns

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
FAULTS = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError)
"""What a formula raises for fields that PEFT refuses as well."""


@dataclass(frozen=True, slots=True)
class TargetModule:
    """A module of the base that the configuration targets. Sizes count features; `kind` as in registry/bases."""

    path: str
    kind: str
    inputs: int
    outputs: int
    has_bias: bool = False


@dataclass(frozen=True, slots=True)
class BaseSizes:
    """What shapes of shared tensors follow from. `layer_width`: keys and values of one layer, for one token."""

    hidden: int = 0
    layers: int = 0
    layer_width: int = 0


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Everything about a module that formulas read: modules with equal inputs have equal tensors."""

    kind: str
    inputs: int
    outputs: int
    has_bias: bool
    rank: int | None
    by_pattern: tuple[Any, ...]
    category: str
    is_feedforward: bool


class ExpectedTensors:
    """What PEFT expects of one configuration on its target modules. Formulas are computed once for equal inputs."""

    def __init__(self, config: AdapterConfig, sizes: BaseSizes, modules: tuple[TargetModule, ...] = ()) -> None:
        self._method, self._modules = find(config.method), modules
        rows = fields.table().get(config.method, {})
        in_file = config.other | config.patterns
        self._values = {name: in_file.get(name, row.get("default")) for name, row in rows.items() if "." not in name}
        self._values |= dict.fromkeys(config.nulls)
        for field, row in rows.items():
            holder, dot, inner = field.partition(".")
            nested = self._values.get(holder)
            if dot and isinstance(nested, dict):
                self._values[holder] = {inner: row.get("default"), **nested}
        if "r" in rows and "r" not in config.nulls:
            self._values["r"] = config.rank or rows["r"].get("default")
        self._by_pattern = {
            name.removesuffix("_pattern"): Choice(values)
            for name, values in config.patterns.items() if values and name in rows
        }  # fmt: skip
        self._of_inputs: dict[_Inputs, Shapes] = {}
        self._broken: dict[_Inputs, list[str]] = {}
        self._has_categories = any(rule.numbers == "category" for rule in self._method.tensors)
        self._has_feedforward = "feedforward_modules" in rows
        self._values |= {
            "targets": len(modules),
            "max_inputs": max((module.inputs for module in modules), default=0),
            "max_outputs": max((module.outputs for module in modules), default=0),
            "hidden": (config.method != "CPT" and self._size("token_dim")) or sizes.hidden or ANY,
            "prefix_width": (self._size("num_layers") or sizes.layers) * self._layer_width(sizes) or ANY,
            "token_indices": config.token_indices.get("", ()),
            "submodules": self._values.get("num_transformer_submodules") or 1 + (config.task == "SEQ_2_SEQ_LM"),
        }

    def _size(self, field: str) -> int:
        """A size that the configuration writes, which then counts instead of the base's; 0 if it does not."""
        value = self._values.get(field)
        return value if isinstance(value, int) else 0

    def _layer_width(self, sizes: BaseSizes) -> int:
        """The width of a prefix in one layer; 0 where a written `token_dim` is not the base's.

        PEFT then takes the written one if the base's configuration has no `num_key_value_heads`, which is not known
        here (peft/utils/other.py _prepare_prompt_learning_config).
        """
        width = self._values.get("token_dim")
        is_of_base = width is None or (type(width) is int and 2 * width == sizes.layer_width)
        return sizes.layer_width if is_of_base else 0

    def of_module(self, module: TargetModule, rank: int | None = None) -> Shapes:
        """The tensors of one module. One of `FAULTS` where the fields make no sense."""
        inputs = self._inputs(module, rank)
        if inputs not in self._of_inputs:
            self._of_inputs[inputs] = dict(self._shapes(self._names(inputs), is_shared=False))
        return self._of_inputs[inputs]

    def broken_needs(self, module: TargetModule) -> list[str]:
        """What must hold for this module, and does not."""
        if not self._method.needs:
            return []
        inputs = self._inputs(module, None)
        if inputs not in self._broken:
            names = self._names(inputs)
            self._broken[inputs] = [formula for formula in self._method.needs if not evaluate(formula, names)]
        return self._broken[inputs]

    def shared(self) -> Shapes | None:
        """The tensors that all modules share, and those of a prompt method; None where no target's sizes are known."""
        if self._method.is_prompt:
            return dict(self._shapes(self._values, is_shared=False))
        if self._has_categories:
            return {name: shape for module in self._modules for name, shape in
                    self._shapes(self._names(self._inputs(module, None)), is_shared=True)}  # fmt: skip
        return dict(self._shapes(self._values, is_shared=True)) if self._modules else None

    def _inputs(self, module: TargetModule, rank: int | None) -> _Inputs:
        return _Inputs(
            module.kind, module.inputs, module.outputs, module.has_bias, rank,
            tuple(choice.pick(module.path) for choice in self._by_pattern.values()),
            _category(module.path) if self._has_categories else "",
            self._has_feedforward and self._is_feedforward(module.path),
        )  # fmt: skip

    def _names(self, module: _Inputs) -> dict[str, Any]:
        kinds = {kind: module.kind == kind for kind in ("embedding", "norm", "conv1d")}
        sizes = {"inputs": module.inputs, "outputs": module.outputs, "bias": module.has_bias}
        picked = zip(self._by_pattern, module.by_pattern, strict=True)
        numbers = {name: value for name, value in picked if value}
        names: dict[str, Any] = (
            self._values | kinds | sizes | numbers | {"stored_by_inputs": kinds["conv1d"] or kinds["embedding"]}
        )
        names["rank"] = module.rank or numbers.get("rank") or names.get("r")
        names |= {"category": module.category, "feedforward": module.is_feedforward}
        for name, formula in self._method.derived.items():
            names[name] = evaluate(formula, names)
        return names

    def _is_feedforward(self, path: str) -> bool:
        feedforward = self._values.get("feedforward_modules") or []
        if isinstance(feedforward, str):
            return patterns.compile_pattern(feedforward).matches(path)
        return any(path.endswith(name) for name in feedforward)

    def _shapes(self, names: Mapping[str, Any], *, is_shared: bool) -> Iterator[tuple[str, Shape]]:
        first: set[str] = set()
        for rule in self._method.tensors:
            if rule.is_shared is is_shared and rule.name not in first and evaluate(rule.condition, names):
                first.add(rule.name)
                shape = evaluate(f"({rule.shape},)", names)
                if not all(type(size) is int for size in shape):
                    raise ValueError(f"{rule.name} has no whole sizes: {shape}")
                yield from ((name, shape) for name in _numbered(rule, names))


def _numbered(rule: TensorRule, names: Mapping[str, Any]) -> Iterator[str]:
    if not rule.numbers:
        yield rule.name
    elif rule.numbers == "category":
        yield rule.name.replace("#", names["category"])
    else:
        yield from (rule.name.replace("#", str(number)) for number in range(min(evaluate(rule.numbers, names), 2**16)))


def _category(path: str) -> str:
    """FRoD's name for modules that share a projection: the last two parts of the path (peft/tuners/frod/model.py)."""
    parts = path.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    is_attention = parts[-2:] == ["output", "dense"] and len(parts) > 2 and parts[-3] == "attention"
    return "attention_output" if is_attention else f"{parts[-2]}_{parts[-1]}"


def has_pairs_alone(config: AdapterConfig) -> bool:
    """Whether the configuration alone says that no module has a tensor beside its factor pair."""
    try:
        return not any(evaluate(rule.condition, _own_fields(config)) for rule in find(config.method).tensors)
    except FAULTS:
        return False


def names_targets(config: AdapterConfig) -> bool:
    """Whether each target has tensors of its own, so that a missing one shows."""
    return bool(evaluate(find(config.method).names_targets, _own_fields(config)))


class _OwnFields(dict[str, Any]):
    """The written fields, and None for those that are not written."""

    def __missing__(self, name: str) -> None:
        return None


def _own_fields(config: AdapterConfig) -> Mapping[str, Any]:
    return _OwnFields(config.other)
