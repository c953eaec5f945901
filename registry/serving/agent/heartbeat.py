"""`Heartbeat`: reports what this node holds and serves, at once after a change, else to renew the lease.

It runs in its own thread and never delays the engine. After the agent ends, its lease expires.
"""

import platform
import re
import threading
import time
from collections.abc import Callable, Iterable

from registry import names
from registry.api.serving import NODE_LEASE_SECONDS, REASON_LIMIT, SLOTS_LIMIT, NodeReport, SlotReport, SlotState
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Invalid, RegistryError, Unavailable
from registry.serving.agent.metrics import Metrics

RENEW_SECONDS = NODE_LEASE_SECONDS / 3
DEBOUNCE_SECONDS = 0.2
"""Changes within this time are one report."""
RETRY_SECONDS = 5.0


class SlotTable:
    """The adapters of one engine by served name, with their states. Thread-safe. `changed` is set by each change."""

    def __init__(self) -> None:
        self.changed = threading.Event()
        self._rows: dict[str, SlotReport] = {}
        self._lock = threading.Lock()

    def set(
        self, served: str, adapter: str, digest: Digest, state: SlotState, *, reason: str = "", verified: bool = False
    ) -> None:
        """Set the state of one served name."""
        row = SlotReport(
            adapter=adapter, digest=digest, served_name=served, state=state, reason=reason[:REASON_LIMIT],
            verified=verified,
        )  # fmt: skip
        with self._lock:
            if self._rows.get(served) == row:
                return
            self._rows[served] = row
        self.changed.set()

    def keep_only(self, served: Iterable[str]) -> None:
        """Remove all served names but these."""
        with self._lock:
            unloaded = self._rows.keys() - set(served)
            for name in unloaded:
                del self._rows[name]
        if unloaded:
            self.changed.set()

    def reports(self) -> list[SlotReport]:
        """Sorted by served name, so that equal states are equal lists."""
        with self._lock:
            return sorted(self._rows.values(), key=lambda row: row.served_name)


class Heartbeat:
    def __init__(
        self, registry: Registry, slots: SlotTable, *, node: str, engine: str, base: str, alias: str,
        profile: str = "", on_demand: bool = False, metrics: Metrics | None = None,
        say: Callable[[str], None] = lambda _line: None, warn: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self._registry, self._slots, self._say, self._warn = registry, slots, say, warn or say
        self._node, self._engine = names.node_name(node), names.node_name(engine)
        self._base, self._alias, self._profile, self._on_demand = base, alias, profile, on_demand
        self._metrics = metrics or Metrics()
        self._last_error = ""

    def send(self) -> bool:
        """Send one report; whether the registry accepted it. A repeated error is logged once."""
        report = NodeReport(
            base=self._base, alias=self._alias, profile=self._profile, on_demand=self._on_demand,
            slots=self._slots.reports()[:SLOTS_LIMIT],
        )  # fmt: skip
        try:
            self._registry.report_node(self._node, self._engine, report)
        except RegistryError as e:
            self._metrics.add("reports_failed")
            if e.detail != self._last_error:
                report_error = self._say if isinstance(e, Unavailable) else self._warn  # the agent warns of an outage
                report_error(f"the registry does not accept reports of this node: {e.detail}")
            self._last_error = e.detail
            return False
        self._metrics.add("reports")
        self._last_error = ""
        return True

    def run(self, stop: threading.Event) -> None:
        """Send reports until `stop` is set; setting `slots.changed` as well ends it at once."""
        while not stop.is_set():
            self._slots.changed.clear()
            began, changed = time.monotonic(), self.send()
            stop.wait(DEBOUNCE_SECONDS if changed else RETRY_SECONDS)
            if changed:
                self._slots.changed.wait(max(0.0, began + RENEW_SECONDS - time.monotonic()))


def this_node() -> str:
    """The name of this node: its host name, with `-` for other characters."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node()).strip("-._")[:100]
    try:
        return names.node_name(name)
    except Invalid:
        return "node"
