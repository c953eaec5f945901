"""Routes of the Hub's read dialect, at the root of the host: what unchanged Hub clients ask while they pull.

Invariants
- They come after our own routes and take nothing from them.
- Every one declares its scope as all routes do; who may see what is the catalog's decision.

Example
    HF_ENDPOINT=https://registry.example HF_TOKEN=… hf download acme/support --revision prod
"""

from __future__ import annotations

from registry.server.routes.hub import listing, pushing, repositories, resolving
from registry.server.routes.hub.dialect import error_headers as error_headers

ROOMS = (listing, repositories, resolving, pushing)
