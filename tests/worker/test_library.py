"""The modules of a base as the installed library builds them: read once for each base and version, and used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from registry.api.catalog import BaseAdd
from registry.bases.library import LibraryModules
from registry.client.local.base_folder import base_spec_from
from registry.evaluation.verdicts import Outcome
from registry.worker.loop import Worker
from registry.worker.model import fingerprints, identify
from registry.worker.model.weights import Weights
from tests.worker.setup import BASE, WorkerSetup

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
    setup.world.admin.add_base(BaseAdd(spec=spec, identity=identity, source=str(folder)))


def test_a_worker_builds_a_base_once_for_each_version_of_its_library(
    setup: WorkerSetup, base_folder: Path, worker: Make, builds: list[Path]
) -> None:
    assert worker().run(once=True).done == 0
    assert builds == []  # recorded by the same version
    add_without_library(setup, "other", base_folder)
    for _ in range(2):
        worker().run(once=True)
    assert builds == [base_folder]
    assert setup.world.admin.base("other").spec == setup.world.admin.base(BASE).spec.model_copy(
        update={"name": "other", "library": f"transformers {transformers.__version__}"}
    )


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
