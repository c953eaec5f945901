"""`AdapterRegistry` and `AsyncAdapterRegistry` against a whole registry in this process."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from registry.errors import Corrupt, Invalid, NotFound, Refused, Unavailable
from registry.evaluation.verdicts import Check, Outcome
from registry.sdk import AdapterRegistry, AsyncAdapterRegistry, FailedCheckWarning, NotTested
from registry.versions.files import CONFIG
from tests import samples
from tests.harness import Harness
from tests.import_table import ROOT

HEAVY = ("torch", "peft", "transformers", "diffusers", "safetensors", "numpy", "fastapi", "sqlmodel", "boto3")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("registry.client.waiting.POLL_SECONDS", 0.01)


@pytest.fixture
def registry(harness: Harness) -> AdapterRegistry:
    harness.add_base()
    return AdapterRegistry(client=harness.admin)


@pytest.fixture
def folder(harness: Harness, tmp_path: Path) -> Path:
    return samples.write(harness.files(), tmp_path / "adapter")


class Counted:
    """Progress that adds up."""

    def __init__(self) -> None:
        self.total_bytes = self.bytes = 0

    def start(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes

    def advance(self, count: int) -> None:
        self.bytes += count


def test_a_folder_is_pushed_with_parents_tags_and_provenance(
    registry: AdapterRegistry, folder: Path, harness: Harness, tmp_path: Path
) -> None:
    first = registry.push(folder, "acme/support", base="tiny-llama")
    progress = Counted()
    second = registry.push(
        str(samples.write(harness.files(), tmp_path / "next")), "acme/support", parents=["acme/support@1"],
        alias="canary",
        base="tiny-llama", tags={"team": "search"}, annotations={"stage": "two"}, message="more data",
        provenance={"parameters": {"lr": 2e-4}}, progress=progress,
    )  # fmt: skip
    assert (first.version.number, second.version.number) == (1, 2)
    assert [edge.digest for edge in second.version.parents] == [first.version.digest]
    assert (second.version.tags, second.version.annotations) == ({"team": "search"}, {"stage": "two"})
    assert second.version.provenance is not None
    assert second.version.provenance.parameters == {"lr": "0.0002"}
    assert "canary" in second.version.aliases
    assert progress.total_bytes == progress.bytes > 0
    assert len(registry.lineage("acme/support@2").nodes) >= 2


def test_a_version_that_fails_a_check_is_pushed_and_pulled_with_a_warning(
    registry: AdapterRegistry, folder: Path, tmp_path: Path
) -> None:
    registry.push(folder, "acme/support")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\xc0\x7f")
    with pytest.warns(FailedCheckWarning, match="acme/support@2 is stored, but main stays at version 1: weights fails"):
        registry.push(folder, "acme/support")
    with pytest.warns(FailedCheckWarning, match="acme/support@2 failed its check: weights"):
        registry.pull("acme/support@2", tmp_path / "served")


def test_many_adapters_move_with_one_request_for_all(
    registry: AdapterRegistry, harness: Harness, tmp_path: Path
) -> None:
    sent: list[str] = []
    harness.admin.connection.log_requests(sent.append)
    folders = {f"acme/m{n}": samples.write(harness.files(), tmp_path / f"m{n}") for n in range(3)}
    (tmp_path / "empty").mkdir()
    pushed = registry.push_all({**folders, "acme/none": tmp_path / "empty"})
    assert [result.value.version.number if result.value else 0 for result in pushed] == [1, 1, 1, 0]
    pulled = registry.pull_all({name: tmp_path / "served" / name for name in (*folders, "acme/none")})
    assert [(result.name, type(result.error)) for result in pulled] == [
        *((f"acme/m{n}", type(None)) for n in range(3)), ("acme/none", NotFound)
    ]  # fmt: skip
    assert (tmp_path / "served" / "acme" / "m2" / CONFIG).read_bytes() == (folders["acme/m2"] / CONFIG).read_bytes()
    paths = [urlsplit(word).path for line in sent if line.startswith("POST") for word in line.split()[1:2]]
    assert paths == ["/api/v1/pushes", "/api/v1/pushes/commit", "/api/v1/pulls"], sent


def test_a_version_is_found_resolved_pulled_and_checked(
    registry: AdapterRegistry, folder: Path, tmp_path: Path
) -> None:
    pushed = registry.push(folder, "acme/support", base="tiny-llama").version
    assert registry.resolve("acme/support").digest == registry.version("acme/support@1").digest == pushed.digest
    assert [view.name for view in registry.search(base="tiny-llama", rank_min=1)] == ["acme/support"]
    assert list(registry.search("no such thing")) == []
    registry.pull("acme/support", tmp_path / "served")
    assert (tmp_path / "served/adapter_config.json").read_bytes() == (folder / "adapter_config.json").read_bytes()
    outcomes = {verdict.check: verdict.outcome for verdict in registry.check(folder, base="tiny-llama")}
    assert outcomes == {Check.COMPAT: Outcome.PASS}
    profiles = registry.check("acme/support", engines=["vllm==0.33.0"])
    assert [verdict.check for verdict in profiles] == [Check.COMPAT, Check.WEIGHTS, Check.ENGINE]
    with pytest.raises(NotFound) as refused:
        registry.resolve("acme/support@9")
    assert refused.value.code == "VERSION_UNKNOWN"


def test_lists_are_read_page_by_page_as_they_are_needed(
    registry: AdapterRegistry, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.sdk.registry.PAGE_LIMIT", 2)
    for _ in range(5):
        harness.push("acme/support")
    with harness.statements() as first:
        versions = registry.versions("acme/support")
        assert next(versions).number == 5
    with harness.statements() as others:
        assert [version.number for version in versions] == [4, 3, 2, 1]
    assert len(others) == 2 * len(first)


def test_an_alias_moves_through_its_gate_and_back(registry: AdapterRegistry, harness: Harness) -> None:
    for _ in range(2):
        harness.push("acme/support")
    with pytest.raises(Refused) as closed:
        registry.promote("acme/support@1", "prod")
    assert closed.value.code == "GATE_CLOSED"
    assert registry.promote("acme/support@1", "canary").generation == 1
    assert registry.promote("acme/support@2", "canary", reason="better").number == 2
    assert registry.rollback("acme/support", "canary").number == 1


def test_waiting_ends_with_the_smoke_test_or_with_the_time(
    registry: AdapterRegistry, harness: Harness, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotTested, match=r"acme/support@1 is stored, but job \w+ is still queued") as over:
        registry.push(folder, "acme/support", base="tiny-llama", wait=True, timeout=0.05)
    assert (over.value.code, over.value.pushed.version.number) == ("TRY_LATER", 1)
    with pytest.raises(Unavailable, match="is still queued"):
        registry.push(folder, "acme/support", base="tiny-llama", wait=True, timeout=0.05, alias="canary")
    assert registry.version("acme/support").aliases == ["main"]
    worker = threading.Thread(target=harness.validate, args=["acme/support@1"])
    worker.start()
    assert registry.smoke_test("acme/support", wait=True, timeout=60).state == "done"
    worker.join()
    again = registry.push(folder, "acme/support", base="tiny-llama", wait=True, alias="canary").version
    assert (Check.SMOKE in {verdict.check for verdict in again.verdicts}, "canary" in again.aliases) == (True, True)
    broken = samples.write(harness.files(samples.llama(hidden=128)), tmp_path / "broken")
    failed = registry.push(broken, "acme/broken", base="tiny-llama", wait=True)
    assert failed.version.verdicts[0].outcome is Outcome.FAIL


def test_a_job_that_is_cancelled_while_it_is_waited_for_is_an_error(
    registry: AdapterRegistry, harness: Harness
) -> None:
    pushed = harness.push("acme/support")
    cancelled = registry.client.cancel(pushed.job_id)
    with pytest.raises(Unavailable, match=f"{cancelled.id} is cancelled"):
        registry._wait_for_job(cancelled.id, None)


def test_without_a_registry_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAPTER_CONFIG", str(tmp_path / "profile.json"))
    monkeypatch.delenv("ADAPTER_REGISTRY", raising=False)
    with pytest.raises(Invalid, match="no registry is set") as refused:
        AdapterRegistry()
    assert refused.value.code == "SETTING_INVALID"


def test_bad_input_names_the_rule(registry: AdapterRegistry, folder: Path) -> None:
    with pytest.raises(Invalid, match=r"provenance.code.commit must be a whole commit"):
        registry.push(
            folder, "acme/support", provenance={"code": {"repository": "https://git.example/x", "commit": "abc"}}
        )
    with pytest.raises(Invalid, match=r"no adapter can be loaded onto a dict"):
        registry.push(folder, "acme/support", base="tiny-llama")
        registry.load("acme/support", {})


# ------------------------------------------------------------------ asyncio
def test_every_method_has_an_asynchronous_one_with_the_same_arguments() -> None:
    def methods(cls: type) -> dict[str, inspect.Signature]:
        functions = inspect.getmembers(cls, inspect.isfunction)
        return {name: inspect.signature(function) for name, function in functions if not name.startswith("_")}

    assert methods(AdapterRegistry) == methods(AsyncAdapterRegistry)


def test_coroutines_and_asynchronous_iterators_give_the_same_responses(harness: Harness, folder: Path) -> None:
    harness.add_base()

    async def work() -> tuple[int, list[int], list[str]]:
        async with AsyncAdapterRegistry(client=harness.admin) as asynchronous:
            await asynchronous.push(folder, "acme/support", base="tiny-llama")
            numbers = [version.number async for version in asynchronous.versions("acme/support")]
            first, second = await asyncio.gather(
                asynchronous.resolve("acme/support"), asynchronous.version("acme/support")
            )
            assert first.digest == second.digest
            with pytest.raises(NotFound):
                await asynchronous.lineage("acme/missing")
            return first.number, numbers, [view.name async for view in asynchronous.search()]

    assert asyncio.run(work()) == (1, [1], ["acme/support"])


# ------------------------------------------------------------------ what is imported
def test_the_python_interface_imports_neither_torch_nor_peft_nor_the_server() -> None:
    program = "import sys, registry.sdk; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program, *HEAVY], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.security
def test_a_configuration_that_names_code_reaches_no_model(
    registry: AdapterRegistry, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT would import it: `megatron_core` (tuners/lora/tp_layer.py)."""
    pull = registry.pull

    def hostile(ref: str, folder: Path, **how: Any) -> Any:
        pulled = pull(ref, folder, **how)
        config = json.loads((folder / CONFIG).read_bytes())
        (folder / CONFIG).unlink()
        (folder / CONFIG).write_text(json.dumps(config | {"megatron_core": "evil", "megatron_config": {"a": 1}}))
        return pulled

    loaded: list[str] = []
    model = SimpleNamespace(load_lora_weights=lambda folder, **_: loaded.append(folder))
    harness.push("acme/support")
    assert registry.load("acme/support", model) is model
    monkeypatch.setattr(registry, "pull", hostile)
    with pytest.raises(Corrupt, match="megatron_core"):
        registry.load("acme/support", model)
    assert len(loaded) == 1
