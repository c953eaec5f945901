"""Descriptions and examples of parameters (parameters.toml), fields (fields.toml) and JSON bodies (examples.json).

Bodies are by operation; `add_base` has none, because the facts of a base model are long. A test validates the bodies
against the models of their routes.
"""

import json
import tomllib
from importlib import resources
from typing import Any

_FILES = resources.files(__package__)
PARAMETERS: dict[str, tuple[str, Any]] = tomllib.loads(_FILES.joinpath("parameters.toml").read_text("utf-8"))
EXAMPLES: dict[str, dict[str, Any]] = json.loads(_FILES.joinpath("examples.json").read_bytes())


def describe(operation: dict[str, Any]) -> None:
    """Add description and example to every parameter of the operation that has none. `KeyError` for an unknown one."""
    for parameter in operation.get("parameters", ()):
        if "$ref" in parameter:
            continue
        name = parameter["name"]
        own = f"{operation['operationId']}.{name}"
        description, example = PARAMETERS[own] if own in PARAMETERS else PARAMETERS[name]
        parameter.setdefault("description", description)
        if example != "":
            parameter.setdefault("example", example)


def read_fields() -> dict[str, dict[str, str]]:
    """fields.toml: schema → field → description; `shared` for fields that mean the same in every schema."""
    return tomllib.loads(_FILES.joinpath("fields.toml").read_text("utf-8"))


def describe_fields(schemas: dict[str, Any]) -> None:
    """Add its description to every field of these schemas. `KeyError` for a field that fields.toml lacks."""
    described = read_fields()
    for schema, content in schemas.items():
        descriptions = described["shared"] | described.get(schema, {})
        for field, declared in content.get("properties", {}).items():
            declared["description"] = descriptions[field]
