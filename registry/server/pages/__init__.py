"""Web pages: what the REST API returns, rendered on the server for people. They need no JavaScript.

Pages call the functions that REST routes call, with the rights of the visitor. They contain no statements of their own.
"""

from registry.server.pages import (
    adapters,
    aliases,
    bases,
    compare,
    hub_addresses,
    lineage,
    namespaces,
    rendering,
    search,
    sign_in,
    versions,
)
from registry.server.pages.operations import audit, fleet, jobs, live, status
from registry.server.pages.settings import adapters as adapter_settings
from registry.server.pages.settings import namespaces as namespace_settings
from registry.server.pages.settings import tokens, webhooks

SETTINGS_PAGES = (namespace_settings, adapter_settings, tokens, webhooks)
PAGES = (
    search, namespaces, adapters, lineage, versions, aliases, compare, bases, fleet, jobs, live, audit, status,
    *SETTINGS_PAGES, sign_in, rendering, hub_addresses,
)  # fmt: skip
ROUTERS = tuple(page.router for page in PAGES)
