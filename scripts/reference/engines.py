"""docs/reference/engines.md: what engines do with an adapter, from registry/engines/rules/.

Every cell comes from a rule or a `works` entry and carries its source. Versions of one engine with equal statements
share a column.
"""

from __future__ import annotations

from collections.abc import Iterable

from registry.engines.rulebook import EngineRules, Property, Rule, Works, engines, properties
from registry.engines.source_facts import version_of

_INTRODUCTION = """\
# Engine rules

What each engine does with each property of an adapter, and how we know. `adapter check REF --engine PROFILE`
applies these rules to one adapter, from facts that the registry stores with every version. What no one has examined
is `unknown`.

| word | meaning |
|---|---|
| ok | It loads, and the output matches training. |
| refuses | It does not load, with an error. |
| ignores | It loads, but this part has no effect, and no message says so. |
| wrong | It loads, but the output differs from training. |
| setting | It loads only with another setting. |
| depends | One of these, depending on circumstances that the facts do not show. |
| worker | A worker [loads the file](../image-adapters.md#ask-diffusers) and says what was taken. |
| – | Not examined: the verdict is `unknown`. |

Versions are written as their makers do: `vllm==0.33.0`, `llama.cpp==b5000`. A year and month is the state of the code
that was examined, of engines without examined releases; any release of theirs is `unknown`.

Evidence: **run** against the engine, its **source**, an **issue** of the project, or **documentation** only.
Numbers refer to the sources at the end.

What depends on the base's model class is read from each release's source: [model classes](engine-classes.md).

Recorded answers hold the rules in every test run. `make test-vllm` asks a real vLLM over HTTP about each case of
`tests/engines/cases.py` and compares log probabilities with PEFT's to 2e-2. `make test-engines` runs the deciding
code of every examined release of vLLM and SGLang, vLLM's configuration class, and llama.cpp's server with converted
GGUF adapters. With up to 28 adapters each, a vLLM 0.32.0 server answered over HTTP on tiny
models of nine architectures (`python -m tests.proof.vllm_http_models`). Where the rules pass an adapter that PEFT
loads, its log probabilities were PEFT's to 1e-3.
"""
_WORDS = {"refuses": "refuses", "ignores_silently": "ignores", "wrong_output": "wrong", "needs_setting": "setting"}


class _Sources:
    """Numbers the sources in the order of their first use."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, statement: Rule | Works) -> int:
        return self._numbers.setdefault((statement.verified, statement.source), len(self._numbers) + 1)

    def lines(self) -> Iterable[str]:
        return (f"{number}. {verified}: {source}" for (verified, source), number in self._numbers.items())


def markdown() -> str:
    """The whole page."""
    sources = _Sources()
    parts = [_INTRODUCTION]
    text = [e for e in engines().values() if e.kind == "text" and not e.from_documentation]
    hosted = [e for e in engines().values() if e.from_documentation]
    image = [e for e in engines().values() if e.kind == "image"]
    (vllm,) = (e for e in text if e.name == "vllm")
    parts.append(_table("vLLM by version", _columns([vllm]), "text", sources))
    parts.append(
        _table("Other engines for language models", _columns(e for e in text if e is not vllm), "text", sources)
    )
    parts.append(_table("Hosted services and containers (from documentation)", _columns(hosted), "text", sources))
    parts.append(_table("Image engines", _columns(image), "image", sources))
    parts.extend(_details(e, sources) for e in engines().values())
    parts.append("## Sources\n\n" + "\n".join(sources.lines()) + "\n")
    return "\n".join(parts)


def _columns(chosen: Iterable[EngineRules]) -> list[tuple[EngineRules, str, str]]:
    """(engine, version to ask, heading); neighboring versions about which the same is said are one column."""
    columns: list[tuple[EngineRules, str, str]] = []
    for engine in chosen:
        first = engine.examined[0]
        last = first
        for version in [*engine.examined[1:], ""]:
            if version and _said(engine, version) == _said(engine, first):
                last = version
                continue
            span = first if first == last else f"{first} to {last}"
            columns.append((engine, first, f"{engine.title} {span}"))
            first = last = version
    return columns


def _said(engine: EngineRules, version: str) -> list[Rule | Works]:
    return [s for prop in properties() for s in engine.statements(prop.id, version_of(version))]


def _table(title: str, columns: list[tuple[EngineRules, str, str]], kind: str, sources: _Sources) -> str:
    rows = [prop for prop in properties() if prop.kind == kind]
    rows = [p for p in rows if any(list(e.statements(p.id, version_of(v))) for e, v, _ in columns)]
    lines = [
        f"## {title}",
        "",
        "| property | " + " | ".join(heading for _, _, heading in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for prop in rows:
        cells = [_cell(engine, version, prop, sources) for engine, version, _ in columns]
        lines.append(f"| {prop.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(engine: EngineRules, version: str, prop: Property, sources: _Sources) -> str:
    words: list[str] = []
    for statement in engine.statements(prop.id, version_of(version)):
        word = _word(statement, prop)
        words.append(f"{word} {sources.number(statement)}")
    return ", ".join(dict.fromkeys(words)) or ("worker" if engine.loaded_by_worker else "–")


def _word(statement: Rule | Works, prop: Property) -> str:
    if isinstance(statement, Works):
        return "ok"
    if statement.severity == "unknown":
        return "depends"
    return ("some: " if statement.when and prop.when else "over it: " if prop.id == "rank" else "") + _WORDS[
        statement.effect
    ]


def _details(engine: EngineRules, sources: _Sources) -> str:
    lines = [f"## {engine.title}", "", f"Examined: {', '.join(engine.examined)}. {engine.note}".rstrip(), ""]
    if engine.settings:
        shown = (
            f"`{name}` ({setting.flag}; default {'none' if setting.default is None else str(setting.default).lower()}"
            + (f"; one of {', '.join(map(str, setting.choices))}" if setting.choices else "")
            + ")"
            for name, setting in engine.settings.items()
        )
        lines += [f"Settings of a profile: {', '.join(shown)}.", ""]
    lines += ["| property | versions | what it does | source |", "|---|---|---|---|"]
    for prop in properties():
        statements: list[Rule | Works] = [*engine.rules, *engine.works]
        for statement in statements:
            if statement.property == prop.id:
                lines.append(
                    f"| {prop.label} | {_span(statement)} | {_words(statement)} | {sources.number(statement)} |"
                )
    return "\n".join(lines) + "\n"


def _span(statement: Rule | Works) -> str:
    since = "" if statement.since == "0" else f"from {statement.since}"
    before = f"before {statement.before}" if statement.before else ""
    return " ".join(filter(None, (since, before))) or "all"


def _words(statement: Rule | Works) -> str:
    if isinstance(statement, Works):
        return "ok" + (f"; {statement.note}" if statement.note else "")
    parts = [f"{_WORDS[statement.effect]}: {statement.message}"]
    if statement.engine_message:
        parts.append(f"it reports `{statement.engine_message}`")
    if statement.fix:
        parts.append(statement.fix)
    return "; ".join(parts).replace("|", "\\|")
