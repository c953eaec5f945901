"""The modules of a base as the installed library builds them: read once for each base and version, and used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from registry.api.bases import BaseAdd
from registry.bases.library import LibraryModules
from registry.client.local.base_folder import base_spec_from
from registry.errors import Unavailable
from registry.evaluation.verdicts import Outcome
from registry.worker.loop import Worker
from registry.worker.model import fingerprints, identify, library
from registry.worker.model.language import LoadedBase
from registry.worker.model.weights import Weights
from tests.worker.setup import BASE, WorkerSetup

pytestmark = pytest.mark.usefixtures("forked_programs")
Make = Callable[..., Worker]


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were built, in order. The program itself runs."""
    folders: list[Path] = []

    def build(folder: Path, *_more: object) -> LibraryModules:
        folders.append(folder)
        return run(folder)

    run = identify.build_modules
    monkeypatch.setattr(identify, "build_modules", build)
    return folders


def add_without_library(setup: WorkerSetup, name: str, folder: Path) -> None:
    spec, _ = base_spec_from(folder, name)
    identity = fingerprints.identify(Weights.of(folder))
    setup.harness.admin.add_base(BaseAdd(spec=spec, identity=identity, source=str(folder)))


def test_a_worker_builds_a_base_once_for_each_version_of_its_library(
    setup: WorkerSetup, base_folder: Path, worker: Make, builds: list[Path]
) -> None:
    assert worker().run(once=True).done == 0
    assert builds == []  # recorded by the same version
    add_without_library(setup, "other", base_folder)
    for _ in range(2):
        worker().run(once=True)
    assert builds == [base_folder]
    assert setup.harness.admin.base("other").spec == setup.harness.admin.base(BASE).spec.model_copy(
        update={"name": "other", "library": f"transformers {transformers.__version__}"}
    )


def test_a_worker_goes_on_if_the_program_that_builds_a_base_dies(
    setup: WorkerSetup, base_folder: Path, good: Path, worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_arguments: object) -> LibraryModules:
        raise Unavailable("TRY_LATER", "building the base could not be done: it was ended by signal 9")

    monkeypatch.setattr(identify, "build_modules", die)
    add_without_library(setup, "other", base_folder)
    setup.push(good)
    assert worker().run(once=True).done == 1
    assert any("modules are not recorded" in line and "signal 9" in line for line in setup.lines)


def test_a_base_that_the_library_cannot_build_gives_an_unknown_verdict_with_its_error(
    setup: WorkerSetup, base_folder: Path, good: Path, worker: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "strange"
    folder.mkdir()
    for file in base_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "strange", "architectures": ["Strange"]}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Strange"}}))
    (folder / "code.py").write_text("raise SystemExit('code of the folder ran')\n")
    add_without_library(setup, "strange", folder)
    setup.push(good, base="strange")
    assert worker().run(once=True).done == 1
    verdict = setup.smoke()
    assert verdict is not None
    assert (verdict.outcome, [finding.code for finding in verdict.findings]) == (
        Outcome.UNKNOWN, ["smoke.base_unsupported"],
    )  # fmt: skip
    assert "strange" in verdict.findings[0].message
    assert "cannot build" in verdict.findings[0].message


def test_a_quantized_base_whose_package_is_not_installed_gives_an_unknown_verdict_with_the_error(
    setup: WorkerSetup, base_folder: Path, good: Path, worker: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    for file in base_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "aqlm"}}
    (folder / "config.json").write_text(json.dumps(config))
    add_without_library(setup, "packed", folder)
    setup.push(good, base="packed")
    assert worker().run(once=True).done == 1
    verdict = setup.smoke()
    assert verdict is not None
    assert [(f.severity, f.code) for f in verdict.findings] == [("unknown", "smoke.base_unsupported")]
    assert "packed is quantized (aqlm)" in verdict.findings[0].message
    assert "pip install aqlm" in verdict.findings[0].message  # transformers' own words


def test_the_library_says_the_kernels_and_groups_of_convolutions(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "embedding_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = sizes | {"num_attention_heads": 4, "vocab_size": 100, "q_groups": 8}
    maker = "SqueezeBertForMaskedLM"
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "squeezebert", "architectures": [maker]}))
    modules = library.modules_of(tmp_path).modules
    query, dense = (modules[f"transformer.encoder.layers.0.{path}"] for path in ("attention.query", "attention.key"))
    assert (query.kind, query.in_features, query.kernel, query.groups, dense.groups) == ("conv", 4, (1,), 8, 4)


# ------------------------------------------------------------------ hostile configurations
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 64,
    "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 100,
}  # fmt: skip
KERNELS = "names kernels of a repository"


@pytest.mark.security
@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"attn_implementation": "evil/kernels"}, KERNELS),
        ({"_attn_implementation": "evil/kernels@v1:f"}, KERNELS),
        ({"hidden_size": 2**40}, "overflowed"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"hidden_act": "os.system"}, "os.system"),
    ],
)
def test_a_hostile_configuration_is_a_problem_of_its_base(
    tmp_path: Path, fields: dict[str, object], problem: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | fields))
    assert problem in library.modules_of(tmp_path).problem


@pytest.mark.security
def test_a_base_with_kernels_of_a_repository_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"attn_implementation": "evil/kernels"}))
    with pytest.raises(ValueError, match=KERNELS):
        LoadedBase.load(tmp_path, "evil")


@pytest.mark.security
def test_the_modules_of_a_base_have_a_limit_of_memory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 10**9}))
    script = (
        "import sys; from pathlib import Path; from registry.worker.model import library; "
        "library.MEMORY_LIMIT_BYTES = 2**27; "
        "print(library.list_modules(library.LibraryRequest(folder=sys.argv[1]), print).problem != '')"
    )
    response = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    # Without memory the library may also crash, which `run_program` reports. What it must not do is go on.
    assert response.stdout == "True\n" or response.returncode


def test_the_library_lists_the_biases_of_experts_as_peft_adapts_them(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = sizes | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 100, "num_local_experts": 4}
    names = {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config | names))
    modules = library.modules_of(tmp_path).modules
    biases = modules["model.layers.0.mlp.experts.gate_up_proj_bias"]
    assert (biases.kind, biases.count, biases.in_features, biases.out_features) == ("parameter", 1, 96, 4)
    assert "model.layers.0.mlp.experts.down_proj_bias" in modules
