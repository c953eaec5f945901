"""`Resolver`: from a model name that an engine does not know to a folder on this node, or to the reason why not.

    acme/support          what the default alias points at
    acme/support:canary   what this alias points at
    acme/support@3        version 3, or @sha256:…

- A name is parsed before anything else: no path is ever made of a client's text.
- Before a folder is given out, the registry says what this engine at this version and settings does with it. A `fail`
  of any check, a yanked version and another base are refusals. Refusals are remembered, and lookups are rate-limited.
- Without the registry its last response for this name, engine and base applies, unless it refused since then. After a
  failed request it is not asked for a moment, so that many stored names do not each wait.
"""

import contextlib
import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from registry.api.catalog import Resolved
from registry.client import response_checks
from registry.client.registry import Registry
from registry.client.transfer.pull import PlannedPulls
from registry.client.transport import deadline
from registry.digest import Digest
from registry.errors import RENAMED_TO, Corrupt, Invalid, NotFound, RegistryError, Unauthenticated, Unavailable
from registry.evaluation.verdicts import Check, Outcome
from registry.filesystem import replace_file
from registry.names import NEWEST, AdapterName, Alias, Ref
from registry.serving.store.local_store import LocalStore

REFUSED_SECONDS = 30.0
UNREACHABLE_SECONDS = 3.0
"""How long a refusal is remembered: one of the registry, and one because it was unreachable."""
REMEMBERED_LIMIT = 10_000
LOOKUPS_PER_MINUTE = 600
PULLS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Resolution:
    """`folder` is None if it is refused; `reason` says why, else what is uncertain."""

    folder: Path | None
    reason: str = ""
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class _Lookup:
    """What the registry says of a version: why it must not be served, or else what is uncertain."""

    resolved: Resolved
    pulls: PlannedPulls
    refusal: str = ""
    doubts: str = ""


class Resolver:
    """Thread-safe. `engine` is a profile such as `vllm==0.33.0,max_lora_rank=32`; `base` a registered base.

    `namespaces`: serve only these, if any are named. `checks`: these must have run and not failed. `clock`: monotonic
    seconds.
    """

    def __init__(
        self, registry: Registry, store: LocalStore, *, engine: str, base: str, alias: str = NEWEST,
        namespaces: frozenset[str] = frozenset(), checks: frozenset[Check] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._registry, self._store, self._clock = registry, store, clock
        self._engine, self._base, self._alias, self._namespaces = engine, base, alias, namespaces
        self._checks = checks
        self._unreachable_until = 0.0
        self._refusals: OrderedDict[str, tuple[float, Resolution]] = OrderedDict()
        self._lookups: deque[float] = deque()
        self._lock = threading.Lock()
        self._pulls = threading.BoundedSemaphore(PULLS_AT_ONCE)

    def find(self, text: str) -> Resolution:
        """Never raises for a client's text, a response of the registry, or this machine's disk."""
        ref = self._parse(text)
        if ref is None:
            return Resolution(None, f"{text[:120]!r} is not the name of an adapter")
        if self._namespaces and ref.name.namespace not in self._namespaces:
            return Resolution(None, f"{text!r} is in a namespace that this engine does not serve")
        remembered = self._remembered(text)
        if remembered is not None:
            return remembered
        if not self._may_look_up():
            return Resolution(None, f"over {LOOKUPS_PER_MINUTE} unknown names per minute: {text!r} was not looked up")
        try:
            with self._pulls:
                if self._clock() < self._unreachable_until and (last := self._last_resolution(ref)) is not None:
                    return last
                return self._look_up(text, ref)
        except Unavailable as e:
            if e.code == "SERVER_UNREACHABLE":
                self._unreachable_until = self._clock() + UNREACHABLE_SECONDS
            return self._last_resolution(ref) or self._remember_refusal(text, e.detail, UNREACHABLE_SECONDS)
        except Corrupt as e:
            return self._remember_refusal(text, e.detail, UNREACHABLE_SECONDS)
        except Unauthenticated as e:  # about the token, not the adapter
            return self._remember_refusal(text, e.detail)
        except RegistryError as e:
            return self._refused(text, ref, e.detail)

    def _parse(self, text: str) -> Ref | None:
        try:
            ref = Ref.parse(text)
        except Invalid:
            return None
        plain = "@" not in text and ":" not in text
        return Ref(ref.name, Alias(self._alias)) if plain else ref

    def _look_up(self, text: str, ref: Ref) -> Resolution:
        with deadline(self._registry.connection.timeout_seconds):
            lookup = self._ask_by_present_name(ref)
        if lookup.refusal:
            return self._refused(text, ref, f"{text}: {lookup.refusal}")
        resolved = lookup.resolved
        name = AdapterName.parse(resolved.name)
        folder = self._store.fetch(self._registry, name, resolved.digest, lookup.pulls, number=resolved.number)
        self._store_resolution(ref, resolved.digest)
        return Resolution(folder, lookup.doubts, resolved.digest)

    def _ask_by_present_name(self, ref: Ref) -> _Lookup:
        """Serve a renamed adapter by its former name, which requests and settings of engines still have."""
        try:
            return self._ask(ref)
        except NotFound as e:
            if RENAMED_TO not in e.parameters:
                raise
            return self._ask(Ref(AdapterName.parse(e.parameters[RENAMED_TO]), ref.selector))

    def _ask(self, ref: Ref) -> _Lookup:
        """Send all requests but those for files."""
        resolved = self._registry.resolve(ref)
        exact = Ref(ref.name, resolved.digest)
        pulls = PlannedPulls(self._registry, [exact])
        if reason := self._refusal(resolved):
            return _Lookup(resolved, pulls, reason)
        verdicts = self._registry.verdicts(exact, [self._engine]).items
        bad = next((verdict for verdict in verdicts if verdict.outcome == Outcome.FAIL), None)
        if bad is not None:
            return _Lookup(resolved, pulls, f"{self._engine} would not serve it as trained: {bad.summary}")
        if self._store.find(resolved.digest) is None:
            pulls.resolve(exact)
        doubts = "; ".join(verdict.summary for verdict in verdicts if verdict.outcome != Outcome.PASS)
        return _Lookup(resolved, pulls, doubts=doubts)

    def _refusal(self, resolved: Resolved) -> str:
        """Why this version must not be served; empty if it may."""
        if resolved.yanked:
            return "it was yanked"
        if resolved.manifest.base.name != self._base:
            return f"it was made for the base {resolved.manifest.base.name}, and this engine serves {self._base}"
        if check := response_checks.failed_check(resolved.verdicts):
            return f"its check '{check}' says fail"
        passed = {check for check, outcome in resolved.verdicts.items() if outcome in (Outcome.PASS, Outcome.WARN)}
        return next((f"its check '{check}' has not run yet" for check in sorted(self._checks - passed)), "")

    def _remembered(self, text: str) -> Resolution | None:
        with self._lock:
            until, refused = self._refusals.get(text, (0.0, None))
            return refused if self._clock() < until else None

    def _remember_refusal(self, text: str, reason: str, seconds: float = REFUSED_SECONDS) -> Resolution:
        refused = Resolution(None, reason)
        with self._lock:
            self._refusals[text] = (self._clock() + seconds, refused)
            self._refusals.move_to_end(text)
            while len(self._refusals) > REMEMBERED_LIMIT:
                self._refusals.popitem(last=False)
        return refused

    def _may_look_up(self) -> bool:
        now = self._clock()
        with self._lock:
            while self._lookups and self._lookups[0] < now - 60:
                self._lookups.popleft()
            if len(self._lookups) >= LOOKUPS_PER_MINUTE:
                return False
            self._lookups.append(now)
            return True

    def _resolution_file(self, ref: Ref) -> Path:
        key = Digest.of(json.dumps([str(ref.name), str(ref.selector), self._engine, self._base]).encode())
        return self._store.resolutions / f"{key.hex}.json"

    def _store_resolution(self, ref: Ref, digest: Digest) -> None:
        path = self._resolution_file(ref)
        try:
            replace_file(path, json.dumps({"ref": str(ref), "digest": digest}).encode())
        except OSError:
            return  # needed only while the registry is unreachable

    def _refused(self, text: str, ref: Ref, reason: str) -> Resolution:
        """The registry refused: its earlier response no longer applies, whether it is reachable or not."""
        with contextlib.suppress(OSError):
            self._resolution_file(ref).unlink()
        return self._remember_refusal(text, reason)

    def _last_resolution(self, ref: Ref) -> Resolution | None:
        try:
            document = json.loads(self._resolution_file(ref).read_bytes())
            digest = Digest(document["digest"])
        except (OSError, ValueError, KeyError, TypeError, RegistryError):
            return None
        folder = self._store.find(digest)
        reason = f"{ref}: the registry is unreachable; this was its last response"
        return Resolution(folder, reason, digest) if folder is not None else None
