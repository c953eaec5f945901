"""What the plugin is to vLLM: where vLLM looks for it, how it reads the command line; our stand-in is alike."""

from __future__ import annotations

import ast
import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from registry.serving import vllm
from tests.import_table import ROOT
from tests.proof import venvs


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "vllm==0.33.0"),
        (["serve", "m", "--max-lora-rank", "64", "--port", "8000"], "vllm==0.33.0,max_lora_rank=64"),
        (["--max_lora_rank=32", "--enable-lora"], "vllm==0.33.0,max_lora_rank=32"),
        (["--lora-target-modules", "q_proj", "v_proj", "--model", "m"], "vllm==0.33.0,target_modules=q_proj+v_proj"),
    ],
)
def test_the_profile_is_read_from_the_command_line(arguments: list[str], expected: str) -> None:
    assert vllm.profile("0.33.0", arguments) == expected


def test_the_package_names_the_plugin_where_vllm_looks() -> None:
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    entry = importlib.metadata.EntryPoint("adapter_registry", written["adapter_registry"], "vllm.general_plugins")
    assert entry.load() is vllm.register


@pytest.mark.skipif(venvs.wheels() is None, reason="needs the wheels of vLLM: make test-engines")
@pytest.mark.parametrize("version", venvs.WHEELS["vllm"])
def test_the_stand_in_has_the_signatures_of_the_real_one(version: str) -> None:
    wheels = venvs.wheels()
    assert wheels is not None
    folder = wheels / f"vllm-{version}" / "vllm"
    resolver = _functions(folder / "lora" / "resolver.py")
    assert resolver["resolve_lora"] == (True, ["self", "base_model_name", "lora_name"])
    assert resolver["register_resolver"] == (False, ["self", "resolver_name", "resolver"])
    request = (folder / "lora" / "request.py").read_text()
    assert all(f"    {field}: " in request for field in ("lora_name", "lora_int_id", "lora_path"))
    serving = (folder / "entrypoints" / "openai" / "models" / "serving.py").read_text()
    assert "await resolver.resolve_lora(base_model_name, lora_name)" in serving
    assert "lora_request.lora_int_id = unique_id" in serving


def _functions(path: Path) -> dict[str, tuple[bool, list[str]]]:
    return {
        node.name: (isinstance(node, ast.AsyncFunctionDef), [argument.arg for argument in node.args.args])
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
