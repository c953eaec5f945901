"""Does this weights file fit this base, where no PEFT configuration stands beside it? Findings, from headers alone.

Every module that the file updates must be a module of the base, or a fused group of them, with equal sizes. Names that
no rule translates are `unknown`. Only diffusers' metadata says which modules were meant: without it, a missing layer
cannot be noticed.
"""

import math

from registry.adapters.formats.facts import FileFacts, FileModule
from registry.adapters.peft.targets import Targets
from registry.bases import BaseSpec
from registry.bases.modules import ModuleShape
from registry.compat.catalog import CompatFindings
from registry.compat.paths import Paths
from registry.findings import Finding, Severity

_KERNELS = (1, 4, 9, 16, 25, 49)
"""Areas of square kernels, where the base's is not known: a format may store channels and kernel as one size."""
_CONTROL_INPUTS = ("img_in", "x_embedder")


def check_file(facts: FileFacts, base: BaseSpec) -> list[Finding]:
    """All findings about this file on this base."""
    findings = CompatFindings()
    is_image = facts.format.is_image
    if is_image != base.is_pipeline:
        kind, other = ("an image model", "a language model") if is_image else ("a language model", "an image model")
        message = f"the file's names ({facts.format}) are of {kind}, and {base.name} is {other}"
        findings.report("compat.kind", facts.file, message, kind, other)
        return findings.all()
    if not base.is_of(facts.family):
        message = f"the file is for {facts.family} ({facts.family_evidence}), and {base.name} is {base.model_type}"
        findings.report("compat.family", facts.file, message, base.model_type, facts.family)
        return findings.all()
    _check_itself(facts, findings)
    paths = Paths(facts.format, base.modules)
    for module in facts.modules:
        _check(module, paths, facts, base, findings)
    _check_targets(facts, base, paths, findings)
    if not is_image and any(module.rank and module.scale is None for module in facts.modules):
        message = "the folder does not state the scale of the update (alpha), and the registry does not guess it"
        findings.warning("format.alpha_absent", facts.file, message)
    if facts.alpha_rule.startswith("no alpha in the file") and is_image and not facts.format.alpha_is_rank:
        message = "the file has no alpha: loaders use alpha = rank, which may differ from training"
        findings.warning("format.alpha_absent", facts.file, message)
    return findings.on(base)


def _check_itself(facts: FileFacts, findings: CompatFindings) -> None:
    """What is wrong with the file on any base."""
    if not facts.modules:
        message = f"{facts.file} has no pair of factors with the name of a module"
        findings.error("lora.no_modules", facts.file, message, "lora_a and lora_b", facts.tensors)
    if "lora.rank_differs_from_config" in facts.problems:
        message = f"the factors in {facts.file} have a different rank from the one in adapter_config.json"
        findings.error(
            "lora.rank_differs_from_config", facts.file, message, "the rank of the configuration", facts.max_rank
        )
    acts = facts.has_dora or any(module.scale != 0 for module in facts.modules)
    severity: Severity = "warning" if acts else "error"  # a negative one subtracts, 0 leaves out a module
    for module in facts.modules:
        if module.scale is not None and module.scale <= 0:
            message = f"module {module.path} is scaled by {module.scale:g}: no effect, or a reversed one"
            values = ("> 0", f"{module.scale:g}")
            findings.add(severity, "lora.alpha_not_positive", module.path, message, *values, group="scale")
    for path in facts.magnitudes_absent:  # with LyCORIS, DoRA may be set module by module
        severity = "error" if facts.format.dora_everywhere else "unknown"
        message = f"module {path} has no magnitude, unlike other modules of its model"
        findings.add(severity, "lora.magnitude_absent", path, message, group="magnitude")


def _check(module: FileModule, paths: Paths, facts: FileFacts, base: BaseSpec, findings: CompatFindings) -> None:
    if module.is_half:
        message = f"{module.path} has an incomplete pair: A or B is missing, or both"
        findings.error("lora.pair_incomplete", module.path, message, "A and B", "one of them or none", group="halves")
        return
    if module.fault:
        message = f"module {module.path}: {module.fault}"
        findings.error("lora.shape_invalid", module.path, message, "equal ranks", module.fault, group=module.fault)
        return
    paths_of_base = paths.of(module.path)
    leaf = module.path.replace("_", ".").rpartition(".")[2]
    if paths_of_base is None:
        message = f"{module.path} matches no {facts.format} name of a module of {base.name}"
        findings.unknown("format.names_unmapped", module.path, message, group=leaf)
        return
    modules = [base.modules.get(path) for path in paths_of_base]
    absent = [path for path, there in zip(paths_of_base, modules, strict=True) if there is None]
    if absent:
        message = f"{module.path} means {absent[0]}, which is not a module of {base.name}"
        findings.report("compat.module_unknown", module.path, message, "a module of the base", absent[0], group=leaf)
        return
    _sizes(module, [there for there in modules if there is not None], facts, base, findings)


def _check_targets(facts: FileFacts, base: BaseSpec, paths: Paths, findings: CompatFindings) -> None:
    """Warn of a module that a configuration in the metadata targets and that the file lacks: the rest can be loaded.

    A target that is a whole path means this module only: diffusers writes such names for what it has loaded itself.
    """
    present = {path for module in facts.modules for path in paths.of(module.path) or ()}
    for component, config in facts.targets.items():
        start = f"{component}."
        modules = {path.removeprefix(start): m for path, m in base.modules.items() if path.startswith(start)}
        names = frozenset(config.targets) if isinstance(config.targets, tuple) else frozenset()
        ends = config.model_copy(update={"targets": tuple(names - modules.keys())}) if names else config
        targets = Targets(ends)
        for path in sorted(modules) if not targets.all_linear else ():
            is_target = path in names or targets.covers(path)
            if is_target and modules[path].kind in ("linear", "conv", "embedding") and start + path not in present:
                message = f"the metadata says that {path} of {component} was trained, and the file has no tensor for it"
                group = path.rpartition(".")[2]
                code = "compat.module_missing"
                findings.warning(code, start + path, message, path, "nothing", group=group)


def _sizes(
    module: FileModule, there: list[ModuleShape], facts: FileFacts, base: BaseSpec, findings: CompatFindings
) -> None:
    leaf = module.path.replace("_", ".").rpartition(".")[2]
    if not module.in_features or not module.out_features or not all(part.is_known for part in there):
        message = f"the sizes of {module.path} are not visible in the header ({facts.method or 'an unknown method'})"
        findings.report("compat.shape_unknown", module.path, message, group=facts.method)
        return
    # A of a grouped convolution takes all channels, the base's weight those of one group
    expected = (sum(part.out_features for part in there), there[0].in_features * module.groups)
    is_new = there[0].kind != "conv" or there[0].kernel  # older records of a base have no kernels
    factors = (*((1,) if module.is_conv else ()), math.prod(there[0].kernel)) if is_new else _KERNELS
    kernel = there[0].kernel or (module.kernel if there[0].kind == "conv" else (1,) * len(module.kernel))
    if module.kernel and module.kernel != kernel:
        kernels = (list(kernel), list(module.kernel))
        message = f"{module.path} updates a kernel of {kernels[1]}; {base.name} has {kernels[0]} there"
        findings.report("compat.shape", module.path, message, *kernels, group=f"kernel {kernels}")
        return
    if module.out_features == expected[0] and module.in_features in [expected[1] * factor for factor in factors]:
        return
    sizes = (module.out_features, module.in_features)
    if facts.format.has_control and module.path.endswith(_CONTROL_INPUTS) and sizes[1] > expected[1]:
        message = f"{module.path} takes {sizes[1]} inputs instead of {expected[1]}: a control adapter widens it"
        findings.warning("format.control_inputs", module.path, message, expected[1], sizes[1])
        return
    message = f"{module.path} updates a matrix of {list(sizes)}; {base.name} has {list(expected)} there"
    group = f"{leaf} {sizes} {expected}"
    findings.report("compat.shape", module.path, message, list(expected), list(sizes), group=group)
