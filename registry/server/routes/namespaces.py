"""Routes of namespaces: make, look, limits, roles; trusted publishers; adapters that change hands or end.

Invariants
- What somebody may not look into is answered like what is not there; who may look but not do this is denied.
- A subject may hold slashes (`https://issuer#sub`), so it is the last part of its path.
"""

from __future__ import annotations

from fastapi import BackgroundTasks

from registry.api.catalog import AdapterView
from registry.api.namespaces import (
    DeleteResult,
    NamespaceCreate,
    NamespacePage,
    NamespaceSet,
    NamespaceView,
    PublisherAdd,
    PublisherList,
    PublisherView,
    RenameRequest,
    RoleGrant,
)
from registry.names import AdapterName
from registry.server.access import namespaces, publishers
from registry.server.catalog import search
from registry.server.http import routing, threads
from registry.server.http.dependencies import (
    PAGE,
    Admin,
    BlobsHandleDep,
    CursorDep,
    EngineDep,
    LimitDep,
    NameDep,
    Puller,
    SessionDep,
)
from registry.server.promotion import removal
from registry.server.routes.adapters import ADAPTER

router = routing.create_router("namespaces")
NAMESPACE = "/namespaces/{namespace}"
ROLE = NAMESPACE + "/roles/{subject:path}"


@router.get("/namespaces")
def list_namespaces(session: SessionDep, actor: Puller, cursor: CursorDep, limit: LimitDep = PAGE) -> NamespacePage:
    """List the namespaces that the caller may see."""
    return namespaces.list_namespaces(session, actor, cursor=cursor, limit=limit)


@router.post("/namespaces", status_code=201)
def create_namespace(session: SessionDep, actor: Admin, request: NamespaceCreate) -> NamespaceView:
    """Create a namespace. For administrators of all namespaces."""
    return namespaces.create(session, actor, request)


@router.get(NAMESPACE)
def show_namespace(session: SessionDep, actor: Puller, namespace: str) -> NamespaceView:
    """Show a namespace, its limits and what it uses."""
    return namespaces.show(session, actor, namespace)


@router.patch(NAMESPACE)
def change_namespace(session: SessionDep, actor: Admin, namespace: str, request: NamespaceSet) -> NamespaceView:
    """Change a namespace. Fields that are absent stay as they are."""
    return namespaces.update(session, actor, namespace, request)


@router.delete(NAMESPACE)
def delete_namespace(
    session: SessionDep, actor: Admin, namespace: str, blobs: BlobsHandleDep, engine: EngineDep, after: BackgroundTasks
) -> DeleteResult:
    """Delete an empty namespace. Its name stays reserved."""
    removed = removal.delete_namespace(session, actor, namespace)
    after.add_task(threads.run_in_store_thread, removal.record_tombstones, engine, blobs)
    return removed


@router.put(ROLE)
def grant_role(session: SessionDep, actor: Admin, namespace: str, subject: str, request: RoleGrant) -> NamespaceView:
    """Give a subject a role in a namespace."""
    return namespaces.grant_role(session, actor, namespace, subject, request.role)


@router.delete(ROLE)
def revoke_role(session: SessionDep, actor: Admin, namespace: str, subject: str) -> NamespaceView:
    """Take a role away."""
    return namespaces.revoke_role(session, actor, namespace, subject)


# ------------------------------------------------------------------ adapters
@router.delete(ADAPTER)
def delete_adapter(
    session: SessionDep, actor: Admin, name: NameDep, blobs: BlobsHandleDep, engine: EngineDep, after: BackgroundTasks
) -> DeleteResult:
    """Delete an adapter with all its versions. Its name stays reserved."""
    removed = removal.delete_adapter(session, actor, name)
    after.add_task(threads.run_in_store_thread, removal.delete_records, engine, blobs, name)
    return removed


@router.post(ADAPTER + "/rename")
def rename_adapter(
    session: SessionDep,
    actor: Admin,
    name: NameDep,
    request: RenameRequest,
    blobs: BlobsHandleDep,
    engine: EngineDep,
    after: BackgroundTasks,
) -> AdapterView:
    """Rename an adapter, or move it to another namespace."""
    to = AdapterName.parse(request.to)
    removal.rename(session, actor, name, to)
    after.add_task(threads.run_in_store_thread, removal.delete_records, engine, blobs, name)
    return search.show_adapter(session, actor, to)


# ------------------------------------------------------------------ trusted publishers
@router.get(ADAPTER + "/publishers")
def list_publishers(session: SessionDep, actor: Admin, name: NameDep) -> PublisherList:
    """List the trusted publishers of an adapter."""
    return publishers.list_publishers(session, actor, name)


@router.post(ADAPTER + "/publishers", status_code=201)
def add_publisher(session: SessionDep, actor: Admin, name: NameDep, request: PublisherAdd) -> PublisherView:
    """Let CI jobs with these claims push to an adapter."""
    return publishers.add(session, actor, name, request)


@router.delete(ADAPTER + "/publishers/{publisher_id}")
def remove_publisher(session: SessionDep, actor: Admin, name: NameDep, publisher_id: str) -> PublisherView:
    """Remove a trusted publisher."""
    return publishers.remove(session, actor, name, publisher_id)
