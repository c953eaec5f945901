"""`Services`: what the requests of one application share, such as the database, the store, the audit log and limits.

They are the application's `state`; `services_of` returns them with their type.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from sqlalchemy import Engine

from registry.errors import RegistryError
from registry.server.access.one_time_links import OneTimeLinks
from registry.server.access.rate_limits import (
    UPLOADS_PER_BLOB,
    UPLOADS_PER_TOKEN,
    WAITS_FOR_DIFFERENT,
    ConcurrencyLimiter,
    DifferentLimiter,
    FailureLimiter,
    RequestLimiter,
)
from registry.server.access.sign_in import ActorCache
from registry.server.actors import Actor
from registry.server.audit.audit_log import AuditLog
from registry.server.http.admission import Admission
from registry.server.http.changes.change_watcher import ChangeWatcher
from registry.server.http.changes.freshness import ChangeCounter, Freshness
from registry.server.http.changes.shared_reads import SharedReads
from registry.server.http.request_log import RequestLog
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.server.storage.signed_links import LinkSigner

if TYPE_CHECKING:  # the embedded registry does not load `jwt` before a request needs it
    from registry.server.access.issuers import Issuers

FindProfile = Callable[[str, str], str]
"""`find_stored_profile` of `registry.server.evaluation.engine_profiles`."""
ErrorPage = Callable[[Request, RegistryError, int], Response]


class Services:
    """The services of one application.

    - `trusted`: the actor of requests without a token (embedded registry).
    - `quick_blobs`: the store for pages, which show their other parts if a read takes long.
    - `error_page`: renders errors of addresses without a route for browsers, where there are pages.
    - `issuers`: read with the first request that needs them (`registry.server.http.issuers`), or before.
    """

    def __init__(
        self, settings: Settings, engine: Engine, blobs: BlobStore, find_profile: FindProfile, *,
        trusted: Actor | None = None, quick_blobs: BlobStore | None = None, error_page: ErrorPage | None = None,
        issuers: Issuers | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.engine, self.blobs, self.trusted = settings, engine, blobs, trusted
        self.find_profile, self.error_page, self.issuers = find_profile, error_page, issuers
        self.quick_blobs = quick_blobs or blobs
        if blobs.links is None:  # links of one process, until a server that others join sets a secret of all
            blobs.links = LinkSigner(partial(str, secrets.token_hex(32)))
        self.audit_log = AuditLog(settings, engine, blobs)
        self.actor_cache = ActorCache()
        self.sign_in_links = OneTimeLinks()
        self.requests = RequestLog()

        self.admission = Admission()
        self.request_limiter = RequestLimiter(settings.requests_per_minute, "requests with this token")
        # Apart from those with a token: anyone can have many addresses.
        self.visit_limiter = RequestLimiter(settings.requests_per_minute, "requests without a token from this network")
        self.failure_limiter = FailureLimiter(settings.failures_per_minute)
        self.stream_limiter = ConcurrencyLimiter(settings.streams_per_token, "event streams of this token")
        self.waits_limiter = ConcurrencyLimiter(settings.waits_per_token, "waiting requests of this token")
        self.waited_limiter = DifferentLimiter(WAITS_FOR_DIFFERENT, "waits of this tenant")
        self.upload_limiter = ConcurrencyLimiter(UPLOADS_PER_TOKEN, "uploads of this token")
        self.blob_limiter = ConcurrencyLimiter(UPLOADS_PER_BLOB, "uploads of this blob")

        self.freshness = Freshness(engine)
        self.database_reached_at = time.monotonic()
        self.change_counter = ChangeCounter(engine)
        self.change_watcher = ChangeWatcher(self.freshness, self.change_counter, self.audit_log.closing)
        self.shared_reads = SharedReads()

    @property
    def link_signer(self) -> LinkSigner:
        """What signs links to this server."""
        if self.blobs.links is None:
            raise RuntimeError("a store of an application has a signer")
        return self.blobs.links


def services_of(source: Request | FastAPI) -> Services:
    """Return the services of an application, or of that of a request."""
    services: Services = source.app.state if isinstance(source, Request) else source.state  # type: ignore[assignment]
    return services
