"""The rules about engines, read from `registry/engines/rules/*.toml` and checked: what each version does with what.

    property    something an adapter may have (rsLoRA, DoRA, a rank over the limit …), with the facts that show it
    rule        engine × versions × property (and further conditions) → effect, message, source
    works       engine × versions × property → it loads and acts as trained, with its source
    setting     what a deployment can choose, with the engine's default

A condition is field, operator, operand. A field is a fact of the adapter, one of `source_facts` (what the engine's own
source says about the base's class), or `$name`, the deployment's setting. An operand may be `$name` or `@field`.
A condition on what is not known does not hold. A wrong data file is an error at the first use.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

from pydantic import Field, model_validator

from registry.digest import Digest
from registry.engines import source_facts
from registry.engines.facts import FACTS_VERSION, EngineFacts
from registry.engines.source_facts import Version, version_of
from registry.errors import Invalid
from registry.findings import Severity
from registry.model import FrozenModel

Effect = Literal["refuses", "ignores_silently", "wrong_output", "needs_setting"]
Verified = Literal["run", "source", "documentation", "issue"]
Operator = Literal["is", "is_not", "over", "under", "has", "lacks", "has_other_than", "in", "not_in"]
Setting = int | float | str | bool | tuple[str, ...] | None


class Condition(FrozenModel):
    """`field operator operand`, evaluated on facts, on what the engine's source says, and on settings."""

    field: str
    operator: Operator
    operand: Any

    @model_validator(mode="before")
    @classmethod
    def _from_three(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) == 3:
            return {"field": value[0], "operator": value[1], "operand": value[2]}
        return value

    @model_validator(mode="after")
    def _known_field(self) -> Condition:
        for word in (self.field, self.operand[1:] if str(self.operand).startswith("@") else self.field):
            if not word.startswith("$") and word not in EngineFacts.model_fields and word not in source_facts.FIELDS:
                raise ValueError(f"no fact is called {word!r}")
        return self

    def holds(self, facts: Mapping[str, Any], settings: Mapping[str, Setting]) -> bool:
        """Whether the condition is true; False where a value is not known."""
        value = settings.get(self.field[1:]) if self.field.startswith("$") else facts.get(self.field)
        operand = self.operand
        if isinstance(operand, str) and operand[:1] in ("$", "@"):
            operand = (settings if operand[0] == "$" else facts).get(operand[1:])
        if value is None or operand is None:
            return False
        return bool(_OPERATORS[self.operator](value, operand))


_OPERATORS: dict[str, Any] = {
    "is": lambda value, operand: value == operand,
    "is_not": lambda value, operand: value != operand,
    "over": lambda value, operand: value > operand,
    "under": lambda value, operand: value < operand,
    "has": lambda value, operand: operand in value,
    "lacks": lambda value, operand: operand not in value,
    "has_other_than": lambda value, operand: bool(set(value) - set(operand)),
    "in": lambda value, operand: value in operand,
    "not_in": lambda value, operand: value not in operand,
}


class Property(FrozenModel):
    """Something an adapter may have. `when` all true: it has it. No `when`: every adapter has it (its rank, say)."""

    id: str
    label: str
    kind: Literal["text", "image"] = "text"
    when: tuple[Condition, ...] = ()


class _Statement(FrozenModel):
    property: str
    since: str = "0"
    before: str = ""
    source: str = Field(min_length=3)
    verified: Verified = "source"

    def covers(self, version: Version) -> bool:
        return version_of(self.since) <= version and (not self.before or version < version_of(self.before))


class Works(_Statement):
    """The engine treats this property as the trainer did. `note`: a condition worth knowing."""

    note: str = ""


class Rule(_Statement):
    """What the engine does instead, and its message. `severity` other than error: the facts do not show enough."""

    effect: Effect
    when: tuple[Condition, ...] = ()
    message: str = Field(min_length=10)
    fix: str = ""
    engine_message: str = ""
    severity: Severity = "error"


class SettingRule(FrozenModel):
    """One setting: its type by its default, the values it may have (numbers from `least` on), the flag that sets it."""

    default: Setting = None
    kind: Literal["number", "flag", "names", "text"] = "number"
    choices: tuple[int, ...] = ()
    least: int = 0
    flag: str = ""


class EngineRules(FrozenModel):
    """One engine's file. `examined`: the versions that were looked at; between two of them the older's rules hold.

    `source`: of every statement that names none; `{source}` in that of a statement. `extends`: an engine whose
    statements hold here, too, about each property that this file does not mention. `loaded_by_worker`: a worker loads
    the adapter with this engine and says what it takes; the rules are only what headers prove for any loader.
    `start_flags`: what serves adapters at all. `needs_modules`: it has to be started with a list of target modules.
    """

    name: str
    title: str
    extends: str = ""
    source: str = ""
    kind: Literal["text", "image"] = "text"
    examined: tuple[str, ...] = Field(min_length=1)
    versioned: bool = True
    loaded_by_worker: bool = False
    from_documentation: bool = False
    start_flags: tuple[str, ...] = ()
    needs_modules: bool = False
    note: str = ""
    settings: dict[str, SettingRule] = {}
    rules: tuple[Rule, ...] = ()
    works: tuple[Works, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> EngineRules:
        ids = {p.id for p in properties()}
        for statement in (*self.rules, *self.works):
            if statement.property not in ids:
                raise ValueError(f"{self.name}: no property is called {statement.property!r}")
        for rule in self.rules:
            for condition in rule.when:
                operand = condition.operand
                setting_names = [t[1:] for t in (condition.field, operand) if isinstance(t, str) and t.startswith("$")]
                for name in setting_names:
                    if name not in self.settings:
                        raise ValueError(f"{self.name}: rule {rule.property!r} uses the unknown setting {name!r}")
        return self

    def statements(self, property_id: str, version: Version) -> Iterator[Rule | Works]:
        """What is said about one property at one version."""
        for rule in self.rules:
            if rule.property == property_id and rule.covers(version):
                yield rule
        for works in self.works:
            if works.property == property_id and works.covers(version):
                yield works


@lru_cache(maxsize=1)
def properties() -> tuple[Property, ...]:
    """All properties, in the order of the table."""
    return tuple(Property.model_validate(p) for p in _toml("properties.toml")["property"])


@lru_cache(maxsize=1)
def engines() -> dict[str, EngineRules]:
    """All engines by name, in the order of their titles."""
    folder = resources.files("registry.engines") / "rules"
    files = sorted(f.name for f in folder.iterdir() if f.name.endswith(".toml") and f.name != "properties.toml")
    loaded = [_engine(_toml(file)) for file in files]
    return {e.name: e for e in sorted(loaded, key=lambda e: (e.from_documentation, e.kind == "image", e.title.lower()))}


def engine(name: str) -> EngineRules:
    """One engine. `Invalid` (SETTING_INVALID) names the ones there are."""
    rules = engines().get(name)
    if rules is None:
        names = ", ".join(engines())
        raise Invalid("SETTING_INVALID", f"unknown engine {name[:60]!r}; known engines: {names}")
    return rules


@lru_cache(maxsize=32)
def digest(name: str) -> Digest:
    """What this engine's verdicts follow from, besides facts: its files, the properties, the meaning of the facts."""
    rules, names = engine(name), resources.files("registry.engines") / "rules"
    files = [(names / f"{file}.toml").read_bytes() for file in (rules.name, rules.extends, "properties") if file]
    return Digest.of(b"\0".join([*files, str(source_facts.digest(name)).encode(), str(FACTS_VERSION).encode()]))


def _engine(data: dict[str, Any]) -> EngineRules:
    head = data["engine"]
    statements = {"rules": data.get("rule", []), "works": data.get("works", [])}
    if "extends" in head:
        mentioned = {statement["property"] for own in statements.values() for statement in own}
        extended = _toml(f"{head['extends']}.toml")
        for field, key in (("rules", "rule"), ("works", "works")):
            statements[field] += [other for other in extended[key] if other["property"] not in mentioned]
    for statement in (*statements["rules"], *statements["works"]):
        statement["source"] = statement.get("source", "{source}").replace("{source}", head.get("source", ""))
    return EngineRules.model_validate({**head, "settings": data.get("settings", {}), **statements})


def _toml(file: str) -> dict[str, Any]:
    return tomllib.loads((resources.files("registry.engines") / "rules" / file).read_text("utf-8"))
