"""`RequestMetrics`: what Prometheus learns about the requests of a server, of all its processes.

Prometheus' client keeps the values in memory or, where `SHARED_FOLDER_VARIABLE` is set before it is imported, in files
that the processes of a server share. So this module is imported by the processes that serve, not by the one that starts
them.
"""

import os

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from registry.server.http.request_log import SHARED_FOLDER_VARIABLE, RequestRecord

PREFIX = "registry_"
BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
REQUESTS = f"{PREFIX}requests", "Requests that this server completed."
REQUEST_LABELS = ("method", "status")
FAILED_SIGN_INS = f"{PREFIX}failed_sign_ins", "Requests of this server with a missing or invalid token."
STORE_ERRORS = f"{PREFIX}store_errors", "Requests of this server that failed because the blob store did."
SECONDS = f"{PREFIX}request_seconds", "Seconds until a response was sent."
SECONDS_LABELS = ("method", "route")


class RequestMetrics:
    """One per application."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._requests = Counter(*REQUESTS, REQUEST_LABELS, registry=self._registry)
        self._failed_sign_ins = Counter(*FAILED_SIGN_INS, registry=self._registry)
        self._store_errors = Counter(*STORE_ERRORS, registry=self._registry)
        self._seconds = Histogram(*SECONDS, SECONDS_LABELS, buckets=BUCKETS_SECONDS, registry=self._registry)

    def count(self, request: RequestRecord) -> None:
        """Count a completed request."""
        self._requests.labels(request.method, request.status).inc()
        self._seconds.labels(request.method, request.route).observe(request.seconds)
        if request.status == 401:
            self._failed_sign_ins.inc()
        if request.problem == "STORE_UNAVAILABLE":
            self.count_store_error()

    def count_store_error(self) -> None:
        """Count a failure of the blob store."""
        self._store_errors.inc()

    def text(self) -> bytes:
        """The text format of Prometheus, version 0.0.4."""
        registry = self._registry
        if os.environ.get(SHARED_FOLDER_VARIABLE):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
