"""Prometheus metrics of an agent, served on a port of its own. The only label is the engine. They hold no secret.

A port instead of a file for node_exporter: Prometheus scrapes pods by port and sees in `up` that an agent has died.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from registry.errors import Invalid, Unavailable

PREFIX = "adapter_agent_"
COUNTERS = {
    "passes": "Passes over the engine.",
    "passes_failed": "Passes that ended early: the engine did not respond, or the disk was full.",
    "pulls": "Versions added to the local store.", "pulled_bytes": "Bytes of the versions added.",
    "pulls_failed": "Versions that could not be added.", "loads": "Versions that were loaded into the engine.",
    "unloads": "Versions that were unloaded.",
    "load_checks": "Versions whose answers matched their reference log-probabilities.",
    "load_checks_failed": "Versions whose answers did not match.", "reports": "Reports that the registry accepted.",
    "reports_failed": "Reports that the registry did not accept.",
}  # fmt: skip
GAUGES = {
    "desired": "Adapters in the desired state.", "serving": "Of these, adapters served in the desired version.",
    "unverified": "Served adapters whose answers could not be compared.",
    "loaded": "Versions from this store in the engine.",
    "failed": "Adapters that failed to load, or whose answers did not match.",
    "refused": "Adapters not loaded because a check or an engine rule fails.",
    "converged": "1 if every adapter is served in the desired version.",
    "last_pass_timestamp_seconds": "When the last whole pass ended, in seconds since 1970.",
    "last_pass_seconds": "How long it took.",
}  # fmt: skip


class Metrics:
    """Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._gauges: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name] += amount

    def set(self, gauges: Mapping[str, float]) -> None:
        """Set gauges."""
        with self._lock:
            self._gauges.update(gauges)

    @contextmanager
    def measure_pass(self) -> Iterator[None]:
        """Count a pass, its failure, and its seconds."""
        began = time.monotonic()
        self.add("passes")
        try:
            yield
        except Exception:
            self.add("passes_failed")
            raise
        self.set({"last_pass_timestamp_seconds": time.time(), "last_pass_seconds": time.monotonic() - began})

    def value(self, name: str) -> float:
        """The value of a counter or gauge."""
        with self._lock:
            return self._counts[name] if name in COUNTERS else self._gauges.get(name, 0)


class _Engines(Collector):
    """The metrics of every engine, by its title."""

    def __init__(self, engines: Mapping[str, Metrics]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        for kind, names in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for name, description in names.items():
                family = kind(PREFIX + name, description, labels=["engine"])
                for title, metrics in self._engines.items():
                    family.add_metric([title], metrics.value(name))
                yield family


class _Handler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def serve(engines: Mapping[str, Metrics], location: str) -> Iterator[str]:
    """Serve the metrics on `[HOST:]PORT` while the block runs; yields the URL. Without a host: this machine only."""
    host, _, port = location.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise Invalid("SETTING_INVALID", f"{location[:80]!r} is not '[HOST:]PORT'")

    registry = CollectorRegistry()
    registry.register(_Engines(engines))
    address = host.strip("[]") or "127.0.0.1"
    try:
        server = make_server(address, int(port), make_wsgi_app(registry), ThreadingWSGIServer, _Handler)
    except OSError as e:
        raise Unavailable("TRY_LATER", f"metrics cannot be served on {location}: {e.strerror or e}") from e
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield f"http://{server.server_address[0]!s}:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()
