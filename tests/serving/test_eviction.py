"""Eviction: unused versions leave the store, and versions in use never do."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Invalid, Unavailable
from registry.names import AdapterName
from registry.serving import vllm
from registry.serving.store import eviction
from registry.serving.store.eviction import Evicted, EvictionLimits
from registry.serving.store.local_store import LocalStore
from tests.harness import URL, Harness
from tests.samples import WEIGHTS
from tests.serving.node import FaultyTransport, Node
from tests.serving.vllm_frontend import LoRARequest

NAME = AdapterName("acme", "support")
LONG = 100 * eviction.DAY_SECONDS
USUAL = EvictionLimits()
READER = """
import sys
from pathlib import Path
from registry.digest import Digest
from registry.serving.store.local_store import LocalStore
print(LocalStore(Path(sys.argv[1])).find(Digest(sys.argv[2])), flush=True)
sys.stdin.read()
"""


def evicted(
    store: LocalStore, limits: EvictionLimits = USUAL, *, leases: Collection[Digest] = (), later: float = LONG
) -> Evicted:
    """Evict in a process that has not used the store, as if so many seconds later."""
    return eviction.evict(LocalStore(store.root), limits, lambda: leases, clock=lambda: time.time() + later)


@pytest.fixture
def registry(harness: Harness, transport: FaultyTransport) -> Iterator[Registry]:
    with Registry(URL, harness.secret, transport) as opened:
        yield opened


def stored(harness: Harness, registry: Registry, store: LocalStore, count: int = 1) -> list[Digest]:
    """New versions on the store, the first the longest unused; nobody uses them any more."""
    digests = [harness.push(str(NAME)).version.digest for _ in range(count)]
    for number, digest in enumerate(digests):
        assert store.fetch(registry, NAME, digest).is_dir()
        store.note_use(digest, time.time() - count + number)
    store.in_use.close()
    return digests


def versions_in(store: LocalStore) -> set[str]:
    return {path.name for path in store.versions.iterdir()}


def test_an_unused_version_is_evicted_after_its_days_with_all_its_files(
    harness: Harness, registry: Registry, store: LocalStore
) -> None:
    (digest,) = stored(harness, registry, store)
    for folder, text in ((store.reference_logprobs, "{}"), (store.resolutions, json.dumps({"digest": digest}))):
        folder.mkdir()
        (folder / f"{digest.hex}.json").write_text(text)
    assert evicted(store, later=13 * eviction.DAY_SECONDS).removed == []
    assert evicted(store, EvictionLimits(keep_days=math.inf)).removed == []
    done = evicted(store, later=30 * eviction.DAY_SECONDS)  # earlier evictions were no use of it
    assert (done.removed, done.remaining_bytes, done.removed_bytes > 1000) == ([digest], 0, True)
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert files == [store.root / "uses.lock"]
    assert LocalStore(store.root).find(digest) is None
    assert LocalStore(store.root).fetch(registry, NAME, digest).is_dir()


def test_what_a_living_process_was_given_stays_until_the_process_ends(
    harness: Harness, registry: Registry, store: LocalStore
) -> None:
    in_use, gone = stored(harness, registry, store, 2)
    command = [sys.executable, "-c", READER, str(store.root), str(in_use)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        folder = Path(reader.stdout.readline().strip())
        assert evicted(store).removed == [gone]
        assert (folder / WEIGHTS).is_file()
        reader.kill()  # no chance to say anything
        reader.wait()
    used_at = store.manifest_path(in_use).stat().st_mtime
    assert evicted(store, later=used_at - time.time() + 60).removed == []  # the eviction has seen it in use
    assert evicted(store, later=2 * LONG).removed == [in_use]


def test_what_an_engine_holds_or_shall_have_stays_also_while_engine_and_agent_are_away(node: Node) -> None:
    node.store = LocalStore(node.store.root, "gpu-1-vllm-8000")
    node.start()
    node.push("acme/support")
    node.states()
    node.push("acme/support")
    node.states()
    old, new = (node.harness.admin.version(f"acme/support@{number}").digest for number in (1, 2))
    assert node.loaded == ["acme-support-v1", "acme-support-v2"]
    node.store.in_use.close()  # the agent ends; its engine serves on
    assert evicted(node.store).removed == []
    node.engine.down = True
    node.start()
    with pytest.raises(Unavailable):
        node.states()
    node.store.in_use.close()
    assert evicted(node.store).removed == []
    node.engine.down = False
    node.clock.now += 100
    node.states()  # begins the drain of what it does not know
    node.clock.now += 100
    node.states()
    assert node.loaded == ["acme-support-v2"]
    node.store.in_use.close()
    assert evicted(node.store).removed == [old]
    assert versions_in(node.store) == {new.hex}


def test_what_a_lease_names_stays_and_without_word_of_leases_nothing_goes(
    harness: Harness, registry: Registry, transport: FaultyTransport, store: LocalStore
) -> None:
    leased, silent = stored(harness, registry, store, 2)
    slot = SlotReport(adapter=str(NAME), digest=leased, served_name="acme-support-v1", state=SlotState.DRAINING)
    report = NodeReport(base="tiny-llama", alias="prod", slots=[slot])
    registry.report_node("gpu-1", "vllm-8000", report)
    leases = eviction.leases_of(registry, "gpu-1")
    assert evicted(store, leases=leases()).removed == [silent]
    assert versions_in(store) == {leased.hex}
    lines = list[str]()
    transport.cut = True
    eviction.Evictor(store, EvictionLimits(keep_days=0), leases, lines.append).once()
    assert "no version was evicted" in lines[0]
    assert versions_in(store) == {leased.hex}


def test_above_its_size_the_store_gives_up_the_longest_unused_first_and_nothing_within_the_hour(
    harness: Harness, registry: Registry, store: LocalStore
) -> None:
    first, second, third = stored(harness, registry, store, 3)
    size = sum(path.stat().st_size for path in store.versions.rglob("*") if path.is_file())
    two_thirds = EvictionLimits(size_bytes=size * 2 // 3 + 1000)
    assert evicted(store, two_thirds, later=3000).removed == []
    assert evicted(store, two_thirds, later=4000).removed == [first]
    assert versions_in(store) == {second.hex, third.hex}


def test_a_record_that_cannot_be_read_is_a_use_of_everything(
    harness: Harness, registry: Registry, store: LocalStore
) -> None:
    (digest,) = stored(harness, registry, store)
    record = store.root / "uses" / "gpu-1.json"
    record.parent.mkdir()
    record.write_text('["sha256:')
    assert evicted(store).removed == []
    record.write_text(json.dumps([digest]))
    assert evicted(store).removed == []
    record.write_text("[]")
    assert evicted(store, later=3 * LONG).removed == [digest]


def test_the_plugin_of_vllm_evicts_by_its_settings_and_serves_though_they_are_wrong(
    harness: Harness, registry: Registry, transport: FaultyTransport, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use, gone = stored(harness, registry, store, 2)
    monkeypatch.setattr(vllm, "LoRARequest", LoRARequest)
    environment = {
        "ADAPTER_REGISTRY": URL, "ADAPTER_TOKEN": harness.secret, "ADAPTER_PLUGIN_DIR": str(store.root),
        "ADAPTER_PLUGIN_ENGINE": "vllm==0.33.0", "ADAPTER_PLUGIN_NODE": "off", "ADAPTER_PLUGIN_KEEP_DAYS": "two weeks",
    }  # fmt: skip
    resolver = vllm.RegistryResolver(environment, [], open_registry=lambda url, token: Registry(url, token, transport))
    assert asyncio.run(resolver.resolve_lora("tiny-llama", "acme/support@1")) is not None
    with pytest.raises(Invalid, match="ADAPTER_PLUGIN_KEEP_DAYS: 'two weeks'"):
        resolver.evictor()
    for digest in (in_use, gone):
        store.note_use(digest, time.time() - eviction.DAY_SECONDS)
    for days, remaining in (("2", {in_use.hex, gone.hex}), ("0.5", {in_use.hex})):
        vllm.RegistryResolver(environment | {"ADAPTER_PLUGIN_KEEP_DAYS": days}, []).evictor().once()
        assert versions_in(store) == remaining


def test_other_entries_are_left_alone_and_abandoned_ones_are_deleted(
    harness: Harness, registry: Registry, store: LocalStore
) -> None:
    (digest,) = stored(harness, registry, store)
    (store.versions / "my-own").mkdir()
    (store.versions / ("ab" * 32)).symlink_to("my-own")
    pulled, detached = store.versions / f".{digest.hex}.0123456789ab", store.versions / f".{digest.hex}.11.old"
    for entry in (pulled, detached):
        entry.mkdir()
        (entry / "x").touch()
    assert evicted(store, EvictionLimits(keep_days=math.inf), later=0).removed == []
    assert (pulled.exists(), detached.exists()) == (True, False)  # a pull may still run
    assert evicted(store).removed == [digest]
    assert versions_in(store) == {"my-own", "ab" * 32}


def test_a_folder_in_use_stays_readable_during_evictions(
    harness: Harness, registry: Registry, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "LEAST_SECONDS", 0.0)
    digests = stored(harness, registry, store, 2)
    stop, removed, wrong, read_counts = threading.Event(), list[Digest](), list[str](), [0, 0]

    def evict_repeatedly() -> None:
        while not stop.is_set():
            removed.extend(evicted(store, EvictionLimits(keep_days=0), later=0).removed)

    def reads(digest: Digest, at: int) -> None:
        while (read_counts[at] < 30 or not removed) and not stop.is_set():
            own_store = LocalStore(store.root)
            folder = own_store.find(digest) or own_store.fetch(registry, NAME, digest)
            for _ in range(20):
                try:
                    os.stat(folder / WEIGHTS)
                except OSError as e:
                    wrong.append(str(e))
            read_counts[at] += 1
            own_store.in_use.close()

    threads = [threading.Thread(target=reads, args=(digest, at)) for at, digest in enumerate(digests)]
    evictor = threading.Thread(target=evict_repeatedly)
    for thread in (evictor, *threads):
        thread.start()
    for thread in threads:
        thread.join(120)
    stop.set()
    evictor.join(120)
    assert (wrong, min(read_counts) >= 30, bool(removed)) == ([], True, True)
