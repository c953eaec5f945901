"""What a training says about itself: data set, run, code, hyperparameters and metrics, as provenance of a checkpoint.

Nothing is asked for that the training does not have at hand, and a package is used only if the training imported it.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from registry.versions.provenance import PARAMETERS_LIMIT, VALUE_LIMIT

PARAMETERS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm", "seed", "bf16", "fp16",
    "max_length", "packing", "beta",
)  # fmt: skip
"""Fields of `TrainingArguments`, and of TRL's, that a checkpoint declares."""
GIT_SECONDS = 10
METRIC_CHARACTERS = 90
"""Of a metric's name. That of a parameter has up to 100, and begins with `metrics.` here."""


def describe_training(args: Any, state: Any, dataset: Any, code: Mapping[str, str] | None) -> dict[str, Any]:
    """The values of a `Provenance` for the checkpoint of this state. `code` is what `find_code` returned."""
    parameters = {name: value for name in PARAMETERS if (value := getattr(args, name, None)) is not None}
    parameters |= {"step": state.global_step} | ({"epoch": state.epoch} if state.epoch is not None else {})
    parameters |= {f"metrics.{name}": value for name, value in newest_metrics(state.log_history).items()}
    declared = list(parameters.items())[:PARAMETERS_LIMIT]
    plain = {name: str(getattr(value, "value", value))[:VALUE_LIMIT] for name, value in declared}
    described: dict[str, Any] = {"parameters": plain, "code": code, "run": find_run()}
    described["datasets"] = [entry for entry in (describe_dataset(dataset),) if entry]
    return {field: value for field, value in described.items() if value}


def merge_declared(described: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """What a training says about itself with what its caller declares, which wins: parameters name by name.

    Of the training's own parameters, the last ones give way at the limit of a version.

    Example
        >>> merge_declared({"parameters": {"seed": "7", "step": "1"}}, {"parameters": {"step": "2", "note": "mine"}})
        {'parameters': {'seed': '7', 'step': '2', 'note': 'mine'}}
    """
    merged = {**described, **declared}
    parameters = declared.get("parameters")
    if isinstance(parameters, Mapping):
        own = {name: value for name, value in described.get("parameters", {}).items() if name not in parameters}
        fitting = dict(list(own.items())[: max(0, PARAMETERS_LIMIT - len(parameters))])
        merged["parameters"] = fitting | dict(parameters)
    return merged


def newest_metrics(log_history: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of each logged number. Trainers log any names; `_` replaces what a parameter's name cannot hold.

    Example
        >>> newest_metrics([{"loss": 2.0, "step": 1}, {"memory (GiB)": 1.5, "step": 1}, {"loss": 1.0, "step": 2}])
        {'loss': 1.0, 'memory_GiB_': 1.5}
    """
    metrics = {name: value for entry in log_history for name, value in entry.items() if isinstance(value, int | float)}
    return {
        re.sub(r"[^A-Za-z0-9_./:-]+", "_", name)[:METRIC_CHARACTERS]: value
        for name, value in metrics.items() if name not in ("step", "epoch")
    }  # fmt: skip


def describe_dataset(dataset: Any) -> dict[str, str]:
    """A data set of the library `datasets`, by its fingerprint; empty for another one."""
    fingerprint = getattr(dataset, "_fingerprint", "")
    if not fingerprint:
        return {}
    info = getattr(dataset, "info", None)
    described = {"uri": f"hf-datasets:{quote(str(fingerprint), safe='')}", "split": getattr(dataset, "split", None)}
    described["name"] = getattr(info, "dataset_name", None) or getattr(info, "builder_name", None)
    return {field: str(value) for field, value in described.items() if value}


def find_run() -> dict[str, str]:
    """The active run of Weights & Biases or MLflow; empty without one."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is not None:
        url = without_user(str(run.url or "")).partition("?")[0]  # of an anonymous run, it has the key of the account
        return {"tool": "wandb", "id": str(run.id), "url": url}
    mlflow = sys.modules.get("mlflow")
    active = mlflow.active_run() if mlflow is not None and hasattr(mlflow, "active_run") else None
    if mlflow is None or active is None:
        return {}
    server, info = without_user(str(mlflow.get_tracking_uri())).rstrip("/"), active.info
    url = f"{server}/#/experiments/{info.experiment_id}/runs/{info.run_id}" if server.startswith("http") else ""
    return {"tool": "mlflow", "id": str(info.run_id), "url": url}


def find_code(folder: Path) -> dict[str, str] | None:
    """The repository and the commit that is checked out in this folder, without credentials; None without one."""
    commit, remote = _git(folder, "rev-parse", "HEAD"), _git(folder, "remote", "get-url", "origin")
    return {"repository": repository_uri(remote), "commit": commit} if commit and remote else None


def repository_uri(remote: str) -> str:
    """The address of a Git remote as a URI, without user and password.

    Example
        >>> repository_uri("git@github.com:acme/train.git"), repository_uri("https://me:secret@git.example/acme/train")
        ('ssh://github.com/acme/train.git', 'https://git.example/acme/train')
    """
    if "://" not in remote:
        host, colon, path = remote.partition(":")
        return f"ssh://{host.rpartition('@')[2]}/{path}" if colon else Path(remote).absolute().as_uri()
    return without_user(remote)


def without_user(uri: str) -> str:
    """A URI without user and password; an unreadable one as it is."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _git(folder: Path, *arguments: str) -> str:
    try:
        process = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""
