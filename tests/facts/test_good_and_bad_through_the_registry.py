"""Every adapter of the fixtures goes through the real interface: pushed, found, pulled, and compared byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.api.bases import BaseAdd
from registry.api.catalog import VersionView
from registry.client.local import base_folder
from registry.client.registry import Registry
from registry.client.transfer import push
from registry.errors import RegistryError
from registry.evaluation.verdicts import Check
from registry.names import Ref
from tests import fixtures
from tests.harness import Harness

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not fixtures.AVAILABLE, reason="the worker extra (torch, transformers, peft) is not installed"),
]

PICKLES = {"lora-pickle-bin", "pickle-with-code", "pickle-beside-safetensors"}
LINKS = {"symlink-out-of-folder"}


@pytest.fixture
def pusher(harness: Harness) -> Registry:
    for folder in sorted(path for path in fixtures.tiny_bases().iterdir() if path.is_dir()):
        spec, _ = base_folder.base_spec_from(folder, folder.name)
        harness.actor("admin").add_base(BaseAdd(spec=spec))
    return harness.actor("push")


def pushed(pusher: Registry, folder: Path, base: str) -> VersionView | RegistryError:
    """The version that the folder became, or the error that refused it."""
    name = Ref.parse(f"good/{folder.name}").name
    try:
        return push.push_folder(pusher, folder, name, base=base).version
    except RegistryError as e:
        return e


def push_outcome(version: VersionView | RegistryError) -> str:
    """What a push said: refused, or the worst of `compat` and `weights`."""
    if isinstance(version, RegistryError):
        return "refused"
    outcomes = {str(v.outcome) for v in version.verdicts if v.check in (Check.COMPAT, Check.WEIGHTS)}
    return next(word for word in ("fail", "unknown", "warn", "pass") if word in outcomes)


def test_the_table_has_no_false_yes_and_no_false_no(pusher: Registry) -> None:
    """Every good and every bad adapter: what it is, and what the registry said at its push."""
    false_yes, false_no, undecided = [], [], []
    for folder in (fixtures.good(), fixtures.bad()):
        for name, entry in fixtures.manifest(folder).items():
            answer = push_outcome(pushed(pusher, folder / name, entry["base"]))
            print(f"{folder.name[:4]} {name:34} {entry['base']:22} {entry['fits']:15} {answer}")
            if entry["fits"] == "no" and answer in ("pass", "warn"):
                false_yes.append(name)
            if answer in ("fail", "refused") and entry["fits"] != "no" and name not in PICKLES | LINKS:
                false_no.append(f"{name}: {answer}")
            if answer == "unknown":
                undecided.append(name)
    assert false_yes == []
    assert false_no == []
    assert undecided == []
