"""The examples of README.md and docs/python.md run and answer what they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.api.bases import BaseAdd
from registry.client.registry import Registry
from tests import forge
from tests.faults.servers import Server
from tests.import_table import ROOT
from tests.world import spec_of


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server({"REGISTRY_DATA": str(tmp_path / "data")}).running() as running:
        yield running


def test_the_python_example_pushes_promotes_and_pulls(server: Server, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    base = forge.llama(name="smollm2")
    forge.write(forge.lora(base), tmp_path / "out/checkpoint-200")
    with Registry(server.url, server.token) as registry:
        registry.add_base(BaseAdd(spec=spec_of(base)))
    environment = os.environ | {"ADAPTER_REGISTRY": server.url, "ADAPTER_TOKEN": server.token, "PYTHONPATH": str(ROOT)}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "share")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "compat pass []" in done.stdout
    assert (tmp_path / "served/adapter_config.json").is_file()
