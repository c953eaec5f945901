"""The issuers of an application, for the routes of identity tokens: no other route imports `jwt`."""

from typing import Annotated

from fastapi import Depends, Request

from registry.server.access.issuers import Issuers


async def issuers_of(request: Request) -> Issuers:
    """Return the issuers of this application. The embedded registry reads their file with the first such request."""
    state = request.app.state
    if not hasattr(state, "issuers"):
        state.issuers = Issuers.read(state.settings.issuers)
    issuers: Issuers = state.issuers
    return issuers


IssuersDep = Annotated[Issuers, Depends(issuers_of)]
