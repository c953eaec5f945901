"""`Reporter`: tells the registry what this node has and serves: at once when it changes, else to renew its lease.

Invariants
- A report never holds up what it tells of: it has a thread of its own, and one that fails is said once and tried again.
- It ends with the agent, whose engine goes on serving: the lease then ends by itself and the node is shown as lost.
"""

from __future__ import annotations

import platform
import re
import threading
import time
from collections.abc import Callable

from registry import names
from registry.api.serving import LEASE_SECONDS, SLOTS_LIMIT, NodeReport
from registry.client.registry import Registry
from registry.errors import Invalid, RegistryError
from registry.serving.agent.metrics import Metrics
from registry.serving.agent.slots import Slots

RENEW_SECONDS = LEASE_SECONDS / 3
TOGETHER_SECONDS = 0.2
"""Changes so close to each other are one report."""
AGAIN_SECONDS = 5.0


class Reporter:
    def __init__(
        self,
        registry: Registry,
        slots: Slots,
        *,
        node: str,
        engine: str,
        base: str,
        alias: str,
        profile: str = "",
        on_demand: bool = False,
        metrics: Metrics | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._registry, self._slots, self._say = registry, slots, say
        self._node, self._engine = names.node_name(node), names.node_name(engine)
        self._base, self._alias, self._profile, self._on_demand = base, alias, profile, on_demand
        self._metrics = metrics or Metrics()
        self._trouble = ""

    def report(self) -> bool:
        """One report; whether the registry took it. What is wrong is said once, until it goes well again."""
        report = NodeReport(
            base=self._base, alias=self._alias, profile=self._profile, on_demand=self._on_demand,
            slots=self._slots.all()[:SLOTS_LIMIT],
        )  # fmt: skip
        try:
            self._registry.report_node(self._node, self._engine, report)
        except RegistryError as e:
            self._metrics.add("reports_failed")
            if e.detail != self._trouble:
                self._say(f"the registry takes no report of this node: {e.detail}")
            self._trouble = e.detail
            return False
        self._metrics.add("reports")
        self._trouble = ""
        return True

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set and somebody has woken it (`slots.changed`), or the next report was due."""
        while not stop.is_set():
            self._slots.changed.clear()
            began, changed = time.monotonic(), self.report()
            stop.wait(TOGETHER_SECONDS if changed else AGAIN_SECONDS)
            if changed:
                self._slots.changed.wait(max(0.0, began + RENEW_SECONDS - time.monotonic()))


def this_node() -> str:
    """What this machine is called, as a node: its host name, other characters as `-`."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node()).strip("-._")[:100]
    try:
        return names.node_name(name)
    except Invalid:
        return "node"
