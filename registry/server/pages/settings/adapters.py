"""The page of an adapter's settings: who may publish from CI, and which versions garbage collection keeps."""

from fastapi import Request, Response

from registry.api.access import PublisherAdd
from registry.errors import Invalid
from registry.roles import Scope
from registry.server.access import token_exchange
from registry.server.http.dependencies import ADAPTER, NameDep, SessionDep
from registry.server.http.issuers import IssuersDep
from registry.server.http.request_body import limit_body
from registry.server.pages.rendering import create_router, redirect, render
from registry.server.pages.sessions.forms import FORM_BYTES, confirm_identity, read_fields, to_request
from registry.server.pages.sessions.visitors import SignedInDep
from registry.server.pages.settings.namespaces import SETTINGS, may_administer, read_rule
from registry.server.promotion.retention import plan, rules

router = create_router()
DECISIONS_SHOWN = 200


@router.get(SETTINGS + ADAPTER)
def show_adapter_settings(
    request: Request, session: SessionDep, visitor: SignedInDep, name: NameDep, issuers: IssuersDep
) -> Response:
    """Show the trusted publishers of an adapter, its retention rule, and what that rule does next."""
    visitor.actor.require(Scope.ADMIN, name)
    publishers = token_exchange.list_publishers(session, visitor.actor, name, issuers).items
    retention = rules.show_rule(session, visitor.actor, name)
    decisions = plan.list_decisions(session, visitor.actor, name, None, cursor="", limit=DECISIONS_SHOWN)
    return render(
        request, "settings_adapter.html", title=f"Settings of {name}", name=name, publishers=publishers,
        issuers=issuers.publishing, retention=retention, decisions=decisions,
        may_administer=may_administer(visitor, name.namespace),
    )  # fmt: skip


@router.post(SETTINGS + ADAPTER + "/publishers")
@limit_body(FORM_BYTES)
def add_publisher(
    request: Request, session: SessionDep, visitor: SignedInDep, name: NameDep, issuers: IssuersDep
) -> Response:
    """Let CI jobs with these claims push to an adapter. A line of the form is a claim and its pattern."""
    fields = read_fields(request, visitor)
    claims = {}
    for line in filter(None, map(str.strip, fields.get("claims", "").splitlines())):
        claim, equals, pattern = line.partition("=")
        if not equals or claim.strip() in claims:
            raise Invalid("REQUEST_INVALID", f"claims: {line[:80]!r} is not a new claim, '=' and a pattern")
        claims[claim.strip()] = pattern.strip()
    visitor.actor.require(Scope.ADMIN, name)
    confirm_identity(request, session, visitor, fields.get("token", ""))
    publisher = to_request(PublisherAdd, issuer=fields.get("issuer", "").strip(), claims=claims)
    token_exchange.add(session, visitor.actor, name, publisher, issuers)
    return redirect(f"{SETTINGS}/adapters/{name}")


@router.post(SETTINGS + ADAPTER + "/publishers/{publisher_id}/delete")
@limit_body(FORM_BYTES)
def delete_publisher(
    request: Request, session: SessionDep, visitor: SignedInDep, name: NameDep, issuers: IssuersDep, publisher_id: str
) -> Response:
    """Delete a trusted publisher."""
    read_fields(request, visitor)
    token_exchange.delete_publisher(session, visitor.actor, name, publisher_id, issuers)
    return redirect(f"{SETTINGS}/adapters/{name}")


@router.post(SETTINGS + ADAPTER + "/retention")
@limit_body(FORM_BYTES)
def change_retention(request: Request, session: SessionDep, visitor: SignedInDep, name: NameDep) -> Response:
    """Set the retention rule of an adapter, or delete it, which lets that of its namespace count."""
    rules.set_rule(session, visitor.actor, name, read_rule(read_fields(request, visitor)))
    return redirect(f"{SETTINGS}/adapters/{name}")
