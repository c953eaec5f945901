"""The plugin for vLLM: what it resolves, what it refuses, and that it never costs the engine its life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.client.registry import Registry
from registry.evaluation.verdicts import Check
from registry.findings import Finding
from registry.serving import vllm
from registry.serving.store import resolver as finders
from registry.serving.store.local_store import LocalStore
from registry.serving.store.resolver import Resolution, Resolver
from tests.harness import URL, Harness
from tests.samples import WEIGHTS
from tests.serving.node import Clock, FaultyTransport
from tests.serving.vllm_frontend import Frontend, LoRARequest, ResolverRegistry

BASE = "tiny-llama"
ENGINE = "vllm==0.33.0,max_lora_rank=16"


@pytest.fixture
def resolver(harness: Harness, transport: FaultyTransport, store: LocalStore, clock: Clock) -> Iterator[Resolver]:
    with Registry(URL, harness.issue("pull")[1], transport) as registry:
        yield Resolver(registry, store, engine=ENGINE, base=BASE, clock=clock)


@pytest.fixture
def frontend(harness: Harness, transport: FaultyTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Frontend:
    """vLLM with our plugin registered as its entry point does it."""
    registry = ResolverRegistry()
    monkeypatch.setattr(vllm, "LoRARequest", LoRARequest)
    monkeypatch.setattr(vllm, "LoRAResolverRegistry", registry)
    monkeypatch.setattr(
        vllm.RegistryResolver.__init__, "__kwdefaults__", {"open_registry": lambda u, t: Registry(u, t, transport)}
    )
    monkeypatch.setenv("ADAPTER_REGISTRY", URL)
    monkeypatch.setenv("ADAPTER_TOKEN", harness.issue("pull")[1])
    monkeypatch.setenv("ADAPTER_PLUGIN_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("ADAPTER_PLUGIN_ENGINE", ENGINE)
    monkeypatch.setenv("ADAPTER_PLUGIN_NODE", "off")
    vllm.register()
    return Frontend(registry, f"/models/{BASE}")


def ask(frontend: Frontend, model: str) -> int:
    return asyncio.run(frontend.ask(model))


def test_a_bare_name_an_alias_and_a_number_are_resolved_to_their_own_bytes(
    frontend: Frontend, harness: Harness
) -> None:
    first, second = harness.files(), harness.files()
    harness.push("acme/support", first, alias="canary")
    harness.push("acme/support", second)
    assert [ask(frontend, name) for name in ("acme/support", "acme/support:canary", "acme/support@1")] == [
        200,
        200,
        200,
    ]
    assert frontend.weights["acme/support"] == second[WEIGHTS]
    assert frontend.weights["acme/support:canary"] == frontend.weights["acme/support@1"] == first[WEIGHTS]
    folder = Path(frontend.loaded["acme/support@1"].lora_path)
    assert folder.name == harness.admin.version("acme/support@1").digest.hex


def test_a_promote_is_served_after_the_name_was_unloaded_and_nothing_was_rewritten(
    frontend: Frontend, harness: Harness
) -> None:
    first, second = harness.files(), harness.files()
    harness.push("acme/support", first, alias="canary")
    assert ask(frontend, "acme/support:canary") == 200
    before = frontend.loaded["acme/support:canary"].lora_path
    harness.push("acme/support", second)
    harness.admin.promote("acme/support", "canary", "2", generation=1)
    frontend.unload("acme/support:canary")
    assert ask(frontend, "acme/support:canary") == 200
    assert frontend.weights["acme/support:canary"] == second[WEIGHTS]
    assert (Path(before) / WEIGHTS).read_bytes() == first[WEIGHTS]


@pytest.mark.parametrize(
    "name", ["../etc", "acme/../../etc", "/etc/passwd", "acme", "Acme/Support", "acme/support:", "a/b@../c", "x" * 5000]
)
def test_what_is_no_name_is_refused_without_a_request_and_without_a_folder(
    frontend: Frontend, transport: FaultyTransport, tmp_path: Path, name: str
) -> None:
    assert ask(frontend, name) == 404
    assert transport.paths == []
    assert not (tmp_path / "store").exists()


def test_an_unknown_name_is_looked_up_once_and_again_after_a_pause(
    resolver: Resolver, transport: FaultyTransport, clock: Clock, harness: Harness
) -> None:
    for _ in range(5):
        assert resolver.find("acme/nothing").folder is None
    assert len(transport.paths) == 1
    harness.push("acme/nothing")
    clock.now += finders.REFUSED_SECONDS + 1
    assert resolver.find("acme/nothing").folder is not None


def test_a_renamed_adapter_is_served_by_its_former_name(resolver: Resolver, harness: Harness) -> None:
    harness.push("acme/support")
    before = resolver.find("acme/support").folder
    harness.admin.rename("acme/support", "acme/better")
    assert resolver.find("acme/support").folder == resolver.find("acme/better").folder == before is not None


def test_lookups_of_unknown_names_are_limited(
    resolver: Resolver, transport: FaultyTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finders, "LOOKUPS_PER_MINUTE", 5)
    monkeypatch.setattr(finders, "REMEMBERED_LIMIT", 3)
    reasons = [resolver.find(f"acme/n{number}").reason for number in range(9)]
    assert len(transport.paths) == 5
    assert "over 5 unknown names per minute" in reasons[-1]


def test_a_rank_over_the_engines_limit_is_refused_before_a_byte_is_fetched(
    frontend: Frontend, transport: FaultyTransport, harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.push("acme/large", harness.files(rank=32))
    assert ask(frontend, "acme/large") == 404
    assert "max_lora_rank=16" in caplog.text
    assert not [path for path in transport.paths if "/files/" in path]


def test_what_failed_its_smoke_test_never_reaches_the_engine(
    resolver: Resolver, transport: FaultyTransport, harness: Harness
) -> None:
    harness.push("acme/poison")
    message = "logits are not finite"
    harness.validate(
        "acme/poison@1", [Finding(code="smoke.not_finite", severity="error", location="logits", message=message)]
    )
    assert "'smoke' says fail" in resolver.find("acme/poison").reason
    assert not [path for path in transport.paths if "/files/" in path]


def test_an_untested_version_is_served_unless_a_smoke_test_is_required(
    frontend: Frontend,
    transport: FaultyTransport,
    harness: Harness,
    clock: Clock,
    store: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness.push("acme/support")
    with Registry(URL, harness.secret, transport) as registry:
        careful = Resolver(registry, store, engine=ENGINE, base=BASE, checks=frozenset({Check.SMOKE}), clock=clock)
        assert "'smoke' has not run yet" in careful.find("acme/support").reason
        assert not [path for path in transport.paths if "/files/" in path]
        harness.validate("acme/support@1")
        clock.now += finders.REFUSED_SECONDS + 1
        assert careful.find("acme/support").folder is not None
    harness.push("acme/other")
    assert ask(frontend, "acme/other") == 200
    monkeypatch.setenv("ADAPTER_PLUGIN_CHECKS", "weights, smoke")
    vllm.register()
    assert ask(frontend, "acme/other@1") == 404


def test_a_yanked_version_and_another_base_are_refused(
    resolver: Resolver, harness: Harness, transport: FaultyTransport, store: LocalStore
) -> None:
    harness.push("acme/support")
    harness.admin.yank("acme/support@1", "leaks addresses")
    assert "yanked" in resolver.find("acme/support@1").reason
    harness.push("acme/other")
    with Registry(URL, harness.secret, transport) as registry:
        response = Resolver(registry, store, engine=ENGINE, base="another").find("acme/other")
    assert response.reason == "acme/other: it was made for the base tiny-llama, and this engine serves another"


def test_a_token_without_rights_and_a_namespace_that_is_not_served_are_a_no(
    harness: Harness, transport: FaultyTransport, store: LocalStore
) -> None:
    harness.push("acme/support")
    with Registry(URL, harness.issue("pull", namespaces=["bolt"])[1], transport) as registry:
        assert Resolver(registry, store, engine=ENGINE, base=BASE).find("acme/support").folder is None
    with Registry(URL, "wrong", transport) as registry:
        assert "token" in Resolver(registry, store, engine=ENGINE, base=BASE).find("acme/support").reason
        only = Resolver(registry, store, engine=ENGINE, base=BASE, namespaces=frozenset({"bolt"}))
        assert "namespace" in only.find("acme/support").reason


def test_without_the_registry_the_last_yes_holds_and_a_new_name_is_a_short_no(
    resolver: Resolver, transport: FaultyTransport, harness: Harness, clock: Clock
) -> None:
    harness.push("acme/support")
    harness.push("acme/other")
    before = resolver.find("acme/support").folder
    transport.cut = True
    assert resolver.find("acme/support").folder == before is not None
    assert "is unreachable" in resolver.find("acme/other").reason
    transport.cut = False
    assert resolver.find("acme/other").folder is None
    clock.now += finders.UNREACHABLE_SECONDS + 1
    assert resolver.find("acme/other").folder is not None


def test_a_no_of_the_registry_ends_the_yes_that_was_kept_for_its_absence(
    resolver: Resolver, transport: FaultyTransport, harness: Harness, clock: Clock
) -> None:
    harness.push("acme/support")
    assert resolver.find("acme/support@1").folder
    harness.admin.yank("acme/support@1", "leaks addresses")
    assert "yanked" in resolver.find("acme/support@1").reason
    transport.cut = True
    clock.now += finders.REFUSED_SECONDS + 1
    response = resolver.find("acme/support@1")
    assert (response.folder, "yanked" in response.reason) == (None, False)


def test_a_registry_that_is_away_is_waited_for_once_and_not_for_each_name_that_is_here(
    resolver: Resolver, transport: FaultyTransport, harness: Harness, clock: Clock
) -> None:
    names = [f"acme/m{number}" for number in range(5)]
    for name in names:
        harness.push(name)
        assert resolver.find(name).folder
    transport.cut, transport.cuts = True, 0
    assert all(resolver.find(name).folder for name in names)
    tries_for_one = transport.cuts
    clock.now += finders.UNREACHABLE_SECONDS + 1
    assert resolver.find(names[0]).folder
    assert transport.cuts == 2 * tries_for_one
    transport.cut = False
    clock.now += finders.UNREACHABLE_SECONDS + 1
    assert resolver.find(names[0]).reason == ""


def test_a_yes_for_one_engine_is_none_for_another_when_the_registry_is_away(
    resolver: Resolver, transport: FaultyTransport, harness: Harness, store: LocalStore
) -> None:
    harness.push("acme/support")
    assert resolver.find("acme/support").folder
    transport.cut = True
    with Registry(URL, harness.secret, transport) as registry:
        other = Resolver(registry, store, engine="vllm==0.31.0", base=BASE)
        assert other.find("acme/support").folder is None


@pytest.mark.parametrize("spoil", [lambda data: data[:-7], lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_truncated_and_changed_bytes_are_refused_and_the_next_try_succeeds(
    resolver: Resolver,
    transport: FaultyTransport,
    harness: Harness,
    clock: Clock,
    store: LocalStore,
    spoil: Callable[[bytes], bytes],
) -> None:
    harness.push("acme/support")
    transport.spoil = spoil
    assert resolver.find("acme/support").folder is None
    assert list(store.versions.iterdir()) == []
    transport.spoil = None
    clock.now += finders.REFUSED_SECONDS + 1
    assert resolver.find("acme/support").folder is not None


def test_a_full_disk_is_a_short_no_and_leaves_nothing_half(
    resolver: Resolver, harness: Harness, clock: Clock, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.push("acme/support")
    with monkeypatch.context() as full:

        def no_space(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        full.setattr("registry.client.transfer.file_transfer.fetch", no_space)
        assert "No space left" in resolver.find("acme/support").reason
    assert list(store.versions.iterdir()) == []
    clock.now += finders.UNREACHABLE_SECONDS + 1
    assert resolver.find("acme/support").folder is not None


def test_registering_never_raises_and_sends_no_request(
    frontend: Frontend, transport: FaultyTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transport.paths == []
    monkeypatch.setenv("ADAPTER_REGISTRY", "not a url")
    monkeypatch.setenv("ADAPTER_PLUGIN_ENGINE", "vllm=wrong")
    vllm.register()
    assert ask(frontend, "acme/support") == 404

    def broken(*_: Any) -> None:
        raise RuntimeError("another vLLM")

    monkeypatch.setattr(ResolverRegistry, "register_resolver", broken)
    vllm.register()
    monkeypatch.setattr(vllm, "LoRAResolverRegistry", None)
    vllm.register()


@pytest.mark.security
@pytest.mark.parametrize("folder", [None, Path("/versions/x")])
def test_what_a_registry_says_is_one_line_of_the_log(
    folder: Path | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vllm, "LoRARequest", LoRARequest)
    resolver = vllm.RegistryResolver({"ADAPTER_REGISTRY": URL}, [])
    resolution = Resolution(folder, "no\x1b]52;c;aGk=\x07\nroot did it")
    monkeypatch.setattr(Resolver, "find", lambda _self, _text: resolution)
    resolver._resolver = Resolver.__new__(Resolver)
    asyncio.run(resolver.resolve_lora("tiny-llama", "acme/support"))
    assert "root did it" in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)
