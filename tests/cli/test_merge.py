"""`adapter merge` and `adapter extract`: on folders here, and by the queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file

from tests.cli.desk import Desk
from tests.worker import models


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    base = models.base(folder / "base")
    models.adapter(base, folder / "one", seed=1)
    models.adapter(base, folder / "other", seed=2, r=8)
    return folder


def test_folders_are_combined_fused_and_extracted_here_and_nothing_is_pushed(
    desk: Desk, shelf: Path, tmp_path: Path
) -> None:
    both = _json(desk, "merge", f"{shelf}/one=0.7", f"{shelf}/other=0.3", "--into", tmp_path / "both")
    assert both["report"]["operation"] == "combine"
    assert both["report"]["relative_error"] < 1e-5
    small = desk("merge", tmp_path / "both", "--rank", "2", "--into", tmp_path / "small")
    assert "energy kept" in small.stdout
    folders = ("--base-dir", shelf / "base", "--into", tmp_path / "fused")
    fused = _json(desk, "merge", tmp_path / "both", "--fuse", *folders)
    assert fused["report"]["changed_tensors"] == 4
    found = _json(desk, "extract", tmp_path / "fused", shelf / "base", "--rank", 12, "--into", tmp_path / "x")
    assert found["report"]["relative_error"] < 1e-3
    assert {module["path"].rpartition(".")[2] for module in found["report"]["modules"]} == {"q_proj", "v_proj"}
    assert len(load_file(tmp_path / "x" / "adapter_model.safetensors")) == 8


def test_a_merge_by_name_is_a_job_and_a_wrong_one_says_why(desk: Desk, shelf: Path) -> None:
    desk("base", "add", "tiny", shelf / "base")
    for name in ("one", "other"):
        desk("push", shelf / name, f"acme/{name}", "--base", "tiny")
    how = ("--method", "svd", "--rank", 4, "--into", "acme/both")
    job = _json(desk, "merge", "acme/one=2", "acme/other", *how)
    assert (job["kind"], job["state"], job["payload"]["weights"]) == ("merge", "queued", [2.0, 1.0])
    told = desk("job", "show", job["id"]).stdout
    assert "acme/one@1, acme/other@1" in told
    assert "acme/both" in told
    fuse = _json(desk, "merge", "acme/one", "--fuse", "--into", "tiny-one")
    assert (fuse["kind"], fuse["base"]) == ("fuse", "tiny")

    refused = desk("merge", "acme/one", "acme/one@1", "--into", "acme/both", expect=2)
    assert "named twice" in refused.stderr
    assert "say --rank N" in desk("merge", "acme/one", "--into", "acme/both", expect=2).stderr
    assert "a weight" in desk("merge", "acme/one=much", "acme/other", "--into", "acme/both", expect=2).stderr
    halved = desk("merge", "acme/one=0.5", "--fuse", "--into", "tiny-half", expect=2)
    assert "as it was trained" in halved.stderr
    desk("merge", "acme/one", "acme/none", "--into", "acme/both", expect=4)


def test_what_is_done_here_is_checked_as_the_registry_does_it(desk: Desk, shelf: Path, tmp_path: Path) -> None:
    desk("base", "add", "tiny", shelf / "base")
    desk("base", "add", "twin", models.base(tmp_path / "twin"))
    desk("push", shelf / "one", "acme/one", "--base", "tiny")
    here = ("--base-dir", shelf / "base", "--into", tmp_path / "no")
    assert "as it was trained" in desk("merge", f"{shelf}/one=0.5", "--fuse", *here, expect=2).stderr
    assert "takes one adapter" in desk("merge", shelf / "one", shelf / "other", "--fuse", *here, expect=2).stderr
    assert "a rank is" in desk("extract", shelf / "base", shelf / "base", "--rank", 0, *here[2:], expect=2).stderr
    assert not (tmp_path / "no").exists()
    onto = _json(desk, "merge", "acme/one", "--fuse", "--onto", "twin", "--into", tmp_path / "onto")
    assert any("was trained on tiny" in note for note in onto["report"]["notes"])
    dora = models.adapter(shelf / "base", tmp_path / "dora", use_dora=True)
    desk("push", dora, "acme/dora", "--base", "tiny")
    named = desk("merge", "acme/one", "acme/dora", "--into", tmp_path / "no", expect=2).stderr
    assert "Error: dora is DoRA" in named


def test_a_fuse_here_of_a_registered_adapter_takes_the_weights_of_its_base_and_no_others(
    desk: Desk, shelf: Path, tmp_path: Path
) -> None:
    desk("base", "add", "tiny", shelf / "base", "--identify")
    desk("push", shelf / "one", "acme/one", "--base", "tiny")
    trained_on = _json(
        desk, "merge", shelf / "one", "--fuse", "--base-dir", shelf / "base", "--into", tmp_path / "other"
    )
    assert trained_on["report"]["changed_tensors"] == 4
    how = ("merge", "acme/one", "--fuse", "--into", tmp_path / "out", "--base-dir")
    told = desk(*how, tmp_path / "other", expect=2)
    assert "is not the base tiny" in told.stderr
    assert not (tmp_path / "out").exists()
    assert _json(desk, *how, shelf / "base")["report"]["changed_tensors"] == 4


def test_fusing_without_the_base_here_says_how_to_name_it(desk: Desk, shelf: Path, tmp_path: Path) -> None:
    told = desk("merge", shelf / "one", "--fuse", "--into", tmp_path / "fused", expect=2)
    assert "--base-dir DIR" in told.stderr
    assert json.loads((shelf / "one" / "adapter_config.json").read_text())["r"] == 4
    assert not (tmp_path / "fused").exists()


def _json(desk: Desk, *words: object) -> Any:
    return desk(*words, "--json").json
