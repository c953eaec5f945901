"""Web pages: what the REST API answers, rendered on the server for people. They need no JavaScript.

Pages call the functions that REST routes call, with the rights of the visitor. They contain no statements of their own.
"""

from registry.server.pages import adapters, aliases, bases, compare, lineage, rendering, search, sign_in, versions
from registry.server.pages.operations import audit, fleet, jobs

PAGES = (search, adapters, lineage, versions, aliases, compare, bases, fleet, jobs, audit, sign_in, rendering)
ROUTERS = tuple(page.router for page in PAGES)
