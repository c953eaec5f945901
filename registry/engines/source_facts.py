"""What an engine's own source says about a base's model class, as facts for its rules.

`generated/*.json` is written by `make engine-rules` from the source of each examined release, never by hand. Rules in
`rules/*.toml` read it through the fields below; they say what follows from them, and why.

Of a version older than the first examined one they are those of the first, as a newer one's are those of the last:
its findings name that version (`registry/engines/__init__.py`).

Invariant: a field is absent where the source does not decide it, and a condition on an absent field does not hold.
"""

import json
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from registry.digest import Digest
from registry.errors import Invalid

Version = tuple[int, ...]


@lru_cache(maxsize=1024)  # rules compare the same versions for every adapter
def version_of(text: str) -> Version:
    """`0.32.0.post1` → (0, 32, 0): its leading numbers, three or more. `Invalid` (SETTING_INVALID) if it has none.

    A build such as `b5000` has one number.
    """
    numbers: list[int] = []
    for part in text.removeprefix("b").split("."):
        if not part.isascii() or not part.isdigit() or len(part) > 9:
            break
        numbers.append(int(part))
    if not numbers:
        raise Invalid("SETTING_INVALID", f"version {text[:40]!r} begins with no number", next_step="write 0.32.0")
    return (*numbers, *(0 for _ in range(3 - len(numbers))))  # 0.32 is not older than 0.32.0


def at(spans: Mapping[str, Any], version: Version) -> Any:
    """The value that holds at a version, of values by the first version that has them; None before the first."""
    covering = [(since, value) for text, value in spans.items() if (since := version_of(text)) <= version]
    return max(covering, key=lambda pair: pair[0])[1] if covering else None


FIELDS: Mapping[str, str] = {
    "source_registered": "whether this version registers a class for the base's architecture",
    "source_class": "that class, as `module.Class`",
    "source_lora": "whether the class has LoRA",
    "source_embeddings": "names of embeddings and heads on which the class takes LoRA",
    "source_modules": "all names of modules on which the class takes LoRA",
    "source_listed": "names that the class lists by hand as its modules for LoRA; none if it lists none",
    "source_open": "whether the base's configuration chooses an inner model whose class and names are not known",
    "source_required": "fields that an adapter's configuration must have",
}


@cache  # of as many engines as there are, so none is read again and again
def _document(engine: str) -> Mapping[str, Any]:
    file = resources.files("registry.engines") / "generated" / f"{engine}.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}


@cache
def digest(engine: str) -> Digest:
    """Of the generated file; of nothing if the engine has none."""
    file = resources.files("registry.engines") / "generated" / f"{engine}.json"
    return Digest.of(file.read_bytes() if file.is_file() else b"")


def examined_versions(engine: str) -> tuple[str, ...]:
    """The versions whose source was read, oldest first."""
    return tuple(_document(engine).get("versions", ()))


def architectures(engine: str) -> tuple[str, ...]:
    """All architectures that some examined version registers."""
    return tuple(_document(engine).get("architectures", ()))


def value(engine: str, name: str, version: Version) -> Any:
    """One fact of a version that is not about a class (`ranks`, `refused_fields`); None if there is none."""
    return at(_document(engine).get(name, {}), version)


@lru_cache(maxsize=1024)
def of(engine: str, version: Version, architecture: str, inner: str = "") -> Mapping[str, Any]:
    """The fields that rules read about a base's architecture; only `source_required` and an empty `source_listed`
    if the base has none.

    `inner`: the architecture that the base's configuration names for the language model inside it.
    """
    document = _document(engine)
    if not document:
        return {}
    version = max(version, version_of(document["versions"][0]))
    required = tuple(value(engine, "required_fields", version) or ())
    fields: dict[str, Any] = {"source_required": required, "source_listed": ()}
    if not architecture:
        return fields
    name = _class_name(document, version, architecture)
    fields["source_registered"] = name is not None
    row = at(document["classes"].get(name, {}), version)
    if name is None or not row or row["lora"] is None:
        return fields
    fields |= {"source_class": name, "source_lora": row["lora"], "source_listed": tuple(row.get("listed", ()))}
    if row["lora"]:
        if row.get("inner"):
            inner_row = at(document["classes"].get(_class_name(document, version, inner), {}), version)
            row = _with_inner(row, inner_row or {})
        fields["source_open"] = bool(row.get("inner"))
        embeddings, modules = _accepted(row)
        if embeddings is not None:
            fields["source_embeddings"] = embeddings
        if modules is not None:
            fields["source_modules"] = modules
    return fields


def _class_name(document: Mapping[str, Any], version: Version, architecture: str) -> str | None:
    """The class for an architecture: its own, or that of the generating model which this one is converted from."""

    def registered(name: str) -> str | None:
        class_name: str | None = at(document["architectures"].get(name, {}), version)
        return class_name

    if own := registered(architecture):
        return own
    suffixes = at(document["suffixes"], version) or ()
    suffix = next((s for s, converted in suffixes if architecture.endswith(s) and converted != "none"), None)
    candidates = (architecture.replace(suffix, other) for other, _ in suffixes) if suffix else ()
    return next((name for candidate in candidates if (name := registered(candidate))), None)


def _with_inner(row: Mapping[str, Any], inner_row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The wrapper's row with the names of the model that it is given; as it is, where those names are not known."""
    if inner_row.get("embedding") is None or inner_row.get("inner") or row.get("embedding") is None:
        return row
    is_listed = row["linear"] is not None and inner_row["linear"] is not None
    return {
        **row,
        "inner": False,
        "embedding": [*row["embedding"], *inner_row["embedding"]],
        "linear": [*row["linear"], *inner_row["linear"]] if is_listed else None,
        "packed": {**inner_row["packed"], **row["packed"]},
    }


def _accepted(row: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Names of embeddings, and of all modules: a packed module stands for its parts, and names are mapped first."""
    renames = row.get("renames", {})

    def with_renames(names: set[str]) -> tuple[str, ...]:
        return tuple(sorted(names | {old for old, new in renames.items() if new in names}))

    linear = row.get("linear")
    if row.get("embedding") is None:
        return None, None
    names = {part for name in linear or () for part in row.get("packed", {}).get(name, [name])}
    embeddings = {*row["embedding"], *(name for name in names if name in ("lm_head", "embed_tokens"))}
    return with_renames(embeddings), None if linear is None else with_renames(embeddings | names)
