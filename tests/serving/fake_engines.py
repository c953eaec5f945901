"""Engines as real HTTP servers on loopback, as far as the agent sees them: vLLM, SGLang, llama.cpp's server.

Written after vllm/entrypoints/openai/models/serving.py of 0.33.0, python/sglang/srt/entrypoints/http_server.py and
managers/io_struct.py of 0.5.23, and llama.cpp's tools/server/README.md: routes, bodies, refusals and their words.
What they answer for a prompt depends on every byte of the weights that they were given. The real engines are asked in
tests/proof (vLLM on a CPU, llama.cpp).

    with VLLMServer() as engine:
        VLLM(engine.url).load("acme-support-v1", folder)
        engine.stop(); engine.start()      it dies, with all that it had loaded, and comes back at the same address
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

WEIGHTS = "adapter_model.safetensors"
EngineResponse = tuple[int, Any]


def answers(weights: bytes, count: int = 3) -> list[float]:
    """Log-probabilities that depend on every byte of the weights."""
    return [-1.0 - byte / 32 for byte in hashlib.sha256(weights).digest()[:count]]


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True


class EngineServer:
    """`deaf`: it takes every adapter and answers like its base. `die_at`: it is killed by the next request there.
    `key`: its `--api-key`."""

    def __init__(self, *, load_seconds: float = 0.0) -> None:
        self.loaded: dict[str, tuple[str, bytes]] = {}
        self.deaf, self.loads, self.load_seconds = False, 0, load_seconds
        self.die_at = self.key = ""
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._port = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                owner.handle(self)

            do_GET = do_POST = _any

            def log_message(self, _format: str, *_args: object) -> None:
                return

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """The process ends: nothing listens any more, and what was loaded is forgotten."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        self.loaded = {}

    @property
    def down(self) -> bool:
        return self._server is None

    @down.setter
    def down(self, is_down: bool) -> None:
        if is_down:
            self.stop()
        else:
            self.start()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        size = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(size) or b"null")
        if self.die_at and request.path == self.die_at:
            self.die_at = ""
            self.stop()
            request.close_connection = True
            request.connection.close()
            return
        authorized = not self.key or request.headers.get("Authorization") == f"Bearer {self.key}"
        status, content = (
            self.respond(request.command, request.path, body) if authorized else (401, {"error": "Unauthorized"})
        )
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        request.send_response(status)
        request.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def respond(self, method: str, path: str, body: Any) -> EngineResponse:
        raise NotImplementedError

    def load(self, name: str, root: str) -> str:
        """Nothing, or the engine's refusal."""
        with self._lock:
            if name in self.loaded:
                return f"The lora adapter '{name}' has already been loaded."
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            time.sleep(self.load_seconds)
            try:
                weights = (Path(root) / WEIGHTS).read_bytes()
            except OSError:
                return f"Loading lora {name} failed: No adapter found for {root}"
            with self._lock:
                self.loads += 1
                self.loaded[name] = (root, weights)
            return ""
        finally:
            with self._lock:
                self.at_once -= 1

    def says(self, name: str, count: int) -> list[float]:
        return answers(b"" if self.deaf else self.loaded[name][1], count)


class VLLMServer(EngineServer):
    """With VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."""

    def respond(self, _method: str, path: str, body: Any) -> EngineResponse:
        if path == "/v1/models":
            cards = [{"id": name, "root": root, "parent": "base"} for name, (root, _) in list(self.loaded.items())]
            return 200, {"object": "list", "data": [{"id": "base", "root": "/base", "parent": None}, *cards]}
        if path == "/v1/load_lora_adapter":
            refused = self.load(body["lora_name"], body["lora_path"])
            return (
                (400, refused) if refused else (200, f"Success: LoRA adapter '{body['lora_name']}' added successfully.")
            )
        if path == "/v1/unload_lora_adapter":
            removed = self.loaded.pop(body["lora_name"], None)
            return (200, "Success") if removed else (404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        if path == "/v1/completions" and body["model"] in self.loaded:
            if "prompt_logprobs" in body:  # 0.32.0 on a CPU, with another request in the same step
                self.stop()
            choice = {"tokens": ["?"], "token_logprobs": [self.says(body["model"], len(body["prompt"]))[-1]]}
            return 200, {"choices": [{"logprobs": choice}]}
        return 404, {"error": {"message": f"The model `{(body or {}).get('model')}` does not exist."}}


class SGLangServer(EngineServer):
    """With --enable-lora."""

    def respond(self, _method: str, path: str, body: Any) -> EngineResponse:
        if path == "/v1/models":
            cards = [{"id": name, "root": root, "parent": "base"} for name, (root, _) in list(self.loaded.items())]
            return 200, {"object": "list", "data": [{"id": "base", "root": "base", "parent": None}, *cards]}
        if path == "/load_lora_adapter":
            refused = self.load(body["lora_name"], body["lora_path"])
            return (400 if refused else 200), {"success": not refused, "error_message": refused}
        if path == "/unload_lora_adapter":
            removed = self.loaded.pop(body["lora_name"], None)
            return (200 if removed else 400), {"success": bool(removed)}
        if path == "/generate" and body["lora_path"] in self.loaded:
            values = self.says(body["lora_path"], len(body["input_ids"]) - 1)
            rows = [
                [None, body["input_ids"][0], None],
                *([v, t, None] for v, t in zip(values, body["input_ids"][1:], strict=True)),
            ]
            return 200, {"text": "", "meta_info": {"input_token_logprobs": rows}}
        return 400, {"error": {"message": "not loaded"}}


class LlamaServer(EngineServer):
    """`llama-server --lora FILE … --lora-init-without-apply`: the files are those of its start."""

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self.files, self.scales = [str(file) for file in files], [0.0] * len(files)
        super().__init__()

    def restart(self, files: Sequence[Path]) -> None:
        self.stop()
        self.files, self.scales = [str(file) for file in files], [0.0] * len(files)
        self.start()

    def respond(self, method: str, path: str, body: Any) -> EngineResponse:
        if path == "/lora-adapters" and method == "GET":
            loaded = zip(self.files, self.scales, strict=True)
            return 200, [{"id": number, "path": file, "scale": scale} for number, (file, scale) in enumerate(loaded)]
        if path == "/lora-adapters":
            named = {row["id"]: row["scale"] for row in body}
            self.scales = [float(named.get(number, 0.0)) for number in range(len(self.files))]
            return 200, {"success": True}
        if path == "/completion":
            on = [row["id"] for row in body["lora"] if row["scale"]]
            weights = Path(self.files[on[0]]).read_bytes() if on and not self.deaf else b""
            step = len(body["prompt"]) - 1
            # every token of a vocabulary of 8 is as likely as the step's own number says
            rows = [{"id": token, "logprob": answers(weights, step + 1)[step]} for token in range(8)]
            return 200, {"completion_probabilities": [{"id": 0, "logprob": -1.0, "top_logprobs": rows}]}
        return 404, {"error": {"message": "File Not Found"}}
