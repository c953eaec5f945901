"""A node with a real vLLM: twenty merchants' adapters by the plugin and by the agent, kills, promotes, poison.

The tests are one sequence, in order: each begins with what the one before has left. Part of `make test-vllm`.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from registry.errors import Refused
from tests.proof import venvs

if TYPE_CHECKING:
    from tests.proof.node import Node

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not venvs.vllm_is_wanted(), reason=f"runs vLLM {venvs.VLLM} for minutes: make test-vllm does it"
    ),
]
NAMES = [f"acme/m{number}" for number in range(20)]
POISON, OVERFLOW, UNTRIED = "acme/poison", "acme/overflow", "acme/untried"
TOLERANCE = 2e-2


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Twenty adapters that act, `prod` at their first version; a second one of the first. And
    one full of NaN, one whose numbers overflow on the base, and one that no worker has tried."""
    from tests.proof import node as nodes  # imports torch
    from tests.proof import reference, vllm_http

    with nodes.node_with_base(tmp_path_factory.mktemp("node")) as node:
        for number, name in enumerate(NAMES):
            node.push(name, seed=100 + number)
        node.push(NAMES[0], seed=200)
        node.push(OVERFLOW, seed=301, change=vllm_http.overflowing)
        node.smoke_test()
        for name in NAMES:
            node.promote(name, 1)
        node.expected = reference.answers(node.folder / "base", node.folders)
        node.push(POISON, seed=300, change=vllm_http.without_numbers)
        node.push(UNTRIED, seed=302)
        yield node


@pytest.fixture(scope="module")
def plugin_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plugin") / "store"


@pytest.fixture(scope="module")
def agent_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agent") / "store"


def test_the_plugin_serves_twenty_adapters_and_each_answers_as_in_peft(node: Node, plugin_store: Path) -> None:
    node.start_engine(plugin_store)
    for name in NAMES:
        assert node.far(f"{name}:prod", f"{name}@1") < TOLERANCE
    for name, other in itertools.pairwise(NAMES):  # they are far enough apart to tell them by
        assert node.far(f"{name}:prod", f"{other}@1") > 3 * TOLERANCE
        assert node.far(f"{name}:prod", "") > 3 * TOLERANCE
    digests = {node.registry.version(f"{name}@1").digest.hex for name in NAMES}
    assert {path.name for path in (plugin_store / "versions").iterdir()} == digests
    assert node.far(NAMES[0], f"{NAMES[0]}@2") < TOLERANCE
    assert node.far(f"{NAMES[0]}@2", f"{NAMES[0]}@2") < TOLERANCE
    assert len(list((plugin_store / "versions").iterdir())) == len(NAMES) + 1


def test_an_adapter_that_disturbs_others_never_reaches_the_engine(node: Node, plugin_store: Path) -> None:
    before = node.ask(f"{NAMES[1]}:prod")
    for name in (POISON, OVERFLOW):
        with pytest.raises(Refused, match="may not become"):
            node.promote(name, 1)
        node.promote(name, 1, break_glass=True, reason="to see that it is not served all the same")
    for name in (POISON, OVERFLOW, UNTRIED):
        for model in (name, f"{name}:prod", f"{name}@1"):
            assert str(node.ask(model)).startswith("404"), model
        digest = node.registry.version(f"{name}@1").digest.hex
        assert digest not in [path.name for path in (plugin_store / "versions").iterdir()]
    log = node.engine.log.read_text()
    assert log.count("its check 'weights' says fail") == 3
    assert log.count("its check 'smoke' says fail") == 3
    assert log.count("its check 'smoke' has not run yet") == 2
    assert node.ask(f"{NAMES[1]}:prod") == before


def test_served_versions_survive_an_outage_of_the_registry_and_a_new_engine(node: Node, plugin_store: Path) -> None:

    node.server.kill()
    assert node.far(f"{NAMES[3]}:prod", f"{NAMES[3]}@1") < TOLERANCE
    assert str(node.ask(f"{NAMES[3]}@1")).startswith("404")
    node.engine.end(signal.SIGKILL)
    node.start_engine(plugin_store)
    for name in NAMES:
        assert node.far(f"{name}:prod", f"{name}@1") < TOLERANCE
    node.server.start()
    node.until(lambda: not isinstance(node.ask(f"{NAMES[3]}@1"), str))
    assert node.far(f"{NAMES[3]}@1", f"{NAMES[3]}@1") < TOLERANCE


def test_the_agent_keeps_an_engine_at_prod_through_promotes_and_kills(node: Node, agent_store: Path) -> None:
    from tests.proof import node as nodes

    node.engine.end(signal.SIGKILL)
    node.start_engine(agent_store)
    first = {name: f"{name.replace('/', '-')}-v1" for name in NAMES}
    with node.agent(agent_store) as folder:
        node.until(lambda: nodes.aliases(agent_store) == first)
        for name in NAMES:
            assert node.far(first[name], f"{name}@1") < TOLERANCE
        log_text = (folder / "server.log").read_text()
        assert all(f"{name}  {name.replace('/', '-')}-v1  refused" in log_text for name in (POISON, OVERFLOW)), log_text
        assert not [name for name in node.loaded() if "poison" in name or "overflow" in name]

        assert node.far(f"{NAMES[0]}:prod", f"{NAMES[0]}@1") < TOLERANCE  # by the plugin, from the agent's store
        node.promote(NAMES[0], 2)
        node.until(lambda: nodes.aliases(agent_store)[NAMES[0]] == "acme-m0-v2")
        assert node.far("acme-m0-v2", f"{NAMES[0]}@2") < TOLERANCE
        node.until(lambda: not {"acme-m0-v1", f"{NAMES[0]}:prod"} & set(node.loaded()))
        assert node.far(f"{NAMES[0]}:prod", f"{NAMES[0]}@2") < TOLERANCE
        node.registry.rollback(NAMES[0], "prod")
        node.until(lambda: nodes.aliases(agent_store) == first)
        assert node.far("acme-m0-v1", f"{NAMES[0]}@1") < TOLERANCE

        node.server.kill()
        node.engine.end(signal.SIGKILL)
        node.start_engine(agent_store)
        node.until(lambda: set(first.values()) <= set(node.loaded()))
        for name in NAMES:
            assert node.far(first[name], f"{name}@1") < TOLERANCE
        node.server.start()
        node.promote(NAMES[0], 2)
        node.until(lambda: nodes.aliases(agent_store)[NAMES[0]] == "acme-m0-v2")
        assert node.far("acme-m0-v2", f"{NAMES[0]}@2") < TOLERANCE
        assert not [name for name in node.loaded() if "poison" in name or "overflow" in name]
    assert node.far("acme-m0-v2", f"{NAMES[0]}@2") < TOLERANCE  # the agent is gone and the engine goes on


@pytest.mark.parametrize("name", [POISON, OVERFLOW])
def test_the_poison_is_one(node: Node, name: str) -> None:
    """Loaded by hand, around the registry, vLLM takes it and answers with numbers that are none."""
    from tests.proof import vllm_http

    assert vllm_http.load(node.engine.client, "by-hand", node.folders[f"{name}@1"]) == "ok"
    assert str(node.ask("by-hand")).startswith("400")
    node.engine.client.post("/v1/unload_lora_adapter", json={"lora_name": "by-hand"})
