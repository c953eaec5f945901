"""The agent's pass over an engine that behaves as vLLM does: load, prove, switch, drain; and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.errors import Unavailable
from tests.forge import WEIGHTS
from tests.serving.box import Box


def test_twenty_adapters_are_loaded_from_their_own_folders_and_proved(box: Box) -> None:
    files = {f"acme/m{n}": box.push(f"acme/m{n}") for n in range(20)}
    assert box.states() == {f"acme-m{n}-v1": "ready" for n in range(20)}
    for name, given in files.items():
        root, weights = box.engine.loaded[box.station.aliases[name]]
        assert (Path(root).name, weights) == (box.world.admin.version(name).digest.hex, given[WEIGHTS])
    assert json.loads((box.shelf.root / "aliases.json").read_text()) == box.station.aliases
    assert box.states()
    assert box.engine.loads == 20


def test_a_promote_loads_the_new_one_switches_drains_and_unloads_the_old_one(box: Box) -> None:
    box.push("acme/support")
    box.states()
    box.push("acme/support")
    assert box.states() == {"acme-support-v2": "ready"}
    assert (box.station.aliases, box.loaded) == (
        {"acme/support": "acme-support-v2"}, ["acme-support-v1", "acme-support-v2"],
    )  # fmt: skip
    assert box.station.due_seconds() == 10
    box.clock.now += 11
    box.states()
    assert (box.loaded, box.station.due_seconds()) == (["acme-support-v2"], None)
    box.world.admin.rollback("acme/support", "canary")
    assert box.states() == {"acme-support-v1": "ready"}
    assert box.station.aliases == {"acme/support": "acme-support-v1"}


def test_an_adapter_that_the_engine_takes_and_ignores_is_unloaded_and_the_old_one_stays(box: Box) -> None:
    box.push("acme/support")
    box.push("acme/other")
    box.states()
    box.push("acme/support")
    box.engine.deaf = True
    assert box.states() == {"acme-support-v2": "failed", "acme-other-v1": "ready"}
    assert "answers like base" in " ".join(box.said)
    assert box.station.aliases["acme/support"] == "acme-support-v1"
    assert box.loaded == ["acme-other-v1", "acme-support-v1"]
    box.engine.deaf = False
    box.clock.now += 31
    assert box.states()["acme-support-v2"] == "ready"


def test_what_the_engine_would_refuse_is_not_fetched_and_blocks_nobody(box: Box) -> None:
    box.push("acme/large", box.world.files(rank=32))
    box.push("acme/support")
    assert box.states() == {"acme-large-v1": "refused", "acme-support-v1": "ready"}
    assert len(list(box.shelf.versions.iterdir())) == 1


def test_an_engine_that_was_restarted_is_filled_and_proved_again(box: Box) -> None:
    box.push("acme/support")
    box.states()
    box.engine.loaded.clear()
    assert box.states() == {"acme-support-v1": "ready"}
    assert box.loaded == ["acme-support-v1"]
    box.engine.down = True
    with pytest.raises(Unavailable, match="does not answer"):
        box.states()
    box.engine.down = False
    assert box.states() == {"acme-support-v1": "ready"}


def test_other_weights_under_our_name_are_replaced_and_strangers_are_left_alone(box: Box, tmp_path: Path) -> None:
    given = box.push("acme/support")
    box.engine.loaded = {"acme-support-v1": ("/elsewhere", b"other"), "static": ("/models/static", b"")}
    assert box.states() == {"acme-support-v1": "ready"}
    box.clock.now += 60
    box.states()
    assert box.engine.loaded["acme-support-v1"][1] == given[WEIGHTS]
    assert box.loaded == ["acme-support-v1", "static"]


def test_what_another_shelf_gave_the_engine_serves_until_this_one_has_it(box: Box, tmp_path: Path) -> None:
    box.push("acme/support")
    box.states()
    elsewhere = tmp_path / "old-shelf"
    box.shelf.versions.rename(elsewhere)  # as if the agent was started with another --dir
    root = str(elsewhere / next(elsewhere.iterdir()).name)
    box.engine.loaded = {"acme-support-v1": (root, box.engine.loaded["acme-support-v1"][1])}
    box.start()
    box.line.spoil = lambda data: data[:-7]
    assert box.states() == {"acme-support-v1": "failed"}
    assert box.engine.loaded["acme-support-v1"][0] == root
    assert box.station.aliases == {"acme/support": "acme-support-v1"}
    box.line.spoil = None
    assert box.states() == {"acme-support-v1": "ready"}
    assert Path(box.engine.loaded["acme-support-v1"][0]).parent == box.shelf.versions


def test_a_yanked_version_leaves_after_the_drain_and_its_folder_stays(box: Box) -> None:
    box.push("acme/support")
    box.states()
    box.world.admin.yank("acme/support@1", "leaks addresses")
    assert box.states() == {}
    assert box.station.aliases == {}
    box.start()  # in the middle of the drain
    assert box.states() == {}
    assert box.loaded == ["acme-support-v1"]
    box.clock.now += 11
    box.states()
    assert box.loaded == []
    assert len(list(box.shelf.versions.iterdir())) == 1


@pytest.mark.parametrize("spoil", [lambda data: data[:-7], lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_bad_bytes_never_reach_the_engine_and_the_next_pass_mends_it(box: Box, spoil: Callable[[bytes], bytes]) -> None:
    box.push("acme/support")
    box.line.spoil = spoil
    assert box.states() == {"acme-support-v1": "failed"}
    assert box.loaded == []
    box.line.spoil = None
    assert box.states() == {"acme-support-v1": "ready"}


def test_without_the_registry_a_new_agent_fills_a_new_engine_from_what_it_kept(box: Box) -> None:
    box.push("acme/support")
    box.states()
    box.line.cut = True
    box.engine.loaded.clear()
    box.start()
    assert box.states() == {"acme-support-v1": "ready"}
    assert box.loaded == ["acme-support-v1"]


def test_a_name_that_the_plugin_resolved_is_unloaded_when_its_alias_moved(box: Box) -> None:
    box.push("acme/support")
    box.states()
    box.engine.loaded["acme/support:canary"] = box.engine.loaded["acme-support-v1"]
    box.engine.loaded["acme/support@1"] = box.engine.loaded["acme-support-v1"]
    box.push("acme/support")
    box.states()
    box.clock.now += 11
    box.states()
    assert box.loaded == ["acme-support-v2", "acme/support@1"]
