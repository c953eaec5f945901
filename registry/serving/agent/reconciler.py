"""`Reconciler`: brings one engine to the desired state, pass by pass.

    fetch → load under its own served name → compare answers → switch the alias → drain → unload the old version

- An alias switches only to a version that is loaded and was compared with its reference, if it has one.
- A version is served until its successor is, also across a restart of the agent. Adapters do not block each other.
- Only adapters from our store are unloaded. Each pass starts from what the engine has loaded now.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from registry.api.serving import DesiredAdapter, DesiredState, SlotState
from registry.client import response_checks
from registry.client.registry import Registry
from registry.client.transfer.pull import PlannedPulls
from registry.digest import Digest
from registry.errors import Corrupt, NotFound, Refused, RegistryError, Unavailable
from registry.filesystem import replace_file
from registry.names import AdapterName, Ref
from registry.serving.agent.heartbeat import SlotTable
from registry.serving.agent.load_check import LoadCheck
from registry.serving.agent.metrics import Metrics
from registry.serving.engines.openai import EngineDriver
from registry.serving.store.local_store import LocalStore

AT_ONCE = 4
DRAIN_SECONDS = 10.0
RETRY_SECONDS = 30.0
"""Pause before an adapter is retried that the engine rejected, or whose answers did not match."""


State = Literal["ready", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """One adapter of the desired state on this engine. `refused`: not tried; `failed`: tried, see the reason.

    `verified`: its answers were compared with its reference log-probabilities since it was loaded.
    `corrupt`: what the registry says about it, or its bytes, are wrong.
    """

    name: str
    served_name: str
    digest: Digest
    state: State
    reason: str = ""
    verified: bool = False
    corrupt: bool = False


@dataclass(frozen=True, slots=True)
class _LoadCheckResult:
    """Whether a version was compared, and its verdicts then: a new verdict may bring a reference."""

    digest: Digest
    compared: bool
    verdicts: dict[str, str]


class Reconciler:
    """`aliases`: adapter → the served name that serves it now; also stored in `alias_file`."""

    def __init__(
        self, engine: EngineDriver, registry: Registry, store: LocalStore, *, drain_seconds: float = DRAIN_SECONDS,
        clock: Callable[[], float] = time.monotonic, metrics: Metrics | None = None, alias_file: str = "aliases.json",
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:  # fmt: skip
        self._engine, self._registry, self._store = engine, registry, store
        self._drain_seconds, self._clock = drain_seconds, clock
        self._metrics, self._say = metrics or Metrics(), say
        self._alias_file = store.root / alias_file
        self._load_check = LoadCheck(engine, registry, store)
        self.slots = SlotTable()
        self.aliases: dict[str, str] = self._read_aliases()
        self._written_aliases = self.aliases
        """What the file contains; it may be behind after a full disk."""
        self._adapters = {served: name for name, served in self.aliases.items()}
        self._verified: dict[str, _LoadCheckResult] = {}
        self._failed: dict[str, tuple[Digest, float, str]] = {}
        self._draining: dict[str, float] = {}

    def reconcile(self, desired: DesiredState) -> list[AdapterStatus]:
        """Run one pass; the status of each desired adapter. `Unavailable` when the engine does not respond."""
        with self._metrics.measure_pass():
            problems = [response_checks.problem_of(entry) for entry in desired.adapters]
            wrong = [
                AdapterStatus(entry.name, entry.served_name, entry.digest, "refused", problem, corrupt=True)
                for entry, problem in zip(desired.adapters, problems, strict=True) if problem
            ]  # fmt: skip
            usable = [entry for entry, problem in zip(desired.adapters, problems, strict=True) if not problem]
            loaded = self._loaded(usable)
            self._verified = {name: verified for name, verified in self._verified.items() if name in loaded}
            self._adapters.update({entry.served_name: entry.name for entry in usable})
            pulls = PlannedPulls(self._registry, self._missing(usable))
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="reconciler") as pool:
                slots = list(pool.map(lambda entry: self._slot(entry, loaded, pulls), usable))
            loaded = self._loaded(usable)
            self._switch([*slots, *wrong], loaded)
            self._clear(desired, loaded)
            self._record(slots, wrong, loaded)
            read = [self._store.digest_at(path) for path in self._engine.readable_paths(loaded)]
            self._store.keep_only({entry.digest for entry in desired.adapters}.union(d for d in read if d is not None))
        return [*slots, *wrong]

    def _missing(self, usable: Sequence[DesiredAdapter]) -> list[Ref]:
        """The versions that are probably not in the store. Those that turn out to be damaged are pulled as well."""
        return [
            Ref(AdapterName.parse(entry.name), entry.digest)
            for entry in usable
            if not response_checks.refusal_of(entry) and not self._store.manifest_path(entry.digest).exists()
        ]

    def due_seconds(self) -> float | None:
        """Seconds until the next old version may be unloaded; None if none drains."""
        now = self._clock()
        return max(0.0, min(self._draining.values()) - now) if self._draining else None

    # ---------------------------------------------------------------- one adapter
    def _slot(self, entry: DesiredAdapter, loaded: Mapping[str, str], pulls: PlannedPulls) -> AdapterStatus:
        def status(state: State, reason: str = "", verified: bool = False, corrupt: bool = False) -> AdapterStatus:
            return AdapterStatus(entry.name, entry.served_name, entry.digest, state, reason, verified, corrupt)

        if reason := response_checks.refusal_of(entry):
            return status("refused", reason)
        digest, until, reason = self._failed.get(entry.served_name, (None, 0.0, ""))
        if digest == entry.digest and self._clock() < until:
            return status("failed", reason)
        try:
            compared = self._make_ready(entry, loaded, pulls)
        except (Refused, NotFound) as e:
            self._failed[entry.served_name] = (entry.digest, self._clock() + RETRY_SECONDS, e.detail)
            return status("failed", e.detail)
        except RegistryError as e:  # bytes, disk or network: the next pass tries again
            return status("failed", e.detail, corrupt=isinstance(e, Corrupt))
        self._failed.pop(entry.served_name, None)
        return status("ready", verified=compared)

    def _make_ready(self, entry: DesiredAdapter, loaded: Mapping[str, str], pulls: PlannedPulls) -> bool:
        """Fetch, load and compare; whether there was a reference to compare with."""
        served, name = entry.served_name, AdapterName.parse(entry.name)
        root = loaded.get(served)
        if root is None or self._store.digest_at(root) != entry.digest:
            self.slots.set(served, entry.name, entry.digest, SlotState.LOADING)
            folder = self._fetch(name, entry, pulls)
            if root is not None:  # another version has our name: it stays until ours is here
                self._unload(served)
                self._verified.pop(served, None)
            self._engine.load(served, folder)
            self._metrics.add("loads")
        last = self._verified.get(served)
        if last is None or last.digest != entry.digest or not (last.compared or last.verdicts == entry.verdicts):
            compared = self._check_load(served, Ref(name, entry.digest), entry.digest)
            last = _LoadCheckResult(entry.digest, compared, entry.verdicts)
            self._verified[served] = last
        return last.compared

    def _fetch(self, name: AdapterName, entry: DesiredAdapter, pulls: PlannedPulls) -> Path:
        folder = self._store.find(entry.digest)
        if folder is not None:
            return folder
        try:
            folder = self._store.fetch(self._registry, name, entry.digest, pulls, number=entry.number)
        except RegistryError:
            self._metrics.add("pulls_failed")
            raise
        self._metrics.add("pulls")
        self._metrics.add("pulled_bytes", entry.size_bytes)
        return folder

    def _check_load(self, served: str, ref: Ref, digest: Digest) -> bool:
        """Compare its answers with the reference; whether there was one. `Refused`, and unloaded, on a mismatch."""
        try:
            compared = self._load_check.compare(served, ref, digest)
        except Refused:
            self._metrics.add("load_checks_failed")
            self._unload(served)
            raise
        self._metrics.add("load_checks", int(compared))
        return compared

    def _unload(self, served: str) -> None:
        self._engine.unload(served)
        self._metrics.add("unloads")
        self._say(f"{self._adapters.get(served, served)}  {served}  unloaded")

    # ---------------------------------------------------------------- all of them
    def _switch(self, slots: list[AdapterStatus], loaded: Mapping[str, str]) -> None:
        before, after = self.aliases, {}
        for slot in slots:
            if slot.state == "ready":
                after[slot.name] = slot.served_name
            elif before.get(slot.name) in loaded:
                after[slot.name] = before[slot.name]
        self.aliases = after
        self._engine.set_aliases(after, len(slots))
        if after != self._written_aliases or not self._alias_file.exists():
            try:
                replace_file(self._alias_file, json.dumps(after, indent=2, sort_keys=True).encode())
                self._written_aliases = after
            except OSError as e:
                raise Unavailable(
                    "STORE_UNAVAILABLE", f"{self._alias_file} cannot be written: {e.strerror or e}"
                ) from e

    def _read_aliases(self) -> dict[str, str]:
        try:
            aliases = json.loads(self._alias_file.read_bytes())
            return {str(name): str(served) for name, served in aliases.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _clear(self, desired: DesiredState, loaded: Mapping[str, str]) -> None:
        """Unload versions that receive no new requests, after the drain time."""
        needed = set(self.aliases.values()) | {entry.served_name for entry in desired.adapters}
        now, draining = self._clock(), dict[str, float]()
        for served, root in loaded.items():
            stale = self._is_stale(served, root, desired) if "/" in served else served not in needed
            if not stale or self._store.digest_at(root) is None:
                continue
            until = self._draining.get(served, now + self._drain_seconds)
            if now < until:
                draining[served] = until
            else:
                self._unload(served)
        self._draining = draining

    def _is_stale(self, served: str, root: str, desired: DesiredState) -> bool:
        """Whether a name that the plugin resolved means another version now."""
        try:
            ref = Ref.parse(served)
        except RegistryError:
            return False
        if ref.selector != desired.alias:
            return False
        now = {entry.name: entry.digest for entry in desired.adapters}.get(str(ref.name))
        return self._store.digest_at(root) != now

    # ---------------------------------------------------------------- reported state
    def _record(self, slots: list[AdapterStatus], wrong: list[AdapterStatus], loaded: Mapping[str, str]) -> None:
        """Record what is reported, without the names of `wrong`: the registry could refuse the whole report."""
        reported = {slot.served_name for slot in slots}
        for slot in slots:
            state = SlotState.SERVING if slot.state == "ready" else SlotState(slot.state)
            self.slots.set(slot.served_name, slot.name, slot.digest, state, reason=slot.reason, verified=slot.verified)
        for served, root in loaded.items():
            name, digest = self._adapters.get(served), self._store.digest_at(root)
            if served in reported or name is None or digest is None:
                continue
            is_current = self.aliases.get(name) == served
            if is_current or served in self._draining:
                last = self._verified.get(served)
                state = SlotState.SERVING if is_current else SlotState.DRAINING
                self.slots.set(served, name, digest, state, verified=last is not None and last.compared)
                reported.add(served)
        self.slots.keep_only(reported)
        ready = [slot for slot in slots if slot.state == "ready"]
        ours = [root for root in loaded.values() if self._store.digest_at(root) is not None]
        self._metrics.set({
            "desired": len(slots) + len(wrong), "serving": len(ready), "loaded": len(ours),
            "converged": len(ready) == len(slots) + len(wrong),
            "unverified": sum(not slot.verified for slot in ready),
            "failed": sum(slot.state == "failed" for slot in slots),
            "refused": sum(slot.state == "refused" for slot in slots) + len(wrong),
        })  # fmt: skip

    def _loaded(self, usable: Sequence[DesiredAdapter]) -> dict[str, str]:
        try:
            return self._engine.loaded()
        except RegistryError:
            self._record_engine_down(usable)
            raise

    def _record_engine_down(self, usable: Sequence[DesiredAdapter]) -> None:
        """The engine does not respond: stored versions are `downloaded`, and none is served."""
        stored = [entry for entry in usable if self._store.manifest(entry.digest) is not None]
        for entry in stored:
            reason = "the engine does not respond"
            self.slots.set(entry.served_name, entry.name, entry.digest, SlotState.DOWNLOADED, reason=reason)
        self.slots.keep_only([entry.served_name for entry in stored])
        self._metrics.set({"serving": 0, "loaded": 0, "converged": 0})
