"""Engines that load adapters while they run, each asked in its own words: vLLM and SGLang.

Invariants
- An engine that does not answer is `Unavailable`; one that answers no is `Refused`, with the engine's own sentence.
- Nothing is ever loaded in place of something else under one name: engines mix old and new then.

Example
    >>> VLLM("http://127.0.0.1:8000").held()
    {'acme-support-v3': '/srv/adapters/versions/9f86d081…'}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx

from registry.errors import Invalid, Refused, Unavailable

ANSWER_SECONDS = 120.0


class Engine(Protocol):
    """What the agent asks of every engine. Names are served names, folders are on the shelf."""

    def held(self) -> dict[str, str]:
        """Served name → the folder that it was loaded from, of every adapter that is loaded."""

    def load(self, served: str, folder: Path) -> None: ...

    def unload(self, served: str) -> None: ...

    def log_probs(self, served: str, tokens: Sequence[int]) -> list[float]:
        """log p(tᵢ₊₁ | t₀ … tᵢ) in nats, one number for each token after the first."""


class _Http:
    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=ANSWER_SECONDS, transport=transport, trust_env=False)

    def held(self) -> dict[str, str]:
        found = self._ask("GET", "/v1/models").json()["data"]
        return {model["id"]: str(model.get("root") or "") for model in found if model.get("parent")}

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as e:
            raise Unavailable("SERVER_UNREACHABLE", f"the engine at {self.url} does not answer: {e}") from e
        if answer.is_error:
            raise Refused("VERDICT_FAILED", f"the engine answers {answer.status_code} to {path}: {answer.text[:600]}")
        return answer


class VLLM(_Http):
    """vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 (vllm/entrypoints/openai/models/serving.py)."""

    def load(self, served: str, folder: Path) -> None:
        self._ask("POST", "/v1/load_lora_adapter", {"lora_name": served, "lora_path": str(folder)})

    def unload(self, served: str) -> None:
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": served})

    def log_probs(self, served: str, tokens: Sequence[int]) -> list[float]:
        asked = {"model": served, "prompt": list(tokens), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        given = self._ask("POST", "/v1/completions", asked).json()["choices"][0]["prompt_logprobs"][1:]
        return [float(row[str(token)]["logprob"]) for row, token in zip(given, tokens[1:], strict=True)]


class SGLang(_Http):
    """SGLang with --enable-lora (python/sglang/srt/managers/io_struct.py); its adapters stand in /v1/models, too."""

    def load(self, served: str, folder: Path) -> None:
        self._ask("POST", "/load_lora_adapter", {"lora_name": served, "lora_path": str(folder)})

    def unload(self, served: str) -> None:
        self._ask("POST", "/unload_lora_adapter", {"lora_name": served})

    def log_probs(self, served: str, tokens: Sequence[int]) -> list[float]:
        asked = {
            "input_ids": list(tokens), "lora_path": served, "return_logprob": True, "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        }  # fmt: skip
        given = self._ask("POST", "/generate", asked).json()["meta_info"]["input_token_logprobs"]
        return [float(row[0]) for row in given[1:]]


KINDS: dict[str, type[VLLM] | type[SGLang]] = {"vllm": VLLM, "sglang": SGLang}


def engine(text: str) -> Engine:
    """`vllm=http://127.0.0.1:8000`. `Invalid` (SETTING_INVALID) for another kind."""
    kind, equals, url = text.partition("=")
    if not equals or kind not in KINDS:
        possible = ", ".join(KINDS)
        raise Invalid("SETTING_INVALID", f"engine {text[:80]!r} is not 'KIND=URL'; kinds are: {possible}")
    return KINDS[kind](url)
