"""Real vLLM on a CPU, asked over HTTP: does it load each case, and are its log-probabilities those of PEFT?

    python -m tests.proof.vllm_http         asks and writes tests/engines/recorded_http.json

Invariants
- The server runs in its own environment and process group on loopback; it is ended whatever happens.
- An adapter `acts` when no log-probability of the prompt is further from PEFT's than 2e-2 (None: there is nothing to
  compare, because the engine or PEFT refuses it).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests import samples
from tests.engines.cases import BASE, CASES
from tests.proof import reference, venvs
from tests.samples import WEIGHTS, Files

RECORDED = Path(__file__).resolve().parents[1] / "engines" / "recorded_http.json"
MAX_LORA_RANK = 16
TOLERANCE = 2e-2
LOUDER = 8.0
"""What B is multiplied with, so that a wrong scale is seen beyond doubt in a model as small as this."""
START_SECONDS = 600


def cases() -> dict[str, Files]:
    """The questions of `tests/engines`, and as the last one numbers that are none."""
    return {**CASES, "nan": samples.lora(BASE, change=without_numbers)}


def write(folder: Path) -> dict[str, Path]:
    """The base in `folder/base` and each case in a folder of its own."""
    BASE.write(folder / "base")
    return {name: samples.write(louder(files), folder / "adapters" / name) for name, files in cases().items()}


def without_numbers(tensors: dict[str, samples.Tensor]) -> dict[str, samples.Tensor]:
    return {
        name: (dtype, shape, samples.constant(dtype, shape, math.nan)) for name, (dtype, shape, _) in tensors.items()
    }


def overflowing(tensors: dict[str, samples.Tensor]) -> dict[str, samples.Tensor]:
    """Every number is finite, and no product of two is."""
    return {name: (dtype, shape, samples.constant(dtype, shape, 1e30)) for name, (dtype, shape, _) in tensors.items()}


def louder(files: Files) -> Files:
    tensors = samples.tensors_of(files[WEIGHTS])
    scaled = {
        name: (dtype, shape, (np.frombuffer(body or b"", "<f4") * LOUDER).astype("<f4").tobytes())
        if "lora_B" in name and dtype == "F32" else (dtype, shape, body)
        for name, (dtype, shape, body) in tensors.items()
    }  # fmt: skip
    return {**files, WEIGHTS: samples.safetensors(scaled)}


class Engine:
    """A vLLM with runtime loading, which may be killed and started again on its port. `more` is for its environment."""

    def __init__(self, python: Path, base: Path, log: Path, **more: str) -> None:
        self.log, self.more = log, more
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=120)
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [
            str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(base),
            "--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
            "--max-model-len", "128", "--max-num-seqs", "4", "--enforce-eager", "--enable-lora", "--max-loras", "2",
            "--max-cpu-loras", "4", "--max-lora-rank", str(MAX_LORA_RANK),
        ]  # fmt: skip

    def start(self) -> None:
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1", **self.more,
        }  # fmt: skip
        with self.log.open("ab") as out:  # started in a folder where python finds nothing of ours
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=out, stderr=out, start_new_session=True, cwd=self.log.parent
            )
        try:
            self._wait(self._process)
        except BaseException:
            self.end()
            raise

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End all its processes."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, how)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            if process.poll() is not None:
                break
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/health").status_code == 200:
                    return
            time.sleep(1)  # there is no event to wait for: the server is another program
        raise RuntimeError(f"vLLM did not start:\n{self.log.read_text()[-4000:]}")


@contextlib.contextmanager
def server(python: Path, base: Path, log: Path) -> Iterator[httpx.Client]:
    """A running vLLM, as a client of its HTTP API."""
    engine = Engine(python, base, log)
    try:
        engine.start()
        yield engine.client
    finally:
        engine.end()
        engine.client.close()


def load(client: httpx.Client, name: str, folder: Path) -> str:
    """`ok`, or the status and the sentence with which vLLM refuses."""
    response = client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})
    return "ok" if response.status_code == 200 else f"{response.status_code}: {_sentence(response)}"


def _sentence(response: httpx.Response) -> str:
    text = response.text
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        body = response.json()
        text = str(body.get("error", body).get("message", body))
    inner = re.search(r"Worker failed with error '(.*)', please check", text, re.DOTALL)
    return (inner[1] if inner else text)[:600]


def log_probs(client: httpx.Client, model: str) -> reference.LogProbs | str:
    """The prompt's log-probabilities with this adapter, or what the server answers instead."""
    request = {
        "model": model,
        "prompt": list(reference.PROMPT),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
    }
    response = client.post("/v1/completions", json=request)
    if response.status_code != 200:
        return f"{response.status_code}: {_sentence(response)}"
    token_logprobs = response.json()["choices"][0]["prompt_logprobs"][1:]
    return tuple(
        float(row[str(token)]["logprob"]) for row, token in zip(token_logprobs, reference.PROMPT[1:], strict=True)
    )


def next_log_probs(client: httpx.Client, model: str) -> reference.LogProbs | str:
    """The same, one token of the prompt at a time: vLLM ends when `prompt_logprobs` is not asked for alone."""
    values = []
    for end in range(1, len(reference.PROMPT)):
        request = {"model": model, "prompt": list(reference.PROMPT[:end]), "max_tokens": 1, "temperature": 0,
                 "logprobs": 1, "allowed_token_ids": [reference.PROMPT[end]]}  # fmt: skip
        response = client.post("/v1/completions", json=request)
        if response.status_code != 200:
            return f"{response.status_code}: {_sentence(response)}"
        values.append(float(response.json()["choices"][0]["logprobs"]["token_logprobs"][0]))
    return tuple(values)


def ask(client: httpx.Client, adapters: Mapping[str, Path], references: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Case → what vLLM answered to loading it, and whether it then acted as in PEFT (None: PEFT itself refuses)."""
    results: dict[str, dict[str, Any]] = {}
    for name, folder in adapters.items():
        answer = load(client, name, folder)
        served = log_probs(client, name) if answer == "ok" else None
        expected = references[name]
        row: dict[str, Any] = {"answer": answer}
        if isinstance(served, str):
            row["request"] = served
        if isinstance(served, tuple) and isinstance(expected, tuple):
            row["from_peft"] = float(f"{reference.distance(served, expected):.3g}")
            row["from_base"] = float(f"{reference.distance(served, references['']):.3g}")
        row["acts"] = row["from_peft"] <= TOLERANCE if "from_peft" in row else None
        results[name] = row
        if answer == "ok":
            client.post("/v1/unload_lora_adapter", json={"lora_name": name})
    return results


def run(folder: Path) -> dict[str, dict[str, Any]]:
    python = venvs.vllm_python()
    if python is None:
        raise RuntimeError("vLLM is not installed: python -m tests.proof.venvs vllm")
    adapters = write(folder)
    references = reference.answers(folder / "base", adapters)
    with server(python, folder / "base", folder / "vllm.log") as client:
        return ask(client, adapters, references)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="proof-") as scratch:
        rows = run(Path(scratch))
    document = {f"vllm=={venvs.VLLM}": rows}
    RECORDED.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{len(rows)} adapters asked of vLLM {venvs.VLLM} -> {RECORDED.name}\n")
