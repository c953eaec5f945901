"""docs/reference/engine-classes.md: what the engines' own source says about their model classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from registry.engines import source_facts
from registry.engines.source_facts import version_of

_INTRODUCTION = """\
# Model classes of engines

Whether an engine takes LoRA, and on which modules, is decided by the class that it registers for the base's
architecture. `make engine-rules` reads this from the source of each release, without running it;
[the rules](engines.md) say what follows. *Depends*: the base's configuration chooses an inner language model, whose
names are taken as well. An architecture that is missing here may run through the engine's Transformers backend.
"""
_TITLES = {"vllm": "vLLM", "sglang": "SGLang"}


def markdown() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *(line for engine in _TITLES for line in _section(engine))])


def _section(engine: str) -> Iterator[str]:
    examined = source_facts.examined_versions(engine)
    newest = version_of(examined[-1])
    yield f"## {_TITLES[engine]}\n"
    yield f"Source read: {', '.join(examined)}.\n"
    required = ", ".join(f"`{name}`" for name in source_facts.value(engine, "required_fields", newest))
    yield f"Fields that a configuration must have in {examined[-1]}: {required}.\n"
    yield "What it refuses, by field, and how the refusal begins:\n"
    refused = source_facts.value(engine, "refused_fields", newest)
    yield from (f"- `{name}`: {message}" for name, message in refused.items())
    yield f"\n| architecture | class | versions with LoRA | embeddings and heads with LoRA ({examined[-1]}) |"
    yield "|---|---|---|---|"
    for architecture in source_facts.architectures(engine):
        rows = {version: source_facts.of(engine, version_of(version), architecture) for version in examined}
        have = [version for version, row in rows.items() if row.get("source_lora")]
        latest = next(row for row in reversed(rows.values()) if row["source_registered"])
        cells = (architecture, latest["source_class"], _versions(have, examined), _names(rows[examined[-1]]))
        yield f"| {' | '.join(cells)} |"
    yield ""


def _versions(have: list[str], examined: tuple[str, ...]) -> str:
    if len(have) == len(examined):
        return "all"
    if have and have[-1] == examined[-1] and list(examined[-len(have) :]) == have:
        return f"from {have[0]}"
    return ", ".join(have) or "none"


def _names(row: Mapping[str, object]) -> str:
    names = row.get("source_embeddings")
    if not isinstance(names, tuple):
        return "–"
    return ", ".join([*names, *(["depends"] if row["source_open"] else [])]) or "none"
