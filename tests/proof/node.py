"""`Node`: one serving node as it is in life: a registry, a worker, a real vLLM with our plugin, and `adapter agent`.

    node.push("acme/m0", seed=1)            a version from a folder; its folder is remembered for PEFT
    node.smoke_test()                       a real worker tries every version
    node.ask("acme/m0:prod")                vLLM's log-probabilities of the prompt, or what it says instead
    with node.agent(store): …               the agent runs beside

Invariants
- vLLM gets our package as a wheel beside its own packages: it finds the plugin by its entry point, as when installed.
- Every process is one that people run; the registry and vLLM may be killed and are started on their ports again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.api.bases import BaseAdd
from registry.client.registry import Registry
from registry.client.transfer import push as pushing
from registry.names import AdapterName
from tests import import_table, processes, samples
from tests.base_specs import spec_of
from tests.engines.cases import BASE
from tests.faults.servers import Server
from tests.proof import reference, venvs, vllm_http

ALIAS = "prod"
PATIENCE_SECONDS = 240


@dataclass
class Node:
    folder: Path
    server: Server
    registry: Registry
    engine: vllm_http.Engine
    folders: dict[str, Path] = field(default_factory=dict)
    """`acme/m0@1` → the folder that was pushed."""
    expected: dict[str, reference.LogProbs | str] = field(default_factory=dict)
    """`acme/m0@1` → what PEFT answers with that folder; "" is the base alone."""

    # ------------------------------------------------------------ the registry's side
    def push(self, name: str, seed: int, change: Callable[..., Any] | None = None) -> str:
        source = self.folder / "sources" / f"{name.replace('/', '-')}-{seed}"
        samples.write(vllm_http.louder(samples.lora(BASE, seed=seed, change=change)), source)
        pushed = pushing.push_folder(self.registry, source, AdapterName.parse(name), base=BASE.name)
        ref = f"{name}@{pushed.version.number}"
        self.folders[ref] = source
        return ref

    def smoke_test(self) -> None:
        base = self.folder / "base"
        done = subprocess.run(self._adapter("worker", "--once", "--base", f"{BASE.name}={base}"), env=self.environment,
                              cwd=self.folder, capture_output=True, text=True, timeout=600)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    def promote(self, name: str, number: int, **how: Any) -> None:
        generations = {alias.alias: alias.generation for alias in self.registry.aliases(name).items}
        self.registry.promote(name, ALIAS, str(number), generation=generations.get(ALIAS, 0), **how)

    # ------------------------------------------------------------ the engine's side
    def start_engine(self, store: Path) -> None:
        self.engine.more |= {
            "PYTHONPATH": str(self.folder / "site"), "ADAPTER_REGISTRY": self.server.url,
            "ADAPTER_TOKEN": self.server.token, "ADAPTER_PLUGIN_BASE": BASE.name, "ADAPTER_PLUGIN_DIR": str(store),
            "ADAPTER_PLUGIN_CHECKS": "smoke",
        }  # fmt: skip
        self.engine.start()

    def ask(self, model: str) -> reference.LogProbs | str:
        return vllm_http.next_log_probs(self.engine.client, model)

    def far(self, model: str, ref: str) -> float:
        """How far vLLM's answers under this name are from PEFT's with that version."""
        answer, expected = self.ask(model), self.expected[ref]
        assert isinstance(answer, tuple), answer
        assert isinstance(expected, tuple), expected
        return reference.distance(answer, expected)

    def loaded(self) -> dict[str, str]:
        """Served name → folder, of all that vLLM holds beside its base."""
        cards = self.engine.client.get("/v1/models").json()["data"]
        return {card["id"]: card["root"] for card in cards if card.get("parent")}

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what other programs do; says what they said when it does not come, or when vLLM has ended."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > ends or not self.engine.is_alive():
                logs = [path for path in (self.engine.log, self.folder / "agent" / "server.log") if path.exists()]
                log_text = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-4000:]}" for path in logs)
                raise AssertionError(f"it did not happen in {PATIENCE_SECONDS} s, or vLLM has ended\n{log_text}")
            time.sleep(0.2)

    # ------------------------------------------------------------ the agent's side
    @contextlib.contextmanager
    def agent(self, store: Path) -> Iterator[Path]:
        """The folder with its log, `server.log`."""
        folder = self.folder / "agent"
        folder.mkdir(exist_ok=True)
        command = self._adapter(
            "agent", "--sync", f"vllm={self.engine.url}", "--base", BASE.name, "--alias", ALIAS, "--dir", str(store),
            "--engine", f"vllm=={venvs.VLLM},max_lora_rank={vllm_http.MAX_LORA_RANK}", "--drain", "1s",
        )  # fmt: skip
        with processes.running(command, folder, stop=signal.SIGTERM, env=self.environment):
            yield folder

    @property
    def environment(self) -> dict[str, str]:
        own = {"ADAPTER_REGISTRY": self.server.url, "ADAPTER_TOKEN": self.server.token}
        homes = {f"XDG_{kind}_HOME": str(self.folder / "home" / kind) for kind in ("CONFIG", "CACHE", "DATA", "STATE")}
        return {**os.environ, **own, **homes, "PYTHONPATH": str(import_table.ROOT)}

    def _adapter(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cli.main", *words]


def aliases(store: Path) -> dict[str, str]:
    """Adapter → the served name that answers for it, as the agent wrote it down."""
    with contextlib.suppress(OSError):
        names: dict[str, str] = json.loads((store / "aliases.json").read_text())
        return names
    return {}


@contextlib.contextmanager
def node_with_base(folder: Path) -> Iterator[Node]:
    """A registry with the base, and an engine that is not started yet."""
    python = venvs.vllm_python()
    assert python is not None
    BASE.write(folder / "base")
    _install(folder / "site")
    with Server({"REGISTRY_DATA": str(folder / "data")}).running() as server, \
            Registry(server.url, server.token) as registry:  # fmt: skip
        registry.add_base(BaseAdd(spec=spec_of(BASE), source=str(folder / "base")))
        engine = vllm_http.Engine(python, folder / "base", folder / "vllm.log")
        try:
            yield Node(folder, server, registry, engine)
        finally:
            engine.end()
            engine.client.close()


def _install(site: Path) -> None:
    """Our wheel, unpacked with its entry points; what it needs is in vLLM's environment."""
    wheels = site.with_name("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, import_table.ROOT], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", site, next(wheels.glob("*.whl"))], check=True)
