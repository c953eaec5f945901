"""Pages for signing in at an identity provider, with a token, or by the link of `adapter serve`, and signing out."""

import secrets
import time
from typing import Annotated

from fastapi import Query, Request, Response

from registry.errors import NotFound, Unauthenticated, Unavailable
from registry.server.access import issuers
from registry.server.access.issuers import LEEWAY_SECONDS, IdentityToken, Issuer
from registry.server.access.oidc_client import OidcClient
from registry.server.database import db
from registry.server.http.dependencies import SessionDep
from registry.server.http.issuers import find_issuers
from registry.server.http.request_actor import count_request, read_network, record_failure
from registry.server.http.request_body import limit_body
from registry.server.http.services import services_of
from registry.server.pages.adapters import registry_url
from registry.server.pages.rendering import create_router, redirect, render
from registry.server.pages.sessions import authorization_code, page_sessions, visitors
from registry.server.pages.sessions.attempts import SignInAttempt
from registry.server.pages.sessions.forms import FORM_BYTES
from registry.server.pages.sessions.visitors import ATTEMPT, FORM, SESSION, VisitorDep

router = create_router()
INVALID_TOKEN = "This token is not valid."  # noqa: S105
"""The one response to a token that is unknown, mistyped, expired or revoked."""
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
        session_id = page_sessions.start(session, secret, services_of(request).actor_cache)
    except Unauthenticated:
        record_failure(request, secret)
        services_of(request).audit_log.batch.add_denial(request.scope, Unauthenticated.__name__)
        return _form(request, path, 403, INVALID_TOKEN)
    count_request(request, session.info["token"].id)
    page_sessions.end(session, visitors.read_cookie(request, SESSION))
    return _begin(request, session_id, path)


@router.get("/sign-in/{code}")
def use_link(request: Request, code: str) -> Response:
    """Begin a session by the link that `adapter serve` has printed. It works once."""
    if not services_of(request).sign_in_links.use(code):
        return _form(request, "/", 403, "This link was used, or is too old. Sign in with a token.")
    with db.session(services_of(request).engine) as session:
        session.info["request_id"] = request.state.request_id
        session_id = page_sessions.start_as_owner(session, services_of(request).actor_cache)
        page_sessions.end(session, visitors.read_cookie(request, SESSION))
    return _begin(request, session_id, "/")


STALE_ATTEMPT = "This sign-in was not begun in this browser, or another one was begun after it. Begin again."
Parameter = Annotated[str, Query(max_length=4000)]


@router.get("/sign-in/with/{provider}")
def leave_for_provider(
    request: Request, _visitor: VisitorDep, provider: str, path: Next = "/", again: Parameter = ""
) -> Response:
    """Send the browser to an identity provider. `again`: it must ask for a password again."""
    client = _find_client(request, provider)[1]
    attempt = SignInAttempt.begin(client.name, path, confirms=bool(again))
    response = redirect(authorization_code.build_authorization_url(client, attempt, _callback_url(request, client)))
    visitors.set_cookie(request, response, ATTEMPT, attempt.cookie)
    return response


@router.get("/sign-in/with/{provider}/callback")
def return_from_provider(
    request: Request, session: SessionDep, _visitor: VisitorDep, provider: str, code: Parameter = "",
    state: Parameter = "", iss: Parameter = "", error: Parameter = "",
) -> Response:  # fmt: skip
    """Begin a session of the person whom the identity provider has named, in the browser that was sent there.

    Anyone can send codes, so few of a network wait for the provider at once. One too many may come again. A state that
    has come back costs the provider and others no more.
    """
    issuer, client = _find_client(request, provider)
    attempt = SignInAttempt.read(visitors.read_cookie(request, ATTEMPT))
    if attempt is None or attempt.provider != client.name or not attempt.matches(state) or state in client.spent:
        return _refuse(request, "/", 403, STALE_ATTEMPT)
    if error or not code or iss not in ("", issuer.name):
        return _refuse(request, attempt.path, 403, f"{client.name} did not sign you in.")
    db.commit_early(session)  # no connection is held while the provider responds
    with client.limiter.hold(read_network(request)):
        if not client.spent.add(state):  # another callback with it came first
            return _refuse(request, "/", 403, STALE_ATTEMPT)
        return _finish(request, issuer, client, attempt, code)


def _finish(request: Request, issuer: Issuer, client: OidcClient, attempt: SignInAttempt, code: str) -> Response:
    """Exchange the code, and begin a session if the identity token is right."""
    try:
        assertion = authorization_code.redeem_code(client, attempt, code, _callback_url(request, client))
        identity = issuers.verify_sign_in(issuer, client, assertion, attempt.nonce)
        if attempt.confirms and not _has_asked_again(identity):
            raise issuers.rejection("the person was not asked to sign in again")
        with db.session(services_of(request).engine) as writing:
            writing.info["request_id"] = request.state.request_id
            cache = services_of(request).actor_cache
            session_id = page_sessions.start_for(writing, identity, client, cache, is_confirmed=attempt.confirms)
            page_sessions.end(writing, visitors.read_cookie(request, SESSION))
    except Unavailable as e:
        return _refuse(request, attempt.path, 503, f"{e.detail}.")
    except Unauthenticated as e:
        record_failure(request)
        batch = services_of(request).audit_log.batch
        batch.add_denial(request.scope, Unauthenticated.__name__, reason=e.operator_detail)
        return _refuse(request, attempt.path, 403, f"What {client.name} says about you is not accepted here.")
    return _begin(request, session_id, attempt.path)


def _refuse(request: Request, path: str, status: int, problem: str) -> Response:
    """Show the form with a problem, and end the attempt: each one has one callback."""
    response = _form(request, path, status, problem)
    visitors.set_cookie(request, response, ATTEMPT, "")
    return response


def _find_client(request: Request, name: str) -> tuple[Issuer, OidcClient]:
    issuer = find_issuers(request).clients.get(name)
    if issuer is None or issuer.client is None:
        raise NotFound("ROUTE_UNKNOWN", f"there is no identity provider {name[:40]!r} for signing in")
    return issuer, issuer.client


def _callback_url(request: Request, client: OidcClient) -> str:
    """The URL to register at the provider. Each client has its own, so that no provider can pass for another."""
    return f"{registry_url(request)}/sign-in/with/{client.name}/callback"


def _has_asked_again(identity: IdentityToken) -> bool:
    authenticated_at = identity.claims.get("auth_time")
    recently = time.time() - page_sessions.CONFIRMED_SECONDS - LEEWAY_SECONDS
    return isinstance(authenticated_at, int) and authenticated_at >= recently


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
    cookie = visitors.read_cookie(request, FORM) or secrets.token_urlsafe(32)
    token = visitors.form_token(cookie)
    response = render(
        request, "sign_in.html", status, title="Sign in", next=visitors.local_path(path), token=token, problem=problem,
        providers=sorted(find_issuers(request).clients),
    )  # fmt: skip
    visitors.set_cookie(request, response, FORM, cookie)
    return response


def _begin(request: Request, session_id: str, path: str) -> Response:
    """Response with a new session. Whatever session the browser had before is not continued."""
    response = redirect(visitors.local_path(path))
    visitors.set_cookie(request, response, SESSION, session_id)
    visitors.set_cookie(request, response, FORM, "")
    visitors.set_cookie(request, response, ATTEMPT, "")
    return response
