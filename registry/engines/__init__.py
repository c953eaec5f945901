"""Will this engine, at this version, with these settings, serve this adapter as it was trained? Decided from facts.

    profile   "vllm==0.32.0,max_lora_rank=32"      an engine, its version, and what differs from its defaults

What was not examined is `unknown`: a version outside the examined ones, or a property that the engine's rules do not
mention. Image adapters are not judged by diffusers' rules: a worker loads the file with diffusers, and until then the
verdict is `unknown`, unless the header alone shows that no loader can use the file.

Every finding ends with the source of its rule; every verdict names its rules by their digest.
"""

import re
from collections.abc import Mapping
from typing import Any

from registry.adapters import formats
from registry.bases import BaseSpec
from registry.digest import Digest
from registry.engines import facts as engine_facts
from registry.engines import rulebook, source_facts
from registry.engines.facts import EngineFacts
from registry.engines.rulebook import Condition, EngineRules, Rule, Setting, SettingRule, engine, properties
from registry.engines.source_facts import Version, version_of
from registry.errors import Invalid
from registry.evaluation.verdicts import PROFILE_LIMIT, Check, Outcome, Verdict
from registry.findings import Finding
from registry.model import FrozenModel

_PROFILE = re.compile(r"(?P<name>[a-z0-9._-]+)(?:==v?(?P<version>b?[0-9][A-Za-z0-9.+-]*))?(?:,(?P<settings>.+))?\Z")
_EFFECT_WORDS = {
    "refuses": "refuses it",
    "ignores_silently": "loads it and silently ignores this part",
    "wrong_output": "loads it and computes wrong outputs",
    "needs_setting": "needs another setting",
}
_POSSIBLE_EFFECT_WORDS = {
    "refuses": "refuse it",
    "ignores_silently": "load it and silently ignore this part",
    "wrong_output": "load it and compute wrong outputs",
    "needs_setting": "need another setting",
}
"""Behind `may` (the rule's severity is unknown) or `would` (the version was not examined)."""


class EngineProfile(FrozenModel):
    """One deployment. `settings` holds every setting of the engine, with its default where nothing was said."""

    engine: str
    version: str
    settings: dict[str, Setting] = {}

    def __str__(self) -> str:
        """The text that parses to this profile again; settings at their default are left out."""
        rules = engine(self.engine)
        changed = [
            f"{name}={'+'.join(value) if isinstance(value, tuple) else str(value).lower()}"
            for name, value in sorted(self.settings.items())
            if value != rules.settings[name].default
        ]
        return ",".join([f"{self.engine}=={self.version}", *changed])


def profile(text: str) -> EngineProfile:
    """Parse `engine==version[,setting=value]…`; names in a list are joined by `+`.

    A version is written as the engine's makers do: `0.33.0`, `v0.33.0`, or a build of llama.cpp such as `b5000`. It may
    be left out for engines of which one state was examined, whose version is then the year and month of that.
    `Invalid` (SETTING_INVALID) names the wrong part and what is possible.
    """
    match = _PROFILE.match(text) if len(text) <= PROFILE_LIMIT else None
    if match is None:
        message = f"engine profile {text[:80]!r} is not 'engine==version,setting=value'"
        raise Invalid("SETTING_INVALID", message, next_step="write it as 'vllm==0.32.0,max_lora_rank=32'")
    rules = engine(match["name"])
    version = match["version"]
    if version is None:
        if rules.versioned:
            examined = ", ".join(rules.examined)
            raise Invalid(
                "SETTING_INVALID",
                f"engine profile {text[:80]!r} needs a version: the rules of {rules.title} depend on it",
                next_step=f"write '{rules.name}==VERSION'; examined versions: {examined}",
            )
        version = rules.examined[-1]
    version_of(version)
    settings: dict[str, Setting] = {name: rule.default for name, rule in rules.settings.items()}
    for part in (match["settings"] or "").split(",") if match["settings"] else ():
        name, equals, value = part.strip().partition("=")
        if not equals or name not in rules.settings:
            possible = ", ".join(rules.settings) or "none"
            raise Invalid("SETTING_INVALID", f"{rules.title} has no setting {name[:60]!r}; its settings: {possible}")
        settings[name] = _setting(name, value, rules.settings[name])
    return EngineProfile(engine=rules.name, version=version, settings=settings)


def _setting(name: str, value: str, rule: SettingRule) -> Setting:
    if rule.kind == "flag" and value in ("true", "false"):
        return value == "true"
    if rule.kind == "names" and re.fullmatch(r"[\w.+-]+", value):
        return tuple(sorted(value.split("+")))
    if rule.kind == "text":
        return value
    if rule.kind == "number" and value.isascii() and value.isdigit() and len(value) <= 9:
        number = int(value)
        if number < rule.least:
            raise Invalid("SETTING_INVALID", f"setting {name}={number} must be at least {rule.least}")
        if not rule.choices or number in rule.choices:
            return number
        raise Invalid("SETTING_INVALID", f"setting {name}={number} must be one of {', '.join(map(str, rule.choices))}")
    kinds = {"number": "a whole number", "flag": "true or false", "names": "names joined by '+'", "text": "text"}
    raise Invalid("SETTING_INVALID", f"setting {name}={value[:60]!r} must be {kinds[rule.kind]}")


def evaluate(facts: EngineFacts | Mapping[str, Any], profile: EngineProfile) -> list[Finding]:
    """What this deployment does with this adapter; nothing to say means that it serves it as trained.

    `facts`: an `EngineFacts`, or what `engine_facts.to_stored` kept with a version.
    """
    rules = engine(profile.engine)
    values = facts.__dict__ if isinstance(facts, EngineFacts) else engine_facts.from_stored(facts)
    if values is None:
        message = "another release of this registry stored the facts; `adapter recheck-engines` reads the header again"
        return [_finding(rules, "facts", "unknown", message)]
    if values.get("kind", "text") != rules.kind:
        message = f"{rules.title} serves {rules.kind} models, and this adapter is for {values['kind']} models"
        if values.get("format") == "unknown":
            message = f"{rules.title} cannot be asked: the names in the file are of no tool that this registry knows"
        return [_finding(rules, "kind", "error", message)]
    format_name = values.get("format", "peft")
    if rules.kind == "text" and format_name != "peft" and rules.name not in formats.named(format_name).engines:
        message = f"{rules.title} reads adapters of PEFT, and this one is in {format_name!r} format"
        return [_finding(rules, "format", "error", f"{message}: convert it first")]
    version = version_of(profile.version)
    architecture, inner = (values.get(field, "") for field in ("base_architecture", "base_text_architecture"))
    values = {**values, **source_facts.of(rules.name, version, architecture, inner)}
    findings = [] if rules.loaded_by_worker else _about_version(rules, profile, version)
    for prop in properties():
        if prop.kind != rules.kind or not _all_hold(prop.when, values, profile.settings):
            continue
        statements = list(rules.statements(prop.id, version))
        for statement in statements:
            if isinstance(statement, Rule) and _all_hold(statement.when, values, profile.settings):
                findings.append(_finding_of_rule(rules, statement, values, profile))
        if not statements and prop.when and not rules.loaded_by_worker:
            message = f"it is not known what {rules.title} {profile.version} does with this: {prop.label}"
            findings.append(_finding(rules, prop.id, "unknown", message))
    if rules.loaded_by_worker and not any(f.severity == "error" for f in findings):
        message = (
            f"no worker has loaded this file with {rules.title} {profile.version} yet, so what it takes is not known"
        )
        findings.append(_finding(rules, "not_loaded", "unknown", message))
    return findings


def verdict(
    stored: Mapping[str, Any],
    profile: EngineProfile,
    *,
    subject: Digest,
    base: BaseSpec,
    compat: Outcome,
    registry: str,
) -> Verdict:
    """The verdict `engine` of one version, from its stored facts, its base and `compat`.

    `registry` is the version of this registry, for `made_by`, which also names the rules by their digest: a verdict
    of other rules is old. Reads nothing; renewing is calling it again.
    """
    of_base = engine_facts.of_base(base, stored.get("family", ""), stored.get("components", ()))
    findings = evaluate({**stored, **of_base, "compat": compat.value}, profile)
    made_by = {"registry": registry, "rules": rulebook.digest(profile.engine)}
    return Verdict.of(
        Check.ENGINE, subject, base.name, base.fingerprint, findings, profile=str(profile), made_by=made_by
    )


def _all_hold(conditions: tuple[Condition, ...], values: Mapping[str, Any], settings: Mapping[str, Setting]) -> bool:
    for condition in conditions:  # noqa: SIM110 — a hundred calls an adapter: a generator for each doubles their cost
        if not condition.holds(values, settings):
            return False
    return True


def _about_version(rules: EngineRules, profile: EngineProfile, version: Version) -> list[Finding]:
    if _nearest_examined(rules, version):
        span = f"{rules.examined[0]} to {rules.examined[-1]}" if len(rules.examined) > 1 else rules.examined[0]
        span = span if rules.versioned else f"its state of {span}"
        message = f"{rules.title} {profile.version} has not been examined (examined: {span}). Its rules may differ"
        return [_finding(rules, "version", "unknown", message)]
    if rules.from_documentation:
        message = f"the rules of {rules.title} are from documentation, not from code or a run. {rules.note}"
        return [_finding(rules, "documentation", "warning", message)]
    return []


def _nearest_examined(rules: EngineRules, version: Version) -> str:
    """The oldest or newest examined version, for a version before or after them; else empty.

    A patch release after the newest counts as examined.
    """
    oldest, newest = min(rules.examined, key=version_of), max(rules.examined, key=version_of)
    if version < version_of(oldest):
        return oldest
    return newest if version[:2] > version_of(newest)[:2] else ""


def _finding(rules: EngineRules, topic: str, severity: Any, message: str, expected: str = "") -> Finding:
    code = f"engine.{re.sub(r'[^a-z0-9]+', '_', rules.name)}.{topic}"
    return Finding.of(severity, code, rules.name, message, expected)


def _finding_of_rule(rules: EngineRules, rule: Rule, values: Mapping[str, Any], profile: EngineProfile) -> Finding:
    texts = _Texts({**values, **profile.settings})
    message = rule.message.format_map(texts)
    reported = f' It reports: "{rule.engine_message.format_map(texts)}"' if rule.engine_message else ""
    fix = f" {rule.fix.format_map(texts)}." if rule.fix else ""
    nearest = _nearest_examined(rules, version_of(profile.version))
    effect = _EFFECT_WORDS[rule.effect]
    if nearest or rule.severity == "unknown":
        effect = f"{'may' if rule.severity == 'unknown' else 'would'} {_POSSIBLE_EFFECT_WORDS[rule.effect]}"
    effect += f" by the rules of {nearest}" if nearest else ""
    message = f"{rules.title} {profile.version} {effect}: {message}.{reported}{fix} [{rule.verified}: {rule.source}]"
    return _finding(rules, rule.property, rule.severity, message, expected=rule.effect)


class _Texts(dict[str, Any]):
    """Values as messages show them; a message names a few of many."""

    def __getitem__(self, name: str) -> str:
        value = super().__getitem__(name)
        return (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)
