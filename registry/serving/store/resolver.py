"""`Finder`: from a model name that an engine does not know to a folder on this node, or to a sentence why not.

    acme/support          what the default alias points at
    acme/support:canary   what this alias points at
    acme/support@3        version 3, or @sha256:…

Invariants
- A name is judged by the grammar before it touches anything: no path is ever made of what a client wrote.
- Nothing is handed to an engine before the registry was asked what this engine, at this version and with these
  settings, does with it. A `fail` of any check, a yanked version and another base are a no.
- A no is remembered for a while, and unknown names may be asked for so often and not more: engines ask again and again.
- Without the registry the last yes for this name, engine and base still holds, as long as its bytes are true, unless
  the registry has said no since then. A registry that did not answer is left alone for a moment, so that many names
  that are here already need not wait for it one after the other.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from registry.api.catalog import Resolved
from registry.client.registry import Registry
from registry.digest import Digest
from registry.durable import replace_file
from registry.errors import Corrupt, Invalid, RegistryError, Unauthenticated, Unavailable
from registry.evaluation.verdicts import Check, Outcome
from registry.names import NEWEST, Alias, Ref
from registry.serving.store.store import Shelf

NO_SECONDS = 30.0
AWAY_SECONDS = 3.0
"""How long a no is remembered: one that the registry gave, and one that comes from its absence."""
REMEMBERED_LIMIT = 10_000
LOOKUPS_PER_MINUTE = 600
PULLS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Found:
    """`folder` is None for a no; `reason` then says why, else what is remarkable about the yes."""

    folder: Path | None
    reason: str = ""
    digest: Digest | None = None


class Finder:
    """Thread-safe. `engine` is a profile such as `vllm==0.33.0,max_lora_rank=32`; `base` a registered base.

    `namespaces`: only adapters of these, where some are named. `checks`: these must have been made, too. `clock` counts
    seconds and never goes back.
    """

    def __init__(
        self,
        registry: Registry,
        shelf: Shelf,
        *,
        engine: str,
        base: str,
        alias: str = NEWEST,
        namespaces: frozenset[str] = frozenset(),
        checks: frozenset[Check] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._shelf, self._clock = registry, shelf, clock
        self._engine, self._base, self._alias, self._namespaces = engine, base, alias, namespaces
        self._checks = checks
        self._away_until = 0.0
        self._noes: OrderedDict[str, tuple[float, Found]] = OrderedDict()
        self._asked: deque[float] = deque()
        self._lock = threading.Lock()
        self._pulls = threading.BoundedSemaphore(PULLS_AT_ONCE)

    def find(self, text: str) -> Found:
        """Never raises for what a client wrote, for what the registry answers, or for this machine's disk."""
        ref = self._parse(text)
        if ref is None:
            return Found(None, f"{text[:120]!r} is no name of an adapter")
        if self._namespaces and ref.name.namespace not in self._namespaces:
            return Found(None, f"{text!r} is of a namespace that this engine does not serve")
        remembered = self._remembered(text)
        if remembered is not None:
            return remembered
        if not self._may_ask():
            return Found(None, f"over {LOOKUPS_PER_MINUTE} unknown names per minute: {text!r} was not asked for")
        try:
            with self._pulls:
                if self._clock() < self._away_until and (last := self._last_yes(ref)) is not None:
                    return last
                return self._ask(text, ref)
        except Unavailable as e:
            if e.code == "SERVER_UNREACHABLE":
                self._away_until = self._clock() + AWAY_SECONDS
            return self._last_yes(ref) or self._no(text, e.detail, AWAY_SECONDS)
        except Corrupt as e:
            return self._no(text, e.detail, AWAY_SECONDS)
        except Unauthenticated as e:  # of the token, not of the adapter
            return self._no(text, e.detail)
        except RegistryError as e:
            return self._refused(text, ref, e.detail)

    # ---------------------------------------------------------------- inside
    def _parse(self, text: str) -> Ref | None:
        try:
            ref = Ref.parse(text)
        except Invalid:
            return None
        plain = "@" not in text and ":" not in text
        return Ref(ref.name, Alias(self._alias)) if plain else ref

    def _ask(self, text: str, ref: Ref) -> Found:
        resolved = self._registry.resolve(ref)
        reason = self._against(resolved)
        if reason:
            return self._refused(text, ref, f"{text}: {reason}")
        exact = Ref(ref.name, resolved.digest)
        verdicts = self._registry.verdicts(exact, [self._engine]).items
        bad = next((verdict for verdict in verdicts if verdict.outcome == Outcome.FAIL), None)
        if bad is not None:
            return self._refused(text, ref, f"{text}: {self._engine} would not serve it as trained: {bad.summary}")
        folder = self._shelf.bring(self._registry, ref.name, resolved.digest)
        self._remember_yes(ref, resolved.digest)
        doubts = [verdict.summary for verdict in verdicts if verdict.outcome != Outcome.PASS]
        return Found(folder, "; ".join(doubts), resolved.digest)

    def _against(self, resolved: Resolved) -> str:
        """Why the registry's own answer is a no; nothing if it is none."""
        if resolved.yanked:
            return "it was yanked"
        if resolved.manifest.base.name != self._base:
            return f"it was made for the base {resolved.manifest.base.name}, and this engine serves {self._base}"
        failed = [check for check, outcome in sorted(resolved.verdicts.items()) if outcome == Outcome.FAIL]
        failed = [check for check in failed if not check.startswith("engine ")]  # of other engines
        if failed:
            return f"its check {failed[0]!r} says fail"
        done = {check for check, outcome in resolved.verdicts.items() if outcome in (Outcome.PASS, Outcome.WARN)}
        return next((f"its check '{check}' was not made yet" for check in sorted(self._checks - done)), "")

    def _remembered(self, text: str) -> Found | None:
        with self._lock:
            until, answer = self._noes.get(text, (0.0, None))
            return answer if self._clock() < until else None

    def _no(self, text: str, reason: str, seconds: float = NO_SECONDS) -> Found:
        answer = Found(None, reason)
        with self._lock:
            self._noes[text] = (self._clock() + seconds, answer)
            self._noes.move_to_end(text)
            while len(self._noes) > REMEMBERED_LIMIT:
                self._noes.popitem(last=False)
        return answer

    def _may_ask(self) -> bool:
        now = self._clock()
        with self._lock:
            while self._asked and self._asked[0] < now - 60:
                self._asked.popleft()
            if len(self._asked) >= LOOKUPS_PER_MINUTE:
                return False
            self._asked.append(now)
            return True

    def _yes_file(self, ref: Ref) -> Path:
        key = Digest.of(json.dumps([str(ref.name), str(ref.selector), self._engine, self._base]).encode())
        return self._shelf.answers / f"{key.hex}.json"

    def _remember_yes(self, ref: Ref, digest: Digest) -> None:
        path = self._yes_file(ref)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps({"ref": str(ref), "digest": digest}).encode())
        except OSError:
            return  # it is for the time without a registry only

    def _refused(self, text: str, ref: Ref, reason: str) -> Found:
        """A no of the registry itself: what it said before does not hold any more, whether it can be reached or not."""
        with contextlib.suppress(OSError):
            self._yes_file(ref).unlink()
        return self._no(text, reason)

    def _last_yes(self, ref: Ref) -> Found | None:
        try:
            answer = json.loads(self._yes_file(ref).read_bytes())
            digest = Digest(answer["digest"])
        except (OSError, ValueError, KeyError, TypeError, RegistryError):
            return None
        folder = self._shelf.find(digest)
        reason = f"{ref}: the registry is unreachable; this was its last answer"
        return Found(folder, reason, digest) if folder is not None else None
