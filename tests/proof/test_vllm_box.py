"""A box with a real vLLM: twenty merchants' adapters by the plugin and by the agent, kills, promotes, poison.

The tests are one story, in order: each begins with what the one before has left. Part of `make test-vllm`.
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
    from tests.proof.box import Box

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not venvs.vllm_is_wanted(), reason=f"runs vLLM {venvs.VLLM} for minutes: make test-vllm does it"
    ),
]
NAMES = [f"acme/m{number}" for number in range(20)]
POISON = "acme/poison"
TOLERANCE = 2e-2


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Twenty adapters that act, `prod` at their first version; a second one of the first; one full of NaN."""
    from tests.proof import box as boxes  # imports torch
    from tests.proof import reference, vllm_http

    with boxes.standing(tmp_path_factory.mktemp("box")) as made:
        for number, name in enumerate(NAMES):
            made.push(name, seed=100 + number)
        made.push(NAMES[0], seed=200)
        made.smoke_test()
        for name in NAMES:
            made.promote(name, 1)
        made.expected = reference.answers(made.folder / "base", made.folders)
        made.push(POISON, seed=300, change=vllm_http.without_numbers)
        yield made


@pytest.fixture(scope="module")
def plugin_shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plugin") / "shelf"


@pytest.fixture(scope="module")
def agent_shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agent") / "shelf"


def test_the_plugin_brings_twenty_merchants_adapters_and_each_answers_as_in_peft(box: Box, plugin_shelf: Path) -> None:
    box.start_engine(plugin_shelf)
    for name in NAMES:
        assert box.far(f"{name}:prod", f"{name}@1") < TOLERANCE
    for name, other in itertools.pairwise(NAMES):  # they are far enough apart to tell them by
        assert box.far(f"{name}:prod", f"{other}@1") > 3 * TOLERANCE
        assert box.far(f"{name}:prod", "") > 3 * TOLERANCE
    digests = {box.registry.version(f"{name}@1").digest.hex for name in NAMES}
    assert {path.name for path in (plugin_shelf / "versions").iterdir()} == digests
    assert box.far(NAMES[0], f"{NAMES[0]}@2") < TOLERANCE
    assert box.far(f"{NAMES[0]}@2", f"{NAMES[0]}@2") < TOLERANCE
    assert len(list((plugin_shelf / "versions").iterdir())) == len(NAMES) + 1


def test_an_adapter_that_poisons_its_neighbours_never_reaches_the_engine(box: Box, plugin_shelf: Path) -> None:
    before = box.ask(f"{NAMES[1]}:prod")
    with pytest.raises(Refused, match="may not become"):
        box.promote(POISON, 1)
    box.promote(POISON, 1, break_glass=True, reason="to see that it is not served all the same")
    for model in (POISON, f"{POISON}:prod", f"{POISON}@1"):
        assert str(box.ask(model)).startswith("404"), model
    assert box.registry.version(f"{POISON}@1").digest.hex not in [p.name for p in (plugin_shelf / "versions").iterdir()]
    assert "NaN or infinite values" in box.engine.log.read_text()
    assert box.ask(f"{NAMES[1]}:prod") == before


def test_what_was_served_is_served_while_the_registry_is_away_also_by_a_new_engine(
    box: Box, plugin_shelf: Path
) -> None:
    from tests.proof import box as boxes

    box.server.kill()
    assert box.far(f"{NAMES[3]}:prod", f"{NAMES[3]}@1") < TOLERANCE
    assert str(box.ask(f"{NAMES[3]}@1")).startswith("404")
    box.engine.end(signal.SIGKILL)
    box.start_engine(plugin_shelf)
    for name in NAMES:
        assert box.far(f"{name}:prod", f"{name}@1") < TOLERANCE
    box.server.start()
    boxes.until(lambda: not isinstance(box.ask(f"{NAMES[3]}@1"), str))
    assert box.far(f"{NAMES[3]}@1", f"{NAMES[3]}@1") < TOLERANCE


def test_the_agent_keeps_an_engine_at_prod_through_promotes_and_kills_of_both(box: Box, agent_shelf: Path) -> None:
    from tests.proof import box as boxes

    box.engine.end(signal.SIGKILL)
    box.start_engine(agent_shelf)
    first = {name: f"{name.replace('/', '-')}-v1" for name in NAMES}
    with box.agent(agent_shelf) as told:
        boxes.until(lambda: boxes.aliases(agent_shelf) == first, told)
        for name in NAMES:
            assert box.far(first[name], f"{name}@1") < TOLERANCE
        assert "refused" in (told / "server.log").read_text()
        assert not [name for name in box.loaded() if "poison" in name]

        assert box.far(f"{NAMES[0]}:prod", f"{NAMES[0]}@1") < TOLERANCE  # by the plugin, from the agent's shelf
        box.promote(NAMES[0], 2)
        boxes.until(lambda: boxes.aliases(agent_shelf)[NAMES[0]] == "acme-m0-v2", told)
        assert box.far("acme-m0-v2", f"{NAMES[0]}@2") < TOLERANCE
        boxes.until(lambda: not {"acme-m0-v1", f"{NAMES[0]}:prod"} & set(box.loaded()), told)
        assert box.far(f"{NAMES[0]}:prod", f"{NAMES[0]}@2") < TOLERANCE
        box.registry.rollback(NAMES[0], "prod")
        boxes.until(lambda: boxes.aliases(agent_shelf) == first, told)
        assert box.far("acme-m0-v1", f"{NAMES[0]}@1") < TOLERANCE

        box.server.kill()
        box.engine.end(signal.SIGKILL)
        box.start_engine(agent_shelf)
        boxes.until(lambda: set(first.values()) <= set(box.loaded()), told)
        for name in NAMES:
            assert box.far(first[name], f"{name}@1") < TOLERANCE
        box.server.start()
        box.promote(NAMES[0], 2)
        boxes.until(lambda: boxes.aliases(agent_shelf)[NAMES[0]] == "acme-m0-v2", told)
        assert box.far("acme-m0-v2", f"{NAMES[0]}@2") < TOLERANCE
        assert not [name for name in box.loaded() if "poison" in name]
    assert box.far("acme-m0-v2", f"{NAMES[0]}@2") < TOLERANCE  # the agent is gone and the engine goes on


def test_the_poison_is_one(box: Box) -> None:
    """Loaded by hand, around the registry, vLLM takes it and answers with numbers that are none."""
    from tests.proof import vllm_http

    assert vllm_http.load(box.engine.client, "poison", box.folders[f"{POISON}@1"]) == "ok"
    assert str(box.ask("poison")).startswith("400")
