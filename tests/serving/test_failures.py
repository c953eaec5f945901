"""Failures on a node: it keeps serving what it had, reports the error, and recovers by itself."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from pathlib import Path

import httpx
import pytest

from registry.errors import NotFound, RegistryError, Unauthenticated, Unavailable
from registry.serving.agent import agent
from registry.serving.engines import openai
from registry.serving.engines.openai import VLLM
from registry.serving.store import local_store
from tests.httpx_transports import MockTransport
from tests.serving.node import Node


def full_disk(*_: object, **__: object) -> None:
    """A disk that takes nothing."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_revoked_token_leaves_what_is_served_and_a_new_agent_fills_the_engine_from_what_was_kept(node: Node) -> None:
    node.push("acme/support")
    node.states()
    for token in node.harness.admin.tokens().items:
        if token.name == "somebody":
            node.harness.admin.revoke_token(token.id)
    with pytest.raises(Unauthenticated, match="token"):
        node.agent.fetch(wait=1)
    assert node.agent.step()[0].state == "ready"
    node.engine.loaded.clear()
    node.start()
    assert node.states() == {"acme-support-v1": "ready"}
    assert node.loaded == ["acme-support-v1"]
    assert any("using the stored desired state" in transport for transport in node.lines)


def test_an_unknown_base_is_said_and_loads_nothing(node: Node) -> None:
    other = agent.Agent(node.registry, node.reconciler, node.store, base="nobody-knows-it")
    with pytest.raises(NotFound, match="nobody-knows-it"):
        other.fetch()
    assert other.step() == []


def test_a_served_name_that_would_leave_the_folder_is_refused_and_reaches_nothing(node: Node) -> None:
    node.push("acme/support")
    node.push("acme/other")
    node.transport.spoils = "/bases/"
    node.transport.spoil = lambda data: data.replace(b'"acme-support-v1"', b'"../../etc/evil"')
    assert node.states() == {"../../etc/evil": "refused", "acme-other-v1": "ready"}
    assert node.loaded == ["acme-other-v1"]
    node.transport.spoil = None
    node.push("acme/support")  # the desired state that was spoilt is the one that is known until it changes
    assert node.states() == {"acme-other-v1": "ready", "acme-support-v2": "ready"}


@pytest.mark.security
@pytest.mark.parametrize(
    "change",
    [
        {"served_name": "acme-other-v9"}, {"served_name": "a\x1b]52;c;QQ==\x07"}, {"served_name": "x" * 5000},
        {"number": 2}, {"number": 0}, {"number": -1}, {"number": 2**80}, {"name": "../../etc"},
        {"name": "bolt/support"},
    ],
)  # fmt: skip
def test_an_entry_that_contradicts_itself_is_refused_alone(node: Node, change: dict[str, object]) -> None:
    node.push("acme/support")
    node.push("acme/other")
    node.transport.spoils = "/bases/"
    node.transport.spoil = lambda data: changed_entry(data, change)
    node.agent.fetch()
    slots = {slot.name: (slot.state, slot.corrupt) for slot in node.agent.step()}
    assert slots == {change.get("name", "acme/support"): ("refused", True), "acme/other": ("ready", False)}
    assert (node.loaded, list(node.reconciler.aliases)) == (["acme-other-v1"], ["acme/other"])
    assert node.reported()["acme-other-v1"] == "serving"
    assert (node.metrics.value("refused"), node.metrics.value("converged")) == (1, 0)


@pytest.mark.security
@pytest.mark.parametrize("number", [2, -1, 2**80])
def test_a_pull_that_names_another_number_than_the_desired_state_fails_alone(node: Node, number: int) -> None:
    node.push("acme/support")
    node.push("acme/other")
    digest = node.harness.admin.version("acme/support").digest

    def lie(data: bytes) -> bytes:
        document = json.loads(data)
        for item in document["items"]:
            if item["result"]["resolved"]["digest"] == digest:
                item["result"]["resolved"]["number"] = number
        return json.dumps(document).encode()

    node.transport.spoils, node.transport.spoil = "/pulls", lie
    node.agent.fetch()
    slots = {slot.name: (slot.state, slot.corrupt, "number" in slot.reason) for slot in node.agent.step()}
    assert slots == {"acme/support": ("failed", True, True), "acme/other": ("ready", False, False)}
    assert node.loaded == ["acme-other-v1"]
    assert not (node.store.versions / digest.hex).exists()
    node.transport.spoil = None
    assert node.states() == {"acme-support-v1": "ready", "acme-other-v1": "ready"}


def changed_entry(data: bytes, change: dict[str, object]) -> bytes:
    """A desired state with other values in the entry of acme/support."""
    document = json.loads(data)
    for entry in document["adapters"]:
        entry.update(change if entry["name"] == "acme/support" else {})
    return json.dumps(document).encode()


@pytest.mark.parametrize("where", ["copy", "manifest"])
def test_a_full_disk_fails_one_adapter_and_recovers_when_there_is_space(
    node: Node, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    node.push("acme/support")
    node.states()
    node.push("acme/support")

    with monkeypatch.context() as patch:
        patch.setattr(
            "registry.client.transfer.pull._put" if where == "copy" else f"{local_store.__name__}.replace_file",
            full_disk,
        )
        assert node.states() == {"acme-support-v2": "failed"}
        assert node.reconciler.aliases == {"acme/support": "acme-support-v1"}
        assert any("No space left" in transport and "cannot be stored" in transport for transport in node.lines)
        assert node.reported() == {"acme-support-v1": "serving", "acme-support-v2": "failed"}
    assert not [path for path in node.store.versions.iterdir() if path.name.startswith(".")], "nothing half lies there"
    assert node.states() == {"acme-support-v2": "ready"}


def test_an_alias_that_a_full_disk_did_not_take_keeps_the_old_version_and_is_written_when_there_is_space(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.push("acme/support")
    node.states()
    node.push("acme/support")
    aliases = node.store.root / "aliases.json"
    with monkeypatch.context() as patched:
        patched.setattr("registry.serving.agent.reconciler.replace_file", full_disk)
        for _ in range(2):
            with pytest.raises(Unavailable, match="cannot be written: No space left"):
                node.states()
            node.clock.now += 60
    assert json.loads(aliases.read_text()) == {"acme/support": "acme-support-v1"}
    assert node.loaded == ["acme-support-v1", "acme-support-v2"]
    node.states()
    assert json.loads(aliases.read_text()) == {"acme/support": "acme-support-v2"}
    aliases.unlink()
    node.states()
    assert json.loads(aliases.read_text()) == {"acme/support": "acme-support-v2"}


def test_an_engine_that_dies_in_the_middle_is_waited_for_and_filled_again(node: Node) -> None:
    node.push("acme/support")
    node.states()
    node.push("acme/support")
    node.engine.die_at = "/v1/completions"
    with pytest.raises(Unavailable, match="does not respond"):
        node.states()
    assert node.reconciler.aliases == {"acme/support": "acme-support-v1"}, "nobody was switched to what is not proved"
    with pytest.raises(Unavailable):
        node.states()
    assert node.reported() == {"acme-support-v2": "downloaded"}
    assert node.metrics.value("converged") == 0
    node.engine.start()
    assert node.states() == {"acme-support-v2": "ready"}
    assert node.reported() == {"acme-support-v2": "serving"}


def test_an_engine_that_returns_what_is_not_its_own_is_one_that_is_not_there(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.push("acme/support")
    monkeypatch.setattr(node.engine, "respond", lambda *_: (200, {"detail": "a proxy's page"}))
    with pytest.raises(Unavailable, match="something unexpected"):
        node.states()
    monkeypatch.undo()
    assert node.states() == {"acme-support-v1": "ready"}


def test_what_was_served_stays_when_agent_and_successor_fail_together(node: Node) -> None:
    node.push("acme/support")
    node.states()
    node.push("acme/support")
    node.start()
    node.transport.spoil = lambda data: data[:-7]
    for _ in range(2):
        assert node.states() == {"acme-support-v2": "failed"}
        node.clock.now += 60
    assert (node.loaded, node.reconciler.aliases) == (["acme-support-v1"], {"acme/support": "acme-support-v1"})
    node.transport.spoil = None
    node.clock.now += 60
    assert node.states() == {"acme-support-v2": "ready"}


def test_so_many_are_loaded_at_once_and_not_more(node: Node) -> None:
    for number in range(6):
        node.push(f"acme/m{number}", tried=False)
    node.engine.load_seconds = 0.02
    assert set(node.states().values()) == {"ready"}
    assert 1 <= node.engine.most_at_once <= 4


def test_an_adapter_that_was_unloaded_by_hand_is_loaded_again(node: Node) -> None:
    node.push("acme/support")
    node.push("acme/other")
    node.states()
    VLLM(node.engine.url).unload("acme-support-v1")
    assert node.states() == {"acme-other-v1": "ready", "acme-support-v1": "ready"}
    assert (node.loaded, node.engine.loads) == (["acme-other-v1", "acme-support-v1"], 3)


def test_a_store_that_was_deleted_is_filled_again_beside_an_engine_that_serves_on(node: Node) -> None:
    node.push("acme/support")
    node.states()
    shutil.rmtree(node.store.root)
    node.start()
    assert node.states() == {"acme-support-v1": "ready"}
    node.engine.stop()
    node.engine.start()
    assert node.states() == {"acme-support-v1": "ready"}
    assert Path(node.engine.loaded["acme-support-v1"][0]).is_dir()


def test_an_agent_runs_through_an_outage_says_it_once_and_takes_what_it_missed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(agent, "INSPECT_SECONDS", 0.05)
    monkeypatch.setattr(agent, "WAIT_SECONDS", 1)
    changed = threading.Condition()

    def say(text: str) -> None:
        with changed:
            node.lines.append(text)
            changed.notify_all()

    def wait_for(words: str) -> None:
        with changed:
            assert changed.wait_for(lambda: any(words in transport for transport in node.lines), 60), node.lines

    node.push("acme/support")
    node.agent._say, node.agent._warn = say, lambda text: say(f"WARNING {text}")
    stop = threading.Event()
    running = threading.Thread(target=node.agent.run, args=(stop,))
    running.start()
    try:
        wait_for("acme-support-v1  ready")
        node.transport.cut = True
        wait_for("WARNING cannot fetch the desired state")
        node.engine.stop()
        wait_for("the engine at")
        node.push("acme/support")
        node.engine.start()
        wait_for("passes succeed again")
        node.transport.cut = False
        wait_for("WARNING the registry responds again")
        wait_for("acme-support-v2  ready")
    finally:
        stop.set()
        node.agent.wake()
        running.join(60)
    assert not running.is_alive()
    assert sum("cannot fetch the desired state" in transport for transport in node.lines) == 1


def test_a_bug_in_a_pass_is_said_and_ends_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "INSPECT_SECONDS", 0.01)
    node.push("acme/support")
    node.agent.fetch()
    stop, passes = threading.Event(), list[int]()

    def broken(*_: object) -> None:
        passes.append(1)
        if len(passes) > 2:
            stop.set()
        raise ZeroDivisionError("nobody thought of it")

    monkeypatch.setattr(node.reconciler, "reconcile", broken)
    monkeypatch.setattr(node.agent, "fetch", lambda **_: False)
    node.agent.run(stop)
    assert len(passes) == 3
    assert [transport for transport in node.lines if "bug" in transport] == [
        "a pass failed because of a bug: ZeroDivisionError('nobody thought of it')"
    ]


def test_a_registry_that_knows_no_fleet_is_said_once_and_harms_nothing(node: Node) -> None:
    node.push("acme/support")
    node.states()
    node.transport.cut = True
    for _ in range(3):
        node.agent.send_heartbeat()
    assert sum("does not accept reports" in transport for transport in node.lines) == 1
    assert (node.metrics.value("reports"), node.metrics.value("reports_failed")) == (0, 3)
    node.transport.cut = False
    assert node.reported() == {"acme-support-v1": "serving"}


def test_names_from_outside_never_become_paths(node: Node) -> None:
    for name in ("../x", "acme/../../x", "acme\\x/y", "/etc/passwd", ""):
        with pytest.raises(RegistryError):
            node.registry.resolve(name)
    assert node.store.digest_at(f"{node.store.versions}/../../etc") is None


@pytest.mark.security
@pytest.mark.parametrize("body", [b"[" * 100_000, b" " * 200_001])
def test_a_response_of_an_engine_that_cannot_be_read_is_the_engines_failure(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "RESPONSE_LIMIT_BYTES", 200_000)
    engine = VLLM("http://engine", transport=MockTransport(lambda _: httpx.Response(200, content=body)))
    with pytest.raises(Unavailable) as caught:
        engine.loaded()
    assert len(caught.value.detail) < 700
