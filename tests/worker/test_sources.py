"""Which folders a worker opens: those that its operator names, or that an administrator registered as a source."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from registry.api.bases import BaseAdd
from registry.bases import BaseSpec
from registry.client.local.base_folder import base_spec_from
from registry.worker.loop import Worker
from registry.worker.model import sources
from registry.worker.model.sources import Sources
from tests.worker.setup import WorkerSetup

pytestmark = pytest.mark.security


def test_an_unpinned_worker_never_opens_a_source_that_a_pusher_named(
    setup: WorkerSetup, base_folder: Path, worker: Callable[..., Worker]
) -> None:
    spec, _ = base_spec_from(base_folder, "acme/strange")
    request = BaseAdd(spec=spec, source=str(base_folder))
    pusher = setup.harness.actor("push", "pull", namespaces=["acme"])
    assert pusher.add_base(request).source == ""
    worker().run(once=True)
    assert any("the base acme/strange has no source" in line for line in setup.lines)
    assert setup.harness.admin.base("acme/strange").spec.fingerprints.exact is None, "the worker read its weights"
    assert setup.harness.admin.add_base(request).source == str(base_folder)
    assert pusher.add_base(BaseAdd(spec=spec, source="/elsewhere")).source == str(base_folder)
    worker().run(once=True)
    assert setup.harness.admin.base("acme/strange").spec.fingerprints.exact is not None


def test_each_round_lists_only_the_folders_of_the_models(
    setup: WorkerSetup, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").symlink_to(base_folder)
    deep = tmp_path.joinpath(*["sub"] * 30)
    deep.mkdir(parents=True)
    view = setup.harness.admin.base("tiny")
    folder_sources, listed = Sources({"tiny": base_folder}), []
    assert [source.name for source in folder_sources.usable([view])] == ["tiny"]
    scandir = os.scandir

    def counting(path: Any) -> Iterator[Any]:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    folder_sources.usable([view])
    assert listed == [base_folder]
    monkeypatch.setattr(sources, "ENTRIES_LIMIT", 1)
    everywhere = Sources()
    assert everywhere.usable([view]) == []
    assert "has over 1 entries" in everywhere.problems["tiny"]


@pytest.mark.parametrize("component", ["../..", "/etc", "a/b", ""])
def test_a_component_of_a_base_is_the_name_of_a_folder(component: str, base_folder: Path) -> None:
    spec, _ = base_spec_from(base_folder, "tiny")
    with pytest.raises(ValidationError):
        BaseSpec.model_validate(spec.model_dump() | {"components": [component]})
