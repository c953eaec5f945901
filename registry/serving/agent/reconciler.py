"""`Station`: brings one engine to the desired state, pass by pass.

    bring → load under a name of its own → prove → switch the alias → drain → unload the old one

Invariants
- An alias is switched only to a version that is loaded and whose answers were compared with its reference; where that
  cannot be done the version is served and called unverified.
- What was served goes on being served until its successor is, over a restart of the agent, too; one bad adapter holds
  back nobody else.
- Only adapters that lie on our shelf are unloaded, and never a folder deleted; the shelf is told what this engine may
  still read and what it shall have, and the rest may be swept.
- A pass begins with what the engine holds now, so a restart or somebody else's hand is seen and mended.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from registry.api.serving import DesiredAdapter, DesiredState, SlotState
from registry.client.registry import Registry
from registry.digest import Digest
from registry.durable import replace_file
from registry.errors import NotFound, Refused, RegistryError, Unavailable
from registry.evaluation.verdicts import Outcome
from registry.names import AdapterName, Ref
from registry.serving.agent.metrics import Metrics
from registry.serving.agent.slots import Slots
from registry.serving.agent.verify import Proof
from registry.serving.engines.openai import EngineDriver
from registry.serving.store.store import Shelf

AT_ONCE = 4
DRAIN_SECONDS = 10.0
_SERVED_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,119}")
"""It becomes the name of a folder, so it is not believed."""
AGAIN_SECONDS = 30.0
"""How long an adapter that the engine refused, or that did not act, is left alone."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One adapter of the desired state on this engine. `refused`: not even tried; `failed`: tried, see the reason.

    `verified`: its answers were compared with its reference log-probabilities since it was loaded.
    """

    name: str
    served_name: str
    digest: Digest
    state: Literal["ready", "refused", "failed"]
    reason: str = ""
    verified: bool = False


@dataclass(frozen=True, slots=True)
class _Proved:
    """What came of proving a version, and what was judged of it then: a new verdict may bring a reference."""

    digest: Digest
    compared: bool
    verdicts: dict[str, str]


class Station:
    """`aliases`: adapter → the served name that answers for it now; kept in `alias_file` on the shelf, too."""

    def __init__(
        self,
        engine: EngineDriver,
        registry: Registry,
        shelf: Shelf,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
        alias_file: str = "aliases.json",
    ) -> None:
        self._engine, self._registry, self._shelf = engine, registry, shelf
        self._drain_seconds, self._clock = drain_seconds, clock
        self._metrics = metrics or Metrics()
        self._alias_file = shelf.root / alias_file
        self._proof = Proof(engine, registry, shelf)
        self.slots = Slots()
        self.aliases: dict[str, str] = self._kept_aliases()
        self._told_aliases = self.aliases
        """What stands in the file; a full disk may have kept it behind."""
        self._adapters = {served: name for name, served in self.aliases.items()}
        self._verified: dict[str, _Proved] = {}
        self._failed: dict[str, tuple[Digest, float, str]] = {}
        self._leaving: dict[str, float] = {}

    def converge(self, desired: DesiredState) -> list[Slot]:
        """One pass; the state of each adapter of the desired state. `Unavailable` when the engine does not answer."""
        with self._metrics.one_pass():
            loaded = self._loaded(desired)
            self._verified = {name: verified for name, verified in self._verified.items() if name in loaded}
            self._adapters.update({entry.served_name: entry.name for entry in desired.adapters})
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="station") as pool:
                slots = list(pool.map(lambda entry: self._slot(entry, loaded), desired.adapters))
            loaded = self._loaded(desired)
            self._switch(slots, loaded)
            self._clear(desired, loaded)
            self._tell(slots, loaded)
            read = [self._shelf.digest_at(path) for path in self._engine.reads(loaded)]
            self._shelf.keep_only({entry.digest for entry in desired.adapters}.union(d for d in read if d is not None))
        return slots

    def due_seconds(self) -> float | None:
        """When the next old version may be unloaded, from now; None when none waits."""
        now = self._clock()
        return max(0.0, min(self._leaving.values()) - now) if self._leaving else None

    # ---------------------------------------------------------------- one adapter
    def _slot(self, entry: DesiredAdapter, loaded: Mapping[str, str]) -> Slot:
        def slot(state: Literal["ready", "refused", "failed"], reason: str = "", verified: bool = False) -> Slot:
            return Slot(entry.name, entry.served_name, entry.digest, state, reason, verified)

        reason = _against(entry)
        if reason:
            return slot("refused", reason)
        digest, until, reason = self._failed.get(entry.served_name, (None, 0.0, ""))
        if digest == entry.digest and self._clock() < until:
            return slot("failed", reason)
        try:
            compared = self._make_ready(entry, loaded)
        except (Refused, NotFound) as e:
            self._failed[entry.served_name] = (entry.digest, self._clock() + AGAIN_SECONDS, e.detail)
            return slot("failed", e.detail)
        except RegistryError as e:  # of bytes, disk or network: the next pass tries again
            return slot("failed", e.detail)
        self._failed.pop(entry.served_name, None)
        return slot("ready", verified=compared)

    def _make_ready(self, entry: DesiredAdapter, loaded: Mapping[str, str]) -> bool:
        """Whether it could be compared with its reference log-probabilities."""
        served, name = entry.served_name, AdapterName.parse(entry.name)
        root = loaded.get(served)
        if root is None or self._shelf.digest_at(root) != entry.digest:
            self.slots.note(served, entry.name, entry.digest, SlotState.LOADING)
            folder = self._bring(name, entry)
            if root is not None:  # somebody loaded something else under our name: it stays until ours is here
                self._unload(served)
                self._verified.pop(served, None)
            self._engine.load(served, folder)
            self._metrics.add("loads")
        last = self._verified.get(served)
        if last is None or last.digest != entry.digest or not (last.compared or last.verdicts == entry.verdicts):
            last = _Proved(entry.digest, self._prove(served, Ref(name, entry.digest), entry.digest), entry.verdicts)
            self._verified[served] = last
        return last.compared

    def _bring(self, name: AdapterName, entry: DesiredAdapter) -> Path:
        folder = self._shelf.find(entry.digest)
        if folder is not None:
            return folder
        try:
            folder = self._shelf.bring(self._registry, name, entry.digest)
        except RegistryError:
            self._metrics.add("pulls_failed")
            raise
        self._metrics.add("pulls")
        self._metrics.add("pulled_bytes", entry.size_bytes)
        return folder

    def _prove(self, served: str, ref: Ref, digest: Digest) -> bool:
        """`Refused`, and unloaded again, when the engine answers otherwise than the smoke test did."""
        try:
            compared = self._proof.of(served, ref, digest)
        except Refused:
            self._metrics.add("proofs_failed")
            self._unload(served)
            raise
        self._metrics.add("proofs", int(compared))
        return compared

    def _unload(self, served: str) -> None:
        self._engine.unload(served)
        self._metrics.add("unloads")

    # ---------------------------------------------------------------- all of them
    def _switch(self, slots: list[Slot], loaded: Mapping[str, str]) -> None:
        before, after = self.aliases, {}
        for slot in slots:
            if slot.state == "ready":
                after[slot.name] = slot.served_name
            elif before.get(slot.name) in loaded:
                after[slot.name] = before[slot.name]
        self.aliases = after
        self._engine.switched(after, len(slots))
        if after != self._told_aliases or not self._alias_file.exists():
            try:
                self._shelf.root.mkdir(parents=True, exist_ok=True)
                replace_file(self._alias_file, json.dumps(after, indent=2, sort_keys=True).encode())
                self._told_aliases = after
            except OSError as e:
                raise Unavailable(
                    "STORE_UNAVAILABLE", f"{self._alias_file} cannot be written: {e.strerror or e}"
                ) from e

    def _kept_aliases(self) -> dict[str, str]:
        try:
            aliases = json.loads(self._alias_file.read_bytes())
            return {str(name): str(served) for name, served in aliases.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _clear(self, desired: DesiredState, loaded: Mapping[str, str]) -> None:
        """Unload what nobody is sent to any more, once requests had time to end."""
        needed = set(self.aliases.values()) | {entry.served_name for entry in desired.adapters}
        now, draining = self._clock(), dict[str, float]()
        for served, root in loaded.items():
            stale = self._is_stale(served, root, desired) if "/" in served else served not in needed
            if not stale or self._shelf.digest_at(root) is None:
                continue
            until = self._leaving.get(served, now + self._drain_seconds)
            if now < until:
                draining[served] = until
            else:
                self._unload(served)
        self._leaving = draining

    def _is_stale(self, served: str, root: str, desired: DesiredState) -> bool:
        """A name that the plugin resolved stays what it was until it is unloaded."""
        try:
            ref = Ref.parse(served)
        except RegistryError:
            return False
        if ref.selector != desired.alias:
            return False
        now = {entry.name: entry.digest for entry in desired.adapters}.get(str(ref.name))
        return self._shelf.digest_at(root) != now

    # ---------------------------------------------------------------- what is said of it
    def _tell(self, slots: list[Slot], loaded: Mapping[str, str]) -> None:
        reported = {slot.served_name for slot in slots}
        for slot in slots:
            state = SlotState.SERVING if slot.state == "ready" else SlotState(slot.state)
            self.slots.note(slot.served_name, slot.name, slot.digest, state, reason=slot.reason, verified=slot.verified)
        for served, root in loaded.items():
            name, digest = self._adapters.get(served), self._shelf.digest_at(root)
            if served in reported or name is None or digest is None:
                continue
            answers = self.aliases.get(name) == served
            if answers or served in self._leaving:
                last = self._verified.get(served)
                state = SlotState.SERVING if answers else SlotState.DRAINING
                self.slots.note(served, name, digest, state, verified=last is not None and last.compared)
                reported.add(served)
        self.slots.keep_only(reported)
        ready = [slot for slot in slots if slot.state == "ready"]
        ours = [root for root in loaded.values() if self._shelf.digest_at(root) is not None]
        self._metrics.note({
            "wanted": len(slots), "serving": len(ready), "loaded": len(ours), "converged": len(ready) == len(slots),
            "unverified": sum(not slot.verified for slot in ready),
            "failed": sum(slot.state == "failed" for slot in slots),
            "refused": sum(slot.state == "refused" for slot in slots),
        })  # fmt: skip

    def _loaded(self, desired: DesiredState) -> dict[str, str]:
        try:
            return self._engine.loaded()
        except RegistryError:
            self._tell_away(desired)
            raise

    def _tell_away(self, desired: DesiredState) -> None:
        """The engine does not answer: what is on the shelf is downloaded, and nothing is served."""
        there = [entry for entry in desired.adapters if self._shelf.manifest(entry.digest) is not None]
        for entry in there:
            reason = "the engine does not answer"
            self.slots.note(entry.served_name, entry.name, entry.digest, SlotState.DOWNLOADED, reason=reason)
        self.slots.keep_only([entry.served_name for entry in there])
        self._metrics.note({"serving": 0, "loaded": 0, "converged": 0})


def _against(entry: DesiredAdapter) -> str:
    """Why this adapter must not reach the engine; nothing if it may."""
    if not _SERVED_NAME.fullmatch(entry.served_name):
        return f"the registry names it {entry.served_name[:80]!r}, which is no served name"
    if entry.engine_outcome == Outcome.FAIL:
        return entry.findings[0].message if entry.findings else "the engine would not serve it as trained"
    own = {check: outcome for check, outcome in entry.verdicts.items() if not check.startswith("engine ")}
    failed = sorted(check for check, outcome in own.items() if outcome == Outcome.FAIL)
    return f"its check {failed[0]!r} says fail" if failed else ""
