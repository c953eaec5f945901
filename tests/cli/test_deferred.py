"""Modules that are executed when they are first used, and what FastAPI is imported without."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from cli import main
from tests.cli.runner import CommandRunner
from tests.cli.test_loaded_modules import run_program

COUNTED = """
import builtins
builtins.executions.append(__name__)
if builtins.executions.count(__name__) < builtins.failures:
    raise RuntimeError("not yet")
def early():
    return VALUE
builtins.during()
VALUE = 7
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package `late` with the module `late.inner`; both are deferred and count how often they are executed."""
    (tmp_path / "late").mkdir()
    for name in ("__init__", "inner"):
        (tmp_path / "late" / f"{name}.py").write_text(COUNTED)
    (tmp_path / "late" / "data.txt").write_text("data")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(main, "DEFERRED", {"late", "late.inner"})
    monkeypatch.setattr("builtins.executions", [], raising=False)
    monkeypatch.setattr("builtins.failures", 0, raising=False)
    monkeypatch.setattr("builtins.during", lambda: None, raising=False)
    yield "late"
    for name in ("late", "late.inner"):
        sys.modules.pop(name, None)


def executions() -> list[str]:
    return list(vars(sys.modules["builtins"])["executions"])


def imported(name: str) -> ModuleType:
    with main.deferred_modules():
        return import_module(name)


def test_a_module_is_executed_once_by_its_first_attribute(package: str) -> None:
    module = imported(package)
    assert (module.__name__, module.__doc__, hasattr(module, "__all__")) == ("late", None, False)
    assert executions() == []
    start = threading.Barrier(8)
    values: list[int] = []

    def read() -> None:
        start.wait()
        values.append(module.VALUE)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (values, executions(), type(module)) == ([7] * 8, ["late"], ModuleType)
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        _ = module.other


def test_another_thread_reads_nothing_of_a_module_that_is_being_executed(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = imported(package)
    values: list[int] = []
    reader = threading.Thread(target=lambda: values.append(module.early()))

    def read_meanwhile() -> None:
        reader.start()
        reader.join(timeout=0.3)  # it waits for the module, and would fail at once if it did not
        assert reader.is_alive()

    monkeypatch.setattr("builtins.during", read_meanwhile)
    assert module.VALUE == 7
    reader.join()
    assert values == [7]


def test_a_submodule_is_imported_without_its_package(package: str) -> None:
    with main.deferred_modules():
        namespace: dict[str, ModuleType] = {}
        exec(f"from {package} import inner", namespace)
    assert executions() == []
    assert namespace["inner"].VALUE == 7
    assert executions() == ["late.inner"]


def test_the_files_of_a_package_can_be_read(package: str) -> None:
    imported(package)
    for _ in range(2):
        assert resources.files(package).joinpath("data.txt").read_text() == "data"
        assert sys.modules[package].VALUE == 7


def test_a_module_that_failed_is_executed_again(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.failures", 2)
    module = imported(package)
    with pytest.raises(RuntimeError, match="not yet"):
        _ = module.VALUE
    assert module.VALUE == 7


def test_each_deferred_module_exists() -> None:
    assert [name for name in main.DEFERRED if find_spec(name) is None] == []


def test_fastapi_is_imported_without_models_of_documents_and_has_them_afterwards(cli: CommandRunner) -> None:
    cli.add_base()
    program = """
import sys
from cli.main import main
main(["list", "-q"], standalone_mode=False)
before = [name for name in ("fastapi.openapi.models", "pydantic.v1") if name in sys.modules]
from fastapi.openapi.models import OpenAPI
from pydantic import v1
print(before, OpenAPI.model_fields["openapi"].annotation, v1.BaseModel.__module__)
"""
    assert run_program(program).splitlines()[-1] == "[] <class 'str'> pydantic.v1.main"


def test_a_fastapi_that_needs_its_models_is_imported_with_them(cli: CommandRunner) -> None:
    cli.add_base()
    program = """
import sys
import cli.main
from cli.main import main
cli.main._Names.__getattr__ = lambda module, name: int("not a number")
main(["list", "-q"], standalone_mode=False)
print("fastapi.openapi.models" in sys.modules)
"""
    assert run_program(program).splitlines()[-1] == "True"
