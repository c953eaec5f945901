"""`Agent`: keeps one engine at the desired state of its base and follows changes.

- A change starts a pass at once (long poll); the engine is also inspected periodically, for restarts and drift.
- Without the registry the last desired state applies, also after a restart of the agent. No error ends the loop.
- A desired state that never had an adapter unloads nothing, because the alias or the base may be a typo.
"""

import threading
from collections.abc import Callable

from registry.api.serving import DesiredState
from registry.client.registry import Registry
from registry.client.transport.responses import read_tolerantly
from registry.digest import Digest
from registry.errors import RegistryError
from registry.filesystem import replace_file
from registry.serving import desired_state
from registry.serving.agent.heartbeat import Heartbeat
from registry.serving.agent.reconciler import AdapterStatus, Reconciler
from registry.serving.store.local_store import LocalStore

WAIT_SECONDS = 20
INSPECT_SECONDS = 5.0
RETRY_SECONDS = 2.0


class Agent:
    """`profile`: the engine's, such as `vllm==0.33.0,max_lora_rank=32`; without it no engine rule applies."""

    def __init__(
        self, registry: Registry, reconciler: Reconciler, store: LocalStore, *, base: str, alias: str = "prod",
        profile: str = "", say: Callable[[str], None] = lambda _line: None, warn: Callable[[str], None] | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:  # fmt: skip
        self._registry, self._reconciler, self._store = registry, reconciler, store
        self._say, self._warn = say, warn or say
        self._heartbeat = heartbeat
        self._base, self._alias, self._profile = base, alias, profile
        key = Digest.of(f"{registry.url} {base} {alias} {profile}".encode()).hex[:16]
        self._file = store.root / f"desired-state-{key}.json"
        self._desired: DesiredState | None = None
        self._had_adapters, self._saved_cursor = False, ""
        self._changed = threading.Event()
        self._said_statuses: dict[str, AdapterStatus] = {}
        self._last_lines: dict[str, str] = {}

    def fetch(self, *, wait: int = 0) -> bool:
        """Fetch the desired state; whether it changed. Without the registry, use the stored one."""
        since = self._desired.cursor if self._desired else ""
        try:
            desired = self._read_next(since, wait)
        except RegistryError as e:
            if self._desired is None:
                self._desired = self._read_desired()
                if self._desired is not None:
                    self._had_adapters = True
                    self._say_once("desired", f"using the stored desired state: {e.detail}")
                    return True
            raise
        if desired is None:
            return False
        self._had_adapters = bool(self._had_adapters or desired.adapters or self._read_desired())
        self._desired = desired
        self._save_desired(desired)
        return desired.cursor != since

    def _read_next(self, since: str, wait: int) -> DesiredState | None:
        base, alias, engine = self._base, self._alias, self._profile
        if not since or not wait:
            return desired_state.read(self._registry, base, alias, engine=engine)
        return desired_state.read_next(self._registry, base, alias, since=since, wait=wait, engine=engine)

    def step(self) -> list[AdapterStatus]:
        """Run one pass and log what changed. Does nothing without a desired state."""
        if self._desired is None:
            return []
        if self.has_no_adapters():
            self._say_once(
                "empty", f"no adapter of {self._base!r} that this token may see has the alias {self._alias!r}: "
                "nothing is loaded, and what the engine has stays",
            )  # fmt: skip
            return []
        self._last_lines.pop("empty", None)
        slots = self._reconciler.reconcile(self._desired)
        for slot in slots:
            if self._said_statuses.get(slot.name) != slot:
                self._say(f"{slot.name}  {slot.served_name}  {slot.state}  {slot.reason}".rstrip())
        statuses = {slot.name: slot for slot in slots}
        for name in self._said_statuses.keys() - statuses.keys():
            self._say(
                f"{name}  {self._said_statuses[name].served_name}  leaves: {self._alias!r} has no version to serve"
            )
        self._said_statuses = statuses
        return slots

    def has_no_adapters(self) -> bool:
        """Whether no adapter of the base has the alias or ever had it here: one of both may be a typo."""
        return self._desired is not None and not self._desired.adapters and not self._had_adapters

    def send_heartbeat(self) -> None:
        """Report to the registry what this node has now. An error is logged and not raised."""
        if self._heartbeat is not None:
            self._heartbeat.send()

    def run(self, stop: threading.Event) -> None:
        """Run until `stop` is set. The threads for the desired state and the heartbeat may end a few seconds later."""
        threading.Thread(target=self._watch, args=(stop,), name="desired state", daemon=True).start()
        if self._heartbeat is not None:
            threading.Thread(target=self._heartbeat.run, args=(stop,), name="heartbeat", daemon=True).start()
        while not stop.is_set():
            self._changed.clear()
            try:
                self.step()
                self._say_recovered("pass", "passes succeed again")
            except RegistryError as e:
                self._say_once("pass", e.detail)
            except Exception as e:  # the engine continues to serve, and so does the loop
                self._say_once("pass", f"a pass failed because of a bug: {e!r}")
            due = self._reconciler.due_seconds()
            self._changed.wait(min(INSPECT_SECONDS, due + 0.01 if due is not None else INSPECT_SECONDS))
        self._reconciler.slots.changed.set()

    def wake(self) -> None:
        """Start the next pass of `run` now, or let it see `stop`."""
        self._changed.set()

    def _watch(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                if self.fetch(wait=WAIT_SECONDS):
                    self._changed.set()
                self._say_recovered("desired", "the registry responds again")
            except RegistryError as e:
                self._say_once("desired", f"cannot fetch the desired state: {e.detail}")
                stop.wait(RETRY_SECONDS)
            except Exception as e:  # or this node would never follow a change again
                self._say_once("desired", f"the desired state cannot be read because of a bug: {e!r}")
                stop.wait(RETRY_SECONDS)

    def _say_once(self, about: str, line: str) -> None:
        """Warn unless it repeats the last line about this subject."""
        if self._last_lines.get(about) != line:
            self._last_lines[about] = line
            self._warn(line)

    def _say_recovered(self, about: str, line: str) -> None:
        """Say it if the last line about this subject was a warning, at the same level."""
        if self._last_lines.pop(about, None) is not None:
            self._warn(line)

    def _save_desired(self, desired: DesiredState) -> None:
        """Store it for a time without the registry. After a full disk, the next one is stored.

        The first one that is stored has adapters, so a stored file says that there were some.
        """
        if self._saved_cursor == desired.cursor or not self._had_adapters:
            return
        try:
            replace_file(self._file, desired.model_dump_json().encode())
        except OSError as e:
            self._say_once("keep", f"cannot store the desired state: {e.strerror or e}")
            return
        self._saved_cursor = desired.cursor
        self._last_lines.pop("keep", None)

    def _read_desired(self) -> DesiredState | None:
        try:
            return read_tolerantly(DesiredState, self._file.read_bytes())
        except (OSError, ValueError):
            return None
