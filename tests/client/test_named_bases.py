"""A push without a base takes the one that the configuration names, never another organization's."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.client import push
from registry.errors import NotFound
from registry.names import AdapterName
from tests import forge
from tests.world import World

pytestmark = pytest.mark.security
NAME = AdapterName("acme", "support")


def pushed_base(world: World, folder: Path, claim: str) -> str:
    """The base of the version that a push of an adapter with this claim makes."""
    files = world.files(forge.llama(claim))
    return push.push_folder(world.admin, forge.write(files, folder), NAME).version.base


def test_another_organization_s_base_of_the_same_last_part_changes_no_push(world: World, tmp_path: Path) -> None:
    world.add_base(forge.llama("Meta-Tiny-Llama"))
    world.add_base(forge.llama("evil/Meta-Tiny-Llama"))
    assert pushed_base(world, tmp_path / "exact", "Meta-Tiny-Llama") == "Meta-Tiny-Llama"
    assert pushed_base(world, tmp_path / "case", "meta-tiny-llama") == "Meta-Tiny-Llama"
    assert pushed_base(world, tmp_path / "hub", "hf-org/Meta-Tiny-Llama") == "Meta-Tiny-Llama"
    assert pushed_base(world, tmp_path / "own", "evil/Meta-Tiny-Llama") == "evil/Meta-Tiny-Llama"


def test_an_alias_goes_before_a_base_of_the_same_last_part(world: World, tmp_path: Path) -> None:
    world.add_base(forge.llama("beta"))
    world.admin.set_base_aliases("beta", ["hf-org/Alpha"])
    world.add_base(forge.llama("evil/Alpha"))
    world.add_base(forge.llama("Alpha"))
    assert pushed_base(world, tmp_path / "adapter", "hf-org/Alpha") == "beta"


def test_a_base_of_another_organization_needs_its_name_in_the_push(world: World, tmp_path: Path) -> None:
    world.add_base(forge.llama("evil/Alpha"))
    for index, claim in enumerate(("Alpha", "hf-org/Alpha")):
        with pytest.raises(NotFound, match="no registered base matches"):
            pushed_base(world, tmp_path / str(index), claim)
    folder = tmp_path / "0"
    assert push.push_folder(world.admin, folder, NAME, base="evil/Alpha").version.base == "evil/Alpha"
