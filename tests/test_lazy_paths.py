"""Every path that the sources import by name leads to something."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator

import pytest

from cli import main
from registry import lazy
from registry.errors import Invalid
from registry.server import embedded
from tests.import_table import modules, sources

PATH = re.compile(r"[\w.]*:\w+")
NOT_INSTALLED = {"registry.worker.cluster"}
"""Modules that need a package which the tests do without."""


def loaded_paths() -> Iterator[str]:
    """The paths in calls of `lazy.load`; one in an f-string is relative to the package of its module."""
    for module, source in sources().items():
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) == "lazy.load":
                for constant in (node for node in ast.walk(call.args[0]) if isinstance(node, ast.Constant)):
                    if isinstance(constant.value, str) and PATH.fullmatch(constant.value):
                        relative = constant.value.startswith(".")
                        yield f"{module.rpartition('.')[0]}{constant.value}" if relative else constant.value


def test_every_path_leads_to_something() -> None:
    commands = {f"cli{spec.path}" for spec in main.COMMANDS.values()}
    paths = {*loaded_paths(), *commands, *embedded.ROUTERS}
    assert len(paths) > len(commands) + len(embedded.ROUTERS) + 10
    for path in sorted(paths):
        module = path.partition(":")[0]
        if module in NOT_INSTALLED and importlib.util.find_spec("ray") is None:
            assert module in modules()
        else:
            assert lazy.load(path) is not None


def test_a_missing_extra_is_named_and_a_missing_module_of_ours_is_a_bug() -> None:
    with pytest.raises(Invalid, match=r"adapter fly needs the extra 'wings' \(no_such_package is not installed\)"):
        lazy.load("no_such_package.feathers:Feather", "wings", "adapter fly")
    with pytest.raises(ModuleNotFoundError):
        lazy.load("registry.no_such_module:x", "wings", "adapter fly")
