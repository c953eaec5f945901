"""`EngineDriver`: what the agent asks of every engine; vLLM and SGLang, which load adapters at run time.

An engine that does not respond is `Unavailable`; one that rejects a request is `Refused`, with its own message.
Nothing is loaded in place of another version under the same name: engines mix old and new then.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from registry import __version__
from registry.client.transport import HttpResponse, Transport, TransportError
from registry.client.transport.http_transport import HttpTransport
from registry.errors import Corrupt, Refused, Unavailable

RESPONSE_SECONDS = 120.0
RESPONSE_LIMIT_BYTES = 32 * 2**20
KEY_VARIABLE = "ADAPTER_ENGINE_KEY"
STEPS_LIMIT = 16
"""Tokens of a prompt that are compared, where each takes a request."""


class EngineDriver(Protocol):
    """Names are served names, folders are in the store. `has_logprobs`: it reports log-probabilities;
    `is_quantized`: its base may be quantized, so that they are only near to the reference's."""

    has_logprobs: bool
    is_quantized: bool

    def loaded(self) -> dict[str, str]:
        """Served name → the folder that it was loaded from, of every adapter that is loaded."""

    def readable_paths(self, loaded: Mapping[str, str]) -> Iterable[str]:
        """The paths that it may read, loaded or not; `loaded`: what it has now."""

    def load(self, served: str, folder: Path) -> None:
        """Load a folder under this name."""

    def unload(self, served: str) -> None:
        """Unload a name; nothing happens if it is not loaded."""

    def set_aliases(self, aliases: Mapping[str, str], adapters: int) -> None:
        """Set which served name serves each adapter, in engines with such a table; `adapters` are desired."""

    def logprobs(self, served: str, tokens: Sequence[int]) -> Sequence[float | None] | None:
        """log p(tᵢ₊₁ | t₀ … tᵢ) in nats, one for each token after the first; None if it does not report it."""


class HttpEngine:
    """An engine behind HTTP that lists its adapters in /v1/models. `key`: what it was started with as `--api-key`."""

    prefix = ""
    has_logprobs = True
    is_quantized = False

    def __init__(self, url: str, key: str = "", transport: Transport | None = None) -> None:
        self.url = url
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._transport = transport or HttpTransport(f"adapter-registry/{__version__}", is_direct=True)

    def loaded(self) -> dict[str, str]:
        """Served name → path, of the models that have a parent."""
        models = self._read("GET", "/v1/models", None, lambda response: response["data"])
        with self._readable("/v1/models"):
            return {str(model["id"]): str(model.get("root") or "") for model in models if model.get("parent")}

    def readable_paths(self, loaded: Mapping[str, str]) -> Iterable[str]:
        """The folders of what is loaded."""
        return loaded.values()

    def load(self, served: str, folder: Path) -> None:
        """Load a folder under this name."""
        self._ask("POST", f"{self.prefix}/load_lora_adapter", {"lora_name": served, "lora_path": str(folder)})

    def unload(self, served: str) -> None:
        """Unload a name."""
        self._ask("POST", f"{self.prefix}/unload_lora_adapter", {"lora_name": served})

    def set_aliases(self, _aliases: Mapping[str, str], _adapters: int) -> None:
        """Do nothing: requests use the served name."""

    def _ask(self, method: str, path: str, body: Any = None) -> HttpResponse:
        data = b"" if body is None else json.dumps(body).encode()
        url, ends = self.url.rstrip("/") + path, time.monotonic() + 2 * RESPONSE_SECONDS
        try:
            stream = self._transport.open(method, url, self._headers, data, seconds=RESPONSE_SECONDS)
            stream.set_deadline(ends)
            response = stream.read(RESPONSE_LIMIT_BYTES)
        except (TransportError, Corrupt) as e:
            raise Unavailable("SERVER_UNREACHABLE", f"the engine at {self.url} does not respond: {e}") from e
        text = response.content.decode(errors="replace")
        if response.status in (502, 503, 504):
            raise Unavailable("SERVER_UNREACHABLE", f"the engine at {self.url} is not ready: {text[:200]}")
        if response.status == 401:
            raise Refused(
                "VERDICT_FAILED", f"the engine at {self.url} requires another key (its --api-key): set {KEY_VARIABLE}"
            )
        if response.is_error:
            raise Refused("VERDICT_FAILED", f"the engine responds with {response.status} to {path}: {text[:600]}")
        return response

    def _read(self, method: str, path: str, body: Any, pick: Callable[[Any], Any]) -> Any:
        """What `pick` extracts from the JSON of a response."""
        response = self._ask(method, path, body)
        with self._readable(path):
            return pick(response.json())

    @contextmanager
    def _readable(self, path: str) -> Iterator[None]:
        """A response that is not of the expected form means that the engine is not there."""
        try:
            yield
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as e:
            raise Unavailable(
                "SERVER_UNREACHABLE",
                f"the engine at {self.url} responds to {path} with something unexpected: {e!r}"[:600],
            ) from e


class VLLM(HttpEngine):
    """vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 (vllm/entrypoints/openai/models/serving.py)."""

    prefix = "/v1"

    def logprobs(self, served: str, tokens: Sequence[int]) -> Sequence[float | None] | None:
        """Some of the tokens, each as the only one allowed to follow the ones before it.

        `prompt_logprobs` would be one request, but with an adapter it crashed vLLM (0.32.0 on a CPU) as soon as another
        request was in the same step.
        """
        last = len(tokens) - 1
        compared = {1 + at * last // STEPS_LIMIT for at in range(STEPS_LIMIT)}
        logprobs = [self._next(served, tokens, end) if end in compared else None for end in range(1, last + 1)]
        finite = [value for value in logprobs if value is not None]
        return logprobs if any(finite) else None  # all 0: this vLLM normalizes over the allowed token

    def _next(self, served: str, tokens: Sequence[int], end: int) -> float:
        body = {
            "model": served, "prompt": list(tokens[:end]), "max_tokens": 1, "temperature": 0, "logprobs": 1,
            "allowed_token_ids": [tokens[end]],
        }  # fmt: skip

        def pick(response: Any) -> float:
            return float(response["choices"][0]["logprobs"]["token_logprobs"][0])

        log_prob: float = self._read("POST", "/v1/completions", body, pick)
        return log_prob


class SGLang(HttpEngine):
    """SGLang with --enable-lora (python/sglang/srt/managers/io_struct.py); it lists adapters in /v1/models, too."""

    def logprobs(self, served: str, tokens: Sequence[int]) -> Sequence[float | None] | None:
        """Log probabilities of these tokens, from the engine's own route."""
        body = {
            "input_ids": list(tokens), "lora_path": served, "return_logprob": True, "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        }  # fmt: skip

        def pick(response: Any) -> list[float]:
            return [float(row[0]) for row in response["meta_info"]["input_token_logprobs"][1:]]

        logprobs: list[float] = self._read("POST", "/generate", body, pick)
        return logprobs
