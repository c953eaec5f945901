"""`Agent`: keeps one engine at the desired state of its base and follows changes.

Invariants
- A change wakes the pass at once (long poll); the engine is looked at now and then anyway, for restarts and drift.
- Without the registry the last desired state applies, also after a restart of the agent: it is stored in a file.
- Nothing that goes wrong ends the loop: it is told, and tried again.
- A desired state that never had an adapter unloads nothing, because the alias or the base may be a typo.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pydantic import ValidationError

from registry.api.serving import DesiredState
from registry.client.registry import Registry
from registry.digest import Digest
from registry.durable import replace_file
from registry.errors import RegistryError
from registry.serving.agent.heartbeat import Reporter
from registry.serving.agent.reconciler import Slot, Station
from registry.serving.store.store import Shelf

WAIT_SECONDS = 20
LOOK_SECONDS = 5.0
AGAIN_SECONDS = 2.0


class Agent:
    """`profile`: the engine as the rules know it (`vllm==0.33.0,max_lora_rank=32`); without it none is judged."""

    def __init__(
        self,
        registry: Registry,
        station: Station,
        shelf: Shelf,
        *,
        base: str,
        alias: str = "prod",
        profile: str = "",
        say: Callable[[str], None] = lambda _line: None,
        reporter: Reporter | None = None,
    ) -> None:
        self._registry, self._station, self._shelf, self._say = registry, station, shelf, say
        self._reporter = reporter
        self._base, self._alias, self._profile = base, alias, profile
        key = Digest.of(f"{registry.url} {base} {alias} {profile}".encode()).hex[:16]
        self._file = shelf.root / f"desired-state-{key}.json"
        self._desired: DesiredState | None = None
        self._had_adapters, self._kept_cursor = False, ""
        self._changed = threading.Event()
        self._told: dict[str, Slot] = {}
        self._trouble: dict[str, str] = {}

    def fetch(self, *, wait: int = 0) -> bool:
        """Fetch the desired state; whether it changed. Without the registry, start from the stored one."""
        since = self._desired.cursor if self._desired else ""
        try:
            desired = self._registry.desired_state(
                self._base, self._alias, engine=self._profile, since=since, wait=wait
            )
        except RegistryError as e:
            if self._desired is None:
                self._desired = self._kept()
                if self._desired is not None:
                    self._had_adapters = True
                    self._say_once("desired", f"using the stored desired state: {e.detail}")
                    return True
            raise
        self._had_adapters = bool(self._had_adapters or desired.adapters or self._kept())
        self._desired = desired
        self._keep(desired)
        return desired.cursor != since

    def step(self) -> list[Slot]:
        """One pass over the engine; tells what is new. Nothing without a desired state."""
        if self._desired is None:
            return []
        if not self._desired.adapters and not self._had_adapters:
            self._say_once(
                "empty", f"no adapter of {self._base!r} that this token may see has the alias {self._alias!r}: "
                "nothing is loaded, and what the engine has stays",
            )  # fmt: skip
            return []
        self._trouble.pop("empty", None)
        slots = self._station.converge(self._desired)
        for slot in slots:
            if self._told.get(slot.name) != slot:
                self._say(f"{slot.name}  {slot.served_name}  {slot.state}  {slot.reason}".rstrip())
        self._told = {slot.name: slot for slot in slots}
        return slots

    def report(self) -> None:
        """Tell the registry what this node has now; what is wrong with that is told, and no error."""
        if self._reporter is not None:
            self._reporter.report()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; the watch of the desired state and the reports may take some seconds more to end."""
        threading.Thread(target=self._watch, args=(stop,), name="desired state", daemon=True).start()
        if self._reporter is not None:
            threading.Thread(target=self._reporter.run, args=(stop,), name="reports", daemon=True).start()
        while not stop.is_set():
            self._changed.clear()
            try:
                self.step()
                self._trouble.pop("pass", None)
            except RegistryError as e:
                self._say_once("pass", e.detail)
            except Exception as e:  # the engine goes on serving, and so does the loop
                self._say_once("pass", f"a pass failed in a way that is a bug: {e!r}")
            due = self._station.due_seconds()
            self._changed.wait(min(LOOK_SECONDS, due + 0.01 if due is not None else LOOK_SECONDS))
        self._station.slots.changed.set()

    def wake(self) -> None:
        """Have `run` look now, or see that it shall stop."""
        self._changed.set()

    # ---------------------------------------------------------------- inside
    def _watch(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                if self.fetch(wait=WAIT_SECONDS):
                    self._changed.set()
                self._trouble.pop("desired", None)
            except RegistryError as e:
                self._say_once("desired", f"cannot fetch the desired state: {e.detail}")
                stop.wait(AGAIN_SECONDS)

    def _say_once(self, about: str, line: str) -> None:
        """What stays wrong is said when it begins, not at each try."""
        if self._trouble.get(about) != line:
            self._trouble[about] = line
            self._say(line)

    def _keep(self, desired: DesiredState) -> None:
        """For a time without the registry. What a full disk did not take is tried again with the next answer.

        That a desired state was kept says that it had adapters once, so the first one that is kept has some.
        """
        if self._kept_cursor == desired.cursor or not self._had_adapters:
            return
        try:
            self._shelf.root.mkdir(parents=True, exist_ok=True)
            replace_file(self._file, desired.model_dump_json().encode())
        except OSError as e:
            self._say_once("keep", f"cannot store the desired state: {e.strerror or e}")
            return
        self._kept_cursor = desired.cursor
        self._trouble.pop("keep", None)

    def _kept(self) -> DesiredState | None:
        try:
            return DesiredState.model_validate_json(self._file.read_bytes())
        except (OSError, ValidationError):
            return None
