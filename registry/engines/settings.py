"""What to set for all adapters of a base: the rank limit, the slots, the modules, and what a slot costs.

vLLM and engines like it allocate each slot at the rank limit for *every* module they wrap: one adapter of a larger rank
makes every slot larger. Adapters that the engine refuses at any setting are named, and their ranks do not count.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from registry import engines
from registry.bases import BaseSpec
from registry.engines import facts as engine_facts
from registry.engines.facts import EngineFacts
from registry.engines.rulebook import EngineRules, engine
from registry.evaluation.engine_settings import EngineSettings
from registry.findings import Finding

SLOTS_LIMIT = 8
"""The slots proposed at most; more are needed only where more adapters are called in one batch."""
CURED_BY_SETTINGS = frozenset({"rank", "target_filter"})
"""Properties that a setting cures; a refusal for any other reason leaves the adapter out."""


def settings_for(
    profile: str, adapters: Mapping[str, EngineFacts | Mapping[str, Any]], base: BaseSpec, *, slots: int | None = None
) -> EngineSettings:
    """What to set so that all these adapters (name → facts) are served by this engine on this base.

    `slots`: adapters in one batch; without it as many as there are adapters, at most `SLOTS_LIMIT`.
    """
    parsed = engines.profile(profile)
    rules = engine(parsed.engine)
    evaluated = {name: engines.evaluate(facts, parsed) for name, facts in adapters.items()}
    served = {
        name: values for name, facts in adapters.items() if (values := _served(facts, evaluated[name])) is not None
    }
    ranks = {name: int(values["max_rank"]) for name, values in served.items()}
    largest = max(ranks.values(), default=0)
    settings = EngineSettings(
        profile=str(parsed),
        adapters=len(adapters),
        left_out=tuple(sorted(set(adapters) - set(served))),
        unknown=tuple(sorted(name for name in served if any(f.severity == "unknown" for f in evaluated[name]))),
        max_rank=largest,
        max_rank_without_largest=max((rank for rank in ranks.values() if rank < largest), default=0),
        raised_by=tuple(sorted(name for name, rank in ranks.items() if rank == largest)),
        modules=tuple(sorted({m for values in served.values() for m in values["modules"]})),
    )
    return _complete(settings, rules, slot_bytes(base, 1), slots)


def combine(pages: Sequence[EngineSettings], *, slots: int | None = None) -> EngineSettings:
    """The settings for the adapters of all these, at least one, which are for one engine on one base.

    `raised_by` is empty unless the rank limit is lower without those adapters.
    """
    largest = max(page.max_rank for page in pages)
    lower = (page.max_rank if page.max_rank < largest else page.max_rank_without_largest for page in pages)
    settings = EngineSettings(
        profile=pages[0].profile,
        adapters=sum(page.adapters for page in pages),
        left_out=tuple(sorted(name for page in pages for name in page.left_out)),
        unknown=tuple(sorted(name for page in pages for name in page.unknown)),
        max_rank=largest,
        max_rank_without_largest=max(lower),
        raised_by=tuple(sorted(name for page in pages if page.max_rank == largest for name in page.raised_by)),
        modules=tuple(sorted({module for page in pages for module in page.modules})),
    )
    rank_bytes = next((page.bytes_per_slot // page.rank_limit for page in pages if page.rank_limit), 0)
    whole = _complete(settings, engine(engines.profile(settings.profile).engine), rank_bytes, slots)
    is_lower = 0 < whole.rank_limit_without_largest < whole.rank_limit
    return whole if is_lower else whole.model_copy(update={"raised_by": ()})


def _complete(settings: EngineSettings, rules: EngineRules, rank_bytes: int, slots: int | None) -> EngineSettings:
    """Add what follows from the ranks and the modules. `rank_bytes`: what a slot costs for each rank."""
    limit, without = _allowed(rules, settings.max_rank), _allowed(rules, settings.max_rank_without_largest)
    served = settings.adapters - len(settings.left_out)
    count = slots or min(max(served, 1), SLOTS_LIMIT)
    flags = _flags(rules, limit, count, served, settings.modules) if served else ()
    return settings.model_copy(
        update={
            "rank_limit": limit, "rank_limit_without_largest": without, "slots": count, "flags": flags,
            "bytes_per_slot": rank_bytes * limit, "bytes_per_slot_without_largest": rank_bytes * without,
        }
    )  # fmt: skip


def slot_bytes(base: BaseSpec, rank: int) -> int:
    """Bytes of one slot at this rank: A and B of every linear, embedding and expert module, in the base's type.

    A is [rank, in] and B is [out, rank]; an expert has three matrices (gate, up, down). Packed bases compute in 16
    bits. The rule is vLLM's (vllm/lora/layers/base_linear.py: create_lora_weights).
    """
    width = 4 if base.dtype == "F32" and not base.quantization else 2
    per_rank = 0
    for module in base.modules.values():
        sides = module.in_features + module.out_features
        if module.kind in ("linear", "conv1d", "embedding"):
            per_rank += sides
        elif module.kind == "experts":
            per_rank += 3 * sides * module.count
    return per_rank * rank * width


def _served(facts: EngineFacts | Mapping[str, Any], evaluated: Iterable[Finding]) -> Mapping[str, Any] | None:
    """All fields of the facts; None if they are of another release, or if no setting of rank or modules helps."""
    values = facts.__dict__ if isinstance(facts, EngineFacts) else engine_facts.from_stored(facts)
    errors = (finding.code.rpartition(".")[2] for finding in evaluated if finding.severity == "error")
    refused = any(code not in CURED_BY_SETTINGS for code in errors)
    return None if refused else values


def _allowed(rules: EngineRules, rank: int) -> int:
    """The smallest limit that the engine offers and that holds this rank; the rank itself where any is offered."""
    rule = rules.settings.get("max_lora_rank")
    return next((choice for choice in rule.choices if choice >= rank), rank) if rule and rank else rank


def _flags(rules: EngineRules, limit: int, slots: int, adapters: int, modules: tuple[str, ...]) -> tuple[str, ...]:
    values: dict[str, str] = {
        "max_lora_rank": str(limit),
        "max_loras": str(slots),
        "max_loras_per_batch": str(slots + 1),  # SGLang counts the base itself
        "max_cpu_loras": str(max(adapters, slots)),
    }
    if rules.needs_modules:
        values["target_modules"] = " ".join(modules)
    flags = [f"{rules.settings[name].flag} {value}" for name, value in values.items() if name in rules.settings]
    return (*rules.start_flags, *flags)
