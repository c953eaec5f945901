"""Adapters as repositories of the Hub API: the caller, the list; information, files, references and commits of one.

Every response about a revision is about one version, or about a draft of the caller.
"""

import dataclasses
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Engine

from registry.api import PAGE_LIMIT
from registry.errors import Invalid
from registry.hub import requests, shapes
from registry.hub.shapes import Json, Repository
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.http import documents
from registry.server.http.dependencies import AnyActor, BlobsDep, CursorDep, EngineDep, Puller, SessionDep, Text
from registry.server.http.routing import refuse_unknown_parameters
from registry.server.hub import refusals, repositories, revisions
from registry.server.routes.hub import protocol
from registry.server.routes.hub.protocol import COMMIT_HEADER, HubRoute

router = APIRouter(route_class=HubRoute, include_in_schema=False)
MODEL = "/api/models/{namespace}/{name}"
PATHS_LIMIT = 1000
FILTERS_LIMIT = 32
EQUAL_FOR_ALL = ("downloads", "likes", "trendingScore")
"""By these any order is sorted."""
Expand = Annotated[list[Annotated[str, Query(max_length=300)]], Query(max_length=32)]


@router.get("/api/whoami-v2")
def whoami(actor: AnyActor) -> dict[str, Any]:
    """The namespaces of the token. `name` is the one of repositories that are named without: trainers put it there."""
    namespaces = actor.namespaces_with(Scope.PULL) or frozenset()
    role = "write" if actor.has_scope(Scope.PUSH) else "read"
    return {
        "type": "user",
        "name": repositories.default_namespace(actor) or actor.name,
        "fullname": actor.identity,
        "orgs": [{"type": "org", "name": namespace} for namespace in sorted(namespaces)],
        "auth": {"type": "access_token", "accessToken": {"displayName": actor.name, "role": role}},
    }


@router.get("/api/models", dependencies=[Depends(refuse_unknown_parameters)])  # a filter that is ignored finds all
def list_models(
    request: Request,
    session: SessionDep,
    actor: Puller,
    cursor: CursorDep,
    search: Text = "",
    author: Text = "",
    filters: Annotated[list[str], Query(alias="filter", max_length=FILTERS_LIMIT)] = [],  # noqa: B006
    library: Text = "",
    pipeline_tag: Text = "",
    sort: Text = "",
    expand: Expand = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1)] = PAGE_LIMIT,
    _direction: Annotated[Text, Query(alias="direction")] = "",
    _full: Annotated[Text, Query(alias="full")] = "",
    _config: Annotated[Text, Query(alias="config")] = "",
    _card: Annotated[Text, Query(alias="cardData")] = "",
) -> Response:
    """Adapters that have all tags of `filter`. `base_model:adapter:NAME` matches a base by its registered name."""
    words = [word for text in (*filters, library, pipeline_tag) for word in text.split(",") if word]
    if sort not in ("", *EQUAL_FOR_ALL):
        refusals.refuse(f"lists of this registry are in the order of names, not by {sort!r}", "leave out `sort`")
    if len(words) > FILTERS_LIMIT:
        raise Invalid("REQUEST_INVALID", f"filter: {len(words)} values, and at most {FILTERS_LIMIT} are allowed")
    page, next_cursor = repositories.search(
        session, actor, words, author=author, text=search, cursor=cursor, limit=min(limit, PAGE_LIMIT)
    )
    items = [shapes.info(repository, siblings=False, expand=expand) for repository in page]
    return JSONResponse(items, headers=next_page_header(request, next_cursor))


def next_page_header(request: Request, cursor: str) -> dict[str, str]:
    """The Link header to the next page; empty on the last one.

    Clients send their token to this URL, so it leads to the host at which this client reached the server.
    """
    if not cursor:
        return {}
    query = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
    url = f"{protocol.base_url(request)}{request.url.path}?{urlencode([*query, ('cursor', cursor)])}"
    return {"Link": f'<{url}>; rel="next"'}


class Snapshot:
    """A repository at a revision, and its files."""

    def __init__(self, request: Request, engine: Engine, actor: Actor, revision: str) -> None:
        self.name = repositories.parse_name(request.path_params["namespace"], request.path_params["name"])
        with db.session(engine, write=False) as session:
            self.revision = revisions.find(session, actor, self.name, revision)
            self.repository: Repository = revisions.describe(session, actor, self.revision)
            self.failed_checks = revisions.find_failed_checks(session, self.revision)
        self.commit = request.state.commit = self.revision.commit
        self._engine = engine

    def with_ids(self, blobs: BlobsDep) -> Repository:
        """The repository with the git ids of its files."""
        files = revisions.add_git_ids(self._engine, blobs, self.revision, list(self.repository.files))
        return dataclasses.replace(self.repository, files=files)

    def last_commit(self) -> Json:
        """What `expand` adds to each entry: the commit of the revision."""
        commit = self.revision.to_commit()
        return {key: commit[key] for key in ("id", "title", "date")}


@router.get("/api/models/{name}")
@router.get("/api/models/{name}/revision/{revision}")
def show_without_namespace(_actor: Puller, name: str) -> Response:
    """Names without a namespace, as old models of the Hub have, do not exist here."""
    raise repositories.unknown_repository(name)


@router.get(MODEL)
@router.get(MODEL + "/revision/{revision}")
def show_repository(
    request: Request,
    actor: Puller,
    engine: EngineDep,
    blobs: BlobsDep,
    revision: str = "main",
    with_blobs: Annotated[bool, Query(alias="blobs")] = False,
    expand: Expand = [],  # noqa: B006
) -> Response:
    """A version and its files; with `blobs` also the ids of the files."""
    snapshot = Snapshot(request, engine, actor, revision)
    repository = snapshot.with_ids(blobs) if with_blobs else snapshot.repository
    info = shapes.info(repository, blobs=with_blobs, expand=expand)
    response = JSONResponse(info, headers={COMMIT_HEADER: snapshot.commit})
    if snapshot.failed_checks:
        failed = ", ".join(snapshot.failed_checks)
        protocol.add_warning(response, snapshot.commit, f"this version of {snapshot.name} failed its check: {failed}")
    return response


@router.get(MODEL + "/tree/{revision}")
@router.get(MODEL + "/tree/{revision}/{path:path}")
def list_tree(
    request: Request,
    actor: Puller,
    engine: EngineDep,
    blobs: BlobsDep,
    revision: str,
    path: str = "",
    recursive: bool = False,
    expand: bool = False,
) -> Response:
    """The files and folders below a path."""
    snapshot = Snapshot(request, engine, actor, revision)
    files = snapshot.with_ids(blobs).files
    last = snapshot.last_commit() if expand else None
    entries = shapes.tree(files, path.strip("/"), recursive=recursive, commit=snapshot.commit, last=last)
    if not entries and (path or files):
        raise revisions.unknown_file(snapshot.revision, path, "folder")
    return JSONResponse(entries, headers={COMMIT_HEADER: snapshot.commit})


@router.post(MODEL + "/paths-info/{revision}")
def show_paths(request: Request, actor: Puller, engine: EngineDep, blobs: BlobsDep, revision: str) -> list[Json]:
    """The given files and folders. Paths that do not exist are left out, as clients expect."""
    paths, expand = _parse_paths(request.state.body, request.headers.get("content-type", ""))
    snapshot = Snapshot(request, engine, actor, revision)
    last = snapshot.last_commit() if expand else None
    files = snapshot.with_ids(blobs).files
    entries = shapes.tree(files, "", recursive=True, commit=snapshot.commit, last=last)
    return [entry for entry in entries if entry["path"] in paths]


def _parse_paths(body: bytes, content_type: str) -> tuple[set[str], bool]:
    """Return the paths and whether to expand, from a form (Python) or JSON (JavaScript)."""
    if "json" in content_type:
        document = documents.parse(body or b"{}", requests.Paths)
        return {path.strip("/") for path in document.paths}, document.expand
    try:
        pairs = parse_qsl(body.decode(), max_num_fields=PATHS_LIMIT)
    except ValueError as e:
        raise Invalid("REQUEST_INVALID", "the body is not a list of paths, as a form or as JSON") from e
    paths = {value.strip("/") for key, value in pairs if key == "paths"}
    return paths, any(key == "expand" and value.lower() == "true" for key, value in pairs)


@router.get(MODEL + "/refs")
def list_references(session: SessionDep, actor: Puller, namespace: str, name: str) -> Json:
    """Aliases as branches and versions as tags."""
    adapter = repositories.parse_name(namespace, name)
    return shapes.refs(*revisions.list_references(session, actor, adapter))


@router.get(MODEL + "/commits/{revision}")
def list_commits(
    request: Request,
    session: SessionDep,
    actor: Puller,
    cursor: CursorDep,
    namespace: str,
    name: str,
    revision: str,
    limit: Annotated[int, Query(ge=1)] = PAGE_LIMIT,
) -> Response:
    """The versions up to this one, newest first."""
    adapter = repositories.parse_name(namespace, name)
    page, next_cursor = revisions.list_commits(
        session, actor, adapter, revision, limit=min(limit, PAGE_LIMIT), cursor=cursor
    )
    return JSONResponse(page, headers=next_page_header(request, next_cursor))


@router.get(MODEL + "/auth-check")
def check_access(session: SessionDep, actor: Puller, namespace: str, name: str) -> dict[str, bool]:
    """Whether the token may pull this adapter."""
    revisions.require_repository(session, actor, repositories.parse_name(namespace, name))
    return {"ok": True}
