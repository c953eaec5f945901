"""Every adapter of the fixtures goes through the real door: pushed, looked up, pulled, and compared byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry import wire
from registry.client import transfer
from registry.client.api import Registry
from registry.errors import RegistryError
from registry.names import Ref
from registry.wire import BaseAdd
from tests import fixtures
from tests.world import World

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra (torch, transformers, peft) is not installed"),
]

PICKLES = {"lora-pickle-bin", "pickle-with-code", "pickle-beside-safetensors"}
LINKS = {"symlink-out-of-folder"}
NEEDS_VALUES = {"nan", "inf-one-value"}
"""Bad entries whose header is flawless: the check `acts` finds them."""


@pytest.fixture
def pusher(world: World) -> Registry:
    for folder in sorted(path for path in fixtures.tiny_bases().iterdir() if path.is_dir()):
        spec, _ = transfer.base_spec_from(folder, folder.name)
        world.actor("admin").add_base(BaseAdd(spec=spec))
    return world.actor("push")


def pushed(pusher: Registry, folder: Path, base: str) -> wire.VersionView | RegistryError:
    """The version that the folder became, or the error that refused it."""
    name = Ref.parse(f"zoo/{folder.name}").name
    try:
        return transfer.push_folder(pusher, folder, name, base=base).version
    except RegistryError as e:
        return e


def test_what_is_pulled_is_what_was_pushed_for_every_adapter_of_the_zoo(pusher: Registry, tmp_path: Path) -> None:
    wrong = []
    for name, entry in fixtures.manifest(fixtures.zoo()).items():
        version = pushed(pusher, fixtures.zoo() / name, entry["base"])
        if isinstance(version, RegistryError):
            if name not in PICKLES:
                wrong.append(f"{name}: {version}")
            continue
        ref = Ref.parse(f"zoo/{name}")
        assert pusher.resolve(ref).digest == version.digest
        transfer.pull(pusher, ref, tmp_path / name, cache=None)
        for file in version.files:
            if (tmp_path / name / file.path).read_bytes() != (fixtures.zoo() / name / file.path).read_bytes():
                wrong.append(f"{name}: {file.path} came back changed")
        outcome = version.verdicts[0].outcome
        if outcome == "fail" or (name.startswith("lora-") and outcome not in ("pass", "warn")):
            wrong.append(f"{name}: {outcome}: {version.verdicts[0].summary}")
    assert wrong == []


def test_no_structural_defect_becomes_a_version_that_fits(pusher: Registry) -> None:
    wrong = []
    for name, entry in fixtures.manifest(fixtures.bad()).items():
        version = pushed(pusher, fixtures.bad() / name, entry["base"])
        if isinstance(version, RegistryError):
            if entry["fits"] == "yes" or (entry["fits"] == "only-with-care" and name not in PICKLES | LINKS):
                wrong.append(f"{name} was refused: {version}")
        elif entry["fits"] == "no" and version.verdicts[0].outcome != "fail" and name not in NEEDS_VALUES:
            wrong.append(f"{name} fits: {version.verdicts[0].outcome}")
    assert wrong == []
