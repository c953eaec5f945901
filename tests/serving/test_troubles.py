"""What goes wrong on a box: it keeps serving what it had, says what is wrong, and recovers by itself."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from pathlib import Path

import pytest

from registry.errors import NotFound, RegistryError, Unauthenticated, Unavailable
from registry.serving.agent import agent
from registry.serving.engines.openai import VLLM
from registry.serving.store import store
from tests.serving.box import Box


def full(*_: object, **__: object) -> None:
    """A disk that takes nothing."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_revoked_token_leaves_what_is_served_and_a_new_agent_fills_the_engine_from_what_was_kept(box: Box) -> None:
    box.push("acme/support")
    box.states()
    for token in box.world.admin.tokens().items:
        if token.name == "somebody":
            box.world.admin.revoke_token(token.id)
    with pytest.raises(Unauthenticated, match="token"):
        box.agent.fetch(wait=1)
    assert box.agent.step()[0].state == "ready"
    box.engine.loaded.clear()
    box.start()
    assert box.states() == {"acme-support-v1": "ready"}
    assert box.loaded == ["acme-support-v1"]
    assert any("the one that was kept holds" in line for line in box.said)


def test_an_unknown_base_is_said_and_loads_nothing(box: Box) -> None:
    other = agent.Agent(box.registry, box.station, box.shelf, base="nobody-knows-it")
    with pytest.raises(NotFound, match="nobody-knows-it"):
        other.fetch()
    assert other.step() == []


def test_a_served_name_that_would_leave_the_folder_is_refused_and_reaches_nothing(box: Box) -> None:
    box.push("acme/support")
    box.push("acme/other")
    box.line.spoils = "/bases/"
    box.line.spoil = lambda data: data.replace(b'"acme-support-v1"', b'"../../etc/evil"')
    assert box.states() == {"../../etc/evil": "refused", "acme-other-v1": "ready"}
    assert box.loaded == ["acme-other-v1"]
    box.line.spoil = None
    box.push("acme/support")  # the roster that was spoilt is the one that is known until it changes
    assert box.states() == {"acme-other-v1": "ready", "acme-support-v2": "ready"}


@pytest.mark.parametrize("where", ["copy", "manifest"])
def test_a_full_disk_fails_one_adapter_and_is_mended_by_room(
    box: Box, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    box.push("acme/support")
    box.states()
    box.push("acme/support")

    with monkeypatch.context() as patch:
        patch.setattr(store.pull if where == "copy" else store, "pull" if where == "copy" else "write_whole", full)
        assert box.states() == {"acme-support-v2": "failed"}
        assert box.station.aliases == {"acme/support": "acme-support-v1"}
        assert any("No space left" in line and "cannot be kept" in line for line in box.said)
        assert box.reported() == {"acme-support-v1": "serving", "acme-support-v2": "failed"}
    assert not list((box.shelf.root / "incoming").iterdir()), "nothing half lies there"
    assert box.states() == {"acme-support-v2": "ready"}


def test_an_alias_that_a_full_disk_did_not_take_keeps_the_old_version_and_is_written_when_there_is_room(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.push("acme/support")
    box.states()
    box.push("acme/support")
    told = box.shelf.root / "aliases.json"
    with monkeypatch.context() as patched:
        patched.setattr("registry.serving.agent.reconciler.write_whole", full)
        for _ in range(2):
            with pytest.raises(Unavailable, match="cannot be written: No space left"):
                box.states()
            box.clock.now += 60
    assert json.loads(told.read_text()) == {"acme/support": "acme-support-v1"}
    assert box.loaded == ["acme-support-v1", "acme-support-v2"]
    box.states()
    assert json.loads(told.read_text()) == {"acme/support": "acme-support-v2"}
    told.unlink()
    box.states()
    assert json.loads(told.read_text()) == {"acme/support": "acme-support-v2"}


def test_a_roster_that_a_full_disk_did_not_take_is_kept_when_there_is_room(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.push("acme/support")
    box.states()
    box.push("acme/support")
    with monkeypatch.context() as patched:
        patched.setattr("registry.serving.agent.agent.write_whole", full)
        for _ in range(2):
            assert box.states() == {"acme-support-v2": "ready"}
    assert len([line for line in box.said if "cannot be kept for a time" in line]) == 1
    box.states()
    box.line.cut = True
    box.start()
    assert box.states() == {"acme-support-v2": "ready"}


def test_an_engine_that_dies_in_the_middle_is_waited_for_and_filled_again(box: Box) -> None:
    box.push("acme/support")
    box.states()
    box.push("acme/support")
    box.engine.die_at = "/v1/completions"
    with pytest.raises(Unavailable, match="does not answer"):
        box.states()
    assert box.station.aliases == {"acme/support": "acme-support-v1"}, "nobody was switched to what is not proved"
    with pytest.raises(Unavailable):
        box.states()
    assert box.reported() == {"acme-support-v2": "held"}
    assert box.metrics.value("converged") == 0
    box.engine.start()
    assert box.states() == {"acme-support-v2": "ready"}
    assert box.reported() == {"acme-support-v2": "serving"}


def test_an_engine_that_answers_what_is_not_its_own_is_one_that_is_not_there(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.push("acme/support")
    monkeypatch.setattr(box.engine, "answer", lambda *_: (200, {"detail": "a proxy's page"}))
    with pytest.raises(Unavailable, match="not its own"):
        box.states()
    monkeypatch.undo()
    assert box.states() == {"acme-support-v1": "ready"}


def test_what_was_served_stays_when_agent_and_successor_fail_together(box: Box) -> None:
    box.push("acme/support")
    box.states()
    box.push("acme/support")
    box.start()
    box.line.spoil = lambda data: data[:-7]
    for _ in range(2):
        assert box.states() == {"acme-support-v2": "failed"}
        box.clock.now += 60
    assert (box.loaded, box.station.aliases) == (["acme-support-v1"], {"acme/support": "acme-support-v1"})
    box.line.spoil = None
    box.clock.now += 60
    assert box.states() == {"acme-support-v2": "ready"}


def test_so_many_are_loaded_at_once_and_not_more(box: Box) -> None:
    for number in range(6):
        box.push(f"acme/m{number}", tried=False)
    box.engine.load_seconds = 0.02
    assert set(box.states().values()) == {"ready"}
    assert 1 <= box.engine.most_at_once <= 4


def test_an_adapter_that_somebody_unloaded_is_loaded_again(box: Box) -> None:
    box.push("acme/support")
    box.push("acme/other")
    box.states()
    VLLM(box.engine.url).unload("acme-support-v1")
    assert box.states() == {"acme-other-v1": "ready", "acme-support-v1": "ready"}
    assert (box.loaded, box.engine.loads) == (["acme-other-v1", "acme-support-v1"], 3)


def test_a_shelf_that_was_deleted_is_filled_again_beside_an_engine_that_serves_on(box: Box) -> None:
    box.push("acme/support")
    box.states()
    shutil.rmtree(box.shelf.root)
    box.start()
    assert box.states() == {"acme-support-v1": "ready"}
    box.engine.stop()
    box.engine.start()
    assert box.states() == {"acme-support-v1": "ready"}
    assert Path(box.engine.loaded["acme-support-v1"][0]).is_dir()


def test_an_agent_runs_through_an_outage_says_it_once_and_takes_what_it_missed(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(agent, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(agent, "WAIT_SECONDS", 1)
    said = threading.Condition()

    def say(text: str) -> None:
        with said:
            box.said.append(text)
            said.notify_all()

    def wait_for(words: str) -> None:
        with said:
            assert said.wait_for(lambda: any(words in line for line in box.said), 60), box.said

    box.push("acme/support")
    box.agent._say = say
    stop = threading.Event()
    running = threading.Thread(target=box.agent.run, args=(stop,))
    running.start()
    try:
        wait_for("acme-support-v1  ready")
        box.line.cut = True
        wait_for("no new roster")
        box.engine.stop()
        wait_for("the engine at")
        box.push("acme/support")
        box.engine.start()
        box.line.cut = False
        wait_for("acme-support-v2  ready")
    finally:
        stop.set()
        box.agent.wake()
        running.join(60)
    assert not running.is_alive()
    assert sum("no new roster" in line for line in box.said) == 1


def test_a_bug_in_a_pass_is_said_and_ends_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "LOOK_SECONDS", 0.01)
    box.push("acme/support")
    box.agent.fetch()
    stop, passes = threading.Event(), list[int]()

    def broken(*_: object) -> None:
        passes.append(1)
        if len(passes) > 2:
            stop.set()
        raise ZeroDivisionError("nobody thought of it")

    monkeypatch.setattr(box.station, "converge", broken)
    monkeypatch.setattr(box.agent, "fetch", lambda **_: False)
    box.agent.run(stop)
    assert len(passes) == 3
    assert [line for line in box.said if "bug" in line] == [
        "a pass failed in a way that is a bug: ZeroDivisionError('nobody thought of it')"
    ]


def test_a_registry_that_knows_no_fleet_is_said_once_and_harms_nothing(box: Box) -> None:
    box.push("acme/support")
    box.states()
    box.line.cut = True
    for _ in range(3):
        box.agent.report()
    assert sum("takes no report" in line for line in box.said) == 1
    assert (box.metrics.value("reports"), box.metrics.value("reports_failed")) == (0, 3)
    box.line.cut = False
    assert box.reported() == {"acme-support-v1": "serving"}


def test_names_from_outside_never_become_paths(box: Box) -> None:
    for name in ("../x", "acme/../../x", "acme\\x/y", "/etc/passwd", ""):
        with pytest.raises(RegistryError):
            box.registry.resolve(name)
    assert box.shelf.digest_at(f"{box.shelf.versions}/../../etc") is None
