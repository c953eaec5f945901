"""The agent beside a real llama.cpp server: what it was not started with, proof against PEFT's answers, scales.

Part of `make test-engines`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.api.jobs import ClaimRequest, FinishRequest
from registry.evaluation.reference_logprobs import Prompt, ReferenceLogprobs
from registry.serving.agent.agent import Agent
from registry.serving.agent.reconciler import Reconciler
from registry.serving.engines.llama_cpp import LlamaCpp
from registry.serving.store.local_store import LocalStore
from registry.versions.manifest import Edge, Relation
from tests import samples
from tests.engines.cases import BASE, CASES
from tests.harness import Harness
from tests.proof import venvs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        venvs.llama_python() is None, reason="no environment with llama.cpp: make test-engines brings it"
    ),
]
NAMES = ("plain", "rslora")
SERVER = Path(__file__).with_name("_llama_serve.py")


@contextlib.contextmanager
def served(base: Path, files: list[Path]) -> Iterator[str]:
    python = venvs.llama_python()
    assert python is not None
    process = subprocess.Popen(
        [str(python), str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps({"base": str(base), "adapters": [str(file) for file in files]}) + "\n")
        process.stdin.flush()
        url = next(json.loads(line)["url"] for line in process.stdout if line.startswith('{"url"'))
        yield url
    finally:
        process.stdin.close()
        process.wait(60)


def fill(harness: Harness, folder: Path) -> dict[str, tuple[str, tuple[float, ...]]]:
    """A GGUF version of each case, from one whose reference is PEFT's answers: name → its digest, and those."""
    from tests.proof import llama_cpp, reference  # imports torch

    harness.add_base(BASE)
    sources = {name: samples.write(CASES[name], folder / name) for name in NAMES}
    expected = reference.answers(BASE.write(folder / "base"), sources)
    versions = {}
    for name, source in sources.items():
        answers = expected[name]
        assert not isinstance(answers, str), answers
        version = harness.push(f"originals/{name}", CASES[name], base=BASE.name).version
        claimed = harness.admin.claim(ClaimRequest(worker="test"))
        assert claimed is not None
        prompt = Prompt(tokens=reference.PROMPT, adapter=answers, base=expected[""])
        report = harness.report(version.digest, version.base)
        report = report.model_copy(update={"reference_logprobs": ReferenceLogprobs(prompts=(prompt,))})
        harness.admin.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))
        gguf = llama_cpp.converted(folder / "gguf" / name, source, harness.bases[BASE.name])
        assert isinstance(gguf, Path), gguf
        edge = Edge(relation=Relation.CONVERTED, digest=version.digest, name=f"originals/{name}@1")
        pushed = harness.push(f"acme/{name}", {gguf.name: gguf.read_bytes()}, base=BASE.name, parents=[edge])
        harness.admin.promote(f"acme/{name}", "canary", "1", generation=0)
        versions[name] = (pushed.version.digest.hex, answers)
    return versions


def test_a_real_server_is_verified_switched_and_given_its_start_options(harness: Harness, tmp_path: Path) -> None:
    from tests.proof import llama_cpp, reference  # imports torch

    filled = fill(harness, tmp_path)
    base, store = llama_cpp.base_file(tmp_path), LocalStore(tmp_path / "store")
    lines: list[str] = []

    def passed(url: str) -> dict[str, tuple[str, bool]]:
        reconciler = Reconciler(LlamaCpp(url), harness.admin, store)
        agent = Agent(harness.admin, reconciler, store, base=BASE.name, alias="canary", say=lines.append)
        agent.fetch()
        return {slot.name: (slot.state, slot.verified) for slot in agent.step()}

    with served(base, []) as url:
        assert passed(url) == {f"acme/{name}": ("failed", False) for name in NAMES}
    files = [next((store.versions / digest).glob("*.gguf")) for digest, _ in filled.values()]
    assert all(any(f"--lora {file}" in line for line in lines) for file in files)
    with served(base, files) as url:
        driver = LlamaCpp(url)
        assert passed(url) == {f"acme/{name}": ("ready", True) for name in NAMES}
        assert [row["scale"] for row in driver._rows()] == [0.0, 0.0], "with two, requests name theirs"
        for name, file in zip(NAMES, files, strict=True):
            driver.load(name, file.parent)
            logprobs = driver.logprobs(name, reference.PROMPT)
            assert logprobs is not None
            assert max(abs((a or 0) - b) for a, b in zip(logprobs, filled[name][1], strict=True)) < 2e-2
        harness.admin.yank("acme/rslora@1", "only one is left")
        assert passed(url) == {"acme/plain": ("ready", True)}
        assert [row["scale"] for row in driver._rows()] == [1.0, 0.0]
