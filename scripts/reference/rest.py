"""docs/reference/rest.md and schemas-*.md: every route and schema of the REST API, from the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from registry.api import PREFIX
from registry.api.operations.table import TAGS
from registry.server import app
from registry.server.routes.openapi.routes import ApiDocument
from scripts.reference.tables import table

INTRODUCTION = """\
# REST API

Generated from the [OpenAPI document](../openapi.md) of the server. How to authenticate, page, retry and read errors:
[use the REST API](../rest.md).
"""
HUB = """\
## Hugging Face Hub API

At the root of the host, in the Hub's own protocol; see [Hub clients](../hub.md).
"""
SCHEMAS = """\
# REST schemas: {tag}

The bodies of requests and responses about [{tag}](rest.md#{tag}). Requests reject unknown fields; responses may gain
fields. Times are UTC (RFC 3339), digests are `sha256:` and 64 hexadecimal digits.
"""
_REFERENCE = re.compile(r'"#/components/schemas/(\w+)"')


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    return ApiDocument([route for router in app.ROUTERS for route in router.routes]).content


def markdown() -> str:
    """The page of routes."""
    parts = [INTRODUCTION]
    for tag in document()["tags"]:
        parts += [f"## {tag['name'].capitalize()}\n", tag["description"] + "\n"]
        for path, methods in document()["paths"].items():
            for method, operation in sorted(methods.items()):
                if tag["name"] in operation["tags"]:
                    parts += _operation(method.upper(), path, operation)
    hub = [(path.replace(":path}", "}"), method, scope) for (method, path), scope in app.declared_scopes().items()]
    rows = (
        (f"`{method} {path}`", _scope(scope or ""))
        for path, method, scope in sorted(hub)
        if method != "HEAD" and not _documented(path)
    )
    return "\n".join([*parts, HUB, table(["route", "scope"], rows)])


def schemas(tag: str) -> str:
    """The page of the schemas that operations with this tag are the first to use."""
    parts = [SCHEMAS.format(tag=tag)]
    for name, schema in sorted(document()["components"]["schemas"].items()):
        if _tags()[name] != tag:
            continue
        parts += [f"## {name}\n", *([_text(schema["description"]) + "\n"] if "description" in schema else [])]
        if "properties" in schema:
            parts.append(table(["field", "type", "meaning"], _fields(schema)))
        else:
            parts.append(f"{_type(schema)}\n")
    return "\n".join(parts)


@cache
def _tags() -> dict[str, str]:
    """Schema → the first tag whose operations use it, directly or in a field."""
    content = document()
    operations = [operation for methods in content["paths"].values() for operation in methods.values()]
    tags: dict[str, str] = {}
    for tag in [tag.name for tag in TAGS]:
        names = _references([operation for operation in operations if tag in operation["tags"]])
        while names := names - tags.keys():
            tags |= dict.fromkeys(names, tag)
            names = _references([content["components"]["schemas"][name] for name in names])
    return tags


def _references(part: Any) -> set[str]:
    return set(_REFERENCE.findall(json.dumps(part)))


def _documented(path: str) -> bool:
    return path.startswith(PREFIX) or path in ("/openapi.json", "/docs")


def _scope(scope: str) -> str:
    return {"": "any token", "open": "none"}.get(scope, scope)


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    security = operation.get("security")
    scopes = [scope for entry in security for scope in entry["bearer"]] if security else []
    scope = "none" if not security else ", ".join(scopes) or "any token"
    yield f"### {operation['operationId']}\n"
    yield f"```text\n{method} {path}\n```\n"
    yield _text(operation.get("description", operation["summary"])) + "\n"
    body = _content(operation.get("requestBody", {}))
    responses = [f"{status}{_content(r)}" for status, r in operation["responses"].items() if status < "4"]
    yield f"Scope: {scope}.{' Body' + body + '.' if body else ''} Responses: {', '.join(responses)}.\n"
    shown = [p for p in operation.get("parameters", []) if p.get("in") not in (None, "path")]
    if shown:
        rows = ((f"`{p['name']}`", p["in"], _type(p["schema"]), p.get("description", "")) for p in shown)
        yield table(["parameter", "in", "type", "meaning"], rows)


def _content(response: dict[str, Any]) -> str:
    for media_type, content in response.get("content", {}).items():
        return f" {_type(content['schema']) if 'json' in media_type else f'`{media_type}`'}"
    return ""


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, field in schema["properties"].items():
        default = field.get("default")
        hint = f"Default: `{default}`." if default not in (None, "", [], {}) else ""
        yield f"`{name}`", _type(field), " ".join(filter(None, (_text(field["description"]), _limits(field), hint)))


def _limits(schema: dict[str, Any]) -> str:
    """The limits of a field's own value, not of what it contains."""
    limits = {key: value for part in (schema, *schema.get("anyOf", ())) for key, value in part.items()}
    spans = {
        "": ("minimum", "maximum"), " characters": ("minLength", "maxLength"), " items": ("minItems", "maxItems"),
        " entries": ("minProperties", "maxProperties"),
    }  # fmt: skip
    texts = []
    for unit, (lower, upper) in spans.items():
        least, most = limits.get(lower), limits.get(upper)
        if least and most is not None:
            texts.append(f"From {least:,} to {most:,}{unit}.")
        elif least or most is not None:
            texts.append(f"At most {most:,}{unit}." if most is not None else f"At least {least:,}{unit}.")
    return " ".join(texts)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](schemas-{_tags()[name]}.md#{name.lower()})"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(map(_type, options)))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map of {_type(schema['additionalProperties'])}"
    if "patternProperties" in schema:  # the keys of a map have to match
        return f"map of {_type(next(iter(schema['patternProperties'].values())))}"
    return str(schema.get("format") or schema.get("type", "any"))


def _text(text: str) -> str:
    return " ".join(text.split())
