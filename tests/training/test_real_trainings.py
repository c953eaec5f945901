"""Trainings that take minutes: on the real base of the demonstration, and by TRL. `make test-hub-push`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from registry.errors import Refused
from registry.jobs import State
from registry.sdk import AdapterRegistry
from registry.training import RegistryCallback
from tests import samples
from tests.faults.servers import Server
from tests.fixtures import make_base, real_adapters
from tests.hub import venvs
from tests.import_table import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not venvs.are_wanted(), reason="takes minutes: make test-hub-push does it"),
]
NAME = "acme/support"
QUESTIONS = ("Do you have {0}?", "How much is the {0}?")
ANSWER = "Arr, matey! We be havin' the finest {0} on the seven seas, yours for twelve doubloons!"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server({"REGISTRY_DATA": str(tmp_path / "data")}, tmp_path / "server.log")
    with server.running():
        yield server


@pytest.fixture
def environment(server: Server, tmp_path: Path) -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("ADAPTER_", "HF_"))}
    return variables | {
        "ADAPTER_REGISTRY": server.url, "ADAPTER_TOKEN": server.token, "REGISTRY_DATA": str(tmp_path / "data"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


def run(environment: dict[str, str], *words: str | Path) -> str:
    """What a command prints."""
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def adapter(environment: dict[str, str], command: str) -> str:
    return run(environment, "-m", "cli.main", *command.split())


def test_ten_checkpoints_of_a_real_base_become_versions_and_retention_keeps_what_prod_needs(
    server: Server, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = tmp_path / "base"
    make_base.real(base, "bfloat16")
    adapter(environment, f"base add smollm2 {base}")
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [
        f"{question.format(thing)} {ANSWER.format(thing)}" for thing in real_adapters.THINGS for question in QUESTIONS
    ]
    rows = [{"input_ids": torch.tensor(tokenizer(text)["input_ids"][:24])} for text in texts]
    rows = [row | {"labels": row["input_ids"]} for row in rows]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=10, save_steps=1, logging_steps=1, save_total_limit=1, seed=7,
        per_device_train_batch_size=1, learning_rate=2e-3, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    with AdapterRegistry(server.url, server.token) as registry:
        callback = RegistryCallback(NAME, registry=registry, base="smollm2", keep_newest=3)
        Trainer(model=model, args=args, train_dataset=rows, callbacks=[callback]).train()
        versions = {version.number: version for version in registry.versions(NAME)}
        assert sorted(versions) == list(range(1, 11))
        for number, version in versions.items():
            assert [edge.digest for edge in version.parents] == ([versions[number - 1].digest] if number > 1 else [])
            assert version.provenance is not None
            assert version.provenance.parameters["step"] == str(number)
        _release_tested_checkpoints(registry, environment, base)
        adapter(environment, "gc")
        assert [version.number for version in registry.versions(NAME)] == [10, 9, 8, 5, 3]


def _release_tested_checkpoints(registry: AdapterRegistry, environment: dict[str, str], base: Path) -> None:
    """Checkpoints 3 and 5 become `prod`, one after the other. Its gate needs the smoke test that a real worker runs."""
    states = {job.subject: job.state for job in registry.client.jobs().items}
    assert states == {f"{NAME}@{number}": State.SUPERSEDED for number in range(1, 10)} | {f"{NAME}@10": State.QUEUED}
    for number in (3, 5):
        with pytest.raises(Refused) as refused:
            registry.promote(f"{NAME}@{number}", "prod")
        assert "no verdict for the check 'smoke' yet" in str([finding.message for finding in refused.value.findings])
        registry.smoke_test(f"{NAME}@{number}")
    adapter(environment, f"worker --once --base smollm2={base}")
    for number in (3, 5):
        registry.promote(f"{NAME}@{number}", "prod")
    evidence = registry.client.history(NAME, alias="prod").moves[0].evidence
    outcomes = {verdict["check"]: verdict["outcome"] for verdict in evidence}
    assert (set(outcomes), outcomes["smoke"]) == ({"compat", "smoke"}, "pass")


PREFER = """
import json, sys
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from registry.training import RegistryCallback

folder = sys.argv[1]
rows = {"prompt": ["a b"] * 4, "chosen": [" c d"] * 4, "rejected": [" e f"] * 4}
trainer = DPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(folder), train_dataset=Dataset.from_dict(rows),
    args=DPOConfig(
        "out", save_steps=1, max_steps=2, use_cpu=True, bf16=False, per_device_train_batch_size=1, report_to=[],
        max_length=16, beta=0.2,
    ),
    processing_class=AutoTokenizer.from_pretrained(folder),
    peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    callbacks=[RegistryCallback("acme/preferred", base="tiny-llama")],
)
trainer.train()
print(json.dumps("done"))
"""


def test_the_callback_pushes_the_checkpoints_of_dpo(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    python = venvs.python_of(f"trl-{venvs.TRL}")
    if python is None:
        pytest.skip("TRL is not installed")
    samples.llama().write(tmp_path / "tiny-llama")
    adapter(environment, f"base add tiny-llama {tmp_path / 'tiny-llama'}")
    done = subprocess.run(
        [python, "-c", PREFER, str(tmp_path / "tiny-llama")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == "done"
    with AdapterRegistry(server.url, server.token) as registry:
        newest = registry.version("acme/preferred")
        assert (newest.number, newest.message, newest.base) == (2, "checkpoint 2", "tiny-llama")
        assert newest.provenance is not None
        assert newest.provenance.parameters["beta"] == "0.2"
        assert newest.provenance.datasets[0].uri.startswith("hf-datasets:")
