"""What an adapter is: from its configuration and its weights' header to a `LoraSpec` and findings.

Every tensor of the file belongs to the method, to `modules_to_save`, or to the trained biases or tokens that the
configuration announces; any other is a failing finding, because a tensor with the name of one of the base's would
rewrite the base that all adapters share. A wrong adapter is described by findings, never refused by an exception.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal

from registry.adapters.methods import find
from registry.adapters.peft.config import AdapterConfig
from registry.adapters.peft.names import Names, TensorRole
from registry.adapters.peft.targets import Choice, Targets
from registry.adapters.safetensors import FLOATS, Header, TensorInfo
from registry.findings import Finding, FindingCollector, Severity
from registry.model import FrozenModel
from registry.versions.files import CONFIG, WEIGHTS

Shape = tuple[int, ...]
Kind = Literal["linear", "conv", "embedding", "parameter"]

DEFAULT_ALPHA = 8.0
"""What PEFT takes when `lora_alpha` is not written."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class ModuleUpdate(FrozenModel):
    """The low-rank update of one module: A is [rank, in_features], B is [out_features, rank].

    `kind` is "parameter" for a fused block of experts (`target_parameters`): A is [experts * rank, in],
    B is [out, experts * rank], and `order` counts from the outermost. `parameter`: which of the module's parameters
    is meant, where the configuration names it so (`gate_up_proj` of a block, `weight` of a router).
    """

    path: str
    kind: Kind
    rank: int
    alpha: float
    scale: float
    a_shape: Shape
    b_shape: Shape
    magnitude_shape: Shape | None = None
    bias_shape: Shape | None = None
    order: int = 0
    parameter: str = ""

    @property
    def in_features(self) -> int:
        """Inputs of the module."""
        return self.a_shape[1]

    @property
    def out_features(self) -> int:
        """Outputs of the module."""
        return self.b_shape[0]

    @property
    def key(self) -> str:
        """What patterns of ranks and alphas match: the module's path, and the parameter's name where one is meant."""
        return f"{self.path}.{self.parameter}" if self.parameter else self.path

    @property
    def groups(self) -> int:
        """In how many groups a convolution's channels are: B has the ranks of one."""
        return self.rank // self.b_shape[1] if self.kind == "conv" else 1


class OtherTensor(FrozenModel):
    """One tensor that is not half of an A/B pair. `path` is its module (empty if shared), `name` what follows it."""

    path: str
    name: str
    shape: Shape


class LoraSpec(FrozenModel):
    """The facts about an adapter that compatibility, serving and merging need.

    `modules`: LoRA pairs. `pieces`: the tensors of other methods. `full`: whole tensors that replace the base's
    (saved modules and biases; `path` + `name` is the base's tensor). `repeats`: copies of base tensors that PEFT
    stores beside a targeted embedding. `tokens`: trained rows [rows, width] of an embedding. `incomplete`: modules
    whose tensors do not make an update; a finding says why.
    """

    config: AdapterConfig
    modules: tuple[ModuleUpdate, ...] = ()
    pieces: tuple[OtherTensor, ...] = ()
    full: tuple[OtherTensor, ...] = ()
    repeats: tuple[OtherTensor, ...] = ()
    tokens: tuple[OtherTensor, ...] = ()
    incomplete: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    parameters: int = 0
    size_bytes: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def method(self) -> str:
        """PEFT's name of the method, such as `LORA`."""
        return self.config.method

    @property
    def rank(self) -> int:
        """The largest rank of a module: what a serving engine must be prepared for. 0 without LoRA pairs."""
        return max((m.rank for m in self.modules), default=0)

    @property
    def base_name(self) -> str:
        """What the configuration claims that the base is called; empty if it says nothing."""
        return self.config.base.name

    @property
    def is_plain(self) -> bool:
        """Only LoRA pairs: nothing that replaces tensors, rows or directions of the base."""
        extras = self.pieces or self.full or self.repeats or self.tokens
        return self.method == "LORA" and not extras and not self.config.use_dora


def describe(config: AdapterConfig, header: Header) -> LoraSpec:
    """The adapter that this configuration and this header make together, with every inner fault as a finding."""
    return _SpecReader(config).spec(header)


class _SpecReader:
    """Sorts the tensors by their names' roles, then joins what belongs to one module."""

    def __init__(self, config: AdapterConfig) -> None:
        self._config, self._method = config, find(config.method)
        self._names = Names(config)
        self._targets = Targets(config)
        self._ranks = Choice(config.rank_pattern)
        self._alphas = Choice(config.alpha_pattern)
        self._findings = FindingCollector()
        self._pairs: dict[tuple[str, int], dict[TensorRole, TensorInfo]] = {}
        self._others: dict[TensorRole, list[OtherTensor]] = {role: [] for role in TensorRole}

    def spec(self, header: Header) -> LoraSpec:
        for info in header:
            self._sort(info)
        self._names.report(self._note)
        modules = [m for key, halves in self._pairs.items() if (m := self._module(*key, halves)) is not None]
        self._configuration(modules, header)
        return LoraSpec(
            config=self._config,
            modules=tuple(modules),
            pieces=tuple(self._others[TensorRole.PIECE]),
            full=tuple(self._others[TensorRole.FULL]),
            repeats=tuple(self._others[TensorRole.REPEAT]),
            tokens=tuple(self._others[TensorRole.TOKENS]),
            incomplete=tuple(sorted({path for path, _ in self._pairs} - {m.path for m in modules})),
            dtypes=tuple(sorted({t.dtype for t in header})),
            parameters=sum(t.elements for t in header),
            size_bytes=header.size_bytes,
            findings=(*self._config.findings, *self._findings.all()),
        )

    def _note(
        self, code: str, location: str, message: str, expected: object = "", actual: object = "",
        severity: Severity = "error",
    ) -> None:  # fmt: skip
        """A finding; that of other layers, where nothing else differs, is the same one."""
        group = f"{_NUMBER.sub('*', location)} {expected} {actual if location not in str(actual) else ''}"
        self._findings.add(severity, code, location, message, expected, actual, group=group)

    def _sort(self, info: TensorInfo) -> None:
        name = self._names.read(info.name)
        if 0 in info.shape and not (name.leaf.startswith(self._method.may_be_empty) or self._is_masked(name.path)):
            message = f"{info.name} is empty: it was saved while another process held its values (ZeRO-3)"
            self._note("lora.tensor_empty", info.name, message, actual=list(info.shape))
        if name.role is TensorRole.PIECE and name.leaf.endswith(self._method.float32_only):
            if info.dtype != "F32":
                message = f"{info.name} holds {info.dtype}; PEFT loads it in 32 bits only"
                self._note("lora.dtype_refused", info.name, message, "F32", info.dtype)
        elif info.dtype not in FLOATS and not (
            name.role is TensorRole.PIECE and any(mark in name.leaf for mark in ("_indices", "_size"))
        ):
            message = f"{info.name} holds {info.dtype}; weights must be floating-point numbers"
            self._note("lora.dtype_refused", info.name, message, ", ".join(sorted(FLOATS)), info.dtype)
        if name.role in (TensorRole.A, TensorRole.B, TensorRole.MAGNITUDE, TensorRole.BIAS):
            halves = self._pairs.setdefault((name.path, name.order), {})
            if (first := halves.setdefault(name.role, info)) is not info:
                message = f"{info.name} names the same tensor as {first.name}"
                self._note("lora.tensor_unknown", info.name, message, "one of them", info.name)
        elif name.role is not TensorRole.UNEXPECTED:
            self._others[name.role].append(OtherTensor(path=name.path, name=name.leaf, shape=info.shape))

    def _module(self, path: str, order: int, halves: dict[TensorRole, TensorInfo]) -> ModuleUpdate | None:
        a, b = halves.get(TensorRole.A), halves.get(TensorRole.B)
        if a is None or b is None:
            there = next(iter(halves.values()))
            missing = self._method.mark_of("a" if a is None else "b")
            message = f"module {path} has {there.name.rsplit(path, 1)[-1].strip('.')} but no {missing}"
            self._note("lora.pair_incomplete", path, message, f"{path}.{missing}", there.name)
            return None
        dimensions = len(a.shape)
        along_time = dimensions == 3 and b.shape[-1:] == (1,) and ".experts." not in path
        if dimensions != len(b.shape) or not (along_time or dimensions in (2, 4, 5)):
            message = f"module {path}: A and B must both be matrices (or both convolutions)"
            if len(a.shape) == len(b.shape) == 3 and ".experts." in path:
                message += "; these hold all experts, as Tinker trains them: export the adapter with "
                message += "tinker_cookbook.weights.build_lora_adapter"
            self._note("lora.shape_invalid", path, message, "[rank, in] and [out, rank]", f"{a.shape} and {b.shape}")
            return None
        if self._is_masked(path) and a.elements == b.elements == 0:
            message = "the AdaLoRA masks remove some modules completely; their empty tensors are not checked"
            self._findings.unknown("compat.method_not_evaluated", path, message, group="masks")
        if 0 in a.shape or 0 in b.shape or self._config.other.get("use_bdlora"):
            return None
        parameter = self._parameter(path, order)
        rank, alpha = self._rank_and_alpha(f"{path}.{parameter}" if parameter else path, a)
        is_stacked = parameter == "weight" and a.shape[0] > rank  # a matrix for each expert in one weight (JetMoE)
        kind: Kind = "parameter" if is_stacked else self._kind(a, order)
        if not self._rank_agrees(path, a, b, rank, kind):
            return None
        magnitude, bias = halves.get(TensorRole.MAGNITUDE), halves.get(TensorRole.BIAS)
        self._dora(path, magnitude)
        if self._config.lora_bias and bias is None:
            message = f"the configuration sets lora_bias, but module {path} has no lora_B.bias: PEFT uses zeros"
            self._note("lora.bias_absent", path, message, f"{path}.lora_B.bias", "nothing")
        return ModuleUpdate(
            path=path, kind=kind, rank=rank, alpha=alpha, order=order, parameter=parameter,
            scale=alpha / math.sqrt(rank) if self._config.use_rslora else alpha / rank,
            a_shape=a.shape, b_shape=b.shape,
            magnitude_shape=magnitude.shape if magnitude else None, bias_shape=bias.shape if bias else None,
        )  # fmt: skip

    def _is_masked(self, path: str) -> bool:
        """Whether AdaLoRA's masks leave rank 0 of this module."""
        return self._config.method == "ADALORA" and self._config.rank_pattern.get(path) == 0

    def _kind(self, a: TensorInfo, order: int) -> Kind:
        if "embedding" in a.name.rpartition(".")[2]:
            return "embedding"
        if order >= 0:
            return "parameter"
        return "linear" if len(a.shape) == 2 else "conv"

    def _parameter(self, path: str, order: int) -> str:
        """Which of the module's parameters lies so deep: the outermost is the one that is declared last."""
        if order < 0:
            return "weight" if self._targets.means_weight(path) else ""
        names = self._targets.parameters(path)
        return names[-1 - order] if order < len(names) else ""

    def _rank_and_alpha(self, key: str, a: TensorInfo) -> tuple[int, float]:
        rank = self._ranks.pick(key) or self._config.rank or a.shape[0]
        alpha = self._alphas.pick(key)
        if alpha is None:
            alpha = DEFAULT_ALPHA if self._config.alpha is None else self._config.alpha
        return rank, alpha

    def _rank_agrees(self, path: str, a: TensorInfo, b: TensorInfo, rank: int, kind: Kind) -> bool:
        rows, columns = a.shape[0], b.shape[1]
        if rows != columns and (kind != "conv" or rows % columns):  # of a convolution in groups, B has a share of them
            swapped = " (A looks transposed)" if a.shape[1] == columns else ""
            swapped = swapped or (" (B looks transposed)" if b.shape[0] == rows else "")
            swapped = swapped or (" (A and B look exchanged)" if a.shape[1] == b.shape[0] else "")
            message = f"module {path}: A has rank {rows} and B has rank {columns}{swapped}"
            self._note("lora.rank_differs", path, message, f"A[0] = B[1] = {rank}", f"{a.shape} and {b.shape}")
            return False
        fits = rows % rank == 0 if kind == "parameter" else rows == rank
        if not fits:
            message = f"module {path} has rank {rows}, and the configuration says {rank}"
            if path.endswith((".experts", ".experts.base_layer")) and not self._config.target_parameters:
                message += "; the tensors are of fused experts, and the configuration lacks `target_parameters`"
            self._note("lora.rank_differs_from_config", path, message, rank, rows)
        return fits

    def _dora(self, path: str, magnitude: TensorInfo | None) -> None:
        if self._config.use_dora and magnitude is None:
            message = f"the configuration sets use_dora, but module {path} has no lora_magnitude_vector"
            self._note("lora.magnitude_absent", path, message, f"{path}.lora_magnitude_vector", "nothing")
        if magnitude is not None and not self._config.use_dora:
            message = f"module {path} has a lora_magnitude_vector, but the configuration does not set use_dora"
            self._note("lora.magnitude_without_dora", path, message, "use_dora: true", "use_dora: false")

    def _alphas_above_zero(self, modules: Sequence[ModuleUpdate]) -> None:
        """An alpha that is not positive: a warning, and an error where nothing acts.

        PEFT multiplies by alpha whatever it is, and so do vLLM and SGLang: a negative alpha subtracts the update, 0
        leaves out a module. With alpha 0 everywhere and no other tensors, the outputs are those of the base. AdaLoRA
        replaces an alpha that is not positive by the rank.
        """
        acts = any(module.alpha or module.magnitude_shape for module in modules) or any(self._others.values())
        severity: Severity = "warning" if acts or self._config.method == "ADALORA" else "error"
        for module in modules:
            if module.alpha <= 0:
                message = f"module {module.path} is scaled by alpha {module.alpha:g}: no effect, or a reversed one"
                self._note("lora.alpha_not_positive", module.path, message, "alpha > 0", f"{module.alpha:g}", severity)

    def _configuration(self, modules: Sequence[ModuleUpdate], header: Header) -> None:
        config = self._config
        if self._method.has_pairs:
            if not self._pairs:
                a, b = (self._method.mark_of(role).partition(".")[0] for role in "ab")
                message = f"the weights have no {a} or {b} tensor that names a module of the base"
                self._note("lora.no_modules", WEIGHTS, message, f"{a} and {b}", len(header))
            if config.other.get("use_bdlora"):
                message = "the factors of BD-LoRA are block-diagonal and stored by block: sizes are not checked"
                self._findings.unknown("compat.method_not_evaluated", f"{CONFIG}: use_bdlora", message)
            if config.alpha is None:
                message = f"lora_alpha is missing; PEFT uses {DEFAULT_ALPHA:g}, other runtimes may not"
                self._findings.warning("lora.alpha_absent", f"{CONFIG}: lora_alpha", message)
            self._alphas_above_zero(modules)
        elif self._method.is_prompt and "prompt_embeddings" not in {p.name for p in self._others[TensorRole.PIECE]}:
            message = f"{config.method} is a tensor called prompt_embeddings"
            self._note("lora.prompt_absent", WEIGHTS, message, "prompt_embeddings", len(header))
