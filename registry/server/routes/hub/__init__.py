"""The Hub API at the root of the host: what clients of the Hugging Face Hub request while they pull and push.

    HF_ENDPOINT=https://registry.example HF_TOKEN=… hf download acme/support --revision prod

Its routes come after the registry's own and never match their paths. Each declares its scope, as all routes do.
"""

from __future__ import annotations

from registry.server.routes.hub import files, pushing, repositories, writing, xet

ROUTERS = (repositories.router, pushing.router, xet.router, writing.router, files.router)
