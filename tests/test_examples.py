"""The examples of README.md and docs/python.md run and print what they show."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.api.bases import BaseAdd
from registry.client.registry import Registry
from tests import samples
from tests.base_specs import spec_of
from tests.faults.servers import Server
from tests.import_table import ROOT


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server({"REGISTRY_DATA": str(tmp_path / "data")}).running() as running:
        yield running


def run_python(page: str, server: Server, folder: Path) -> str:
    """Run the Python block of a page where an adapter lies in out/checkpoint-200; return what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    base = samples.llama(name="smollm2")
    samples.write(samples.lora(base), folder / "out/checkpoint-200")
    with Registry(server.url, server.token) as registry:
        registry.add_base(BaseAdd(spec=spec_of(base)))
    environment = os.environ | {"ADAPTER_REGISTRY": server.url, "ADAPTER_TOKEN": server.token, "PYTHONPATH": str(ROOT)}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "share")}
    command = [sys.executable, "-c", code.replace("https://registry.example.org", server.url)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_page_returns_what_it_shows(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = samples.llama(name="smollm2")
    for seed, step in enumerate((200, 300)):
        samples.write(samples.lora(base, seed=seed), tmp_path / f"out/checkpoint-{step}")
    with Registry(server.url, server.token) as registry:
        registry.add_base(BaseAdd(spec=spec_of(base)))
    monkeypatch.chdir(tmp_path)
    for name, value in {"ADAPTER_REGISTRY": server.url, "ADAPTER_TOKEN": server.token, "XDG_CACHE_HOME": "c"}.items():
        monkeypatch.setenv(name, value)
    options = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testfile(str(ROOT / "docs/python.md"), module_relative=False, optionflags=options)
    assert result.attempted > 20
    assert result.failed == 0
    assert (tmp_path / "served/adapter_config.json").is_file()


def test_the_python_example_of_the_readme_pushes(server: Server, tmp_path: Path) -> None:
    assert run_python("README.md", server, tmp_path).startswith("acme/support@1 sha256:")


MASKS = (
    (r"sha256:[0-9a-f]{64}", "DIGEST"),
    (r"(?<=\S)  +", " "),
    (r"job_[0-9a-f]+", "JOB"),
    (r"source /\S*(?=/models/)", "source FOLDER"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "TIME"),
    (r"\d+(?:\.\d+)? ?(?:[kMG]?B|[kM])?\b", "N"),
)


def shape_of(output: str) -> list[str]:
    """The lines of an output without what differs from run to run and from model to model."""
    lines = [line.rstrip() for line in output.strip().splitlines()]
    for pattern, mask in MASKS:
        lines = [re.sub(pattern, mask, line) for line in lines]
    return lines


def test_the_quick_start_of_the_readme_prints_what_it_shows(tmp_path: Path) -> None:
    (console,) = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    base = samples.llama("HuggingFaceTB/SmolLM2-135M-Instruct", tied=True, dtype="BF16")
    samples.write(base.files, tmp_path / "models/SmolLM2-135M-Instruct")
    adapter = {path: data for path, data in samples.lora(base).items() if path != "README.md"}
    samples.write(adapter, tmp_path / "out/checkpoint-200")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ADAPTER_", "REGISTRY_"))}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "120"}
    steps = [step.partition("\n") for step in console.split("$ ")[1:]]
    assert len(steps) == 3
    for typed, _, shown in steps:
        command = [sys.executable, "-m", "cli.main", *shlex.split(typed)[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{typed}: {done.stderr}"
        assert shape_of(done.stdout) == shape_of(shown), typed
