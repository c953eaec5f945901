"""Pages for signing in with a token, by the one-time link of `adapter serve`, and for signing out."""

from typing import Annotated

from fastapi import Query, Request, Response

from registry.errors import Unauthenticated
from registry.server.database import db
from registry.server.http.dependencies import SessionDep
from registry.server.http.request_actor import record_failure
from registry.server.http.request_body import limit_body
from registry.server.pages.rendering import create_router, redirect, render
from registry.server.sessions import page_sessions, visitors
from registry.server.sessions.forms import FORM_BYTES
from registry.server.sessions.visitors import FORM, SESSION, VisitorDep

router = create_router()
INVALID_TOKEN = "This token is not valid."  # noqa: S105
"""The one answer to a token that is unknown, mistyped, expired or revoked."""
Next = Annotated[str, Query(alias="next")]
"""Where to go after signing in. A page with a longer path than `NEXT_LIMIT` has this link, too, which leads to `/`."""


@router.get("/sign-in")
def show_sign_in(request: Request, _visitor: VisitorDep, path: Next = "/") -> Response:
    """Show the form for a token."""
    return _form(request, path)


@router.post("/sign-in")
@limit_body(FORM_BYTES)
def sign_in(request: Request, session: SessionDep) -> Response:
    """Begin a session with the rights of a token."""
    fields = visitors.read_form(request, visitors.read_cookie(request, FORM))
    secret, path = fields.get("token", "").strip(), fields.get("next", "/")
    try:
        session_id = page_sessions.start(session, secret, request.app.state.actor_cache)
    except Unauthenticated:
        record_failure(request, secret)
        request.app.state.audit_log.batch.add_denial(request.scope, Unauthenticated.__name__)
        return _form(request, path, 403, INVALID_TOKEN)
    request.app.state.request_limiter.take(session.info["token"].id)
    page_sessions.end(session, visitors.read_cookie(request, SESSION))
    return _begin(request, session_id, path)


@router.get("/sign-in/{code}")
def use_link(request: Request, code: str) -> Response:
    """Begin a session by the link that `adapter serve` has printed. It works once."""
    if not request.app.state.sign_in_links.use(code):
        return _form(request, "/", 403, "This link was used, or is too old. Sign in with a token.")
    with db.session(request.app.state.engine) as session:
        session.info["request_id"] = request.state.request_id
        session_id = page_sessions.start_as_owner(session, request.app.state.actor_cache)
    return _begin(request, session_id, "/")


@router.post("/sign-out")
@limit_body(FORM_BYTES)
def sign_out(request: Request, session: SessionDep) -> Response:
    """End the session."""
    session_id = visitors.read_cookie(request, SESSION)
    visitors.read_form(request, session_id)
    page_sessions.end(session, session_id)
    response = redirect("/")
    visitors.set_cookie(request, response, SESSION, "")
    return response


def _form(request: Request, path: str, status: int = 200, problem: str = "") -> Response:
    cookie = visitors.read_cookie(request, FORM) or visitors.new_form_cookie()
    token = visitors.form_token(cookie)
    response = render(
        request, "sign_in.html", status, title="Sign in", next=visitors.local_path(path), token=token, problem=problem
    )
    visitors.set_cookie(request, response, FORM, cookie)
    return response


def _begin(request: Request, session_id: str, path: str) -> Response:
    """Answer with a new session. Whatever session the browser had before is not continued."""
    response = redirect(visitors.local_path(path))
    visitors.set_cookie(request, response, SESSION, session_id)
    visitors.set_cookie(request, response, FORM, "")
    return response
