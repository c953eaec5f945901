"""Passes of the agent over an engine that behaves as vLLM does: load, compare, switch, drain; and failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.errors import Unavailable
from tests.samples import WEIGHTS
from tests.serving.node import Node


def test_twenty_adapters_are_loaded_from_their_own_folders_and_proved(node: Node) -> None:
    files = {f"acme/m{n}": node.push(f"acme/m{n}") for n in range(20)}
    assert node.states() == {f"acme-m{n}-v1": "ready" for n in range(20)}
    for name, version_files in files.items():
        root, weights = node.engine.loaded[node.reconciler.aliases[name]]
        assert (Path(root).name, weights) == (node.harness.admin.version(name).digest.hex, version_files[WEIGHTS])
    assert json.loads((node.store.root / "aliases.json").read_text()) == node.reconciler.aliases
    assert node.states()
    assert node.engine.loads == 20


def test_a_promote_loads_the_new_one_switches_drains_and_unloads_the_old_one(node: Node) -> None:
    node.push("acme/support")
    node.states()
    node.push("acme/support")
    assert node.states() == {"acme-support-v2": "ready"}
    assert (node.reconciler.aliases, node.loaded) == (
        {"acme/support": "acme-support-v2"}, ["acme-support-v1", "acme-support-v2"],
    )  # fmt: skip
    assert node.reconciler.due_seconds() == 10
    node.clock.now += 11
    node.states()
    assert (node.loaded, node.reconciler.due_seconds()) == (["acme-support-v2"], None)
    node.harness.admin.rollback("acme/support", "canary")
    assert node.states() == {"acme-support-v1": "ready"}
    assert node.reconciler.aliases == {"acme/support": "acme-support-v1"}


def test_an_adapter_that_the_engine_takes_and_ignores_is_unloaded_and_the_old_one_stays(node: Node) -> None:
    node.push("acme/support")
    node.push("acme/other")
    node.states()
    node.push("acme/support")
    node.engine.deaf = True
    assert node.states() == {"acme-support-v2": "failed", "acme-other-v1": "ready"}
    assert "answers like base" in " ".join(node.lines)
    assert node.reconciler.aliases["acme/support"] == "acme-support-v1"
    assert node.loaded == ["acme-other-v1", "acme-support-v1"]
    node.engine.deaf = False
    node.clock.now += 31
    assert node.states()["acme-support-v2"] == "ready"


def test_what_the_engine_would_refuse_is_not_fetched_and_blocks_no_other(node: Node) -> None:
    node.push("acme/large", node.harness.files(rank=32))
    node.push("acme/support")
    assert node.states() == {"acme-large-v1": "refused", "acme-support-v1": "ready"}
    assert len(list(node.store.versions.iterdir())) == 1


def test_an_engine_that_was_restarted_is_filled_and_proved_again(node: Node) -> None:
    node.push("acme/support")
    node.states()
    node.engine.loaded.clear()
    assert node.states() == {"acme-support-v1": "ready"}
    assert node.loaded == ["acme-support-v1"]
    node.engine.down = True
    with pytest.raises(Unavailable, match="does not respond"):
        node.states()
    node.engine.down = False
    assert node.states() == {"acme-support-v1": "ready"}


def test_other_weights_under_our_name_are_replaced_and_other_adapters_are_left_alone(node: Node) -> None:
    pushed = node.push("acme/support")
    node.engine.loaded = {"acme-support-v1": ("/elsewhere", b"other"), "static": ("/models/static", b"")}
    assert node.states() == {"acme-support-v1": "ready"}
    node.clock.now += 60
    node.states()
    assert node.engine.loaded["acme-support-v1"][1] == pushed[WEIGHTS]
    assert node.loaded == ["acme-support-v1", "static"]


def test_what_another_store_gave_the_engine_serves_until_this_one_has_it(node: Node, tmp_path: Path) -> None:
    node.push("acme/support")
    node.states()
    elsewhere = tmp_path / "old-store"
    node.store.versions.rename(elsewhere)  # as if the agent was started with another --dir
    root = str(elsewhere / next(elsewhere.iterdir()).name)
    node.engine.loaded = {"acme-support-v1": (root, node.engine.loaded["acme-support-v1"][1])}
    node.start()
    node.transport.spoil = lambda data: data[:-7]
    assert node.states() == {"acme-support-v1": "failed"}
    assert node.engine.loaded["acme-support-v1"][0] == root
    assert node.reconciler.aliases == {"acme/support": "acme-support-v1"}
    node.transport.spoil = None
    assert node.states() == {"acme-support-v1": "ready"}
    assert Path(node.engine.loaded["acme-support-v1"][0]).parent == node.store.versions


def test_a_yanked_version_leaves_after_the_drain_and_its_folder_stays(node: Node) -> None:
    node.push("acme/support")
    node.states()
    node.harness.admin.yank("acme/support@1", "leaks addresses")
    assert node.states() == {}
    assert node.reconciler.aliases == {}
    assert node.lines[-1] == "acme/support  acme-support-v1  leaves: 'canary' has no version to serve"
    node.start()  # in the middle of the drain
    assert node.states() == {}
    assert node.loaded == ["acme-support-v1"]
    node.clock.now += 11
    node.states()
    assert node.loaded == []
    assert node.lines[-1].endswith("acme-support-v1  unloaded")
    assert len(list(node.store.versions.iterdir())) == 1


@pytest.mark.parametrize("spoil", [lambda data: data[:-7], lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_bad_bytes_never_reach_the_engine_and_the_next_pass_mends_it(
    node: Node, spoil: Callable[[bytes], bytes]
) -> None:
    node.push("acme/support")
    node.transport.spoil = spoil
    assert node.states() == {"acme-support-v1": "failed"}
    assert node.loaded == []
    node.transport.spoil = None
    assert node.states() == {"acme-support-v1": "ready"}


def test_without_the_registry_a_new_agent_fills_a_new_engine_from_what_it_kept(node: Node) -> None:
    node.push("acme/support")
    node.states()
    node.transport.cut = True
    node.engine.loaded.clear()
    node.start()
    assert node.states() == {"acme-support-v1": "ready"}
    assert node.loaded == ["acme-support-v1"]


def test_a_name_that_the_plugin_resolved_is_unloaded_when_its_alias_moved(node: Node) -> None:
    node.push("acme/support")
    node.states()
    node.engine.loaded["acme/support:canary"] = node.engine.loaded["acme-support-v1"]
    node.engine.loaded["acme/support@1"] = node.engine.loaded["acme-support-v1"]
    node.push("acme/support")
    node.states()
    node.clock.now += 11
    node.states()
    assert node.loaded == ["acme-support-v2", "acme/support@1"]
