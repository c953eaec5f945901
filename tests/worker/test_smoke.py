"""The warm child and its checks, as real processes: what is swapped, what is tried alone, what thresholds do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from registry.evaluation.reference_logprobs import ReferenceLogprobs, compare
from registry.evaluation.reports import Execution, Report
from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import ModelProcess, Pool, ProcessLimits
from registry.worker.sandbox import confine, namespaces
from registry.worker.smoke.result import LibraryFailed, exceptions_as
from tests import fixtures
from tests.worker import models

LIMITS = ProcessLimits(deadline_seconds=120, threads=1)
ISOLATED = replace(LIMITS, isolate=True)


@pytest.fixture(scope="module")
def source(base_folder: Path) -> BaseSource:
    return BaseSource("tiny", base_folder, "sha256:" + "0" * 64)


@pytest.fixture(scope="module")
def fleet(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of one layout that differ in everything else that a slot must follow."""
    folder = tmp_path_factory.mktemp("fleet")
    variants: list[dict[str, Any]] = [
        {"r": 4}, {"r": 4, "lora_alpha": 2}, {"r": 8, "use_rslora": True}, {"r": 2},
        {"r": 4, "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"v_proj": 32}},
    ]  # fmt: skip
    return [models.adapter(base_folder, folder / str(i), seed=i, **how) for i, how in enumerate(variants)]


def smoke_test(pool: Pool, source: BaseSource, folder: Path, limits: ProcessLimits = LIMITS) -> dict[str, Any]:
    response = pool.try_adapter(source, folder, limits)
    assert "result" in response, response
    return dict(response["result"])


def codes(result: dict[str, Any]) -> dict[str, str]:
    return {finding["code"]: finding["severity"] for finding in result["findings"]}


def test_adapters_of_one_layout_are_swapped_on_one_base_load_and_answer_as_alone(
    pool: Pool, source: BaseSource, fleet: list[Path], good: Path
) -> None:
    smoke_test(pool, source, good)
    loads, ways, apart = pool.base_loads, [], []
    for folder in [*fleet, *reversed(fleet)]:
        result = smoke_test(pool, source, folder)
        numbers = result["measurements"]
        ways.append(result["execution"]["mode"])
        assert "isolated_because" not in result["execution"], result["execution"]
        apart.append(numbers["mixed_delta"])
        assert codes(result) == {}
        by_itself = smoke_test(pool, source, folder, ISOLATED)
        reference = ReferenceLogprobs.model_validate(by_itself["reference_logprobs"])
        swapped = ReferenceLogprobs.model_validate(result["reference_logprobs"])
        assert compare(reference, [prompt.adapter for prompt in swapped.prompts]).largest_nats < 1e-4
        assert numbers["max_logit_delta"] == pytest.approx(by_itself["measurements"]["max_logit_delta"], rel=1e-4)
    assert ways.count("swapped") >= len(ways) - 2
    assert max(apart) < 1e-5, "a row of a mixed batch is not what it is alone"
    assert pool.base_loads == loads


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}, {"bias": "all"}],
    ids=lambda settings: next(iter(settings)),
)
def test_what_could_change_the_base_gets_a_process_of_its_own(
    pool: Pool, source: BaseSource, base_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    result = smoke_test(pool, source, models.adapter(base_folder, tmp_path / "odd", **settings))
    assert result["execution"]["mode"] == "isolated"
    assert result["execution"]["isolated_because"]


def test_with_the_allow_list_off_the_checksum_stops_a_poisoned_adapter_and_the_next_ones_are_right(
    pool: Pool, source: BaseSource, base_folder: Path, good: Path, tmp_path: Path
) -> None:
    before = smoke_test(pool, source, good)
    loads = pool.base_loads
    poison = models.adapter(base_folder, tmp_path / "poison", change=models.poisoned)
    result = smoke_test(pool, source, poison, replace(LIMITS, any_name=True))
    assert codes(result)["smoke.base_changed"] == "error"
    assert "the shared process was discarded" in result["execution"]["isolated_because"]
    after = smoke_test(pool, source, good)
    assert after["reference_logprobs"] == before["reference_logprobs"]
    assert pool.base_loads == loads, "the base was loaded again"


def test_a_warm_child_that_hangs_is_ended_and_the_next_adapter_is_right(
    pool: Pool, source: BaseSource, good: Path, tmp_path: Path
) -> None:
    """It waits for a writer of the configuration, and nobody ever comes."""
    loads = pool.base_loads
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        os.mkfifo(tmp_path / name)
    response = pool.try_adapter(source, tmp_path, replace(LIMITS, deadline_seconds=0.5))
    assert response["failed"] == "the child was killed: it reached its deadline of 0.5 seconds"
    assert codes(smoke_test(pool, source, good)) == {}
    assert pool.base_loads == max(loads, 1)


def test_a_child_reports_its_progress(pool: Pool, source: BaseSource, good: Path) -> None:
    messages: list[str] = []
    pool.try_adapter(source, good, LIMITS, progress=messages.append)
    assert "loading the adapter" in messages


def test_thresholds_of_the_base_decide(pool: Pool, source: BaseSource, good: Path) -> None:
    strict = replace(source, thresholds={"drift_warn_kl_nats": 1e-6})
    assert codes(smoke_test(pool, strict, good)) == {"smoke.drift": "warning"}
    assert codes(smoke_test(pool, replace(source, thresholds={"drift_fail_kl_nats": 1e-6}), good)) == {
        "smoke.drift": "error"
    }
    assert codes(smoke_test(pool, source, good)) == {}


def with_golden(folder: Path, target: Path, *lines: dict[str, Any]) -> Path:
    shutil.copytree(folder, target)
    (target / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return target


def test_golden_samples_without_a_tokenizer_are_unknown_never_a_pass(
    pool: Pool, source: BaseSource, good: Path, tmp_path: Path
) -> None:
    sample = {"prompt": "2 + 2 =", "expected": " 4"}
    result = smoke_test(pool, source, with_golden(good, tmp_path / "golden", sample))
    assert codes(result) == {"smoke.golden_skipped": "unknown"}


def test_a_child_has_no_network_writes_nothing_and_holds_no_descriptor_of_its_parent(tmp_path: Path) -> None:
    """In a process of its own, because confining is for good."""
    script = (
        "import json, os, socket, sys\n"
        "from registry.worker.sandbox.confine import confine\n"
        "secret = os.open('/dev/null', os.O_RDONLY)\n"
        "layers = confine(keep=(0, 1, 2))\n"
        "def works(act):\n"
        "    try:\n"
        "        act()\n"
        "    except OSError:\n"
        "        return False\n"
        "    return True\n"
        "print(json.dumps({'layers': layers, 'descriptor': works(lambda: os.fstat(secret)),\n"
        "    'network': works(lambda: socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)),\n"
        "    'file': works(lambda: open(sys.argv[2], 'w'))}))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", script, str(server.getsockname()[1]), str(tmp_path / "written")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    report = json.loads(done.stdout)
    assert "limits" in report["layers"]
    assert report["descriptor"] is False
    assert report["network"] is ("no network" not in report["layers"])
    assert report["file"] is ("read-only files" not in report["layers"])


ESCAPES = """
import ctypes, json, os, sys
from registry.worker.sandbox import confine, namespaces
from registry.worker.smoke.result import LibraryFailed, exceptions_as
home, netrc, base = sys.argv[1:]
layers = confine.confine(keep=(0, 1, 2), visible=namespaces.visible_folders(namespaces.Path(base)))
libc = ctypes.CDLL(None, use_errno=True)

def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None

def after(*changes):
    pid = os.fork()
    if pid == 0:
        results = [change() for change in changes]
        os._exit(read(f"{home}/.ssh/key") == "secret")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

print(json.dumps({
    "layers": layers,
    "hidden": [read(path) for path in (f"{home}/.ssh/key", ".ssh/key", f"{base}/../.ssh/key",
                                       f"/proc/{os.getppid()}/root{home}/.ssh/key", f"/proc/{os.getppid()}/environ")],
    "file": read(netrc),
    "base": read(f"{base}/config.json"),
    "kept": after(lambda: libc.umount2(home.encode(), 2))
        and after(lambda: libc.unshare(0x10020000), lambda: libc.umount2(home.encode(), 2)),
}))
"""


@pytest.mark.security
def test_a_child_sees_no_home_folder_and_cannot_uncover_it(tmp_path: Path) -> None:
    home, base, netrc = tmp_path / "home", tmp_path / "home" / "models" / "base", tmp_path / "netrc"
    for path, text in ((home / ".ssh" / "key", "secret"), (base / "config.json", "{}"), (netrc, "secret")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    key = tmp_path / "audit.key"
    key.write_text("secret")
    variables = {"HOME": str(home), "NETRC": str(netrc), "PATH": os.environ["PATH"], "SECRET": "x"}
    variables["REGISTRY_AUDIT_KEY"] = str(key)
    hidden = confine.secret_places(variables)
    assert {str(path.resolve()) for path in (home, netrc, key)} <= set(hidden)
    environment = os.environ | variables | {confine.HIDDEN_PLACES: os.pathsep.join(hidden)}
    command = [sys.executable, "-c", ESCAPES, str(home), str(netrc), str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, cwd=home, env=environment)
    smoke_test = json.loads(done.stdout)
    if "no home folder" not in smoke_test["layers"]:
        pytest.skip("this machine allows no user namespaces")
    assert smoke_test["hidden"] == [None] * 5
    assert (smoke_test["file"], smoke_test["base"], smoke_test["kept"]) == ("", "{}", True)


@pytest.mark.security
def test_an_adapter_in_a_home_folder_is_out_of_sight_and_the_report_names_the_layers(
    source: BaseSource, good: Path, tmp_path: Path
) -> None:
    shutil.copytree(good, tmp_path / "home" / "adapter")
    process = ModelProcess(source, environment=os.environ | {"HOME": str(tmp_path / "home")}).load()
    try:
        layers = process.try_adapter(good, LIMITS)["result"]["execution"]["confined_by"]
        if "no home folder" in layers:
            assert "failed" in process.try_adapter(tmp_path / "home" / "adapter", LIMITS)
    finally:
        process.kill()
    report = Execution(mode="loaded", confined_by=("limits",))
    assert report.missing_isolation == ["no home folder", "no network", "read-only files"]


@pytest.mark.security
@pytest.mark.parametrize(
    "field",
    [
        {"measurements": {"key": "text"}}, {"measurements": {"key": [1]}}, {"measurements": {"a b": 1}},
        {"measurements": {f"n{i}": i for i in range(101)}}, {"measurements": {"key": 10**40}},
        {"measurements": {"key": float("nan")}}, {"module_norms": {"m": ["text", 1, 2, 3]}},
        {"golden": [{"text": 1}]}, {"golden": [{"log_p": "x"}]}, {"execution": {"mode": "secret"}},
        {"execution": {"confined_by": ["secret"]}}, {"images": {"other": "x"}}, {"images": {"before": "x" * 2**21}},
    ],
)  # fmt: skip
def test_a_report_carries_typed_and_bounded_values_only(field: dict[str, Any]) -> None:
    report = {"check": "smoke", "subject": "sha256:" + "0" * 64, "base": "b", "base_fingerprint": "f"}
    assert Report.model_validate(report)
    with pytest.raises(ValidationError):
        Report.model_validate(report | field)


@pytest.mark.security
def test_a_process_that_merges_or_converts_has_no_network_and_writes_its_folder(tmp_path: Path) -> None:
    script = (
        "import socket, sys\n"
        "from registry.worker.sandbox import namespaces\n"
        "layers = namespaces.isolate((), (), read_only=False)\n"
        "open(sys.argv[2], 'w').write('written')\n"
        "try:\n"
        "    socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)\n"
        "except OSError:\n"
        "    sys.exit('no network' not in layers)\n"
        "sys.exit('no network' in layers)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [str(server.getsockname()[1]), str(tmp_path / "written")]
        subprocess.run([sys.executable, "-c", script, *words], check=True, timeout=300)
    assert (tmp_path / "written").read_text() == "written"


@pytest.mark.security
def test_bubblewrap_shares_neither_network_nor_a_writable_mount() -> None:
    command = namespaces.bubblewrap_command("/usr/bin/bwrap")
    assert command[:4] == ("/usr/bin/bwrap", "--ro-bind", "/", "/")
    assert {"--unshare-net", "--unshare-pid", "--die-with-parent"} <= set(command)
    assert "--bind" not in command
    assert command[-1] == "--"


@pytest.mark.security
def test_a_bubblewrap_that_may_not_make_its_namespaces_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert namespaces.bubblewrap.__wrapped__() == ""


@pytest.mark.security
@pytest.mark.skipif(
    not namespaces.bubblewrap(), reason="bubblewrap is not installed here, or may not make its namespaces"
)
def test_in_bubblewrap_there_is_no_network_no_device_and_one_small_folder_to_write_in(
    pool: Pool, source: BaseSource, good: Path, tmp_path: Path
) -> None:
    script = (
        "import json, os, socket, sys, tempfile\n"
        "def works(act):\n"
        "    try:\n"
        "        act()\n"
        "    except OSError:\n"
        "        return False\n"
        "    return True\n"
        "print(json.dumps({'file': works(lambda: open(sys.argv[2], 'w')), 'read': works(lambda: open(sys.argv[3])),\n"
        "    'network': works(lambda: socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)),\n"
        "    'scratch': works(tempfile.TemporaryFile), 'disks': os.path.exists('/dev/fuse')}))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        places = [str(server.getsockname()[1]), str(tmp_path / "written"), str(good / "adapter_config.json")]
        command = [*namespaces.bubblewrap_command(namespaces.bubblewrap()), sys.executable, "-c", script, *places]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(done.stdout) == {
        "file": False, "read": True, "network": False, "scratch": True, "disks": False
    }  # fmt: skip
    assert smoke_test(pool, source, good)["execution"]["confined_by"][0] == "bubblewrap"


def test_a_base_of_four_bits_is_the_same_after_each_adapter(pool: Pool, tmp_path: Path) -> None:
    bases = fixtures.tiny_bases()
    if not (bases / "llama-a-nf4").is_dir():
        pytest.skip("bitsandbytes is not installed, which packs a base in four bits")
    packed = BaseSource("nf4", bases / "llama-a-nf4", "")
    folders = [
        models.adapter(bases / "llama-a", tmp_path / str(i), seed=i, target_modules="all-linear") for i in (0, 1, 2)
    ]
    loads, ways = pool.base_loads, []
    for folder in folders:
        result = smoke_test(pool, packed, folder)
        assert codes(result) == {}
        assert result["measurements"]["max_logit_delta"] > 0.01
        ways.append(result["execution"]["mode"])
    assert ways == ["loaded", "loaded", "swapped"]
    by_itself = smoke_test(pool, packed, folders[2], ISOLATED)
    assert codes(by_itself) == {}
    assert by_itself["measurements"]["base_logits_equal_after"] is True
    assert by_itself["measurements"]["max_logit_delta"] == pytest.approx(
        result["measurements"]["max_logit_delta"], rel=1e-4
    )
    assert pool.base_loads == loads + 1


def test_dora_loads_on_a_base_of_eight_bits_that_has_run_before(pool: Pool, tmp_path: Path) -> None:
    bases = fixtures.tiny_bases()
    pytest.importorskip("bitsandbytes")
    models.pack_in_eight_bits(bases / "llama-a", tmp_path / "int8")
    dora = models.adapter(bases / "llama-a", tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    for limits in (LIMITS, ISOLATED):
        result = smoke_test(pool, BaseSource("int8", tmp_path / "int8", ""), dora, limits)
        assert codes(result) == {}, result["findings"]
        assert result["measurements"]["max_logit_delta"] > 0.001


def test_a_library_that_fails_on_its_own_packed_base_is_no_fault_of_the_adapter() -> None:
    """bitsandbytes 0.50 may move the scales of a base that it packed itself, and DoRA's second pass finds none."""
    pytest.importorskip("bitsandbytes")
    for module, expected in (("bitsandbytes.backends.default.ops", "smoke.packing_failed"), ("peft.x", "smoke.failed")):
        library: dict[str, Any] = {"__name__": module}
        exec("def run(): None.dtype", library)
        with pytest.raises(LibraryFailed) as failed, exceptions_as("error", "smoke.failed", "forward", "it fails"):
            library["run"]()
        assert failed.value.finding.code == expected
