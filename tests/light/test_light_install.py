"""The light install is a fact: the wheel, alone in a bare environment, runs the domain and brings nothing heavy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import import_table

pytestmark = pytest.mark.slow

HEAVY = [
    *("alembic", "boto3", "fastapi", "jinja2", "orjson", "psycopg", "sqlalchemy", "sqlmodel", "starlette", "uvicorn"),
    *("diffusers", "numpy", "peft", "ray", "safetensors", "sigstore", "torch", "transformers"),
]
SIZE_LIMIT_BYTES = 36 * 2**20  # half of it is cryptography: a client verifies by itself (docs/adr/0012)
MISSING_EXTRA_EXIT_CODE = 2

LOOK = """
import importlib, importlib.metadata, importlib.util, json, sys
modules, heavy = json.load(sys.stdin)
sizes = {
    d.metadata["Name"]: sum(f.size or 0 for f in d.files or ())
    for d in importlib.metadata.distributions()
}
for module in modules:
    importlib.import_module(module)
print(json.dumps({
    "sizes": sizes,
    "installed": [name for name in heavy if importlib.util.find_spec(name)],
    "places": sorted({sys.modules[module].__file__ for module in modules}),
}))
"""


def _run(*command: str | Path, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "ADAPTER_", "REGISTRY_"))
    }
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, env=clean)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    built = _run(*pip, "-w", folder, import_table.ROOT, cwd=folder)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("adapter_registry-*.whl"))


def install(python: Path, *packages: str | Path) -> None:
    """By the pip of this environment: the bare one has none, which saves unpacking it."""
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *packages]
    installed = _run(*pip, cwd=python.parent)
    assert installed.returncode == 0, installed.stderr


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The python of a new environment that holds the wheel, what it depends on, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    process = _run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    assert process.returncode == 0, process.stderr
    python = folder / "venv/bin/python"
    install(python, wheel)
    yield python
    shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]


def test_the_wheel_holds_one_package_with_the_command_line_and_the_migrations_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"registry"}
    commands = {f"registry/{path.relative_to(import_table.ROOT)}" for path in _files(import_table.ROOT / "cli")}
    assert {name for name in names if name.startswith("registry/cli/")} == commands
    package = zipfile.ZipFile(wheel).read("registry/cli/__init__.py")
    assert package == (import_table.ROOT / "cli/__init__.py").read_bytes(), "the checkout's pointer to cli/ was shipped"
    assert len(names) == len(set(names))
    migrations = {str(path.relative_to(import_table.ROOT)) for path in (import_table.ROOT / "migrations").rglob("*.py")}
    assert {f"registry/server/{name}" for name in migrations} <= set(names)
    assert "registry/py.typed" in names
    assert not [name for name in names if "tests" in name.split("/") or name.rpartition("/")[2].startswith("test")]


def test_the_bare_install_imports_every_base_module_and_nothing_heavy(bare: Path, tmp_path: Path) -> None:
    modules = [import_table.installed_name(module) for module in import_table.base_modules()]
    looked = _run(bare, "-c", LOOK, cwd=tmp_path, stdin=json.dumps([modules, HEAVY]))
    assert looked.returncode == 0, looked.stderr
    report = json.loads(looked.stdout)
    assert report["installed"] == []
    assert all(str(bare.parent.parent) in location for location in report["places"]), (
        "imported the checkout, not the wheel"
    )
    sizes = {name: size for name, size in report["sizes"].items() if name not in ("pip", "setuptools")}
    assert sum(sizes.values()) < SIZE_LIMIT_BYTES, sizes


def test_the_command_helps_on_the_bare_install_and_names_the_missing_extra(bare: Path, tmp_path: Path) -> None:
    command = bare.parent / "adapter"
    helped = _run(command, "--help", cwd=tmp_path)
    assert helped.returncode == 0, helped.stderr
    assert "push" in helped.stdout
    for name, extra in (("serve", "server"), ("worker", "worker")):
        process = _run(command, name, cwd=tmp_path)
        assert process.returncode == MISSING_EXTRA_EXIT_CODE
        assert f"pip install '.[{extra}]'" in process.stderr
        assert "Traceback" not in process.stderr


def test_the_domain_tests_pass_on_the_bare_install(bare: Path, tmp_path: Path) -> None:
    """Last in this file: it adds to the environment what tests/conftest.py imports."""
    install(bare, "pytest", "httpx")
    for folder in ("tests", "docs"):  # some rules are printed as a page, and a test compares the two
        shutil.copytree(import_table.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\npythonpath = .\naddopts = --import-mode=importlib -q\nmarkers = slow\n"
    )
    ran = _run(bare, "-m", "pytest", "tests/domain", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout[-6000:]
    assert " passed" in ran.stdout
