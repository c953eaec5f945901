"""Every table, for migrations and tests; a server imports those that its requests need."""

from sqlmodel import SQLModel

from registry.server.database.models import hub, jobs, namespaces, pushes, serving, sign_in, webhooks

MODULES = (hub, jobs, namespaces, pushes, serving, sign_in, webhooks)
"""Those whose tables `registry.server.database.models` does not publish."""
metadata = SQLModel.metadata
