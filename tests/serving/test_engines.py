"""Engines other than vLLM: SGLang, llama.cpp's server, and directories that engines look into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import Invalid, Unavailable
from registry.serving.engines import parse
from registry.serving.engines.folder import FolderEngine
from registry.serving.engines.llama_cpp import LlamaCpp
from registry.serving.engines.openai import VLLM, SGLang
from registry.serving.store.local_store import LocalStore
from registry.versions.manifest import Edge, Relation
from tests import non_peft_files, samples
from tests.harness import Harness
from tests.samples import WEIGHTS
from tests.serving.fake_engines import LlamaServer, SGLangServer
from tests.serving.node import Clock, FaultyTransport, Node

GGUF = "adapter.gguf"


# ------------------------------------------------------------------ SGLang
def test_sglang_is_loaded_proved_and_unloaded_in_its_own_words(
    harness: Harness, transport: FaultyTransport, store: LocalStore, clock: Clock
) -> None:
    with SGLangServer() as server:
        node = Node(harness, transport, store, clock, SGLang(server.url))
        node.push("acme/support")
        assert node.states() == {"acme-support-v1": "ready"}
        node.push("acme/support")
        server.deaf = True
        assert node.states() == {"acme-support-v2": "failed"}
        assert list(server.loaded) == ["acme-support-v1"]
        server.deaf = False
        clock.now += 31
        assert node.states() == {"acme-support-v2": "ready"}
        clock.now += 11
        node.states()
        assert list(server.loaded) == ["acme-support-v2"]


# ------------------------------------------------------------------ llama.cpp
@pytest.fixture
def llama() -> Iterator[LlamaServer]:
    with LlamaServer() as server:
        yield server


@pytest.fixture
def llama_node(
    harness: Harness, transport: FaultyTransport, store: LocalStore, clock: Clock, llama: LlamaServer
) -> Node:
    node = Node(harness, transport, store, clock, LlamaCpp(llama.url))
    node.profile = ""
    node.start()
    return node


def push_gguf(node: Node, name: str, alpha: float) -> Path:
    """A version that is one GGUF file, converted from one that was smoke-tested; where it will lie on the store."""
    base = samples.llama()
    tensors = non_peft_files.pairs(base, non_peft_files.LLAMA_CPP, "blk.", (".weight.lora_a", ".weight.lora_b"))
    fields = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha}
    data = non_peft_files.gguf(tensors, fields)
    original = node.make("originals/peft", node.harness.files(), like=data)
    edge = Edge(relation=Relation.CONVERTED, digest=original.digest, name=f"originals/peft@{original.number}")
    node.push(name, {GGUF: data}, tried=False, parents=[edge])
    return node.store.versions / node.harness.admin.resolve(f"{name}:canary").digest.hex / GGUF


def test_llama_cpp_takes_adapters_at_its_start_only_and_the_reason_says_with_what_to_start_it_again(
    llama_node: Node, llama: LlamaServer
) -> None:
    file = push_gguf(llama_node, "acme/support", 16.0)
    assert llama_node.states() == {"acme-support-v1": "failed"}
    assert any(f"restart it with --lora {file}" in transport for transport in llama_node.lines)
    assert file.is_file(), "it is there for the next start"
    llama.restart([file])
    llama_node.clock.now += 31
    assert llama_node.states() == {"acme-support-v1": "ready"}
    assert llama_node.agent.step()[0].verified
    assert llama.scales == [1.0]


def test_llama_cpp_switches_scales_where_the_desired_state_has_one_adapter_and_leaves_those_of_others(
    llama_node: Node, llama: LlamaServer
) -> None:
    first, second = push_gguf(llama_node, "acme/support", 16.0), push_gguf(llama_node, "acme/support", 8.0)
    llama.restart([Path("/elsewhere/style.gguf"), first, second])
    llama.scales = [0.5, 0.0, 0.0]
    llama_node.promote("acme/support", 1)
    assert llama_node.states() == {"acme-support-v1": "ready"}
    assert llama.scales == [0.5, 1.0, 0.0]
    llama_node.promote("acme/support", 2)
    assert llama_node.states() == {"acme-support-v2": "ready"}
    assert llama.scales == [0.5, 0.0, 1.0]
    llama_node.clock.now += 11
    llama_node.states()
    assert set(llama_node.driver.loaded()) == {"acme-support-v2"}
    llama.restart([second, first])  # other numbers
    llama_node.start()
    assert llama_node.states() == {"acme-support-v2": "ready"}
    assert llama.scales == [1.0, 0.0]


def test_llama_cpp_with_several_adapters_has_all_at_nought_and_requests_name_theirs(
    llama_node: Node, llama: LlamaServer
) -> None:
    files = [push_gguf(llama_node, f"acme/m{number}", 4.0 + number) for number in range(2)]
    llama.restart(files)
    assert set(llama_node.states().values()) == {"ready"}
    assert llama.scales == [0.0, 0.0]
    llama.deaf = True
    llama_node.start()
    assert set(llama_node.states().values()) == {"failed"}
    assert any("answers like base" in transport for transport in llama_node.lines)


def test_llama_cpp_puts_no_adapter_before_everybody_while_another_of_the_desired_state_is_missing(
    llama_node: Node, llama: LlamaServer
) -> None:
    files = [push_gguf(llama_node, f"acme/m{number}", 4.0 + number) for number in range(2)]
    llama.restart(files[:1])
    assert llama_node.states() == {"acme-m0-v1": "ready", "acme-m1-v1": "failed"}
    assert llama.scales == [0.0]


def test_a_version_without_a_gguf_file_names_the_command_that_makes_one(llama_node: Node) -> None:
    llama_node.push("acme/support")
    assert llama_node.states() == {"acme-support-v1": "failed"}
    assert any("adapter convert REF --format gguf" in transport for transport in llama_node.lines)


# ------------------------------------------------------------------ directories
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store" / "nim"


def folder_node(
    harness: Harness, transport: FaultyTransport, store: LocalStore, clock: Clock, folder: Path, *, current: bool
) -> Node:
    return Node(harness, transport, store, clock, FolderEngine(folder, current=current))


def test_a_directory_has_a_link_for_each_version_and_is_called_unproven(
    harness: Harness, transport: FaultyTransport, store: LocalStore, clock: Clock, folder: Path
) -> None:
    node = folder_node(harness, transport, store, clock, folder, current=False)
    first = node.push("acme/support")
    assert [(slot.state, slot.verified) for slot in (node.agent.fetch(), node.agent.step())[1]] == [("ready", False)]
    link = folder / "acme-support-v1"
    assert link.is_symlink()
    assert not os.path.isabs(os.readlink(link))
    assert (link / WEIGHTS).read_bytes() == first[WEIGHTS]
    second = node.push("acme/support")
    node.states()
    assert sorted(path.name for path in folder.iterdir()) == ["acme-support-v1", "acme-support-v2"]
    target = link.resolve()
    clock.now += 11
    node.states()
    assert [path.name for path in folder.iterdir()] == ["acme-support-v2"]
    assert (target / WEIGHTS).read_bytes() == first[WEIGHTS], "an engine may still read it"
    assert (folder / "acme-support-v2" / WEIGHTS).read_bytes() == second[WEIGHTS]
    assert node.metrics.value("unverified") == 1


def test_a_plain_directory_also_says_what_an_alias_means_now(
    harness: Harness, transport: FaultyTransport, store: LocalStore, clock: Clock, folder: Path
) -> None:
    node = folder_node(harness, transport, store, clock, folder, current=True)
    node.push("acme/support")
    node.push("bolt/sales")
    node.states()
    second = node.push("acme/support")
    node.states()
    assert (folder / "current" / "acme--support" / WEIGHTS).read_bytes() == second[WEIGHTS]
    node.harness.admin.yank("bolt/sales@1", "bad data")
    node.states()
    assert [path.name for path in (folder / "current").iterdir()] == ["acme--support"]


def test_foreign_links_are_never_touched_and_block_no_other(
    harness: Harness, transport: FaultyTransport, store: LocalStore, clock: Clock, folder: Path, tmp_path: Path
) -> None:
    node = folder_node(harness, transport, store, clock, folder, current=False)
    node.push("acme/support")
    node.push("acme/other")
    (folder / "acme-support-v1").mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    (folder / "other").symlink_to(tmp_path / "theirs")
    assert node.states() == {"acme-other-v1": "ready", "acme-support-v1": "failed"}
    assert any("not our link" in transport for transport in node.lines)
    clock.now += 60
    node.states()
    assert (folder / "other").is_symlink()
    (folder / "acme-support-v1").rmdir()
    clock.now += 60
    assert node.states() == {"acme-other-v1": "ready", "acme-support-v1": "ready"}


def test_a_directory_that_cannot_be_made_is_an_engine_that_is_away(
    harness: Harness, transport: FaultyTransport, store: LocalStore, clock: Clock, folder: Path
) -> None:
    node = folder_node(harness, transport, store, clock, folder, current=False)
    node.push("acme/support")
    folder.parent.mkdir()
    folder.write_text("a file")
    with pytest.raises(Unavailable, match="cannot be used"):
        node.states()


# ------------------------------------------------------------------ their names
def test_engines_are_named_by_kind_and_place() -> None:
    assert isinstance(parse.engine("llama.cpp=http://127.0.0.1:8080"), LlamaCpp)
    assert isinstance(parse.engine("nim=/srv/nim"), FolderEngine)
    titles = [parse.title(text) for text in ("vllm=http://h:8000", "sglang=https://h", "nim=/srv/my nim", "dir=/")]
    assert titles == ["vllm-8000", "sglang", "nim-mynim", "dir"]
    for wrong in ("vllm", "vllm=", "vllm=localhost:8000", "tgi=http://h", "dir=", "=http://h"):
        with pytest.raises(Invalid, match="must be KIND=LOCATION, such as vllm="):
            parse.engine(wrong)


def test_a_key_goes_over_plain_http_to_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTER_ENGINE_INSECURE", raising=False)
    monkeypatch.setenv("ADAPTER_INSECURE", "1")  # that is about the registry's token
    for url in ("http://127.0.0.1:8000", "http://localhost:8000", "https://192.0.2.1:8000"):
        assert isinstance(parse.engine(f"vllm={url}", "sesame"), VLLM)
    with pytest.raises(Invalid, match=r"not sent over plain http to 192\.0\.2\.1"):
        parse.engine("vllm=http://192.0.2.1:8000", "sesame")
    assert isinstance(parse.engine("vllm=http://192.0.2.1:8000"), VLLM)
    monkeypatch.setenv("ADAPTER_ENGINE_INSECURE", "1")
    assert isinstance(parse.engine("vllm=http://192.0.2.1:8000", "sesame"), VLLM)
