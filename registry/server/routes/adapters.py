"""Routes of adapters and their versions, of lineage and of where aliases point, and `resolve`.

The ETag of `resolve` covers the whole response. By number or digest the response may be cached indefinitely: later
verdicts and yanks are seen by alias.
"""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import Depends, Header, Query, Request, Response

from registry.api import catalog
from registry.api.aliases import AliasList, DescribeGroup, DescribeOutcome, DescribeResults, History, NamespaceHistory
from registry.api.lineage import Lineage
from registry.api.operations import adapters as adapters_operations
from registry.api.operations import aliases as aliases_operations
from registry.api.search import AdapterFilters
from registry.digest import Digest
from registry.errors import Invalid
from registry.server.catalog import lineage, version_groups, versions
from registry.server.catalog.search import adapters
from registry.server.catalog.search.filters import Search
from registry.server.database import db
from registry.server.http import dependencies as deps
from registry.server.http.conditional import cache_control, etag_matches
from registry.server.http.documents import JsonBody
from registry.server.http.operation_router import OperationRouter
from registry.server.http.problems import outcomes_of
from registry.server.http.services import services_of
from registry.server.outcomes import collect_outcomes
from registry.server.promotion import aliases, describe
from registry.server.promotion.describe import Description
from registry.server.routes.openapi import declarations
from registry.versions.provenance import URI_LIMIT

router = OperationRouter()


async def read_filters(filters: Annotated[AdapterFilters, Query()]) -> AdapterFilters:
    """Return the filters of a list."""
    return filters


FiltersDep = Annotated[AdapterFilters, Depends(read_filters)]


@router.serves(adapters_operations.RESOLVE_VERSION, responses=declarations.NOT_MODIFIED)
def resolve_version(
    incoming: Request,
    session: deps.SessionDep,
    actor: deps.CachedActorDep,
    name: deps.NameDep,
    selector: deps.SelectorDep,
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> Response:
    """Resolve an alias, a number or a digest to a version, its manifest and its files."""
    resolved, incoming.state.pointer = deps.with_current_actor(
        incoming, session, actor, lambda who: versions.resolve_with_pointer(session, who, name, selector)
    )
    body = resolved.model_dump_json().encode()
    etag = f'"{Digest.of(body).hex}"'
    headers = {
        "ETag": etag,
        "Cache-Control": cache_control(selector),
        "Vary": "Authorization",
        **services_of(incoming).audit_log.checkpoint_header,
    }
    if if_none_match is not None and etag_matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.serves(adapters_operations.LIST_ADAPTERS)
def list_adapters(
    incoming: Request,
    session: deps.SessionDep,
    actor: deps.ActorDep,
    settings: deps.SettingsDep,
    cursor: deps.CursorDep,
    filters: FiltersDep,
    limit: deps.LimitDep = deps.PAGE,
    count: bool = False,
) -> catalog.AdapterPage:
    """List and search adapters, each with its newest version."""
    if filters.base_match and not filters.base:
        raise Invalid("REQUEST_INVALID", "base_match: needs `base`")
    engine = services_of(incoming).find_profile(settings.engines, filters.engine) if filters.engine else ""
    search = Search(**filters.model_dump() | {"engine": engine})
    return adapters.search_adapters(session, actor, search, cursor=cursor, limit=limit, count=count)


@router.serves(adapters_operations.SHOW_ADAPTER)
def show_adapter(target: deps.AdapterDep) -> catalog.AdapterView:
    """Show one adapter with its newest version."""
    return adapters.show_adapter(*target)


@router.serves(adapters_operations.LIST_VERSIONS)
def list_versions(
    target: deps.AdapterDep,
    cursor: deps.CursorDep,
    deleted: bool = False,
    limit: deps.LimitDep = deps.PAGE,
    count: bool = False,
) -> catalog.VersionPage:
    """List the versions of an adapter, newest first."""
    return version_groups.list_versions(*target, include_deleted=deleted, cursor=cursor, limit=limit, count=count)


@router.serves(adapters_operations.SHOW_VERSION)
def show_version(target: deps.VersionDep) -> catalog.VersionView:
    """Show one version: files, facts, verdicts and provenance."""
    return versions.show(*target)


@router.serves(aliases_operations.LIST_ALIASES)
def list_aliases(target: deps.AdapterDep) -> AliasList:
    """List the aliases of an adapter, each with its version and generation."""
    return aliases.list_aliases(*target)


@router.serves(aliases_operations.SHOW_HISTORY)
def show_history(
    target: deps.AdapterDep,
    cursor: deps.CursorDep,
    alias: deps.Text = "",
    at: datetime | None = None,
    limit: deps.LimitDep = deps.PAGE,
) -> History:
    """List the moves of the aliases of an adapter, newest first."""
    return aliases.list_history(*target, alias=alias, at=at, cursor=cursor, limit=limit)


@router.serves(aliases_operations.SHOW_NAMESPACE_HISTORY)
def show_namespace_history(
    session: deps.SessionDep,
    actor: deps.ActorDep,
    namespace: str,
    cursor: deps.CursorDep,
    alias: deps.Text = "",
    at: datetime | None = None,
    limit: deps.LimitDep = deps.PAGE,
) -> NamespaceHistory:
    """List the moves of the aliases of all adapters of a namespace; with `at`, where each alias pointed then."""
    return aliases.list_namespace_history(session, actor, namespace, alias=alias, at=at, cursor=cursor, limit=limit)


@router.serves(adapters_operations.CHANGE_ADAPTER_METADATA)
def change_adapter_metadata(target: deps.AdapterDep, request: JsonBody[catalog.MetadataChange]) -> catalog.AdapterView:
    """Change description, tags and links of an adapter. What is absent stays; null removes."""
    describe.describe_one(target.session, target.actor, Description(target.name, None, request))
    return adapters.show_adapter(*target)


@router.serves(adapters_operations.CHANGE_VERSION_METADATA)
def change_version_metadata(
    target: deps.VersionDep, request: JsonBody[catalog.VersionMetadataChange]
) -> catalog.VersionView:
    """Change description, tags and links of a version, which its digest does not cover."""
    session, actor, name, selector = target
    subject = describe.describe_one(session, actor, Description(name, selector, request))
    return versions.show(session, actor, name, int(subject.subject.rpartition("@")[2]))


@router.serves(aliases_operations.CHANGE_METADATA)
def change_metadata(
    incoming: Request, session: deps.KeyedSessionDep, actor: deps.ActorDep, request: JsonBody[DescribeGroup]
) -> DescribeResults:
    """Change descriptions, tags and links of many adapters and versions."""
    db.begin_writing(session)
    group_id = aliases.begin_group(session, actor, request)
    changes = collect_outcomes(request.items, Description.of)
    described = describe.describe(session, actor, changes, atomic=request.atomic, dry_run=request.dry_run)
    items = outcomes_of(incoming, described, [item.subject for item in request.items])
    return DescribeResults(items=[DescribeOutcome(**item) for item in items], group_id=group_id)


@router.serves(adapters_operations.SHOW_LINEAGE)
def show_lineage(target: deps.VersionDep, direction: Literal["up", "down"] = "up") -> Lineage:
    """Show what a version was made from, or what was made from it."""
    walk = lineage.ancestors if direction == "up" else lineage.descendants
    return walk(*target)


@router.serves(adapters_operations.FIND_LINEAGE)
def find_lineage(
    session: deps.SessionDep,
    actor: deps.ActorDep,
    dataset: Annotated[str, Query(max_length=URI_LIMIT)] = "",
    base: deps.Text = "",
    direction: Literal["up", "down"] = "down",
) -> Lineage:
    """Show what was made from a data set or a base model."""
    if bool(dataset) == bool(base):
        raise Invalid("REQUEST_INVALID", "lineage: give either `dataset` or `base`")
    if base:
        return lineage.base_lineage(session, actor, base, upwards=direction == "up")
    if direction == "up":
        raise Invalid("REQUEST_INVALID", "direction: the origin of a data set is not recorded; use `down`")
    return lineage.dataset_descendants(
        session, actor, str(Digest(dataset)) if dataset.startswith("sha256:") else dataset
    )
