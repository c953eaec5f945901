"""Every format of image adapters, through the real interface: recognized, fitting its base, none fitting another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.api.bases import BaseAdd
from registry.api.catalog import VersionView
from registry.client.local import base_folder
from registry.client.registry import Registry
from registry.client.transfer import push as pushing
from registry.names import AdapterName
from tests import fixtures
from tests.harness import Harness

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fixtures.IMAGES_AVAILABLE, reason="the images extra (diffusers) is not installed"),
]
BASES = {"sd": "sd-tiny", "flux": "flux-tiny", "qwen-image": "qwen-image-tiny"}


@pytest.fixture
def pusher(harness: Harness) -> Registry:
    for name in BASES.values():
        spec, read = base_folder.base_spec_from(fixtures.image_bases() / name, name)
        assert read < 100_000, "headers, not weights"
        harness.admin.add_base(BaseAdd(spec=spec))
    return harness.actor("push")


def push(pusher: Registry, file: str, base: str, tmp_path: Path) -> VersionView:
    folder = tmp_path / f"{Path(file).stem}-on-{base}"
    folder.mkdir()
    shutil.copy(fixtures.images() / file, folder)
    return pushing.push_folder(pusher, folder, AdapterName("images", folder.name), base=base).version


def test_every_format_is_recognized_and_no_good_image_adapter_is_called_a_bad_one(
    pusher: Registry, tmp_path: Path
) -> None:
    wrong = []
    entries = fixtures.manifest(fixtures.images())
    for name, entry in entries.items():
        version = push(pusher, entry["file"], BASES[entry["family"]], tmp_path)
        facts, compat = version.facts, version.verdicts[0]
        actual = (facts["format"], facts["family"], compat.outcome.value)
        if actual != (entry["naming"], entry["family"], "pass"):
            wrong.append(f"{name}: {actual}: {compat.summary}")
    assert wrong == []
    assert len({entry["naming"] for entry in entries.values()}) == 8


def test_no_image_adapter_fits_the_base_of_another_family(pusher: Registry, tmp_path: Path) -> None:
    for entry in fixtures.manifest(fixtures.images()).values():
        other = BASES["flux" if entry["family"] == "sd" else "sd"]
        version = push(pusher, entry["file"], other, tmp_path)
        assert [f.code for f in version.verdicts[0].findings] == ["compat.family"]
