"""`adapter merge` and `adapter extract`: on local folders, and by the queue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file

from registry.client.core import Versions
from tests.cli.runner import CommandRunner
from tests.worker import models

pytestmark = pytest.mark.usefixtures("forked_programs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    base = models.base(folder / "base")
    models.adapter(base, folder / "one", seed=1)
    models.adapter(base, folder / "other", seed=2, r=8)
    return folder


def test_local_merges_push_nothing(cli: CommandRunner, trained: Path, tmp_path: Path) -> None:
    both = _json(cli, "merge", f"{trained}/one=0.7", f"{trained}/other=0.3", "--into", tmp_path / "both")
    assert both["report"]["operation"] == "combine"
    assert both["report"]["relative_error"] < 1e-5
    small = cli("merge", tmp_path / "both", "--rank", "2", "--into", tmp_path / "small")
    assert "energy kept" in small.stdout
    folders = ("--base-dir", trained / "base", "--into", tmp_path / "fused")
    fused = _json(cli, "merge", tmp_path / "both", "--fuse", *folders)
    assert fused["report"]["changed_tensors"] == 4
    result = _json(cli, "extract", tmp_path / "fused", trained / "base", "--rank", 12, "--into", tmp_path / "x")
    assert result["report"]["relative_error"] < 1e-3
    assert {module["path"].rpartition(".")[2] for module in result["report"]["modules"]} == {"q_proj", "v_proj"}
    assert len(load_file(tmp_path / "x" / "adapter_model.safetensors")) == 8


def test_a_merge_by_name_is_a_job_and_a_wrong_one_is_refused(
    cli: CommandRunner, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("base", "add", "tiny", trained / "base")
    for name in ("one", "other"):
        cli("push", trained / name, f"acme/{name}", "--base", "tiny")
    with monkeypatch.context() as patch:
        planned, plan_pulls = list[int](), Versions.plan_pulls

        def count(registry: Versions, refs: Sequence[Any], **options: Any) -> Any:
            planned.append(len(refs))
            return plan_pulls(registry, refs, **options)

        patch.setattr(Versions, "plan_pulls", count)
        cli("merge", "acme/one", "acme/other", "--into", tmp_path / "local")
        assert planned == [2], "one request for all sources"
        cli("diff", "acme/one", "acme/other", "--values")
        assert planned[-1] == 2, "the values of both"
    how = ("--method", "svd", "--rank", 4, "--into", "acme/both")
    job = _json(cli, "merge", "acme/one=2", "acme/other", *how)
    assert (job["kind"], job["state"], job["payload"]["weights"]) == ("merge", "queued", [2.0, 1.0])
    output = cli("job", "show", job["id"]).stdout
    assert "acme/one@1, acme/other@1" in output
    assert "acme/both" in output
    fuse = _json(cli, "merge", "acme/one", "--fuse", "--into", "tiny-one")
    assert (fuse["kind"], fuse["base"]) == ("fuse", "tiny")

    refused = cli("merge", "acme/one", "acme/one@1", "--into", "acme/both", expect=2)
    assert "named twice" in refused.stderr
    assert "pass --rank N" in cli("merge", "acme/one", "--into", "acme/both", expect=2).stderr
    assert "is not a number" in cli("merge", "acme/one=much", "acme/other", "--into", "acme/both", expect=2).stderr
    halved = cli("merge", "acme/one=0.5", "--fuse", "--into", "tiny-half", expect=2)
    assert "as it was trained" in halved.stderr
    cli("merge", "acme/one", "acme/none", "--into", "acme/both", expect=4)


def test_a_local_fuse_accepts_only_the_weights_of_the_registered_base(
    cli: CommandRunner, trained: Path, tmp_path: Path
) -> None:
    cli("base", "add", "tiny", trained / "base", "--identify")
    cli("push", trained / "one", "acme/one", "--base", "tiny")
    trained_on = _json(
        cli, "merge", trained / "one", "--fuse", "--base-dir", trained / "base", "--into", tmp_path / "other"
    )
    assert trained_on["report"]["changed_tensors"] == 4
    how = ("merge", "acme/one", "--fuse", "--into", tmp_path / "out", "--base-dir")
    output = cli(*how, tmp_path / "other", expect=2)
    assert "is not the base tiny" in output.stderr
    assert not (tmp_path / "out").exists()
    assert _json(cli, *how, trained / "base")["report"]["changed_tensors"] == 4


def test_a_local_fuse_without_the_base_asks_for_base_dir(cli: CommandRunner, trained: Path, tmp_path: Path) -> None:
    output = cli("merge", trained / "one", "--fuse", "--into", tmp_path / "fused", expect=2)
    assert "--base-dir DIR" in output.stderr
    assert json.loads((trained / "one" / "adapter_config.json").read_text())["r"] == 4
    assert not (tmp_path / "fused").exists()


def _json(cli: CommandRunner, *words: object) -> Any:
    return cli(*words, "--json").json
