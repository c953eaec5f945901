"""What a training says about itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from registry.training.provenance import describe_training, find_code, find_run
from registry.versions.provenance import PARAMETERS_LIMIT, Provenance


def test_the_active_run_is_declared_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_run() == {}
    info = SimpleNamespace(run_id="4f1c", experiment_id="7")
    mlflow = SimpleNamespace(
        active_run=lambda: SimpleNamespace(info=info), get_tracking_uri=lambda: "https://me:secret@mlflow.example/"
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    url = "https://mlflow.example/#/experiments/7/runs/4f1c"
    assert find_run() == {"tool": "mlflow", "id": "4f1c", "url": url}
    run = SimpleNamespace(id="abc", url="https://wandb.example/acme/runs/abc?apiKey=hidden")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    assert find_run() == {"tool": "wandb", "id": "abc", "url": "https://wandb.example/acme/runs/abc"}


def test_the_commit_of_the_training_code_is_declared_without_credentials(tmp_path: Path) -> None:
    assert find_code(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    subprocess.run([*git, "remote", "add", "origin", "https://me:secret@git.example/acme/train"], check=True)
    code = find_code(tmp_path)
    assert code is not None
    assert code["repository"] == "https://git.example/acme/train"
    assert len(code["commit"]) == 40


def test_another_data_set_and_missing_fields_are_left_out() -> None:
    state = SimpleNamespace(global_step=3, epoch=None, log_history=[])
    described = describe_training(SimpleNamespace(learning_rate=None), state, ["a list"], None)
    assert described == {"parameters": {"step": "3"}}


def test_metrics_of_any_names_and_numbers_are_declared() -> None:
    logged = {"memory/max_active (GiB)": 1.5, "x" * 200: float("nan"), **{f"m{n}": n for n in range(300)}}
    state = SimpleNamespace(global_step=3, epoch=1.0, log_history=[logged])
    provenance = Provenance.read(describe_training(SimpleNamespace(), state, [], None))
    assert provenance is not None
    parameters = provenance.parameters
    assert (parameters["metrics.memory/max_active_GiB_"], len(parameters)) == ("1.5", PARAMETERS_LIMIT)
