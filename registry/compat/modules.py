"""Compare an adapter with a base module by module: sizes, completeness, and whole tensors that replace the base's.

Where the base's module names were only assumed (`names_known` false), a module that is not found is unknown.
"""

import math
import re
from collections.abc import Iterator
from functools import cache, cached_property

from registry.adapters.methods import CLASSIFYING_TASKS, find
from registry.adapters.peft import LoraSpec, ModuleUpdate, OtherTensor
from registry.adapters.peft.config import AdapterConfig
from registry.adapters.peft.expected import names_targets
from registry.adapters.peft.names import TOKEN_TABLES
from registry.adapters.peft.targets import EMBEDDINGS, Endings, Targets, endings, starts
from registry.bases import BaseSpec
from registry.bases.modules import PREFIXES, ModuleShape, is_token_table
from registry.compat.catalog import CompatFindings
from registry.versions.files import CONFIG

_EXPERT = re.compile(r"\.experts\.(\d{1,6})\.")
_LAYER = re.compile(r"\.(\d{1,6})\.")
_FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj",
          "up_proj": "gate_up_proj"}  # fmt: skip
"""Separate projection → the fused one that some architectures have in its place."""
_LINEAR = ("linear", "conv1d")
_SHAPED = ("embedding", "conv")
"""Kinds whose updates have names or dimensions of their own."""
FUSED = ("gate_up_proj", "down_proj")
"""The parameters of a block of experts, as transformers 5 fuses them."""
_HEADS = ("lm_head", "embed_out")
_POSITIONS = ("position", "wpe")
"""Tables of positions, which may have as many rows as there are tokens."""
Shape = tuple[int, ...]
_TASK_MODELS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
TASK_HEADS = ("score", "classifier", "classification_head", "qa_outputs")


def as_trained(base: BaseSpec, lora: LoraSpec) -> BaseSpec:
    """The base as the class has it that PEFT loads for this adapter's task, where its paths are of that class.

    Without a head (AutoModel), paths lack the prefix of the class with one, such as `model.`; a classifier's have it
    where the base is registered without a head. Source: peft/auto.py.
    """
    gets_head = lora.config.task in CLASSIFYING_TASKS and base.lacks_head and not base.needs_code
    if base.is_pipeline or not (lora.config.may_lack_head or gets_head):
        return base
    paths = _paths_of(lora)
    if not paths or (paths[0] in base.modules and not gets_head):
        return base
    if gets_head:  # without a path that has the prefix, all become some that the base lacks
        prefix = next((path.partition(".")[0] for path in paths if path.partition(".")[2] in base.modules), "")
        modules = {f"{prefix}.{path}": module for path, module in base.modules.items()}
        # The class may lack modules, such as BERT's pooler. Without a saved head the adapter is wrong anyway.
        return base.model_copy(update={"modules": modules, "names_known": base.names_known and not lora.full})
    names, inner = {path.partition(".")[0] for path in paths}, dict[str, set[str]]()
    for path in base.modules:
        top, _, rest = path.partition(".")
        inner.setdefault(top, set()).add(rest.partition(".")[0])
    bodies = [top for top, parts in inner.items() if not names.isdisjoint(parts)]
    if len(bodies) != 1 or not names.isdisjoint(inner):  # an encoder and a decoder are two parts, and no body
        return base
    [top] = bodies
    body = {p.removeprefix(f"{top}."): m for p, m in base.modules.items() if p.startswith(f"{top}.")}
    is_whole = base.names_known and names <= inner[top]  # what the class adds, such as BERT's pooler, is not known here
    return base.model_copy(update={"modules": body, "tied": False, "names_known": is_whole})


def _paths_of(lora: LoraSpec) -> list[str]:
    """The modules that the tensors of the file are of."""
    others = (*lora.pieces, *lora.full, *lora.repeats, *lora.tokens)
    return [*(u.path for u in lora.modules), *(p.path for p in others if p.path), *lora.incomplete]


def in_older_layout(base: BaseSpec, lora: LoraSpec) -> BaseSpec | None:
    """The base with the names that an older library gave its modules, if the adapter uses these; None if not.

    Before version 4.52, transformers put the parts of multimodal models in another order: `language_model.model.layers`
    is now `model.language_model.layers`. PEFT renames the tensors of some of these models.
    """
    unknown = {path for path in _paths_of(lora) if path not in base.modules}
    if not unknown or not base.names_known or not any("language_model" in path for path in base.modules):
        return None
    older = {_parts_of(path): path for path in unknown}
    modules = {older.get(_parts_of(path), path): module for path, module in base.modules.items()}
    return base.model_copy(update={"modules": modules}) if unknown <= modules.keys() else None


def _parts_of(path: str) -> tuple[str, ...]:
    return tuple(sorted(part for part in path.split(".") if part != "model"))


class ModuleLookup:
    """One base, asked for one adapter's modules. `findings` takes the findings."""

    def __init__(self, base: BaseSpec, config: AdapterConfig, findings: CompatFindings) -> None:
        self.base, self.config, self.findings = base, config, findings
        self.targets = Targets(config)
        self._replicated = [n for first, end in config.layer_replication for n in range(first, end)]
        self._expected: dict[bool, tuple[str, ...]] = {}

    @cached_property
    def _parts(self) -> frozenset[str]:
        return frozenset(start for path in self.base.modules for start in starts(path.rpartition(".")[0]))

    def find(self, path: str) -> ModuleShape | None:
        """The base's module that the adapter calls `path`."""
        module = self.base.modules.get(self._origin(path).replace(".block_sparse_moe.gate", ".mlp.gate"))
        expert = _EXPERT.search(path)
        if module is None and expert:
            module = self.base.modules.get(_EXPERT.sub(".experts.*.", path, count=1))
            if module is not None and int(expert[1]) >= module.count:
                return None
        return module

    def covers(self, path: str) -> bool:
        """Whether the configuration targets the module at this path, by itself or tied to one that it targets."""
        if self.targets.covers(path):
            return True
        return self.base.tied and self.targets.ties(EMBEDDINGS[0]) and self.is_embedding(path)

    def find_sized(self, path: str) -> ModuleShape | None:
        """The base's module that the adapter calls `path`; None, with a finding, if it or its sizes are not known."""
        module = self.find(path)
        if module is None:
            self.missing(path, "the adapter's module")
        elif not module.is_known:
            message = f"the sizes of {path} are not known: the base is quantized ({self.base.quantization})"
            self.findings.report("compat.shape_unknown", path, message, group=path.rpartition(".")[2])
            return None
        return module

    def is_embedding(self, path: str) -> bool:
        """Whether the path is of the input or output embedding, or of a part inside."""
        for start in starts(path):
            leaf, module = start.rpartition(".")[2], self.find(start)
            if leaf in EMBEDDINGS or is_token_table(start):
                return True
            rows = (module.in_features, module.out_features) if module is not None else ()
            if self.base.vocab and self.base.vocab in rows and not any(word in leaf for word in _POSITIONS):
                return True
        return False

    def is_part(self, path: str) -> bool:
        """Whether the path is of a part that holds modules, such as a block or its attention."""
        return path in self._parts

    def missing(self, path: str, noun: str) -> None:
        """Add the finding that the base has no module `path`, and why that may be."""
        leaf = path.rpartition(".")[2]
        layer = _LAYER.search(f"{path}.")
        layers = len(self._replicated) or self.base.layers
        if layer and layers and int(layer[1]) >= layers:
            why = f"its layers are 0 to {layers - 1}"
        elif _FUSED.get(leaf) and path.replace(leaf, _FUSED[leaf]) in self.base.modules:
            why = f"it has the fused {_FUSED[leaf]} in its place"
        elif any(f"{prefix}.{path}" in self.base.modules for prefix in set(PREFIXES.values())):
            why = f"that is a path of the model without its head (AutoModel), and this base is {self.base.architecture}"
        elif path.partition(".")[2] in self.base.modules:
            why = f"without the prefix '{path.partition('.')[0]}.', which a wrapper left in the names, it would be one"
        else:
            why = f"its architecture is {self.base.architecture or self.base.model_type or 'another'}"
        message = f"{noun} {path} is not a module of {self.base.name}: {why}"
        group = f"{leaf} {why}"
        self.findings.report("compat.module_unknown", path, message, "a module of the base", path, group=group)

    def expected(self, *, single_experts: bool) -> tuple[str, ...]:
        """The paths that the configuration targets on this base.

        `single_experts`: the adapter names experts one by one, as transformers 4 did. Version 5 has them fused, and
        there they are no modules that a name could target.
        """
        if single_experts not in self._expected:
            self._expected[single_experts] = tuple(self._targeted(single_experts=single_experts))
        return self._expected[single_experts]

    def _targeted(self, *, single_experts: bool) -> Iterator[str]:
        for path, module in self.modules():
            if ".experts.*." in path:
                each = range(module.count if single_experts else 0)
                yield from filter(self.targets.covers, (path.replace(".*.", f".{number}.", 1) for number in each))
            elif module.kind in (*_LINEAR, "embedding", "conv", "norm", "other") and self.covers(path):
                if f"{path}.weight" in self.base.modules:  # its weight is a block of experts
                    continue
                if self.targets.all_linear and (module.kind not in _LINEAR or path.startswith(_HEADS)):
                    continue
                yield path

    def blocks(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each block of fused experts, and the names of its parameters."""
        apart: dict[str, list[str]] = {}
        for path, module in self.modules():
            if module.kind == "experts":
                yield path, FUSED
            elif module.kind == "parameter":
                owner, _, leaf = path.rpartition(".")
                apart.setdefault(owner, []).append(leaf)
        yield from ((owner, tuple(leaves)) for owner, leaves in apart.items())

    def modules(self) -> Iterator[tuple[str, ModuleShape]]:
        """The base's modules under the names that the adapter sees: layers renumbered when they are replicated."""
        copies: dict[int, list[int]] = {}
        for new, old in enumerate(self._replicated):
            copies.setdefault(old, []).append(new)
        for path, module in self.base.modules.items():
            layer = _LAYER.search(path)
            if not copies or not layer:
                yield path, module
                continue
            for new in copies.get(int(layer[1]), ()):
                yield f"{path[: layer.start()]}.{new}.{path[layer.end() :]}", module

    def _origin(self, path: str) -> str:
        layer = _LAYER.search(path)
        if not self._replicated or not layer or int(layer[1]) >= len(self._replicated):
            return path
        return f"{path[: layer.start()]}.{self._replicated[int(layer[1])]}.{path[layer.end() :]}"


def check_updates(lora: LoraSpec, lookup: ModuleLookup) -> None:
    """The sizes of every A and B against the module that they change."""
    for update in lora.modules:
        if update.kind == "parameter":
            _check_parameter(update, lookup)
            continue
        module = lookup.find_sized(update.path)
        if module is None:
            continue
        if module.kind != update.kind and (module.kind in _SHAPED or update.kind in _SHAPED):
            message = f"{update.path} is {module.kind} in this base, and the adapter's tensors are for {update.kind}"
            lookup.findings.report("compat.kind", update.path, message, module.kind, update.kind)
        elif module.kind in ("norm", "experts", "parameter"):
            message = f"{update.path} is {module.kind} in this base, which LoRA cannot change this way"
            lookup.findings.report("compat.kind", update.path, message, "a linear module", module.kind)
        else:
            _check_sizes(update, module, lookup)
            if ".experts." in update.path:
                message = "experts are named individually, as in transformers 4; version 5 fuses them at load"
                lookup.findings.report("compat.experts_fused", update.path, message, group="experts")


@cache
def _factor_names(method: str) -> tuple[str, ...]:
    """What the method calls A and B, without `.weight`."""
    row = find(method)
    return tuple(row.mark_of(role).partition(".")[0] for role in "ab")


def _check_sizes(update: ModuleUpdate, module: ModuleShape, lookup: ModuleLookup) -> None:
    groups = 1
    if module.kind == "conv":  # PEFT's A takes all channels, and B's are in as many groups as the base's
        groups = module.groups or update.groups
        if not module.groups:
            message = f"{update.path} is a convolution: the base's record does not say in how many groups"
            lookup.findings.report("compat.shape_unknown", update.path, message, group="groups")
        if update.rank % groups:
            message = f"{update.path} has rank {update.rank}, which PEFT cannot divide by its {groups} groups"
            lookup.findings.report("compat.shape", update.path, message, f"a multiple of {groups}", update.rank)
    inputs = module.in_features * groups
    a, b = _factor_names(lookup.config.method)
    sizes = (
        (a, update.a_shape, (update.rank, inputs, *module.kernel)),
        (b, update.b_shape, (module.out_features, update.rank // groups, *(1,) * len(module.kernel))),
    )
    for half, shape, expected in sizes:
        if shape[: len(expected)] != expected:
            message = (
                f"{update.path}.{half} has shape {list(shape)}; {lookup.base.name} takes {list(expected)} there "
                f"({inputs} inputs, {module.out_features} outputs)"
            )
            group = f"{half} {update.path.rpartition('.')[2]} {shape} {expected}"
            location = f"{update.path}.{half}"
            lookup.findings.report("compat.shape", location, message, list(expected), list(shape), group=group)
    for name, size in (("lora_magnitude_vector", update.magnitude_shape), ("lora_B.bias", update.bias_shape)):
        is_vector = size is None or len(size) == 1 or update.kind == "conv"
        if size is not None and (max(size, default=0) != module.out_features or not is_vector):
            message = f"{update.path}.{name} has shape {list(size)}; the module has {module.out_features} outputs"
            lookup.findings.report("compat.shape", f"{update.path}.{name}", message, [module.out_features], list(size))
    width = inputs * math.prod(update.a_shape[2:])  # of a convolution, with its kernel
    if update.rank > min(width, module.out_features):
        message = f"{update.path} has rank {update.rank}, and a full update of its {width} inputs and "
        message += f"{module.out_features} outputs has a smaller one"
        lookup.findings.report("compat.rank_over_width", update.path, message, group="rank")
    if update.bias_shape is not None and not module.bias:
        message = f"{update.path} has no bias in this base, so the adapter's lora_B.bias cannot be merged into it"
        lookup.findings.report("compat.bias_not_mergeable", update.path, message, group="bias")


def _check_parameter(update: ModuleUpdate, lookup: ModuleLookup) -> None:
    """A fused block of experts: the sizes must be those of the parameter, times the number of experts."""
    experts = lookup.find(update.path)
    sizes: set[tuple[int, int, int]] = set()
    if experts is not None and experts.kind == "experts":
        hidden, inner, count = experts.in_features, experts.out_features, experts.count
        by_name = {FUSED[0]: (count, hidden, 2 * inner), FUSED[1]: (count, inner, hidden)}
        sizes = {size for name, size in by_name.items() if update.parameter in (name, "")}
    elif (module := lookup.find(update.key)) is not None and module.kind == "parameter":
        sizes |= {(module.count, module.in_features, module.out_features)}
        sizes |= {(module.count, module.out_features, module.in_features)}
    actual = (update.a_shape[0] // update.rank, update.a_shape[1], update.b_shape[0])
    if not sizes:
        lookup.missing(update.key, "the adapter's block of experts")
    elif actual not in sizes:
        message = f"{update.key}: the adapter is for {actual[0]} experts of {actual[1]} inputs and {actual[2]} outputs"
        lookup.findings.report(
            "compat.shape", update.key, message, sorted(sizes), actual, group=f"{update.parameter} {actual}"
        )


def check_completeness(lora: LoraSpec, lookup: ModuleLookup) -> None:
    """The modules in the file and the modules that the configuration targets must be the same.

    Where all modules share their tensors, there must be a target.
    """
    present = {m.path for m in lora.modules if m.kind != "parameter"} | {*lora.incomplete}
    present |= {p.path for p in lora.pieces if p.path}
    if lora.config.target_parameters:
        _check_parameters_complete(lora, lookup)
    if not lookup.targets.has_targets:
        message = "target_modules is missing, so PEFT chooses by architecture: completeness is not checked"
        lookup.findings.report("compat.targets_absent", f"{CONFIG}: target_modules", message)
        return
    expected = set(lookup.expected(single_experts=any(_EXPERT.search(path) for path in present)))
    last_layer = max((int(layer[1]) for path in present if (layer := _LAYER.search(f"{path}."))), default=-1)
    for path in sorted(expected - present) if names_targets(lora.config) else ():
        module = lookup.find(path)
        is_router = module is not None and module.kind == "other"  # no linear module in transformers 5
        if is_router and not lookup.targets.means_weight(path):
            continue
        message = f"the configuration targets {path}, but the file has no tensor for it"
        layer = _LAYER.search(f"{path}.")
        if layer and -1 < last_layer < int(layer[1]):
            message += f"; the file ends at layer {last_layer}, so its base may have fewer layers"
        group = path.rpartition(".")[2]
        lookup.findings.report("compat.module_missing", path, message, path, "nothing", group=group)
    if lora.method == "TRAINABLE_TOKENS":  # PEFT adds what is tied to a target; its own structure says which
        present = {path for path in present if path.rpartition(".")[2] not in (*EMBEDDINGS, *TOKEN_TABLES)}
    for path in sorted(present - expected):
        if lookup.find(path) is not None and not lookup.covers(path):
            message = f"the file has tensors for {path}, which the configuration does not target: PEFT drops them"
            group = path.rpartition(".")[2]
            lookup.findings.report("compat.module_not_targeted", path, message, "a target", path, group=group)
    if not expected and not lora.config.target_parameters:
        message = "target_modules matches no module of the base"
        location, targets = f"{CONFIG}: target_modules", str(lora.config.targets)[:200]
        lookup.findings.report("compat.targets_match_nothing", location, message, "modules of the base", targets)


def _check_parameters_complete(lora: LoraSpec, lookup: ModuleLookup) -> None:
    """Each targeted block of experts needs one update for each parameter that `target_parameters` names in it."""
    counts: dict[str, int] = {}
    for update in lora.modules:
        if update.kind == "parameter":
            counts[update.path] = counts.get(update.path, 0) + 1
    parameter_names = set(lora.config.target_parameters)
    for path, parameters in lookup.blocks():
        targeted = sum(not parameter_names.isdisjoint(endings(f"{path}.{name}")) for name in parameters)
        present = counts.get(path, 0)
        if present < targeted:
            message = f"the configuration targets {targeted} parameters of {path}, the file holds {present}"
            lookup.findings.report("compat.module_missing", path, message, targeted, present, group="experts")


def check_full(lora: LoraSpec, lookup: ModuleLookup) -> None:
    """Whole tensors: saved modules, trained biases, and the copies beside targeted embeddings."""
    for piece in (*lora.full, *lora.repeats):
        _check_whole(piece, lookup)
    saved = {piece.path for piece in lora.full}
    _check_saved(lora.config.saved_modules, saved, lookup)
    _check_saved_whole(lora, lookup)
    _check_biases(lora, lookup)
    ends = {path for path in saved if is_token_table(path) or path.startswith(_HEADS)}
    if lookup.base.tied and len(ends) == 1 and not lora.config.ensure_weight_tying:
        message = f"the base ties its input and output embeddings, and the adapter replaces only {min(ends)}"
        lookup.findings.report("compat.embeddings_untied", min(ends), message)
    for piece in lora.repeats:
        if lookup.find(piece.path) is not None and not lookup.is_embedding(piece.path):
            location = f"{piece.path}.base_layer.{piece.name}"
            message = f"{location} would replace a tensor of the base itself, which all other adapters share"
            lookup.findings.report("compat.overwrites_base", location, message)
            continue
        message = f"the file repeats the base's {piece.path}.{piece.name}; if its values differ, the base is changed"
        lookup.findings.report("compat.repeats_base", f"{piece.path}.{piece.name}", message, group="repeats")


def _check_saved(names: tuple[str, ...], saved: set[str], lookup: ModuleLookup) -> None:
    """Each saved module must be there. A name that means none trained nothing: PEFT itself names every task's heads."""
    if not names:
        return
    ends = Endings(names)
    present_names, expected_names = (
        {name for start in set().union(*map(starts, paths)) for name in ends.of(start)}
        for paths in (saved, lookup.base.modules)
    )
    absent = [name for name in names if name not in present_names]
    heads = [name for name in names if name in TASK_HEADS]
    has_head = any(name not in absent for name in [h for h in heads if h in expected_names] or heads)
    # A task's model has a head of its own, under a name that PEFT may not know: Splinter's is `splinter_qass`.
    has_own = lookup.base.architecture.endswith(_TASK_MODELS) or any(
        path.startswith(TASK_HEADS) for path in lookup.base.modules
    )
    for name in absent:
        location, message = (f"{CONFIG}: {name}", f"modules_to_save names {name}, and the file does not hold it")
        is_head = name in TASK_HEADS
        if not (is_head and has_head) and (name in expected_names or (is_head and not has_own)):
            group = "head" * is_head
            lookup.findings.report("compat.saved_module_absent", location, message, name, "nothing", group=group)
        elif not is_head:
            message = f"{message}; {lookup.base.name} has no such module"
            lookup.findings.report(
                "compat.saved_module_absent", location, message, name, "nothing", group="absent", severity="warning"
            )


def _check_saved_whole(lora: LoraSpec, lookup: ModuleLookup) -> None:
    """Of what is saved, every part must be there: PEFT raises an error for one that is not."""
    present: dict[str, set[str]] = {}
    for piece in lora.full:
        present.setdefault(piece.path, set()).add(piece.name)
    ends = Endings(lora.config.saved_modules)
    present_names = {name for path in present for start in starts(path) for name in ends.of(start)}
    for path, module in lookup.modules() if present_names else ():
        names = {name for start in starts(path) for name in ends.of(start)}
        if names.isdisjoint(present_names) or module.kind in ("experts", "parameter", "other") or ".*." in path:
            continue
        weights = () if lookup.is_part(path) else ("weight",)  # a part with a bias may have no weight (JetMoE)
        for leaf in sorted({*weights, *(["bias"] if module.bias else [])} - present.get(path, set())):
            message = f"modules_to_save lists {path}, but the file lacks its {leaf}"
            location, group = f"{path}.{leaf}", f"{path.rpartition('.')[2]} {leaf}"
            lookup.findings.report("compat.saved_module_absent", location, message, location, "nothing", group=group)


def _check_biases(lora: LoraSpec, lookup: ModuleLookup) -> None:
    """Every bias that `bias` announces must be there. Which ones PEFT finds depends on its names for modules."""
    if lora.config.bias == "none":
        return
    present = {piece.path for piece in lora.full if piece.name == "bias"}
    updated = {update.path for update in lora.modules}
    for path, module in lookup.modules():
        if module.bias and path not in present and ".*." not in path and (lora.config.bias == "all" or path in updated):
            location, group = f"{path}.bias", path.rpartition(".")[2]
            message = f"bias={lora.config.bias!r} trains {location}, but the file lacks it: the base's is used"
            lookup.findings.report("compat.tensor_missing", location, message, group=group, severity="unknown")


def _check_whole(piece: OtherTensor, lookup: ModuleLookup) -> None:
    location = f"{piece.path}.{piece.name}"
    module = lookup.find(piece.path)
    if module is None:
        if piece.path.startswith(TASK_HEADS) and lookup.config.task not in ("", "CAUSAL_LM"):
            message = f"{location} is the head of a {lookup.config.task} model: the base's own head is not used"
            lookup.findings.report("compat.other_task", location, message, group="head", severity="warning")
        elif not lookup.is_part(piece.path):
            lookup.missing(piece.path, "the saved module")
    if module is None and not lookup.is_part(piece.path):
        return
    if module is None or piece.name not in ("weight", "bias"):
        message = f"{location} is saved, and headers do not show whether {piece.path} has such a parameter"
        lookup.findings.report("compat.module_unknown", location, message, group=piece.name, severity="unknown")
        return
    rows, columns = module.out_features, module.in_features
    if module.kind in ("conv1d", "embedding"):
        rows, columns = columns, rows
    shape = list(piece.shape)
    per_head = module.kind == "other" and len(shape) == 2  # Chameleon's norms have weights and biases for each head
    is_vector = module.kind == "norm" or (piece.name == "bias" and not per_head)
    expected = [module.out_features] if is_vector else [rows, columns, *module.kernel]
    # A transposed convolution has no groups here and counts its outputs elsewhere; older records have no kernels.
    is_unsure = module.kind == "conv" and not (module.groups if is_vector else module.kernel)
    if piece.name == "bias" and not module.bias:
        message = f"{piece.path} has no bias in this base"
        lookup.findings.report("compat.bias_unknown", location, message, "no bias", shape)
    elif module.is_known and shape != expected and not is_unsure:
        by_token = is_token_table(piece.path) or rows == lookup.base.vocab
        vocabulary = by_token and len(shape) == 2 and shape[1:] == expected[1:]
        code, why = ("compat.shape", "")
        if vocabulary:
            code, why = "compat.vocabulary_differs", f" (a vocabulary of {shape[0]} tokens instead of {expected[0]})"
        lookup.findings.report(
            code, location, f"{location} has shape {shape}, the base {expected}{why}", expected, shape
        )
