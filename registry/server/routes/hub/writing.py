"""Pushing by the Hub API, without bytes: create, delete, move and set up repositories, branches and tags.

    repository      an adapter, or the drafts of a pusher: it reserves no name before its first version
    branch          an alias, which moves through its gate; `main` follows the newest version
    tag             the number of a version; others are refused

What the registry does not have is refused with a sentence.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask

from registry import names
from registry.adapters import card
from registry.digest import Digest
from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.hub import absent, requests
from registry.hub.shapes import Json
from registry.names import NEWEST, AdapterName
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.http import documents
from registry.server.http.dependencies import NO_TOKEN, BlobsHandleDep, EngineDep, Pusher, SettingsDep
from registry.server.http.routing import run_in_store_thread
from registry.server.hub import commits, drafts, refusals, repositories, revisions
from registry.server.hub.drafts import DraftCommit
from registry.server.promotion import adapter_deletion, moves, removal
from registry.server.promotion.move_decisions import Move
from registry.server.push import background, commit
from registry.server.routes.hub import protocol
from registry.server.routes.hub.protocol import HubRoute
from registry.server.storage import reclaim

router = APIRouter(route_class=HubRoute, include_in_schema=False)
MODEL = "/api/models/{namespace}/{name}"
EMPTY = DraftCommit(branch=NEWEST, files={}, parent="", message="")


def read_json(request: Request, shape: type[requests.Shape]) -> requests.Shape:
    """Return the document in the body; an empty body is an empty object."""
    return documents.parse(request.state.body or b"{}", shape)


@router.post("/api/repos/create")
def create_repository(request: Request, actor: Pusher, engine: EngineDep, settings: SettingsDep) -> Response:
    """Create an empty draft of a new adapter. 409 if there is one, or an adapter of this name."""
    fields = read_json(request, requests.Repository)
    refusals.refuse_type(fields.type or "")
    name = _parse_name(actor, fields.organization or "", fields.name or "")
    _check_visibility(fields, actor, name)
    created = {"url": f"{protocol.base_url(request)}/{name}", "name": str(name), "id": str(name)}
    try:
        with db.session(engine, write=False) as session:
            exists = _exists(session, actor, name)
            if not exists:
                _require_push(actor, name)
                db.begin_writing(session)
                upload = drafts.open_upload(session, actor, name, {}, settings, seconds=settings.draft_seconds)
                drafts.write(session, actor, name, upload, EMPTY, "")
    except Conflict as error:
        if error.code != "PARENT_MOVED":  # of a 409, clients with `exist_ok` read the URL and show nothing
            raise Invalid("NAME_INVALID", error.detail, next_step=error.next_step) from None
        exists = True  # another request has created it meanwhile: each process of a training does so
    if exists:
        message = f"there is an adapter '{name}' already"
        return JSONResponse(created | {"error": message}, 409, {"X-Error-Message": message})
    response = JSONResponse(created)
    if fields.wants_public and name.namespace not in actor.public:
        text = f"{name} is private, because its namespace is: `adapter namespace set {name.namespace} --public`"
        protocol.add_warning(response, f"visibility of {name}", text)
    return response


def _require_push(actor: Actor, name: AdapterName) -> None:
    """Raise `Denied` unless the actor may push: clients show no text with an error that says `RepoNotFound`."""
    try:
        actor.require(Scope.PUSH, name)
    except NotFound as e:
        raise Denied("DENIED", f"you may not push to '{name}'", next_step=e.next_step) from None


def _parse_name(actor: Actor, organization: str, name: str) -> AdapterName:
    """Parse the name of a new repository. Unlike that of one to read, it must be valid."""
    namespace, word = _split(actor, organization, name)
    if not namespace:
        raise Invalid(
            "NAME_INVALID", f"{name[:80]!r} has no namespace, and this token may push to none or to several",
            next_step="name the repository NAMESPACE/NAME",
        )  # fmt: skip
    return AdapterName(namespace.lower(), word.lower())


def _split(actor: Actor, organization: str, name: str) -> tuple[str, str]:
    """Return the namespace, by default the only one that the actor may push to, and the name of a repository."""
    namespace, _, word = name.rpartition("/")
    return organization or namespace or repositories.default_namespace(actor), word


def _exists(session: Any, actor: Actor, name: AdapterName) -> bool:
    try:
        revisions.require_repository(session, actor, name)
    except NotFound:
        return False
    return True


def _check_visibility(fields: requests.Repository, actor: Actor, name: AdapterName) -> None:
    """Refuse what the namespace does not have: it decides who may pull, for all its adapters."""
    is_public = name.namespace in actor.public
    if fields.wants_private and is_public:
        refusals.refuse(
            f"namespace '{name.namespace}' is public, so none of its adapters is private",
            "push to a private namespace, or let an owner run `adapter namespace set NAMESPACE --private`",
        )
    if fields.resource_group:
        refusals.refuse(*absent.NO_RESOURCE_GROUPS)
    if fields.gated not in (None, False, "false"):
        refusals.refuse("this registry has no gated repositories", "give readers a role in the namespace")


@router.delete("/api/repos/delete")
def delete_repository(request: Request, actor: Pusher, engine: EngineDep, blobs: BlobsHandleDep) -> Response:
    """Delete the drafts of the caller with what it has uploaded for them, or the adapter if there is one."""
    fields = read_json(request, requests.Repository)
    refusals.refuse_type(fields.type or "")
    name = repositories.parse_name(*_split(actor, fields.organization or "", fields.name or ""))
    with db.session(engine) as session:
        own_drafts = revisions.require_repository(session, actor, name)
        if own_drafts and not repositories.has_adapter(session, name):
            uploads = drafts.end_uploads(session, actor, name)
            after = BackgroundTask(run_in_store_thread, commit.clean_up, engine, uploads, blobs=blobs)
            return JSONResponse({}, background=after)
        adapter_deletion.delete_adapter(session, actor, name, reason="deleted by a Hub client")
    background.forget_plans(engine)
    return JSONResponse({})


@router.post("/api/repos/move")
def move_repository(request: Request, actor: Pusher, engine: EngineDep, blobs: BlobsHandleDep) -> Response:
    """Rename an adapter, whose old name ends, and the drafts of the caller. 409 if there is one of the new name."""
    fields = read_json(request, requests.Rename)
    refusals.refuse_type(fields.type or "")
    name = repositories.parse_name(*_split(actor, "", fields.old))
    to = _parse_name(actor, "", fields.new)
    with db.session(engine) as session:
        own_drafts = drafts.list_drafts(session, actor, name)
        is_draft = bool(own_drafts) and not repositories.has_adapter(session, name)
        if is_draft and _exists(session, actor, to):
            raise Conflict("NAME_TAKEN", f"there is an adapter '{to}' already")
        if own_drafts:
            drafts.move(session, actor, name, to)
        if is_draft:
            return JSONResponse({})
        removal.rename(session, actor, name, to)
    background.forget_plans(engine)
    after = BackgroundTask(run_in_store_thread, removal.delete_refs, engine, blobs, name)
    return JSONResponse({}, background=after)


@router.put(MODEL + "/settings")
def change_settings(request: Request, actor: Pusher, engine: EngineDep, namespace: str, name: str) -> Json:
    """Accept settings that are as they are asked for; the others belong to the namespace."""
    fields, adapter = read_json(request, requests.Repository), repositories.parse_name(namespace, name)
    with db.session(engine, write=False) as session:
        revisions.require_repository(session, actor, adapter)
    _check_visibility(fields, actor, adapter)
    if fields.wants_public and adapter.namespace not in actor.public:
        refusals.refuse(
            f"namespace '{adapter.namespace}' is private, so none of its adapters is public",
            "an owner makes it public with `adapter namespace set NAMESPACE --public`",
        )
    return {"private": adapter.namespace not in actor.public, "gated": False}


@router.post("/api/validate-yaml", dependencies=[NO_TOKEN])
def validate_card(request: Request) -> Json:
    """Say what is wrong with the front matter of a README. It never stops a push, and clients send no token with it."""
    content = read_json(request, requests.Card).content
    problem = card.describe_problem(content.encode("utf-8", "replace"))
    if not problem and not content.startswith("---"):
        problem = "has no front matter, in which `base_model` names the base"
    return {"errors": [], "warnings": [{"message": f"README.md {problem}"}] if problem else []}


@router.post(MODEL + "/branch/{branch}")
def create_branch(request: Request, actor: Pusher, engine: EngineDep, settings: SettingsDep, branch: str) -> Json:
    """Create an alias at a version, through its gate. In a repository without a version: an empty draft."""
    adapter = protocol.adapter_of(request)
    start = read_json(request, requests.Branch).start or NEWEST
    alias = str(names.alias(branch.removeprefix("refs/heads/")))
    with db.session(engine) as session:
        branches = revisions.require_repository(session, actor, adapter)
        at = revisions.find(session, actor, adapter, start)
        if (
            alias == NEWEST
            or revisions.find_parent(session, adapter, alias)
            or any(d.branch == alias for d in branches)
        ):
            raise Conflict("NAME_TAKEN", f"'{adapter}' has a branch '{alias}' already")
        if at.version is not None:
            to = Digest(at.version.digest)
            move = Move(adapter, alias, to, expected_generation=0, reason="created as a branch", creates_alias=True)
            moves.move_alias(session, actor, move)
            return {}
        upload = drafts.open_upload(session, actor, adapter, {}, settings, seconds=settings.draft_seconds)
        files = drafts.read_files(session, at.draft) if at.draft is not None else {}
        drafts.write(session, actor, adapter, upload, DraftCommit(alias, files, "", ""), "")
    return {}


@router.delete(MODEL + "/branch/{branch}")
def delete_branch(request: Request, actor: Pusher, engine: EngineDep, blobs: BlobsHandleDep, branch: str) -> Response:
    """Delete the caller's draft on a branch. An alias stays."""
    adapter = protocol.adapter_of(request)
    alias = commits.parse_branch(adapter, branch)
    with db.session(engine) as session:
        own_drafts = [d for d in revisions.require_repository(session, actor, adapter) if d.branch == alias]
        if not own_drafts:
            if revisions.find_parent(session, adapter, alias) or alias == NEWEST:
                refusals.refuse("a branch is an alias, which this API does not delete", "run `adapter alias delete`")
            raise NotFound("VERSION_UNKNOWN", f"'{adapter}' has no branch '{alias}'")
        released = drafts.discard(session, own_drafts)
    after = BackgroundTask(run_in_store_thread, reclaim.delete_unneeded, engine, blobs, released)
    return JSONResponse({}, background=after)


@router.post(MODEL + "/tag/{revision}")
@router.delete(MODEL + "/tag/{revision}")
def change_tag(request: Request, actor: Pusher, engine: EngineDep, revision: str) -> Json:
    """Refuse: the tags of an adapter are the numbers of its versions. 409 for the one that the version has."""
    adapter = protocol.adapter_of(request)
    tag = read_json(request, requests.Tag).tag
    with db.session(engine, write=False) as session:
        revisions.require_repository(session, actor, adapter)
        if request.method == "POST":
            version = revisions.find(session, actor, adapter, revision).version
            if version is not None and tag == f"v{version.number}":
                raise Conflict("NAME_TAKEN", f"'{adapter}' has the tag {tag} already")
    refusals.refuse(
        "the tags of an adapter are the numbers of its versions, v1, v2 and so on, and they stay",
        "create a branch instead: it is an alias, which names a version",
    )


@router.post(MODEL + "/super-squash/{revision}")
def squash(request: Request, actor: Pusher, engine: EngineDep, revision: str) -> Json:
    """Refuse: versions stay."""
    adapter = protocol.adapter_of(request)
    with db.session(engine, write=False) as session:
        revisions.find(session, actor, adapter, revision)
    refusals.refuse("the versions of an adapter are not squashed: each stays as it is", "push another version")
