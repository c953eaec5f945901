"""The issuers of an application, for the routes of identity tokens: no other route imports `jwt`."""

from typing import Annotated

from fastapi import Depends, Request

from registry.server.access.issuers import Issuers
from registry.server.http.routing import as_coroutine
from registry.server.http.services import services_of


def find_issuers(request: Request) -> Issuers:
    """Return the issuers of this application. The embedded registry reads their file with the first such request."""
    services = services_of(request)
    if services.issuers is None:
        services.issuers = Issuers.read(services.settings.issuers)
    return services.issuers


IssuersDep = Annotated[Issuers, Depends(as_coroutine(find_issuers))]
