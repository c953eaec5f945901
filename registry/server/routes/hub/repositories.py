"""One adapter in the Hub's dialect: its information, files, references and commits.

Invariants
- Every answer about a revision is about one version: sizes, ids and names come from its manifest.
- Paths that are asked for and not there are left out (`paths-info`), as clients expect.

Example
    GET /api/models/acme/support/revision/prod?blobs=true
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Engine

from registry import hub as words
from registry.api import PAGE_LIMIT
from registry.errors import Invalid
from registry.hub import shapes
from registry.hub.shapes import Json, Repository
from registry.server import hub
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.database.models import VersionRow
from registry.server.hub import gits
from registry.server.routes.deps import BlobsDep, CursorDep, EngineDep, Puller, SessionDep
from registry.server.routes.hub import dialect
from registry.server.routes.hub.dialect import HubRoute
from registry.server.routes.hub.listing import Words, next_page

router = APIRouter(route_class=HubRoute, include_in_schema=False)
MODEL = "/api/models/{namespace}/{name}"
PATHS_LIMIT = 1000


class Looked:
    """A repository at a revision: its version's row, and its files with their git ids where these are wanted."""

    def __init__(self, request: Request, engine: Engine, actor: Actor, revision: str) -> None:
        given = request.path_params
        self.name = hub.name(given["namespace"], given["name"])
        with db.session(engine, write=False) as session:
            self.row: VersionRow = hub.version(session, actor, self.name, revision)
            self.repository: Repository = hub.repository(session, self.name, self.row, actor)
        self.commit = request.state.commit = words.commit_id(self.row.digest)
        self._engine = engine

    def with_ids(self, blobs: BlobsDep) -> Repository:
        files = gits.known(self._engine, blobs, self.row.id, [file.descriptor for file in self.repository.files])
        return dataclasses.replace(self.repository, files=files)

    def last(self, asked: bool) -> Json | None:
        """What `expand` asks of each entry: the commit that it came by, which is its version's."""
        if not asked:
            return None
        row = self.row
        told = shapes.commit(row.digest, row.number, row.message, row.created_at, row.created_by)
        return {key: told[key] for key in ("id", "title", "date")}


@router.get("/api/models/{name}")
@router.get("/api/models/{name}/revision/{revision}")
def unnamed(_actor: Puller, name: str) -> Response:
    """A name without a namespace, as old models of the Hub have: none of ours."""
    raise hub.no_repository(name)


@router.get(MODEL)
@router.get(MODEL + "/revision/{revision}")
def information(
    request: Request,
    actor: Puller,
    engine: EngineDep,
    blobs: BlobsDep,
    revision: str = "main",
    asked: Annotated[bool, Query(alias="blobs")] = False,
    expand: Words = [],  # noqa: B006
) -> Response:
    looked = Looked(request, engine, actor, revision)
    found = looked.with_ids(blobs) if asked else looked.repository
    return JSONResponse(shapes.info(found, blobs=asked, expand=expand), headers={dialect.COMMIT: looked.commit})


@router.get(MODEL + "/tree/{revision}")
@router.get(MODEL + "/tree/{revision}/{path:path}")
def tree(
    request: Request,
    actor: Puller,
    engine: EngineDep,
    blobs: BlobsDep,
    revision: str,
    path: str = "",
    recursive: bool = False,
    expand: bool = False,
) -> Response:
    looked = Looked(request, engine, actor, revision)
    files, below = looked.with_ids(blobs).files, path.strip("/")
    found = shapes.tree(files, below, recursive=recursive, commit=looked.commit, last=looked.last(expand))
    if not found:
        raise hub.no_file(looked.name, looked.row, path, "folder")
    return JSONResponse(found, headers={dialect.COMMIT: looked.commit})


@router.post(MODEL + "/paths-info/{revision}")
def paths_info(request: Request, actor: Puller, engine: EngineDep, blobs: BlobsDep, revision: str) -> list[Json]:
    """What is known of some paths, files or folders. It only reads."""
    paths, expand = _paths(request.state.body, request.headers.get("content-type", ""))
    looked = Looked(request, engine, actor, revision)
    last = looked.last(expand)
    all_of_it = shapes.tree(looked.with_ids(blobs).files, "", recursive=True, commit=looked.commit, last=last)
    return [entry for entry in all_of_it if entry["path"] in paths]


def _paths(body: bytes, kind: str) -> tuple[set[str], bool]:
    """From a form (Python) or from JSON (JavaScript)."""
    try:
        if "json" in kind:
            given: Any = json.loads(body or b"{}")
            pairs = [("paths", str(path)) for path in given.get("paths", [])]
            pairs.append(("expand", str(given.get("expand", ""))))
        else:
            pairs = parse_qsl(body.decode(), max_num_fields=PATHS_LIMIT)
    except (ValueError, AttributeError, TypeError, RecursionError) as e:
        raise Invalid("REQUEST_INVALID", "the body is no list of paths, as a form or as JSON") from e
    paths = {value.strip("/") for key, value in pairs if key == "paths"}
    return paths, any(key == "expand" and value.lower() == "true" for key, value in pairs)


@router.get(MODEL + "/refs")
def references(session: SessionDep, actor: Puller, namespace: str, name: str) -> Json:
    return shapes.refs(*hub.references(session, actor, hub.name(namespace, name)))


@router.get(MODEL + "/commits/{revision}")
def commits(
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
    called = hub.name(namespace, name)
    row = hub.version(session, actor, called, revision)
    found, rest = hub.commits(session, actor, called, row, min(limit, PAGE_LIMIT), cursor)
    told = [shapes.commit(v.digest, v.number, v.message, v.created_at, v.created_by) for v in found]
    return JSONResponse(told, headers=next_page(request, rest))


@router.get(MODEL + "/auth-check")
def auth_check(session: SessionDep, actor: Puller, namespace: str, name: str) -> dict[str, bool]:
    versions.adapter_row(session, actor, hub.name(namespace, name))
    return {"ok": True}
