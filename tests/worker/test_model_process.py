"""The model process and its children: how each kind of adapter ends, and that the next one is right."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest

from registry.worker.model.sources import BaseSource
from registry.worker.model_process.client import ModelProcess, Pool, ProcessExited, ProcessLimits
from registry.worker.sandbox import namespaces
from registry.worker.sandbox.confine import clean_environment
from tests.worker import models

LIMITS = ProcessLimits(deadline_seconds=120, threads=1)
ISOLATED = ProcessLimits(deadline_seconds=120, threads=1, isolate=True)
"""A process of its own for every adapter: slow enough to be stopped on its way."""


@pytest.fixture(scope="module")
def source(base_folder: Path) -> BaseSource:
    return BaseSource("tiny", base_folder, "sha256:" + "0" * 64)


def codes(response: dict[str, Any]) -> dict[str, str]:
    return {finding["code"]: finding["severity"] for finding in response["result"]["findings"]}


def test_a_good_adapter_acts_and_leaves_the_base_bit_equal(pool: Pool, source: BaseSource, good: Path) -> None:
    response = pool.try_adapter(source, good, LIMITS)
    assert codes(response) == {}
    measurements = response["result"]["measurements"]
    assert measurements["max_logit_delta"] > 1e-3
    assert 0 < measurements["kl_nats"] < 3
    assert measurements["base_tensors_changed"] == 0
    measurements = pool.try_adapter(source, good, ISOLATED)["result"]["measurements"]
    assert (measurements["base_tensors_changed"], measurements["base_logits_equal_after"]) == (0, True)


def test_a_model_process_has_one_thread_so_that_it_may_fork(pool: Pool, source: BaseSource) -> None:
    assert pool.process(source).ready["threads"] == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (models.with_nan, {"smoke.not_finite": "error"}),
        (models.with_inf, {"smoke.not_finite": "error"}),
        (models.huge, {"smoke.not_finite": "error"}),
        (models.zero_b, {"smoke.no_effect": "error"}),
        (models.wrong_prefix, {"compat.tensor_missing": "error", "lora.tensor_unknown": "error"}),
        (models.poisoned, {"lora.tensor_unknown": "error"}),
    ],
)
def test_a_broken_adapter_is_named_and_the_next_one_is_right(
    pool: Pool, source: BaseSource, good: Path, base_folder: Path, tmp_path: Path, change: models.Change, expected: Any
) -> None:
    loads, before = pool.base_loads, pool.try_adapter(source, good, LIMITS)["result"]["measurements"]["max_logit_delta"]
    response = pool.try_adapter(source, models.adapter(base_folder, tmp_path / "broken", change=change), LIMITS)
    assert codes(response).items() >= expected.items()
    assert pool.try_adapter(source, good, LIMITS)["result"]["measurements"]["max_logit_delta"] == before
    assert pool.base_loads == loads


@pytest.mark.parametrize(
    ("change", "expected"), [(models.wrong_prefix, "smoke.no_effect"), (models.poisoned, "smoke.base_changed")]
)
def test_values_show_what_names_would_have_shown(
    pool: Pool, source: BaseSource, base_folder: Path, tmp_path: Path, change: models.Change, expected: str
) -> None:
    broken = models.adapter(base_folder, tmp_path / "broken", change=change)
    assert codes(pool.try_adapter(source, broken, replace(LIMITS, any_name=True)))[expected] == "error"


def test_a_nan_is_named_by_its_tensor(pool: Pool, source: BaseSource, base_folder: Path, tmp_path: Path) -> None:
    response = pool.try_adapter(source, models.adapter(base_folder, tmp_path / "nan", change=models.with_nan), LIMITS)
    assert "layers.0.self_attn.q_proj.lora_B" in response["result"]["findings"][0]["location"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"use_dora": True}, {}),
        ({"use_rslora": True, "target_modules": "all-linear"}, {}),
        ({"modules_to_save": ["lm_head"]}, {}),
        ({"target_modules": ["embed_tokens", "q_proj"]}, {}),
        ({"trainable_token_indices": [500, 501]}, {}),
        ({"bias": "lora_only", "target_modules": ["q_proj"]}, {}),
        ({"alora_invocation_tokens": [7, 8]}, {}),
        ({"layer_replication": [[0, 2], [1, 2]]}, {"smoke.base_changed": "warning"}),
    ],
)
def test_honest_options_of_lora_act(
    pool: Pool, source: BaseSource, base_folder: Path, tmp_path: Path, settings: dict[str, Any], expected: Any
) -> None:
    response = pool.try_adapter(source, models.adapter(base_folder, tmp_path / "honest", **settings), LIMITS)
    assert codes(response) == expected, response


def test_an_adapter_that_announces_a_change_of_the_base_is_warned_about(
    pool: Pool, source: BaseSource, base_folder: Path, tmp_path: Path
) -> None:
    response = pool.try_adapter(source, models.adapter(base_folder, tmp_path / "p", init_lora_weights="pissa"), LIMITS)
    assert codes(response)["smoke.base_changed"] == "warning"


def test_a_shape_that_peft_does_not_expect_is_a_finding_with_both_shapes(
    pool: Pool, source: BaseSource, tmp_path: Path
) -> None:
    other = models.base(tmp_path / "wide", hidden=128)
    response = pool.try_adapter(source, models.adapter(other, tmp_path / "adapter"), LIMITS)
    assert codes(response) == {"compat.shape": "error"}
    finding = response["result"]["findings"][0]
    assert (finding["expected"][:7], finding["actual"][:8]) == ("[4, 64]", "[4, 128]")


def test_a_hanging_child_is_killed_at_its_deadline_and_the_model_process_goes_on(
    pool: Pool, source: BaseSource, good: Path
) -> None:
    process = pool.process(source)
    with _When(process, signal.SIGSTOP) as stopped:
        response = pool.try_adapter(source, good, ProcessLimits(deadline_seconds=1.5, threads=1, isolate=True))
    assert response["failed"] == "the child was killed: it reached its deadline of 1.5 seconds"
    assert not _exists(stopped.child)
    assert codes(pool.try_adapter(source, good, LIMITS)) == {}
    assert pool.process(source) is process


def test_a_crashing_child_is_distinguished_from_a_hanging_one(pool: Pool, source: BaseSource, good: Path) -> None:
    with _When(pool.process(source), signal.SIGSEGV):
        response = pool.try_adapter(source, good, ISOLATED)
    assert response["failed"] == "the child died of SIGSEGV without a response"


def test_a_child_that_asks_for_too_much_memory_ends_in_a_finding(
    pool: Pool, source: BaseSource, base_folder: Path, tmp_path: Path
) -> None:
    large = models.adapter(base_folder, tmp_path / "large", r=2048, target_modules="all-linear")
    response = pool.try_adapter(source, large, ProcessLimits(deadline_seconds=60, threads=1, memory_bytes=2**20))
    assert codes(response) == {"smoke.limit_exceeded": "unknown"}
    assert "memory" in str(response["result"]["findings"][0]["message"])
    assert codes(pool.try_adapter(source, large, LIMITS)) == {}


@pytest.mark.security
def test_a_configuration_that_works_without_end_ends_in_a_finding(
    pool: Pool, source: BaseSource, good: Path, base_folder: Path, tmp_path: Path
) -> None:
    """A push refuses it by the field's limit; the limit of time holds without that."""
    config = peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    endless = models.adapter(base_folder, tmp_path / "endless", config=config)
    path = endless / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_cayley_neumann_terms": 10**9}))
    response = pool.try_adapter(source, endless, replace(LIMITS, deadline_seconds=11))
    assert codes(response) == {"smoke.limit_exceeded": "unknown"}
    assert "deadline of 11 seconds" in response["result"]["findings"][0]["message"]
    assert codes(pool.try_adapter(source, good, LIMITS)) == {}


def test_a_job_that_was_given_up_stops_its_child(pool: Pool, source: BaseSource, good: Path) -> None:
    with _When(pool.process(source), signal.SIGSTOP, then=pool.stop_child):
        response = pool.try_adapter(source, good, ISOLATED)
    assert response["failed"] == "the child was killed: the worker stopped the job"


def test_a_killed_model_process_takes_its_child_along_and_a_new_one_is_right(source: BaseSource, good: Path) -> None:
    with Pool() as pool:
        process = pool.process(source)
        kill = lambda: os.kill(process.pid, signal.SIGKILL)  # noqa: E731
        # A child that is stopped before it has asked to die with its parent holds the pipe until the deadline.
        ended = pytest.raises(ProcessExited, match=r"signal 9|does not respond")
        with _When(process, signal.SIGSTOP, then=kill) as stopped, ended:
            pool.try_adapter(source, good, ISOLATED)
        assert not _exists(stopped.child)
        assert codes(pool.try_adapter(source, good, LIMITS)) == {}
        assert pool.base_loads == 2


def test_a_base_that_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ProcessExited, match="cannot load the base empty"):
        ModelProcess(BaseSource("empty", tmp_path, "")).load()


def test_a_base_that_is_being_loaded_can_be_given_up(source: BaseSource) -> None:
    process = ModelProcess(source)
    process.interrupt()
    with pytest.raises(ProcessExited, match="signal 9"):
        process.load()


def test_a_model_process_gets_no_secrets() -> None:
    environment = clean_environment(
        {"PATH": "/bin", "ADAPTER_TOKEN": "lra_x", "AWS_SECRET_ACCESS_KEY": "x", "REGISTRY_DATABASE_URL": "x"}
    )
    assert environment["PATH"] == "/bin"
    assert not {"ADAPTER_TOKEN", "AWS_SECRET_ACCESS_KEY", "REGISTRY_DATABASE_URL"} & set(environment)


class _When:
    """Sends a signal to the child as soon as the process has named it, then calls `then`."""

    def __init__(self, process: ModelProcess, number: signal.Signals, then: Any = None) -> None:
        self.child = 0
        self._process, self._number, self._then = process, number, then
        self._thread = threading.Thread(target=self._wait)

    def __enter__(self) -> _When:
        if namespaces.bubblewrap():
            pytest.skip("bubblewrap hides the process number of the child that would get the signal")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join()

    def _wait(self) -> None:
        ends = time.monotonic() + 120
        while not self.child and time.monotonic() < ends:
            self.child = self._process.child
        if not self.child:  # in bubblewrap it has no number here, and 0 would be the tests themselves
            return
        os.kill(self.child, self._number)
        if self._then is not None:
            self._then()


def _exists(pid: int) -> bool:
    """Whether the process still runs. A killed orphan may wait a moment for its parent to take notice."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state in "ZX":
            return False
    return True
