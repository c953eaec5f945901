"""Compare the tensors that are not halves of a pair with those that PEFT expects of the method on each module.

The expectation is the method's row in registry/adapters/methods.py. Each targeted module must have every tensor of its
method and no other, in PEFT's shapes; so must the tensors that all modules share and the virtual tokens of a prompt.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from registry.adapters.methods import find
from registry.adapters.peft import LoraSpec
from registry.adapters.peft.expected import (
    FAULTS,
    BaseSizes,
    ExpectedTensors,
    Shape,
    Shapes,
    TargetModule,
    has_pairs_alone,
)
from registry.adapters.peft.formulas import ANY
from registry.bases import BaseSpec
from registry.bases.modules import ModuleShape
from registry.compat.modules import ModuleLookup
from registry.findings import Severity
from registry.versions.files import CONFIG

T = TypeVar("T")
_EVALUATED_KINDS = ("linear", "conv1d", "embedding", "norm")
"""Modules whose shapes the formulas know. PEFT wraps others as well, with shapes that depend on more than two sizes."""


def check_tensors(lora: LoraSpec, lookup: ModuleLookup) -> None:
    """Every tensor of the method beside the factor pairs."""
    method = find(lora.method)
    if not method.shapes_known:
        message = f"the sizes of {lora.method} tensors cannot be checked from headers; run the check 'smoke'"
        lookup.findings.report("compat.method_not_evaluated", f"{CONFIG}: peft_type", message)
        for piece in lora.pieces:
            if piece.path and not lookup.is_part(piece.path):
                lookup.find_sized(piece.path)
        return
    if lora.pieces or not method.has_pairs or not has_pairs_alone(lora.config):
        _TensorCheck(lora, lookup).run()


class _TensorCheck:
    """One adapter's tensors by module, and what PEFT expects of them."""

    def __init__(self, lora: LoraSpec, lookup: ModuleLookup) -> None:
        self._lora, self._lookup, self._method = lora, lookup, find(lora.method)
        self._by_path: dict[str, Shapes] = {update.path: {} for update in lora.modules}
        for piece in lora.pieces:
            self._by_path.setdefault(piece.path, {})[piece.name] = piece.shape
        self._expected = ExpectedTensors(lora.config, base_sizes(lookup.base), self._target_modules())

    def run(self) -> None:
        shared = self._by_path.pop("", {})
        ranks = {update.path: update.rank for update in self._lora.modules}
        for path, shapes in self._by_path.items():
            if path not in self._lora.incomplete and (module := self._lookup.find_sized(path)) is not None:
                self._module(path, module, shapes, ranks.get(path))
        self._compare(shared, self._expect(self._expected.shared), "")

    def _target_modules(self) -> tuple[TargetModule, ...]:
        """The modules of known sizes that the configuration targets; those in the file where it does not say."""
        has_targets = self._lookup.targets.has_targets
        paths: Iterable[str] = self._lookup.expected(single_experts=False) if has_targets else self._by_path
        modules = ((path, self._lookup.find(path)) for path in paths)
        return tuple(_target(path, module) for path, module in modules if module is not None and module.is_known)

    def _module(self, path: str, module: ModuleShape, shapes: Shapes, rank: int | None) -> None:
        is_tied = self._is_tied_head(path, module)
        if module.kind not in self._method.kinds and module.kind in _EVALUATED_KINDS and not is_tied:
            message = f"{path} is a module of kind {module.kind}, and PEFT has {self._lora.method} only for "
            message += ", ".join(self._method.kinds)
            group = path.rpartition(".")[2]
            self._lookup.findings.report("compat.kind", path, message, self._method.kinds[0], module.kind, group=group)
            return
        if module.kind not in _EVALUATED_KINDS:
            if shapes:
                message = f"the sizes of {self._lora.method} on a module of kind {module.kind} are not checked"
                self._lookup.findings.report("compat.method_not_evaluated", path, message, group=module.kind)
            return
        target = _target(path, module)
        if is_tied:
            target = TargetModule(path, "embedding", module.out_features, module.in_features)
        for formula in self._expect(lambda: self._expected.broken_needs(target)) or ():
            message = f"{self._lora.method} needs {formula}, and {path} has {target.inputs} inputs and "
            message += f"{target.outputs} outputs"
            group = f"{formula} {path.rpartition('.')[2]}"
            self._lookup.findings.report(
                "compat.shape", path, message, formula, [target.outputs, target.inputs], group=group
            )
        expected = self._expect(lambda: self._expected.of_module(target, rank))
        self._compare(shapes, expected, path)

    def _is_tied_head(self, path: str, module: ModuleShape) -> bool:
        """PEFT trains tokens of the head, too, if it is tied to the embedding (TrainableTokensModel.inject_adapter)."""
        is_head = module.kind == "linear" and module.out_features == self._lookup.base.vocab
        return self._lora.method == "TRAINABLE_TOKENS" and is_head and not self._lookup.targets.covers(path)

    def _expect(self, compute: Callable[[], T]) -> T | None:
        """What a formula gives; None, with a finding, where the configuration's fields make no sense in it."""
        try:
            return compute()
        except FAULTS as e:
            message = f"the fields of the configuration do not say which tensors {self._lora.method} has: {e}"
            self._lookup.findings.report("compat.method_not_evaluated", CONFIG, message[:200], group="fields")
            return None

    def _compare(self, shapes: Shapes, expected: Shapes | None, path: str) -> None:
        if expected is None or shapes == expected:
            return
        leaf, findings, start = path.rpartition(".")[2], self._lookup.findings, f"{path}." if path else ""
        for name in sorted(expected.keys() - shapes.keys()):
            message = f"the file has no {start}{name}: PEFT would use untrained values instead"
            group = f"{name} {leaf}"
            findings.report("compat.tensor_missing", f"{start}{name}", message, name, "nothing", group=group)
        for name, shape in shapes.items():
            location, group = f"{start}{name}", f"{name} {leaf}"
            if name not in expected:
                message = f"PEFT has no {location} with this configuration"
                severity: Severity = "error" if self._lookup.base.names_known or not path else "unknown"
                expects = ", ".join(expected)
                findings.add(severity, "lora.tensor_unknown", location, message, expects, name, group=group)
            elif ANY in expected[name] and _agrees(shape, expected[name]):
                message = f"not all sizes of {location} are visible in headers"
                findings.report("compat.method_not_evaluated", location, message, group=name)
            elif not _agrees(shape, expected[name]):
                sizes = [size if size != ANY else "any" for size in expected[name]]
                message = f"{location} has shape {list(shape)}; {self._lookup.base.name} takes {sizes} there"
                findings.report("compat.shape", location, message, sizes, list(shape), group=group)


def base_sizes(base: BaseSpec) -> BaseSizes:
    """What shapes of virtual tokens follow from."""
    return BaseSizes(base.hidden, base.layers, 2 * base.kv_heads * base.head_size)


def _target(path: str, module: ModuleShape) -> TargetModule:
    return TargetModule(path, module.kind, module.in_features, module.out_features, module.bias)


def _agrees(shape: Shape, expected: Shape) -> bool:
    return len(shape) == len(expected) and all(b in (a, ANY) for a, b in zip(shape, expected, strict=True))
