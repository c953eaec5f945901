"""`Station`: one engine, brought to what the roster says, one pass after the other.

    bring → load under a name of its own → prove → switch the alias → drain → unload the old one

Invariants
- An alias is switched only to a version that is loaded and whose answers were compared with its fingerprint.
- What was served goes on being served until its successor is; one bad adapter holds back nobody else.
- Only adapters that lie on our shelf are unloaded, and never a folder deleted.
- A pass begins with what the engine holds now, so a restart or somebody else's hand is seen and mended.

Example
    >>> Station(VLLM(url), registry, shelf).converge(roster)[0].state
    'ready'
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from registry import fingerprint as fingerprints
from registry.client.api import Registry
from registry.client.judging import Judging
from registry.digest import Digest
from registry.errors import NotFound, Refused, RegistryError, Unavailable
from registry.fingerprint import Fingerprint
from registry.names import AdapterName, Ref
from registry.serving.engines import Engine
from registry.serving.shelf import Shelf, write_whole
from registry.verdicts import Outcome
from registry.wire.roster import Roster, RosterEntry

AT_ONCE = 4
DRAIN_SECONDS = 10.0
AGAIN_SECONDS = 30.0
"""How long an adapter that the engine refused, or that did not act, is left alone."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One adapter of the roster on this engine. `refused`: not even tried; `failed`: tried, see the reason."""

    name: str
    served_name: str
    digest: Digest
    state: Literal["ready", "refused", "failed"]
    reason: str = ""


class Station:
    """`aliases`: adapter → the served name that answers for it now; kept in `aliases.json` on the shelf, too."""

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        shelf: Shelf,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._registry, self._shelf = engine, registry, shelf
        self._drain_seconds, self._clock = drain_seconds, clock
        self.aliases: dict[str, str] = {}
        self._proved: dict[str, Digest] = {}
        self._failed: dict[str, tuple[Digest, float, str]] = {}
        self._leaving: dict[str, float] = {}

    def converge(self, roster: Roster) -> list[Slot]:
        """One pass; the state of each adapter of the roster. `Unavailable` when the engine does not answer."""
        held = self._engine.held()
        self._proved = {name: digest for name, digest in self._proved.items() if name in held}
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="station") as pool:
            slots = list(pool.map(lambda entry: self._slot(entry, held), roster.adapters))
        self._switch(slots, held)
        self._clear(roster, self._engine.held())
        return slots

    def due_seconds(self) -> float | None:
        """When the next old version may be unloaded, from now; None when none waits."""
        now = self._clock()
        return max(0.0, min(self._leaving.values()) - now) if self._leaving else None

    # ---------------------------------------------------------------- inside
    def _slot(self, entry: RosterEntry, held: Mapping[str, str]) -> Slot:
        def slot(state: Literal["ready", "refused", "failed"], reason: str = "") -> Slot:
            return Slot(entry.name, entry.served_name, entry.digest, state, reason)

        reason = _against(entry)
        if reason:
            return slot("refused", reason)
        digest, until, reason = self._failed.get(entry.served_name, (None, 0.0, ""))
        if digest == entry.digest and self._clock() < until:
            return slot("failed", reason)
        try:
            self._make_ready(entry, held)
        except (Refused, NotFound) as e:
            self._failed[entry.served_name] = (entry.digest, self._clock() + AGAIN_SECONDS, e.detail)
            return slot("failed", e.detail)
        except RegistryError as e:  # of bytes, disk or network: the next pass tries again
            return slot("failed", e.detail)
        self._failed.pop(entry.served_name, None)
        return slot("ready")

    def _make_ready(self, entry: RosterEntry, held: Mapping[str, str]) -> None:
        served, name = entry.served_name, AdapterName.parse(entry.name)
        root = held.get(served)
        if root is not None and self._shelf.digest_at(root) != entry.digest:
            self._engine.unload(served)  # somebody loaded something else under our name
            self._proved.pop(served, None)
            root = None
        if root is None:
            self._engine.load(served, self._shelf.bring(self._registry, name, entry.digest))
        if self._proved.get(served) != entry.digest:
            self._prove(served, Ref(name, entry.digest), entry.digest)
            self._proved[served] = entry.digest

    def _prove(self, served: str, ref: Ref, digest: Digest) -> None:
        """`Refused` (VERDICT_FAILED), and unloaded again, when the engine answers otherwise than the smoke test did."""
        known = self._fingerprint(ref, digest)
        if known is None:
            return
        telling = max(known.prompts, key=lambda p: sum(abs(a - b) for a, b in zip(p.adapter, p.base, strict=True)))
        try:
            answer = self._engine.log_probs(served, telling.tokens)
            found = fingerprints.compare(known.model_copy(update={"prompts": (telling,)}), [answer])
            if found.answers_like in ("base", "neither"):
                raise Refused(
                    "VERDICT_FAILED", f"{served} was loaded and answers like {found.answers_like}: "
                    f"{found.to_adapter_nats} nats a token from its fingerprint",
                )  # fmt: skip
        except Refused:
            self._engine.unload(served)
            raise

    def _fingerprint(self, ref: Ref, digest: Digest) -> Fingerprint | None:
        path = self._shelf.root / "fingerprints" / f"{digest.hex}.json"
        try:
            return Fingerprint.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            pass
        try:
            found = Judging(self._registry).fingerprint(ref).fingerprint
        except (NotFound, Unavailable):
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, found.model_dump_json().encode())
        except OSError:
            pass  # it is asked for again
        return found

    def _switch(self, slots: list[Slot], held: Mapping[str, str]) -> None:
        before, after = self.aliases, {}
        for slot in slots:
            if slot.state == "ready":
                after[slot.name] = slot.served_name
            elif before.get(slot.name) in held:
                after[slot.name] = before[slot.name]
        self.aliases = after
        if after != before:
            try:
                self._shelf.root.mkdir(parents=True, exist_ok=True)
                write_whole(self._shelf.root / "aliases.json", json.dumps(after, indent=2, sort_keys=True).encode())
            except OSError as e:
                raise Unavailable("STORE_UNAVAILABLE", f"aliases.json cannot be written: {e.strerror or e}") from e

    def _clear(self, roster: Roster, held: Mapping[str, str]) -> None:
        """Unload what nobody is sent to any more, once requests had time to end."""
        wanted = set(self.aliases.values()) | {entry.served_name for entry in roster.adapters}
        now, kept = self._clock(), dict[str, float]()
        for served, root in held.items():
            stale = self._is_stale(served, root, roster) if "/" in served else served not in wanted
            if not stale or self._shelf.digest_at(root) is None:
                continue
            until = self._leaving.get(served, now + self._drain_seconds)
            if now < until:
                kept[served] = until
            else:
                self._engine.unload(served)
        self._leaving = kept

    def _is_stale(self, served: str, root: str, roster: Roster) -> bool:
        """A name that the plugin resolved stays what it was until it is unloaded."""
        try:
            ref = Ref.parse(served)
        except RegistryError:
            return False
        if ref.selector != roster.alias:
            return False
        now = {entry.name: entry.digest for entry in roster.adapters}.get(str(ref.name))
        return self._shelf.digest_at(root) != now


def _against(entry: RosterEntry) -> str:
    """Why this adapter must not reach the engine; nothing if it may."""
    if entry.loads == Outcome.FAIL:
        return entry.findings[0].sentence if entry.findings else "the engine would not serve it as trained"
    own = {check: outcome for check, outcome in entry.verdicts.items() if not check.startswith("loads ")}
    failed = sorted(check for check, outcome in own.items() if outcome == Outcome.FAIL)
    return f"its check {failed[0]!r} says fail" if failed else ""
