"""`Node`: an engine that behaves as vLLM does, a reconciler, an agent, and a faulty connection to the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx

from registry.api.catalog import VersionView
from registry.api.jobs import ClaimRequest, FinishRequest
from registry.client.registry import Registry
from registry.evaluation.reference_logprobs import Prompt, ReferenceLogprobs
from registry.serving.agent.agent import Agent
from registry.serving.agent.heartbeat import Heartbeat
from registry.serving.agent.metrics import Metrics
from registry.serving.agent.reconciler import Reconciler
from registry.serving.engines.openai import VLLM, EngineDriver
from registry.serving.store.local_store import LocalStore
from tests.harness import URL, Harness
from tests.httpx_transports import HttpxTransport
from tests.samples import WEIGHTS, Files
from tests.serving.fake_engines import VLLMServer, answers

TOKENS = (1, 2, 3, 4)


class FaultyTransport(HttpxTransport):
    """The way to the registry: counts requests, can be cut, can spoil the bytes of files."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner, self.paths, self.cut, self.cuts = inner, list[str](), False, 0
        self.spoil: Callable[[bytes], bytes] | None = None
        self.spoils = "/files/"

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.cut:
            self.cuts += 1
            raise httpx.ConnectError("the registry is away", request=request)
        self.paths.append(request.url.path)
        response = self._inner.handle_request(request)
        if self.spoil is None or self.spoils not in request.url.path:
            return response
        body = self.spoil(b"".join(response.stream))  # type: ignore[arg-type]
        return httpx.Response(response.status_code, content=body)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """`driver`: a different engine from the node's own."""

    profile = "vllm==0.33.0,max_lora_rank=16"

    def __init__(
        self,
        harness: Harness,
        transport: FaultyTransport,
        store: LocalStore,
        clock: Clock,
        driver: EngineDriver | None = None,
    ) -> None:
        self.harness, self.transport, self.store, self.clock = harness, transport, store, clock
        self.engine, self.lines = VLLMServer(), list[str]()
        self.driver: EngineDriver = driver or VLLM(self.engine.url)
        self.registry = Registry(URL, harness.issue("pull")[1], transport)
        self.start()

    def start(self) -> None:
        """The agent's process begins anew, and knows what lies on the disk."""
        self.metrics = Metrics()
        self.reconciler = Reconciler(
            self.driver, self.registry, self.store, drain_seconds=10, clock=self.clock, metrics=self.metrics,
            say=self.lines.append,
        )  # fmt: skip
        heartbeat = Heartbeat(
            self.registry, self.reconciler.slots, node="gpu-1", engine="vllm-8000", base="tiny-llama", alias="canary",
            metrics=self.metrics, say=self.lines.append,
        )  # fmt: skip
        self.agent = Agent(
            self.registry, self.reconciler, self.store, base="tiny-llama", alias="canary", profile=self.profile,
            say=self.lines.append, heartbeat=heartbeat,
        )  # fmt: skip

    def push(self, name: str, files: Files | None = None, *, tried: bool = True, **how: Any) -> Files:
        """A version that was smoke-tested (or not), and the canary pointing at it."""
        files = self.harness.files() if files is None else files
        self.make(name, files, tried=tried, **how)
        self.promote(name, self.harness.admin.version(name).number)
        return files

    def make(
        self, name: str, files: Files, *, tried: bool = True, like: bytes | None = None, **how: Any
    ) -> VersionView:
        """A version that nothing points at. `like`: in its smoke test it answered as these weights do."""
        version = self.harness.push(name, files, **how).version
        if tried:
            claimed = self.harness.admin.claim(ClaimRequest(worker="test"))
            assert claimed is not None
            as_weights = answers(like if like is not None else files[WEIGHTS])
            prompt = Prompt(tokens=TOKENS, adapter=tuple(as_weights), base=tuple(answers(b"")))
            report = self.harness.report(version.digest, version.base)
            report = report.model_copy(update={"reference_logprobs": ReferenceLogprobs(prompts=(prompt,))})
            self.harness.admin.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))
        return version

    def promote(self, name: str, number: int) -> None:
        there = {alias.alias: alias.generation for alias in self.harness.admin.aliases(name).items}
        self.harness.admin.promote(name, "canary", str(number), generation=there.get("canary", 0))

    def states(self) -> dict[str, str]:
        self.agent.fetch()
        return {slot.served_name: slot.state for slot in self.agent.step()}

    def reported(self) -> Mapping[str, Any]:
        """Served name → state, as the registry shows this node after a report."""
        self.agent.send_heartbeat()
        views = self.harness.admin.all_nodes(node="gpu-1").items
        return {slot.served_name: str(slot.state) for view in views for slot in view.slots}

    @property
    def loaded(self) -> list[str]:
        return sorted(self.engine.loaded)
