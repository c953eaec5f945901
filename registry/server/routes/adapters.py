"""Routes of adapters, versions, aliases, history, lineage, and the look-up.

Invariants
- An alias moves only under `If-Match: "<generation>"`; without it the answer is 428, with an old one 412.
- `resolve` carries an ETag over its whole answer and gives 304; by number or digest it may be kept for ever,
  because what those name never changes (a verdict or a yank that comes later is seen by asking by alias).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import Header, Query, Request, Response

from registry import names
from registry.api.aliases import AliasList, AliasView, History, PromoteRequest, RollbackRequest, WithdrawRequest
from registry.api.bases import Lineage
from registry.api.catalog import AdapterPage, AdapterView, Resolved, VersionPage, VersionView
from registry.bases import BaseMatch
from registry.digest import Digest
from registry.errors import Conflict, Invalid
from registry.evaluation.verdicts import PROFILE_LIMIT, Outcome
from registry.names import Ref, Selector
from registry.provenance import URI_LIMIT
from registry.roles import Scope
from registry.server.catalog import history, lineage, versions
from registry.server.catalog import search as adapters
from registry.server.catalog.search import Search
from registry.server.evaluation import engine_compat
from registry.server.http import routing
from registry.server.http.dependencies import (
    PAGE,
    CachedPuller,
    CursorDep,
    LimitDep,
    NameDep,
    Promoter,
    Puller,
    SelectorDep,
    SessionDep,
    SettingsDep,
    with_current_actor,
)
from registry.server.http.etags import etag_matches
from registry.server.promotion import aliases, withdraw
from registry.server.routes.openapi import declarations

router = routing.create_router("adapters")
ADAPTER = "/adapters/{namespace}/{name}"
VERSION = ADAPTER + "/versions/{selector}"
ALIAS = ADAPTER + "/aliases/{alias}"
FOR_EVER = "private, max-age=31536000, immutable"
ASK_AGAIN = "private, no-cache"
IfMatch = Annotated[str | None, Header(max_length=100)]
Text = Annotated[str, Query(max_length=200)]
Rank = Annotated[int | None, Query(ge=0, le=2**31 - 1)]
TARGETS_LIMIT = 32


@router.get("/resolve/{namespace}/{name}/{selector}", response_model=Resolved, responses=declarations.NOT_MODIFIED)
def resolve_version(
    incoming: Request,
    session: SessionDep,
    actor: CachedPuller,
    name: NameDep,
    selector: SelectorDep,
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> Response:
    """Resolve an alias, a number or a digest to a version, its manifest and its files."""
    resolved, incoming.state.pointer = with_current_actor(
        incoming, session, actor, lambda who: versions.resolve_with_pointer(session, who, name, selector)
    )
    body = resolved.model_dump_json().encode()
    etag = f'"{Digest.of(body).hex}"'
    keep = FOR_EVER if isinstance(selector, int | Digest) else ASK_AGAIN
    headers = {
        "ETag": etag,
        "Cache-Control": keep,
        "Vary": "Authorization",
        **incoming.app.state.audit_log.checkpoint_header,
    }
    if if_none_match is not None and etag_matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.get("/adapters")
def list_adapters(
    session: SessionDep,
    actor: Puller,
    settings: SettingsDep,
    cursor: CursorDep,
    namespace: Text = "",
    base: Text = "",
    base_match: Literal["exact", "other-dtype", "quantized", "descendant"] | None = None,
    method: Text = "",
    text: Text = "",
    alias: Text = "",
    owner: Text = "",
    format: Text = "",
    target: Annotated[list[Text], Query(max_length=TARGETS_LIMIT)] = [],  # noqa: B006
    tag: Annotated[list[Text], Query(max_length=TARGETS_LIMIT)] = [],  # noqa: B006
    rank_min: Rank = None,
    rank_max: Rank = None,
    engine: Annotated[str, Query(max_length=PROFILE_LIMIT)] = "",
    outcome: Outcome | None = None,
    limit: LimitDep = PAGE,
) -> AdapterPage:
    """List and search adapters, each with its newest version."""
    if base_match and not base:
        raise Invalid("REQUEST_INVALID", "base_match: says how alike to a base, and no base is named")
    search = Search(
        namespace=namespace, base=base, base_match=BaseMatch(base_match) if base_match else None,
        method=method, text=text, alias=alias, owner=owner, format=format,
        targets=tuple(target), tags=tuple(tag), rank_min=rank_min, rank_max=rank_max,
        engine=engine_compat.find_stored_profile(settings.engines, engine) if engine else None, outcome=outcome,
    )  # fmt: skip
    return adapters.search_adapters(session, actor, search, cursor=cursor, limit=limit)


@router.get(ADAPTER)
def show_adapter(session: SessionDep, actor: Puller, name: NameDep) -> AdapterView:
    """Show one adapter with its newest version."""
    return adapters.show_adapter(session, actor, name)


@router.get(ADAPTER + "/versions")
def list_versions(
    session: SessionDep, actor: Puller, name: NameDep, cursor: CursorDep, limit: LimitDep = PAGE
) -> VersionPage:
    """List the versions of an adapter, newest first."""
    return versions.list_versions(session, actor, name, cursor=cursor, limit=limit)


@router.get(VERSION)
def show_version(session: SessionDep, actor: Puller, name: NameDep, selector: SelectorDep) -> VersionView:
    """Show one version: files, facts, verdicts and provenance."""
    return versions.show(session, actor, name, selector)


@router.get(VERSION + "/lineage")
def show_lineage(
    session: SessionDep,
    actor: Puller,
    name: NameDep,
    selector: SelectorDep,
    direction: Literal["up", "down"] = "up",
) -> Lineage:
    """Show what a version was made from, or what was made from it."""
    walk = lineage.ancestors if direction == "up" else lineage.descendants
    return walk(session, actor, name, selector)


@router.get("/lineage")
def find_lineage(
    session: SessionDep,
    actor: Puller,
    dataset: Annotated[str, Query(max_length=URI_LIMIT)] = "",
    base: Text = "",
    direction: Literal["up", "down"] = "down",
) -> Lineage:
    """Show what was made from a data set or a base model."""
    if bool(dataset) == bool(base):
        raise Invalid("REQUEST_INVALID", "lineage: name a data set or a base, one of them")
    if base:
        return lineage.base_lineage(session, actor, base, upwards=direction == "up")
    if direction == "up":
        raise Invalid("REQUEST_INVALID", "direction: what a data set came from is not known here")
    return lineage.dataset_descendants(
        session, actor, str(Digest(dataset)) if dataset.startswith("sha256:") else dataset
    )


@router.post(VERSION + "/yank")
def yank_version(
    session: SessionDep, actor: Promoter, name: NameDep, selector: SelectorDep, request: WithdrawRequest
) -> VersionView:
    """Withdraw a version: aliases no longer resolve to it. A digest still does."""
    actor.require(Scope.PROMOTE, name)
    version = versions.find(session, actor, name, selector)
    return withdraw.yank(session, actor, name, version, reason=request.reason)


@router.post(VERSION + "/unyank")
def unyank_version(
    session: SessionDep, actor: Promoter, name: NameDep, selector: SelectorDep, request: WithdrawRequest
) -> VersionView:
    """Undo a yank."""
    actor.require(Scope.PROMOTE, name)
    version = versions.find(session, actor, name, selector)
    return withdraw.unyank(session, actor, name, version, reason=request.reason)


# ------------------------------------------------------------------ aliases
@router.get(ADAPTER + "/aliases")
def list_aliases(session: SessionDep, actor: Puller, name: NameDep) -> AliasList:
    """List the aliases of an adapter."""
    return aliases.list_aliases(session, actor, name)


@router.get(ALIAS)
def show_alias(session: SessionDep, actor: Puller, name: NameDep, alias: str, response: Response) -> AliasView:
    """Show one alias. The ETag is its generation."""
    return _tagged(aliases.show(session, actor, name, names.alias(alias)), response)


@router.put(ALIAS)
def promote_alias(
    session: SessionDep,
    actor: Promoter,
    name: NameDep,
    alias: str,
    request: PromoteRequest,
    response: Response,
    if_match: IfMatch = None,
) -> AliasView:
    """Point an alias at a version, through its gate. Needs `If-Match` with the generation of the alias."""
    actor.require(Scope.PROMOTE, name)
    expected = _generation(if_match)
    if expected is None:
        raise Conflict(
            "PRECONDITION_REQUIRED",
            f"moving alias '{alias[:64]}' needs If-Match with the generation that it is at ('0' for a new one)",
        )
    version = versions.find(session, actor, name, _selector(request.version, name))
    moved = aliases.move(
        session, actor, name, alias, version,
        expected_generation=expected, reason=request.reason, break_glass=request.break_glass,
    )  # fmt: skip
    return _tagged(moved, response)


@router.post(ALIAS + "/rollback")
def rollback_alias(
    session: SessionDep,
    actor: Promoter,
    name: NameDep,
    alias: str,
    request: RollbackRequest,
    response: Response,
    if_match: IfMatch = None,
) -> AliasView:
    """Point an alias back at an earlier version."""
    moved = aliases.rollback(
        session,
        actor,
        name,
        alias,
        to=_selector(request.to, name) if request.to else None,
        expected_generation=_generation(if_match),
        reason=request.reason,
    )
    return _tagged(moved, response)


@router.get(ADAPTER + "/history")
def show_history(
    session: SessionDep,
    actor: Puller,
    name: NameDep,
    cursor: CursorDep,
    alias: Text = "",
    at: datetime | None = None,
    limit: LimitDep = PAGE,
) -> History:
    """List the moves of the aliases of an adapter, newest first."""
    return history.list_moves(session, actor, name, alias=alias, at=at, cursor=cursor, limit=limit)


def _tagged(view: AliasView, response: Response) -> AliasView:
    response.headers["ETag"] = f'"{view.generation}"'
    return view


def _generation(if_match: str | None) -> int | None:
    """The generation in an If-Match header, with or without quotes; None without the header."""
    if if_match is None:
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Invalid("REQUEST_INVALID", f'If-Match: {if_match[:40]!r} is not a generation such as "3"')
    return int(text)


def _selector(text: str, name: object) -> Selector:
    """A selector, or a whole ref of the same adapter."""
    if "/" not in text:
        return names.selector(text)
    ref = Ref.parse(text)
    if ref.name != name:
        raise Invalid("REQUEST_INVALID", f"version: {text[:160]!r} is of another adapter than '{name}'")
    return ref.selector
