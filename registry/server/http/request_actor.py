"""Who sends a request: the secret of its Authorization header, and the actor of that secret.

A request without Authorization is refused, unless the application has a `trusted` actor (embedded registry).
"""

from collections.abc import Callable
from contextlib import nullcontext

from fastapi import Request
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool

from registry.errors import Unauthenticated, Unavailable
from registry.events import EventType
from registry.names import AdapterName, Selector, is_alias
from registry.server.access import sign_in, tokens
from registry.server.access.rate_limits import network_of
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.http.services import services_of

HUB_TOKEN_PREFIX = "hf_"  # noqa: S105


def read_secret(request: Request) -> str | None:
    """Return the secret of the Authorization header, None without one.

    JavaScript clients of the Hub only send secrets that begin with `hf_`, so this may precede any token.
    """
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("UNAUTHORIZED", "the Authorization header must be 'Bearer' and a token")
    return secret.strip().removeprefix(HUB_TOKEN_PREFIX)


def read_network(request: Request) -> str:
    """Return the network that a request comes from, for limits of those who have not signed in."""
    return network_of(request.client.host if request.client else "")


def authenticate(request: Request, session: Session) -> Actor:
    """Read the actor of a request from the database. `Unauthenticated`."""
    return sign_in.authenticate(session, read_secret(request) or "", services_of(request).actor_cache)


def current_actor(request: Request) -> Actor:
    """Return the actor of a request. It is read from the database once per request."""
    actor: Actor | None = getattr(request.state, "actor", None)
    if actor is None:
        actor = request.state.actor = _sign_in(request, _read_actor)
    return actor


def look_up_actor(request: Request) -> Actor:
    """Return the actor of a request, which is not signed in yet. `Unauthenticated` for an invalid token.

    This neither counts the request nor records the use of its token, so `state.is_looked_up` tells the sign-in that
    the cache has this actor only since then.
    """

    def read(request: Request) -> Actor:
        with db.session(services_of(request).engine, write=False) as session:
            return authenticate(request, session)

    request.state.is_looked_up = True
    return _sign_in(request, read)


def _sign_in(request: Request, read: Callable[[Request], Actor]) -> Actor:
    secret, trusted = require_secret(request), services_of(request).trusted
    if secret is None and trusted is not None:
        return trusted
    try:
        return read(request)
    except Unauthenticated:
        record_failure(request, secret or "")
        raise


def require_secret(request: Request) -> str | None:
    """Return the secret of a request, None for the trusted actor. `Unauthenticated` if there is neither."""
    secret = read_secret(request)
    if secret is None and services_of(request).trusted is None:
        raise Unauthenticated(
            "UNAUTHORIZED", "this request has no token", next_step="run `adapter login URL`, or set ADAPTER_TOKEN"
        )
    return secret


def count_request(request: Request, token_id: str = "") -> None:
    """Count a request of this token; without one, a visit from its network. `Unavailable` (RATE_LIMITED).

    The resolve cache counts those that it serves itself.
    """
    services = services_of(request)
    if token_id:
        services.request_limiter.take(token_id)
    else:
        services.visit_limiter.take(read_network(request))


def known_tenant(request: Request) -> str | None:
    """The tenant of a token that was used lately, without a look at the database."""
    actor: Actor | None = getattr(request.state, "actor", None)
    if actor is None and (secret := read_secret(request)) is not None:
        actor = services_of(request).actor_cache.get(secret)
    return actor.tenant if actor is not None else None


def network_of_request(request: Request) -> str:
    """The tenant of requests whose senders are not known."""
    return f"network {read_network(request)}"


async def find_tenant(request: Request, *, needs_no_token: bool = False) -> str:
    """Whom a request counts for. `Unauthenticated` for a token that is not valid."""
    if needs_no_token or read_secret(request) is None:
        return network_of_request(request)
    return known_tenant(request) or (await run_in_threadpool(look_up_actor, request)).tenant


def _read_actor(request: Request) -> Actor:
    """Read the actor in the request's read session, else in one of its own; record the token's use, and count it."""
    engine = services_of(request).engine
    read_session: Session | None = getattr(request.state, "read_session", None)
    with nullcontext(read_session) if read_session is not None else db.session(engine, write=False) as session:
        actor = authenticate(request, session)
        record_use = tokens.should_record_use(session.info["token"])
        if record_use:
            db.commit_early(session)  # with SQLite's rollback journal no one can write while this session reads
    if record_use:
        with db.session(engine) as writing:
            tokens.record_use(writing, actor.token_id)
    count_request(request, actor.token_id)
    return actor


def record_read(request: Request, name: AdapterName, selector: Selector, *, on_page: bool = False) -> None:
    """Record in the audit log that the actor of a request reads bytes of this version, or sees some on a page.

    `Unavailable` (TRY_LATER) while the log has no space for it, if a thread writes it: no one reads unrecorded.
    """
    log = services_of(request).audit_log
    version = f"{name}{':' if is_alias(selector) else '@'}{selector}"
    actor: Actor = request.state.actor
    request_id: str = request.state.request_id
    if on_page:
        recorded = log.batch.add_page_read(actor, version, request_id=request_id)
    else:
        recorded = log.batch.add(actor, EventType.BYTES_READ, version, request_id=request_id)
    if not recorded and log.is_running:
        raise Unavailable("TRY_LATER", "too many different versions are read at once", retry_after_seconds=1)


def record_failure(request: Request, secret: str = "") -> None:
    """Count a failed sign-in. `Unavailable` (RATE_LIMITED) if there are too many; those are in the audit log, too."""
    try:
        services_of(request).failure_limiter.record_failure(read_network(request), secret)
    except Unavailable:
        services_of(request).audit_log.batch.add_denial(request.scope, Unauthenticated.__name__)
        raise
