"""What forms on pages ask for, as the requests of the REST API."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from sqlmodel import Session

from registry.errors import Denied, Invalid, Unauthenticated
from registry.names import AdapterName
from registry.roles import Scope
from registry.server.access import sign_in
from registry.server.http import idempotency
from registry.server.http.request_actor import record_failure
from registry.server.http.services import services_of
from registry.server.pages.sessions import visitors
from registry.server.pages.sessions.visitors import SESSION, Visitor
from registry.validation import first_problem

FORM_BYTES = 16 * 2**10
Shape = TypeVar("Shape")


def may_change(visitor: Visitor, scope: Scope, name: AdapterName, alias: str = "") -> bool:
    """Return whether a page shows this visitor the forms that need this scope."""
    actor = visitor.actor
    return bool(visitor.form_token) and not actor.superseded and actor.may(scope, name.namespace, name.name, alias)


def read_fields(request: Request, visitor: Visitor) -> dict[str, str]:
    """Return the fields of a form that a page of this visitor's session has sent. `Denied`, `Invalid`.

    After an error the form comes back, filled in (`sent_forms`).
    """
    fields = visitors.read_form(request, visitors.read_cookie(request, SESSION))
    visitor.actor.require_current_secret()
    return fields


def claim_form(session: Session, visitor: Visitor, fields: dict[str, str]) -> None:
    """Let a form that makes a secret do so once: a browser sends it again when its response is reloaded.

    `Conflict` (IDEMPOTENCY_REUSED), `Invalid` for a form without its random field.
    """
    if not fields.get("once"):
        raise Invalid("REQUEST_INVALID", "once: the form lacks the random text of its page")
    idempotency.claim_once(session, visitor.actor.token_id, f"form:{fields['once']}")


def confirm_identity(request: Request, session: Session, visitor: Visitor, secret: str) -> None:
    """Raise `Denied` unless the visitor has just proved again who they are.

    They did if their identity provider has asked them again, or if the secret is of a token of theirs that was not
    rotated. Wrong secrets are limited.
    """
    if visitor.is_confirmed:
        return
    try:
        actor = sign_in.authenticate(session, secret.strip(), services_of(request).actor_cache)
    except Unauthenticated:
        record_failure(request, secret)
        actor = None
    if actor is None or actor.superseded or actor.owner != visitor.actor.owner:
        next_step = "paste a token of yours, or sign out, sign in with this one, and paste it again"
        raise Denied("DENIED", "token: it is not one of yours", next_step=next_step)


def to_request(shape: Callable[..., Shape], **values: Any) -> Shape:
    """Return the request with these values. `Invalid` names the field that is wrong."""
    try:
        return shape(**values)
    except ValueError as e:
        field, message = first_problem(e, "form")
        raise Invalid("REQUEST_INVALID", f"{field}: {message}") from e
