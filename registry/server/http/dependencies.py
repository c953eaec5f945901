"""What routes declare in their signatures: the session, the actor with a scope, the store, parsed parameters.

    @router.serves(operations.LIST_BASES)
    def list_bases(session: SessionDep, actor: ActorDep) -> BasePage: ...

- The session commits before the response is sent (routing.py), so a failed commit is never a 2xx.
- Every route takes one of the actors below, which signs in, or declares `NO_TOKEN`; `create_app` refuses others.
- A mutation with an Idempotency-Key claims it in its own transaction (idempotency.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple, TypeVar

from fastapi import Depends, Query, Request, Response
from fastapi.dependencies.models import Dependant
from pydantic import AfterValidator
from sqlalchemy import Engine
from sqlmodel import Session

from registry import names
from registry.api import MESSAGE_LIMIT, PAGE_DEFAULT, PAGE_LIMIT
from registry.api.models import PrintableText
from registry.api.operations.operation import DRY_RUN, REASON
from registry.errors import RegistryError, invalid_cursor
from registry.names import AdapterName, Selector
from registry.roles import Scope
from registry.server import audit, failpoints
from registry.server.actors import OLD_SECRET_SCOPES, Actor
from registry.server.audit.audit_log import AuditLog
from registry.server.catalog.versions import Pointer
from registry.server.database import db
from registry.server.http import idempotency
from registry.server.http.idempotency import SAFE_METHODS
from registry.server.http.request_actor import authenticate, count_request, current_actor, read_secret
from registry.server.http.routing import (
    DeclaresScope,
    UsesStore,
    as_coroutine,
    dependencies_of,
    enter_session,
    require_nothing,
)
from registry.server.http.services import Services, services_of
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore

Result = TypeVar("Result")
ADAPTER = "/adapters/{namespace}/{name}"
VERSION = ADAPTER + "/versions/{selector}"
NAMESPACE = "/namespaces/{namespace}"


def service(find: Callable[[Services], Any]) -> Any:
    """The dependency that returns one of the application's services."""

    async def read(request: Request) -> Any:
        return find(services_of(request))

    return Depends(read)


# ------------------------------------------------------------------ sessions
async def open_session(request: Request) -> Session:
    """One transaction for the request. It may write unless the request is a GET or HEAD."""
    write = request.method not in SAFE_METHODS
    return enter_session(request, _session(request, write=write, look_up=idempotency.claim))


async def open_read_session(request: Request) -> Session:
    """One transaction that begins by reading, for a route that checks for long before `db.begin_writing`.

    Sign-in reads in this transaction, so it has begun when the route runs.
    """
    return enter_session(request, _session(request, write=False))


async def open_keyed_session(request: Request) -> Session:
    """A read session whose route takes an Idempotency-Key."""
    return enter_session(request, _session(request, write=False, look_up=idempotency.find))


def takes_key(dependant: Dependant) -> bool:
    """Whether a route has a session that takes an Idempotency-Key."""
    return bool({open_session, open_keyed_session} & set(dependencies_of(dependant)))


@contextmanager
def _session(request: Request, *, write: bool, look_up: idempotency.Lookup | None = None) -> Iterator[Session]:
    has_key = look_up is not None and not is_dry_run(request) and idempotency.has_key(request)
    actor = current_actor(request) if has_key else None
    with db.session(services_of(request).engine, write=write) as session:
        session.info["request_id"] = request.state.request_id
        session.info[audit.REASON] = getattr(request.state, "reason", "")
        if look_up is not None and actor is not None:
            idempotency.look_up_key(request, session, actor, look_up)
        elif not write:
            request.state.read_session = session
        yield session
        if is_dry_run(request):  # every check was made and every row written: the response is that of the change
            session.rollback()
    if look_up is not None and request.method not in SAFE_METHODS:
        failpoints.reach("request.committed")


# ------------------------------------------------------------------ actors
class RequireScope(DeclaresScope):
    """The dependency that signs in and requires a scope in any namespace; None requires only a valid token."""

    def __init__(self, scope: Scope | None = None, *, is_of_operation: bool = False) -> None:
        self.scope, self.is_of_operation = scope, is_of_operation

    async def __call__(self, request: Request) -> Actor:
        return self.check(request)

    def check(self, request: Request) -> Actor:
        """Return the actor of a request. `Unauthenticated`, `Denied`."""
        actor, scope = self._sign_in(request), self._scope_for(request)
        if not _allows_old_secret(scope, request.method):
            actor.require_current_secret()
        if scope is not None and not actor.has_scope(scope):
            raise actor.lacks(scope)
        return actor

    def check_again(self, request: Request) -> Actor:
        """Return the actor with the rights it has now, for a request that has waited."""
        request.state.actor = None
        return self.check(request)

    def _scope_for(self, request: Request) -> Scope | None:
        route = request.scope["route"]
        return Scope(route.scope) if self.is_of_operation and route.scope else self.scope

    def _sign_in(self, request: Request) -> Actor:
        return current_actor(request)


def _allows_old_secret(scope: Scope | None, method: str) -> bool:
    """Whether a rotated secret may send this request: it may pull and push, but delete nothing."""
    return method in SAFE_METHODS if scope is None else scope in OLD_SECRET_SCOPES and method != "DELETE"


class RequireScopeCached(RequireScope):
    """For `resolve`: the actor may come from the cache, and the route must use `with_current_actor`.

    A token that this server has not seen lately is signed in, which records its use.
    """

    def _sign_in(self, request: Request) -> Actor:
        secret = read_secret(request)
        actor = services_of(request).actor_cache.get(secret) if secret else None
        if actor is None or getattr(request.state, "is_looked_up", False):
            return current_actor(request)
        count_request(request, actor.token_id)
        return actor


class RequireScopeInThread(RequireScope):
    """For an `async def` route: FastAPI calls this in a thread, where sign-in may wait."""

    def __call__(self, request: Request) -> Actor:  # type: ignore[override]
        return self.check(request)


def with_current_actor(
    request: Request, session: Session, actor: Actor, read: Callable[[Actor], tuple[Result, Pointer]]
) -> tuple[Result, Pointer]:
    """Call `read` with the actor, and again with a fresh one if access has changed since it was cached.

    `read` returns its result with the pointer that its own statement has read.
    """
    try:
        result, pointer = read(actor)
        if actor.epoch in (None, pointer.access):
            return result, pointer
    except RegistryError:
        if actor.epoch is None:
            raise
        fresh = authenticate(request, session)
        if fresh == actor:
            raise
        return read(fresh)
    return read(authenticate(request, session))


# ------------------------------------------------------------------ parameters
def adapter_name(namespace: str, name: str) -> AdapterName:
    """Parse the name of an adapter from the path."""
    return AdapterName(namespace, name)


def namespace_name(namespace: str) -> str:
    """Return the namespace of the path."""
    return namespace


def version_selector(selector: str) -> Selector:
    """Parse the selector of a version from the path."""
    return names.selector(selector)


def keyset_cursor(cursor: str = "") -> str:
    """Return the cursor of a list."""
    if len(cursor) > 200:
        raise invalid_cursor()
    return cursor


ReasonDep = Annotated[PrintableText, Query(max_length=MESSAGE_LIMIT)]
OWNERS: tuple[tuple[str, Any], ...] = (
    ("namespace", Depends(as_coroutine(namespace_name))),
    ("adapter", Depends(as_coroutine(adapter_name))),
)
"""Kind and parameter of what has gates and retention rules of its own."""


async def keep_reason(request: Request, reason: ReasonDep = "") -> None:
    """Keep why a change is made for the events that it leaves."""
    request.state.reason = reason


async def begin_dry_run(request: Request, dry_run: bool = False) -> None:
    """Let the transaction of a change be undone at its end."""
    request.state.is_dry_run = dry_run


def is_dry_run(request: Request) -> bool:
    """Whether the transaction of this request is undone, so that nothing else may be changed."""
    return getattr(request.state, "is_dry_run", False)


CHANGE_OPTIONS = {REASON: Depends(keep_reason), DRY_RUN: Depends(begin_dry_run)}
"""What `Operation.takes` may name."""


async def forbid_storing(response: Response) -> None:
    """Let no cache keep the response, nor this server for a repeated request: it has a secret, which is shown once."""
    response.headers["Cache-Control"] = "no-store"


EngineDep = Annotated[Engine, service(lambda services: services.engine)]
BlobsDep = Annotated[BlobStore, service(lambda services: services.blobs), UsesStore]
BlobsHandleDep = Annotated[BlobStore, service(lambda services: services.blobs)]
"""The store, for a route that does not call it, or only if it is requested."""
QuickBlobsDep = Annotated[BlobStore, service(lambda services: services.quick_blobs), UsesStore]
"""The store, for a page: it shows its other parts if a read takes long."""
SettingsDep = Annotated[Settings, service(lambda services: services.settings)]
AuditLogDep = Annotated[AuditLog, service(lambda services: services.audit_log)]
SessionDep = Annotated[Session, Depends(open_session)]
ReadSessionDep = Annotated[Session, Depends(open_read_session)]
KeyedSessionDep = Annotated[Session, Depends(open_keyed_session)]
NameDep = Annotated[AdapterName, Depends(as_coroutine(adapter_name))]
SelectorDep = Annotated[Selector, Depends(as_coroutine(version_selector))]
CursorDep = Annotated[str, Depends(as_coroutine(keyset_cursor))]
LimitDep = Annotated[int, Query(ge=1), AfterValidator(lambda limit: min(limit, PAGE_LIMIT))]
"""The number of items on a page. A larger number than `PAGE_LIMIT` gives that many, and a cursor."""
PAGE = PAGE_DEFAULT
Text = Annotated[str, Query(max_length=300)]
"""A filter of a list."""

NO_TOKEN = Depends(require_nothing)
NO_STORE = Depends(forbid_storing)
ActorDep = Annotated[Actor, Depends(RequireScope(is_of_operation=True))]
"""Who sends the request, with the scope that the row of the route's operation names."""
ActorInThreadDep = Annotated[Actor, Depends(RequireScopeInThread(is_of_operation=True))]
CachedActorDep = Annotated[Actor, Depends(RequireScopeCached(is_of_operation=True))]
AnyActor = Annotated[Actor, Depends(RequireScope())]
"""These are for the Hub API, whose routes are not in the table."""
Puller = Annotated[Actor, Depends(RequireScope(Scope.PULL))]
Pusher = Annotated[Actor, Depends(RequireScope(Scope.PUSH))]
PusherInThread = Annotated[Actor, Depends(RequireScopeInThread(Scope.PUSH))]


# ------------------------------------------------------------------ what a request is about
class AdapterTarget(NamedTuple):
    """The adapter of the path, after the session and the actor: what functions about an adapter take first."""

    session: Session
    actor: Actor
    name: AdapterName


class VersionTarget(NamedTuple):
    """The version of the path, after the session and the actor: what functions about a version take first."""

    session: Session
    actor: Actor
    name: AdapterName
    selector: Selector


async def _adapter_target(session: SessionDep, actor: ActorDep, name: NameDep) -> AdapterTarget:
    return AdapterTarget(session, actor, name)


async def _version_target(session: SessionDep, actor: ActorDep, name: NameDep, selector: SelectorDep) -> VersionTarget:
    return VersionTarget(session, actor, name, selector)


AdapterDep = Annotated[AdapterTarget, Depends(_adapter_target)]
VersionDep = Annotated[VersionTarget, Depends(_version_target)]


class MaintenanceTarget(NamedTuple):
    """The whole registry, for an administrator of all namespaces: what functions of maintenance take first."""

    engine: Engine
    blobs: BlobStore
    settings: Settings
    actor: Actor


async def _maintenance_target(
    actor: ActorDep, engine: EngineDep, blobs: BlobsHandleDep, settings: SettingsDep
) -> MaintenanceTarget:
    actor.require_everywhere(Scope.ADMIN)
    return MaintenanceTarget(engine, blobs, settings, actor)


MaintenanceDep = Annotated[MaintenanceTarget, Depends(_maintenance_target), UsesStore]
