"""Routes of access: tokens and the caller; namespaces, roles, trusted publishers;
renaming and deleting adapters.

A subject may contain slashes (`https://issuer#sub`), so it is the last part of its path.
"""

from datetime import timedelta
from typing import Annotated

from fastapi import BackgroundTasks, Query, Request

from registry.api import access
from registry.api.aliases import WithdrawRequest
from registry.api.catalog import AdapterView, DeleteResult
from registry.api.operations import access as operations
from registry.errors import Unauthenticated
from registry.names import AdapterName
from registry.server.access import namespaces, token_exchange, tokens
from registry.server.catalog.search import adapters
from registry.server.http import dependencies as deps
from registry.server.http import routing
from registry.server.http.documents import JsonBody
from registry.server.http.issuers import IssuersDep
from registry.server.http.operation_router import OperationRouter
from registry.server.http.request_actor import record_failure
from registry.server.promotion import adapter_deletion, removal
from registry.server.push import background

RoleFilter = Annotated[str, Query(max_length=20)]
router = OperationRouter()
namespace_router = OperationRouter()


@router.serves(operations.CREATE_TOKEN)
def create_token(
    session: deps.SessionDep, actor: deps.ActorDep, request: JsonBody[access.TokenCreate]
) -> access.TokenCreated:
    """Create a token. Its secret is in this response only."""
    view, secret = tokens.issue(session, actor, request)
    return access.TokenCreated(token=view, secret=secret)


@router.serves(operations.EXCHANGE_TOKEN)
def exchange_token(
    incoming: Request,
    session: deps.ReadSessionDep,
    issuers: IssuersDep,
    request: JsonBody[access.ExchangeRequest],
) -> access.TokenCreated:
    """Exchange the identity token of a CI job for a short-lived token."""
    try:
        view, secret = token_exchange.exchange_token(session, issuers, request)
    except Unauthenticated:
        record_failure(incoming)
        raise
    return access.TokenCreated(token=view, secret=secret)


@router.serves(operations.LIST_TOKENS)
def list_tokens(
    session: deps.SessionDep, actor: deps.ActorDep, cursor: deps.CursorDep, limit: deps.LimitDep = deps.PAGE
) -> access.TokenPage:
    """List the tokens that the caller may revoke, newest first."""
    return tokens.list_tokens(session, actor, cursor=cursor, limit=limit)


@router.serves(operations.ROTATE_TOKEN)
def rotate_token(
    session: deps.SessionDep, actor: deps.ActorDep, token_id: str, request: JsonBody[access.TokenRotate]
) -> access.TokenCreated:
    """Replace the secret of a token. The old one works for `keep_seconds` more."""
    view, secret = tokens.rotate(session, actor, token_id, keep_seconds=request.keep_seconds)
    return access.TokenCreated(token=view, secret=secret)


@router.serves(operations.REVOKE_TOKEN)
def revoke_token(session: deps.SessionDep, actor: deps.ActorDep, token_id: str) -> access.TokenView:
    """Revoke a token: it ends at the next request; for look-ups that other servers repeat from memory, in a second."""
    return tokens.revoke(session, actor, token_id)


@router.serves(operations.SHOW_CALLER)
def show_caller(actor: deps.ActorDep) -> access.Whoami:
    """Show who the token belongs to and what it may do."""
    return access.Whoami(
        actor=actor.identity,
        token_id=actor.token_id,
        scopes=sorted(actor.scopes),
        namespaces=sorted(actor.namespaces),
        expires_at=actor.expires_at,
        subject=actor.subject,
        roles={name: namespaces.role_views(roles) for name, roles in sorted((actor.roles or {}).items())},
        adapters=sorted(actor.adapters),
        aliases=sorted(actor.aliases),
        groups=sorted(actor.groups),
    )


# ------------------------------------------------------------------ namespaces


@namespace_router.serves(operations.LIST_NAMESPACES)
def list_namespaces(
    session: deps.SessionDep, actor: deps.ActorDep, cursor: deps.CursorDep, limit: deps.LimitDep = deps.PAGE
) -> access.NamespacePage:
    """List the namespaces that the caller may see."""
    return namespaces.list_namespaces(session, actor, cursor=cursor, limit=limit)


@namespace_router.serves(operations.CREATE_NAMESPACE)
def create_namespace(
    session: deps.SessionDep, actor: deps.ActorDep, request: JsonBody[access.NamespaceCreate],
    settings: deps.SettingsDep,
) -> access.NamespaceView:  # fmt: skip
    """Create a namespace, or one that was deleted within the grace time again. For administrators of all namespaces."""
    return namespaces.create(session, actor, request, timedelta(seconds=settings.delete_grace_seconds))


@namespace_router.serves(operations.SHOW_NAMESPACE)
def show_namespace(session: deps.SessionDep, actor: deps.ActorDep, namespace: str) -> access.NamespaceView:
    """Show a namespace, its limits and what it uses."""
    return namespaces.show(session, actor, namespace)


@namespace_router.serves(operations.CHANGE_NAMESPACE)
def change_namespace(
    session: deps.SessionDep, actor: deps.ActorDep, namespace: str, request: JsonBody[access.NamespaceSet]
) -> access.NamespaceView:
    """Change a namespace. Fields that are absent stay as they are."""
    return namespaces.update(session, actor, namespace, request)


@namespace_router.serves(operations.DELETE_NAMESPACE)
def delete_namespace(
    session: deps.SessionDep,
    actor: deps.ActorDep,
    namespace: str,
) -> DeleteResult:
    """Delete an empty namespace. Its name stays reserved; within the grace time it can be created again."""
    return removal.delete_namespace(session, actor, namespace)


@namespace_router.serves(operations.GRANT_ROLE)
def grant_role(
    session: deps.SessionDep, actor: deps.ActorDep, namespace: str, subject: str, request: JsonBody[access.RoleGrant]
) -> access.SubjectRoles:
    """Give a subject a role in a namespace beside those that it has. The same role again gets other aliases."""
    return namespaces.grant_role(session, actor, namespace, subject, request)


@namespace_router.serves(operations.REVOKE_ROLE)
def revoke_role(
    session: deps.SessionDep, actor: deps.ActorDep, namespace: str, subject: str, role: RoleFilter = ""
) -> access.SubjectRoles:
    """Take away a role of a subject in a namespace, or all. Its tokens lose it at once."""
    return namespaces.revoke_role(session, actor, namespace, subject, role)


# ------------------------------------------------------------------ adapters
@namespace_router.serves(operations.DELETE_ADAPTER)
def delete_adapter(
    target: deps.AdapterDep, engine: deps.EngineDep, reason: deps.ReasonDep = "", force: bool = False,
    dry_run: bool = False,
) -> DeleteResult:  # fmt: skip
    """Delete an adapter with all its versions. It can be restored within the grace time; its name stays reserved."""
    removed = adapter_deletion.delete_adapter(*target, reason=reason, force=force, dry_run=dry_run)
    if not dry_run:
        background.forget_plans(engine)
    return removed


@namespace_router.serves(operations.UNDELETE_ADAPTER)
def undelete_adapter(target: deps.AdapterDep, request: JsonBody[WithdrawRequest]) -> DeleteResult:
    """Restore a deleted adapter with its versions and aliases, as long as its files are there."""
    return adapter_deletion.undelete_adapter(*target, reason=request.reason)


@namespace_router.serves(operations.RELEASE_NAME)
def release_name(target: deps.AdapterDep, request: JsonBody[WithdrawRequest]) -> DeleteResult:
    """Let the next push have the name of a deleted adapter of which nobody but the caller ever had bytes."""
    return adapter_deletion.release_name(*target, reason=request.reason)


@namespace_router.serves(operations.RENAME_ADAPTER)
def rename_adapter(
    http_request: Request,
    target: deps.AdapterDep,
    request: JsonBody[access.RenameRequest],
    blobs: deps.BlobsHandleDep,
    engine: deps.EngineDep,
    after: BackgroundTasks,
) -> AdapterView:
    """Rename an adapter, or move it to another namespace."""
    to = AdapterName.parse(request.to)
    removal.rename(*target, to, reason=request.reason)
    if not deps.is_dry_run(http_request):
        background.forget_plans(engine)
        after.add_task(routing.run_in_store_thread, removal.delete_refs, engine, blobs, target.name)
    return adapters.show_adapter(target.session, target.actor, to)


# ------------------------------------------------------------------ trusted publishers
@namespace_router.serves(operations.LIST_PUBLISHERS)
def list_publishers(target: deps.AdapterDep, issuers: IssuersDep) -> access.PublisherList:
    """List who may push to an adapter with an identity token: issuers and claims."""
    return token_exchange.list_publishers(*target, issuers)


@namespace_router.serves(operations.ADD_PUBLISHER)
def add_publisher(
    target: deps.AdapterDep, request: JsonBody[access.PublisherAdd], issuers: IssuersDep
) -> access.PublisherView:
    """Let CI jobs with these claims push to an adapter."""
    return token_exchange.add(*target, request, issuers)


@namespace_router.serves(operations.DELETE_PUBLISHER)
def delete_publisher(target: deps.AdapterDep, publisher_id: str, issuers: IssuersDep) -> access.PublisherView:
    """Delete a trusted publisher: identity tokens of its issuer no longer push to the adapter."""
    return token_exchange.delete_publisher(*target, publisher_id, issuers)
