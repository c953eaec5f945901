"""vLLM's front end as far as a resolver sees it: its registry of resolvers, its request, and what it does with both.

Written after vllm/lora/{resolver,request}.py and vllm/entrypoints/openai/models/serving.py of 0.28 to 0.33;
test_plugin.py compares the signatures with those files wherever the wheels are unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        if self.lora_int_id < 1 or not self.lora_path:
            raise ValueError("an id from 1 on and a path are needed")


class ResolverRegistry:
    def __init__(self) -> None:
        self.resolvers: dict[str, Any] = {}

    def register_resolver(self, resolver_name: str, resolver: Any) -> None:
        self.resolvers[resolver_name] = resolver


class Frontend:
    """Asks each resolver for an unknown name, loads what it gives, and never asks again for what is loaded."""

    def __init__(self, registry: ResolverRegistry, model: str) -> None:
        self._registry, self._model = registry, model
        self.loaded: dict[str, LoRARequest] = {}
        self.weights: dict[str, bytes] = {}

    async def ask(self, model: str) -> int:
        """The status of a request for this model."""
        if model in self.loaded:
            return 200
        for resolver in self._registry.resolvers.values():
            request = await resolver.resolve_lora(self._model, model)
            if request is not None:
                self.weights[model] = (Path(request.lora_path) / "adapter_model.safetensors").read_bytes()
                self.loaded[model] = request
                return 200
        return 404

    def unload(self, model: str) -> None:
        del self.loaded[model]
