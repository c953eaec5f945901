"""No `repr` holds a secret: logs, tracebacks and debuggers print values."""

from __future__ import annotations

import ast
import dataclasses
import email.message
import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from registry.client.transport import HttpResponse
from tests import import_table

pytestmark = pytest.mark.security
SECRET = "a secret of this test"
SECRET_NAME = re.compile(r"(.+_)?(tokens?|secret|password|assertion|authorization|credentials?|seed)")
PACKAGES = ("cli", "registry.api", "registry.client", "registry.jobs", "registry.sdk", "registry.serving",
            "registry.tlog", "registry.training", "registry.worker")  # fmt: skip
NOT_IMPORTED = {"registry.worker.cluster": {"ClusterPlan"}}
"""Modules that need what is not installed, and their classes with a secret, all of whose fields are `repr=False`."""


def secret_classes() -> Iterator[tuple[str, str, str]]:
    """Module, class and field of each class that declares a field with the name of a secret and a type with text."""
    for module, path in import_table.modules().items():
        if not module.startswith(PACKAGES):
            continue
        classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        for node in classes:
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    kind = ast.unparse(field.annotation)
                    is_text = re.search(r"\b(str|bytes|LeaseToken)\b", kind) and "ClassVar" not in kind
                    if SECRET_NAME.fullmatch(field.target.id) and is_text:
                        yield module, node.name, field.target.id


def test_no_value_shows_a_secret() -> None:
    classes = set(secret_classes())
    assert {("cli.console.session", "RegistryTarget", "token"), ("registry.jobs", "Lease", "token")} <= classes
    for module, name, field in classes:
        if name in NOT_IMPORTED.get(module, ()):
            continue
        kind = getattr(importlib.import_module(module), name)
        value = _filled(kind, field)
        if value is not None:
            assert SECRET not in repr(value), f"{module}.{name}.{field}"
            assert SECRET not in str(value), f"{module}.{name}.{field}"


def _filled(kind: type[Any], field: str) -> Any:
    """A value of this class with the secret in this field; None for a class that prints no fields."""
    if issubclass(kind, BaseModel):
        fields: dict[str, Any] = {field: SECRET}
        return kind.model_construct(**fields)
    if dataclasses.is_dataclass(kind):
        value = object.__new__(kind)
        for each in dataclasses.fields(kind):
            object.__setattr__(value, each.name, SECRET if each.name == field else "")
        return value
    return None


def test_a_class_that_cannot_be_imported_here_hides_its_secret() -> None:
    for module, names in NOT_IMPORTED.items():
        source = import_table.modules()[module].read_text()
        for other, name, field in secret_classes():
            if other != module:
                continue
            assert name in names
            assert re.search(rf"{field}: str = field\(repr=False\)", source)


def test_a_response_does_not_show_its_body() -> None:
    response = HttpResponse("https://registry.test/", 200, email.message.Message(), SECRET.encode())
    assert SECRET not in repr(response)
    assert "status=200" in repr(response)
