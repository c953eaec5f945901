"""Every table, for migrations and tests; a server imports those that its requests need."""

from sqlmodel import SQLModel

from registry.server.database.models import hub, jobs, namespaces, owner_rules, pushes, serving, sign_in

MODULES = (hub, jobs, namespaces, owner_rules, pushes, serving, sign_in)
"""Those whose tables `registry.server.database.models` does not publish."""
metadata = SQLModel.metadata
