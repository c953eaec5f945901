"""Does this adapter fit this base, and which engines serve it as trained? From configurations and headers alone.

Pure: equal specs give equal findings. The modules in the file and the modules that the configuration targets must be
the same. What headers do not show is an `unknown` finding, never a pass.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from registry import __version__, engines
from registry.adapters import methods
from registry.adapters.peft import LoraSpec, initializations
from registry.adapters.peft.names import TOKEN_TABLES
from registry.adapters.read import AdapterContents, PeftContents
from registry.bases import BaseSpec, Similarity
from registry.compat import base_match
from registry.compat.catalog import CompatFindings, compat_finding
from registry.compat.files import check_file
from registry.compat.modules import (
    TASK_HEADS,
    ModuleLookup,
    as_trained,
    check_completeness,
    check_full,
    check_updates,
    in_older_layout,
)
from registry.compat.tensors import check_tensors
from registry.digest import Digest
from registry.engines import facts as engine_facts
from registry.engines import version_facts
from registry.evaluation.verdicts import Check, Verdict
from registry.findings import Finding
from registry.versions.files import CONFIG, WEIGHTS

PATTERN_STEPS_LIMIT = 2**26
"""About how many steps PEFT's matcher may need on all modules of a base: some 7 seconds."""
MATCHER_CACHE = 512
"""How many patterns Python's `re` keeps (`re._MAXCACHE`). PEFT has it compile any more again for each module."""
COMPILATIONS_LIMIT = 2**20
"""How many patterns PEFT may have compiled on all modules of a base: about a minute."""
_LANGUAGE_MODELS = ("ForCausalLM", "ForConditionalGeneration", "ForMaskedLM", "Model")
_GENERATING_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
_WITHOUT_GENERATION = (
    "ForMaskedLM", "ForMultipleChoice", "ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification",
    "Model",
)  # fmt: skip
"""Ends of the names of transformers' classes that do not generate text, except these:"""
_WITH_GENERATION = (
    "LMHeadModel", "DoubleHeadsModel", "EncoderDecoderModel", "MTModel", "BarkModel", "BarkCausalModel",
    "BarkCoarseModel", "BarkSemanticModel", "BlipForQuestionAnswering", "SeamlessM4TModel", "SeamlessM4Tv2Model",
)  # fmt: skip


def evaluate(
    contents: AdapterContents,
    base: BaseSpec,
    subject: Digest,
    profiles: Iterable[engines.EngineProfile] = (),
    *,
    relatives: Sequence[Similarity] = (),
) -> list[Verdict]:
    """The verdict `compat`, then one `engine` for each profile. `subject` is the version's digest."""
    findings = check(contents, base, relatives)
    compat = Verdict.of(Check.COMPAT, subject, base.name, base.fingerprint, findings, made_by={"registry": __version__})
    stored = engine_facts.to_stored(version_facts.engine_facts_of(contents))
    served = [
        engines.verdict(stored, profile, subject=subject, base=base, compat=compat.outcome, registry=__version__)
        for profile in profiles
    ]
    return [compat, *served]


def check(contents: AdapterContents, base: BaseSpec, relatives: Sequence[Similarity] = ()) -> tuple[Finding, ...]:
    """All findings of the check `compat`, whichever tool wrote the adapter."""
    if not base.is_registered:
        message = f"the base is not registered, so nothing was compared: run `adapter base add {base.name} DIR`"
        return (*contents.findings, compat_finding("compat.base_unregistered", base.name, message))
    if isinstance(contents, PeftContents):
        return (*contents.findings, *check_fit(contents.lora, base, relatives))
    if contents.findings:  # names of no known format: there is nothing to compare
        return contents.findings
    return tuple(check_file(contents.file, base))


def check_fit(lora: LoraSpec, base: BaseSpec, relatives: Sequence[Similarity] = ()) -> list[Finding]:
    """All findings about this adapter on this base: the adapter's own faults first, then what the base adds.

    `relatives` are the other bases whose weights are known, and how they are related to this one.
    """
    findings, base = CompatFindings(), as_trained(base, lora)
    if (older := in_older_layout(base, lora)) is not None:
        message = f"the file has the names that transformers before 4.52 gave the modules of {base.name}"
        findings.report("compat.layout_older", lora.modules[0].path if lora.modules else WEIGHTS, message)
        base = older
    lookup = ModuleLookup(base, lora.config, findings)
    keys = sum(map(len, lora.config.patterns.values()))
    compilations = keys * len(base.modules) if keys > MATCHER_CACHE else 0
    if lora.config.pattern_steps * len(base.modules) > PATTERN_STEPS_LIMIT or compilations > COMPILATIONS_LIMIT:
        message = f"{keys} patterns take PEFT too long on the {len(base.modules)} modules of {base.name}"
        findings.report("compat.patterns_slow", CONFIG, message)
    method = methods.find(lora.method)
    check_updates(lora, lookup)
    check_tensors(lora, lookup)
    if not method.is_prompt and method.shapes_known:
        check_completeness(lora, lookup)
    check_full(lora, lookup)
    _tokens(lora, lookup)
    _check_task(lora, lookup)
    _report_cautions(lora, base, findings)
    base_match.check_claim(lora.config.base, base, relatives, findings)  # last: people look at what is broken first
    return [*lora.findings, *findings.on(base)]


def _check_task(lora: LoraSpec, lookup: ModuleLookup) -> None:
    """PEFT loads an adapter that generates text only on a class that does; a classifier needs a head from somewhere.

    Source: peft/peft_model.py PeftModelForCausalLM and PeftModelForSeq2SeqLM read the model's
    `prepare_inputs_for_generation`; PeftModelForSequenceClassification and its kin save the head with the adapter.
    """
    task, name = lora.config.task, lookup.base.architecture
    generates = not name.endswith(_WITHOUT_GENERATION) or name.endswith(_WITH_GENERATION) or lookup.base.needs_code
    if task in _GENERATING_TASKS and not generates:
        message = f"the adapter is for the task {task}, and {name} does not generate text: PEFT cannot load it"
        location = f"{CONFIG}: task_type"
        lookup.findings.report("compat.other_task", location, message, "a task of the base", task)
    has_head = not name.endswith(_LANGUAGE_MODELS) or any(lookup.find(piece.path) is None for piece in lora.full)
    is_announced = not {*lora.config.saved_modules}.isdisjoint(TASK_HEADS)  # then check_full reports its absence
    if task in methods.CLASSIFYING_TASKS and not (has_head or is_announced or lookup.base.needs_code):
        message = f"the adapter is for the task {task}, and neither its file nor {name} has a head for it"
        lookup.findings.report("compat.other_task", f"{CONFIG}: task_type", message, "a saved head", "none")


def _tokens(lora: LoraSpec, lookup: ModuleLookup) -> None:
    """Trained rows of an embedding, and the tokens that an aLoRA waits for, must be rows that the base has."""
    base, findings = lookup.base, lookup.findings
    lists = {f"trainable_token_indices {k}".strip(): v for k, v in lora.config.token_indices.items()}
    lists["alora_invocation_tokens"] = lora.config.invocation_tokens
    for field, numbers in lists.items():
        if numbers and base.vocab and max(numbers) >= base.vocab:
            message = f"{field} holds token {max(numbers)}; this base has tokens 0 to {base.vocab - 1}"
            findings.report("compat.token_unknown", f"{CONFIG}: {field}", message, f"< {base.vocab}", max(numbers))
    rows = {len(numbers) for numbers in lora.config.token_indices.values()}
    pieces = [*lora.tokens, *(p for p in lora.pieces if p.name.endswith("trainable_tokens_delta"))]
    for piece in pieces:
        location = f"{piece.path}.{piece.name}"
        module = lookup.find(piece.path)  # a factorized embedding is narrower or wider than the layers
        width = module.out_features if module and module.is_known and module.kind == "embedding" else base.hidden
        if len(piece.shape) != 2 or (width and piece.shape[1] != width) or piece.shape[0] not in rows:
            expected = [max(rows, default=0), width]
            message = f"{location} has shape {list(piece.shape)}; the configuration and this base require {expected}"
            findings.report("compat.shape", location, message, expected, list(piece.shape))
    absent = [*lora.config.token_indices]
    if absent and pieces:  # a list stands for any embedding
        has_rows, is_module = _suffixes_of(piece.path for piece in pieces), _suffixes_of(base.modules)
        absent = [name for name in absent if not has_rows(name) and is_module(name)]
        if lora.config.has_token_list and any(map(has_rows, TOKEN_TABLES)):
            absent = []
    one_of_two = base.tied and len(absent) < len(lora.config.token_indices)
    if absent and not one_of_two and not (pieces and lora.config.ensure_weight_tying):
        of_module = f" of {absent[0]}" if pieces else ""
        message = f"the configuration declares trained tokens{of_module}, but the file has no trained rows{of_module}"
        location = f"{CONFIG}: trainable_token_indices"
        findings.report("compat.tokens_absent", location, message, "trainable_tokens_delta", "nothing")


def _suffixes_of(paths: Iterable[str]) -> Callable[[str], bool]:
    """What tells whether one of these paths ends with a name. Many names and many paths do not multiply."""
    backwards = sorted(path[::-1] for path in paths)

    def is_end(name: str) -> bool:
        position = bisect_left(backwards, name[::-1])
        return position < len(backwards) and backwards[position].startswith(name[::-1])

    return is_end


def _report_cautions(lora: LoraSpec, base: BaseSpec, findings: CompatFindings) -> None:
    """Report what fits, but surprises people or serving engines."""
    config = lora.config
    initialization = initializations.find(config.initialization)
    if initialization is not None and initialization.changes_base:  # an unknown one, PEFT does not load at all
        message = (
            f"{config.initialization} changed the base's own weights before training: this adapter is right only "
            "after the same change, which then reaches all adapters on that base; convert it to a plain LoRA"
        )
        findings.report("compat.base_was_changed", f"{CONFIG}: init_lora_weights", message)
    if config.layer_replication:
        message = "layer_replication changes the number of layers of the base: serve it in its own process"
        findings.report("compat.changes_depth", f"{CONFIG}: layer_replication", message)
        last = max((end for first, end in config.layer_replication if first < end), default=0)
        if base.layers and last > base.layers:
            message = (
                f"layer_replication takes layers up to {last - 1}; the layers of {base.name} are 0 to {base.layers - 1}"
            )
            findings.report("compat.module_unknown", f"{CONFIG}: layer_replication", message, base.layers, last)
    if config.bias != "none" and any(piece.name == "bias" for piece in lora.full):
        message = f"bias={config.bias!r} replaces biases of the base, also for the other adapters on it"
        findings.report("compat.changes_base", f"{CONFIG}: bias", message)
    for field, meaning in methods.LORA_VARIANTS.items():
        if config.other.get(field):
            message = f"{meaning}: a runtime for plain LoRA computes something else"
            findings.report("compat.semantics", f"{CONFIG}: {field}", message)
    if base.quantization:
        message = f"the base is quantized ({base.quantization}): an adapter of the unquantized one behaves differently"
        findings.report("compat.base_quantized", base.name, message)
