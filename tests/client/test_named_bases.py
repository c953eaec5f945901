"""A push without a base takes the one that the configuration names, never another organization's."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.client.transfer import push
from registry.errors import NotFound
from registry.names import AdapterName
from tests import samples
from tests.harness import Harness

pytestmark = pytest.mark.security
NAME = AdapterName("acme", "support")


def pushed_base(harness: Harness, folder: Path, claim: str) -> str:
    """The base of the version that a push of an adapter with this claim makes."""
    files = harness.files(samples.llama(claim))
    return push.push_folder(harness.admin, samples.write(files, folder), NAME).version.base


def test_another_organization_s_base_of_the_same_last_part_changes_no_push(harness: Harness, tmp_path: Path) -> None:
    harness.add_base(samples.llama("Meta-Tiny-Llama"))
    harness.add_base(samples.llama("evil/Meta-Tiny-Llama"))
    assert pushed_base(harness, tmp_path / "exact", "Meta-Tiny-Llama") == "Meta-Tiny-Llama"
    assert pushed_base(harness, tmp_path / "case", "meta-tiny-llama") == "Meta-Tiny-Llama"
    assert pushed_base(harness, tmp_path / "hub", "hf-org/Meta-Tiny-Llama") == "Meta-Tiny-Llama"
    assert pushed_base(harness, tmp_path / "own", "evil/Meta-Tiny-Llama") == "evil/Meta-Tiny-Llama"


def test_an_alias_goes_before_a_base_of_the_same_last_part(harness: Harness, tmp_path: Path) -> None:
    harness.add_base(samples.llama("beta"))
    harness.admin.set_base_aliases("beta", ["hf-org/Alpha"])
    harness.add_base(samples.llama("evil/Alpha"))
    harness.add_base(samples.llama("Alpha"))
    assert pushed_base(harness, tmp_path / "adapter", "hf-org/Alpha") == "beta"


def test_a_base_of_another_organization_needs_its_name_in_the_push(harness: Harness, tmp_path: Path) -> None:
    harness.add_base(samples.llama("evil/Alpha"))
    for index, claim in enumerate(("Alpha", "hf-org/Alpha")):
        with pytest.raises(NotFound, match="no registered base matches"):
            pushed_base(harness, tmp_path / str(index), claim)
    folder = tmp_path / "0"
    assert push.push_folder(harness.admin, folder, NAME, base="evil/Alpha").version.base == "evil/Alpha"
