"""The allowed imports as data: which packages may import which, and how to read imports without importing anything.

- The table is closed: a module without a row, or a package without a permission, is a breach.
- Sources are parsed, never imported, so a breach is found even where its package is not installed.

Example
    >>> forbidden("registry.compat", "import torch", set())
    ["registry.compat:1 imports torch; registry may import ['pydantic']"]
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAZY_LOADER = "registry.lazy"
IMPORTS_BY_NAME = ("importlib.import_module", "pkgutil.resolve_name", "__import__")
KINDS = {"client", "sdk", "training", "serving", "server", "worker"}
"""Packages in `registry/` that are not of the domain."""

OF_EXTRAS = {"anyio", "boto3", "jinja2", "lz4", "sigstore", "transformers", "uvicorn"}


@dataclass(frozen=True)
class Row:
    """One line of the table: modules named by `prefix` may import these kinds of our packages and these others."""

    prefix: str
    ours: frozenset[str]
    packages: frozenset[str]


def _row(prefix: str, ours: str, packages: str) -> Row:
    return Row(prefix, frozenset(ours.split()), frozenset(packages.split()))


# The longest matching prefix decides.
TABLE = [
    _row("registry", "domain", "pydantic"),
    _row("registry.adapters.card", "domain", "yaml"),
    _row("registry.strict.yaml", "domain", "yaml"),
    _row("registry.adapters.templates", "domain", "jinja2"),
    _row("registry.hub.xet", "domain", "blake3 lz4"),
    _row("registry.tlog", "domain", "cryptography"),
    _row("registry.attestations", "domain", "cryptography pydantic"),
    _row("registry.attestations.keyless", "domain", "cryptography sigstore"),
    _row("registry.client", "domain client", "pydantic"),
    _row("registry.client.transport.http_transport", "domain client", "urllib3"),
    _row("registry.client.transport.in_process", "domain client", "anyio"),
    _row("registry.sdk", "domain client sdk", ""),
    _row("registry.training", "domain client sdk training", "transformers"),
    _row("registry.serving", "domain client serving", "pydantic"),
    _row("registry.serving.agent.metrics", "domain client serving", "prometheus_client"),
    _row("registry.serving.export.s3", "domain client serving", "boto3 botocore"),
    _row("registry.serving.vllm", "domain client serving", "vllm"),
    _row("registry.server", "domain server", "pydantic sqlmodel sqlalchemy"),
    _row("registry.server.audit.audit_log", "domain server", "anyio sqlmodel sqlalchemy"),
    _row("registry.server.access.issuers", "domain server", "jwt"),
    _row("registry.server.catalog.refs", "domain server", "pydantic sqlalchemy sqlmodel"),
    _row("registry.server.http.resolve_cache", "domain server", "anyio sqlmodel sqlalchemy starlette"),
    _row("registry.server.storage.s3", "domain server", "boto3 botocore"),
    _row("registry.server.database.engine", "domain server", "sqlalchemy pysqlite3"),
    _row("registry.server.database.schema", "domain server", "sqlalchemy alembic"),
    _row("registry.server.evaluation.norms", "domain", "numpy"),
    _row("registry.server.app", "domain server routes", "fastapi sqlalchemy"),
    _row("registry.server.http.base_app", "domain server", "fastapi starlette sqlalchemy"),
    _row("registry.server.embedded", "domain server", "fastapi starlette"),
    _row("registry.server.pages", "domain server", "fastapi jinja2 markdown_it markupsafe nh3 pydantic sqlmodel"),
    _row("registry.server.pages.hub_addresses", "domain server", "fastapi starlette"),
    _row("registry.server.pages.operations.live", "domain server", "fastapi starlette"),
    _row("registry.server.http", "domain server", "anyio fastapi starlette sqlmodel sqlalchemy pydantic"),
    _row("registry.server.http.server", "", "uvicorn"),
    _row("registry.server.http.request_metrics", "server", "prometheus_client"),
    _row("registry.server.http.metrics", "domain server", "prometheus_client sqlalchemy sqlmodel"),
    _row("registry.server.pages.sessions", "domain server", "fastapi sqlalchemy sqlmodel"),
    _row("registry.server.pages.sessions.inner_requests", "domain server", "fastapi starlette"),
    _row("registry.server.pages.sessions.sent_forms", "domain server", "fastapi markupsafe"),
    _row("registry.server.pages.sessions.authorization_code", "domain server", "authlib"),
    _row("registry.server.access.outgoing", "domain server", "urllib3"),
    _row("registry.server.http.request_log", "domain server", "starlette"),
    _row("registry.server.routes", "domain server routes", "anyio fastapi starlette sqlmodel sqlalchemy pydantic"),
    _row("registry.server.routes.openapi", "domain server routes", "fastapi starlette jinja2 markupsafe pydantic"),
    _row("registry.worker", "domain client worker", "torch safetensors peft transformers jinja2 pydantic"),
    _row("registry.worker.conversions.to_diffusers", "domain client worker", "diffusers safetensors torch"),
    _row("registry.worker.conversions.to_gguf", "domain client worker", "gguf safetensors torch"),
    _row("registry.worker.model.image", "domain worker", "torch diffusers transformers"),
    _row("registry.worker.smoke.image", "domain client worker", "torch diffusers PIL safetensors"),
    _row("registry.worker.model_process.image_host", "domain worker", "diffusers"),
    _row("registry.worker.cluster", "domain client worker", "ray"),
    _row("cli", "domain client cli", "click pydantic"),
    _row("cli.agent", "domain client serving cli", "click"),
    _row("cli.server", "domain server cli", "click"),
    _row("cli.bases", "domain client worker cli", "click"),
    _row("cli.export", "domain client serving cli", "click"),
    _row("cli.main", "domain cli", "click"),
    _row("cli.merge", "domain client worker cli", "click"),
    _row("cli.server.serve", "domain server app cli", "click fastapi"),
    _row("cli.tokens", "domain client server cli", "click"),
    _row("cli.worker", "domain client worker cli", "click"),
    _row("migrations.env", "server", "alembic sqlalchemy sqlmodel"),
    _row("migrations.versions", "", "alembic sqlalchemy"),
]


def kind_of(module: str) -> str:
    """Which package a module of ours is in: domain, client, sdk, training, server, routes, app, cli…"""
    parts = module.split(".")
    if parts[0] != "registry":
        return parts[0]
    if parts[1:3] == ["server", "routes"]:
        return "routes"
    if parts[1:] == ["server", "app"]:
        return "app"
    return parts[1] if parts[1:2] and parts[1] in KINDS else "domain"


def row_of(module: str) -> Row | None:
    rows = [row for row in TABLE if module == row.prefix or module.startswith(row.prefix + ".")]
    return max(rows, key=lambda row: len(row.prefix), default=None)


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    paths = {}
    for top in ("registry", "cli", "migrations"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imports_of(module: str, source: str, modules: set[str]) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything imported anywhere in the source, submodules told from names.

    A relative import is resolved in `cli/`, which a wheel holds as `registry.cli`; elsewhere it stays as it is written.
    """
    resolve = module.split(".")[0] == "cli"
    is_package = any(other.startswith(f"{module}.") for other in modules)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level and resolve:
                package = module.split(".")[: -(node.level - is_package) or None]
                origin = ".".join([*package, *filter(None, [origin])])
            elif node.level:
                yield ("." * node.level + origin, node.lineno)
                continue
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                yield (full if full in modules else origin, node.lineno)


def forbidden(module: str, source: str, modules: set[str]) -> list[str]:
    """Every import of this source that the table does not allow, one sentence each."""
    row = row_of(module)
    if row is None:
        return [f"{module} has no row in the table of tests/import_table.py"]
    violations = []
    for name, line in imports_of(module, source, modules):
        top = name.split(".")[0]
        if name.startswith("."):
            violations.append(f"{module}:{line} imports {name} relatively; write the whole name")
        elif top == "cli" and re.match(r"\s*(from|import) cli\b", source.splitlines()[line - 1]):
            violations.append(f"{module}:{line} imports {name} by its whole name; a wheel has it as registry.{name}")
        elif top in ("registry", "cli", "migrations", "tests"):
            if kind_of(name) not in row.ours:
                violations.append(f"{module}:{line} imports {name}; {row.prefix} may import {sorted(row.ours)}")
        elif top not in sys.stdlib_module_names and top not in row.packages:
            violations.append(f"{module}:{line} imports {name}; {row.prefix} may import {sorted(row.packages)}")
    return violations


def late_imports(module: str, source: str) -> list[str]:
    """Imports inside functions, and imports by name: only the lazy loader has one."""
    if module == LAZY_LOADER:
        return []
    violations = []
    tree = ast.parse(source)
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                violations.append(f"{module}:{node.lineno} imports inside a function")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTS_BY_NAME:
            violations.append(f"{module}:{node.lineno} imports by name")
    return sorted(set(violations))


def sources() -> dict[str, str]:
    """The text of every module of ours."""
    return {name: path.read_text() for name, path in modules().items()}


def graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """Module → the modules of ours that it imports."""
    names = set(texts)
    return {
        module: {name for name, _ in imports_of(module, source, names) if name in names and name != module}
        for module, source in texts.items()
    }


def installed_name(module: str) -> str:
    """The name under which a wheel has a module of ours."""
    return f"registry.{module}" if module.split(".")[0] == "cli" else module


def base_modules() -> list[str]:
    """Modules of the base install: those whose row allows neither server nor worker, nor a package of an extra."""
    return [
        module
        for module in modules()
        if not module.startswith(("migrations", "registry.server", "registry.worker"))
        and not (row_of(module) or TABLE[0]).ours & {"server", "worker"}
        and not OF_EXTRAS & (row_of(module) or TABLE[0]).packages
    ]
