"""Pushing by the Hub API: the mode of each file, links for large ones, and the commit.

    preupload → Git LFS batch → PUT of each large file → commit

The response to a commit carries X-HF-Warning, which clients print: the result of the commit and of the checks.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated
from zlib import crc32

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.background import BackgroundTask

from registry.api import PREFIX
from registry.digest import Digest
from registry.errors import Invalid, TooLarge
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.hub.operations import BODY_LIMIT_BYTES, Body, read_commit
from registry.hub.requests import FilesOfCommit, LargeObject, LargeObjects
from registry.hub.shapes import Json
from registry.names import AdapterName
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.http.dependencies import (
    BlobsDep,
    EngineDep,
    Puller,
    Pusher,
    PusherInThread,
    RequireScope,
    SettingsDep,
)
from registry.server.http.routing import run_in_store_thread, run_in_turn
from registry.server.http.services import services_of
from registry.server.hub import commits, refusals, repositories, revisions, uploads
from registry.server.hub.commits import CommitOutcome, Committer
from registry.server.hub.uploads import LargeFile
from registry.server.push import commit
from registry.server.routes.hub import protocol
from registry.server.routes.hub.bodies import with_body
from registry.server.routes.hub.protocol import HubRoute
from registry.server.routes.hub.writing import MODEL, read_json
from registry.versions.files import FILE_LIMIT_BYTES

router = APIRouter(route_class=HubRoute, include_in_schema=False)
LFS = "/{namespace}/{name}/info/lfs/objects"
LFS_TYPE = "application/vnd.git-lfs+json"
CreatePr = Annotated[str, Query(max_length=20)]


def _refuse_pull_request(create_pr: str) -> None:
    if create_pr.lower() not in ("", "0", "false"):
        refusals.refuse("this registry has no pull requests", "commit to a branch: it is an alias with a gate")


@router.post(MODEL + "/preupload/{revision}")
def choose_modes(
    request: Request, actor: Pusher, engine: EngineDep, blobs: BlobsDep, revision: str, create_pr: CreatePr = ""
) -> Response:
    """Say of each file whether it is sent in the commit or apart, or is left out."""
    _refuse_pull_request(create_pr)
    name = protocol.adapter_of(request)
    files = [(file.path, file.size) for file in read_json(request, FilesOfCommit).files]
    head = commits.find_head(engine, actor, name, revision)
    tree = {path: head.files[path] for path, _ in files if path in head.files}
    if head.version is not None and head.draft is None:
        descriptors = [file.descriptor for file in tree.values()]
        tree = {f.descriptor.path: f for f in repositories.with_git_ids(engine, blobs, head.version.id, descriptors)}
    modes = uploads.choose_modes(files, tree)
    body = [
        {"path": mode.path, "uploadMode": "lfs" if mode.is_large else "regular", "shouldIgnore": bool(mode.ignored)}
        | ({"oid": mode.oid} if mode.oid else {})
        for mode in modes
    ]
    response = JSONResponse({"files": body, "commitOid": head.commit})
    ignored = [mode.ignored for mode in modes if mode.ignored]
    if ignored:
        more = f" (and {len(ignored) - 1} more files)" if ignored[1:] else ""
        topic = f"left out of {name} {crc32(repr(ignored).encode()):08x}"  # other files get a warning of their own
        protocol.add_warning(response, topic, f"left out: {ignored[0]}{more}")
    return response


@router.post("/api/models/{name}/preupload/{revision}")
def refuse_without_namespace(actor: Pusher, name: str) -> Response:
    """The first request of an upload to a repository that was not created, which would have returned its full name."""
    namespace = repositories.default_namespace(actor) or "NAMESPACE"
    message, next_step = f"the repository {name[:80]!r} has no namespace", f"name it {namespace}/{name[:80]}"
    raise Invalid("NAME_INVALID", message, next_step=next_step)


@router.post(LFS + "/batch")
def request_uploads(
    request: Request, actor: Pusher, engine: EngineDep, blobs: BlobsDep, settings: SettingsDep
) -> Response:
    """Links for large files, as Git LFS has them."""
    batch, name = read_json(request, LargeObjects), protocol.adapter_of(request)
    if batch.operation != "upload":
        raise Invalid("REQUEST_INVALID", "operation: only `upload` is served; download files by their path")
    if batch.hash_algo not in ("sha256", "sha_256"):  # the latter by the JavaScript client
        raise Invalid("REQUEST_INVALID", "hash_algo: only `sha256` is served")
    sizes = dict(_parse_object(large) for large in batch.objects)
    commits.require_target(engine, actor, name)
    files = uploads.request_uploads(engine, actor, name, sizes, blobs=blobs, settings=settings)
    base = protocol.base_url(request)
    objects = [_to_object(file, base, f"{base}/{name}.git/info/lfs/objects") for file in files]
    body = {"transfer": "basic", "objects": objects, "hash_algo": "sha256"}
    return JSONResponse(body, media_type=LFS_TYPE)


def _parse_object(large: LargeObject) -> tuple[Digest, int]:
    if large.size > FILE_LIMIT_BYTES:
        raise TooLarge(
            "SIZE_INVALID", f"{large.oid[:64]}: has {large.size} bytes, over the limit of {FILE_LIMIT_BYTES}"
        )
    return Digest(f"sha256:{large.oid}"), large.size


def _to_object(file: LargeFile, base: str, url: str) -> Json:
    body: Json = {"oid": file.digest.hex, "size": file.size_bytes, "authenticated": True}
    if not file.url:
        return body
    return body | {"actions": {"upload": {"href": base + file.url}, "verify": {"href": f"{url}/verify"}}}


@router.post(LFS + "/verify")
def verify_upload(request: Request, actor: Pusher, engine: EngineDep) -> Json:
    """Check that a large file has arrived."""
    name = protocol.adapter_of(request)
    digest, size_bytes = _parse_object(read_json(request, LargeObject))
    commits.require_target(engine, actor, name)
    uploads.verify_upload(engine, actor, name, digest, size_bytes)
    return {}


@router.get(MODEL + "/auth-check/write")
def check_write_access(request: Request, actor: Pusher, engine: EngineDep) -> dict[str, bool]:
    """Whether the token may push to this adapter."""
    commits.require_target(engine, actor, protocol.adapter_of(request))
    return {"ok": True}


@router.post(MODEL + "/commit/{revision}")
async def commit_files(
    request: Request, actor: PusherInThread, engine: EngineDep, revision: str, create_pr: CreatePr = ""
) -> Response:
    """Commit to a branch."""
    _refuse_pull_request(create_pr)
    services, name = services_of(request), protocol.adapter_of(request)
    request.state.unread_body = True
    await run_in_turn(request, commits.find_head, engine, actor, name, revision)

    def run(actor: Actor, body: Body) -> CommitOutcome:
        committed = read_commit(body)
        branch = commits.parse_branch(name, revision)
        return Committer(services.engine, services.blobs, services.settings, actor, name, branch, committed).run()

    outcome = await with_body(request, RequireScope(Scope.PUSH), BODY_LIMIT_BYTES, run)
    return _respond(request, name, outcome)


def _respond(request: Request, name: AdapterName, outcome: CommitOutcome) -> Response:
    services = services_of(request)
    text = _describe(name, outcome)
    url = f"{protocol.base_url(request)}/{name}/commit/{outcome.commit}"
    body = {"success": True, "commitOid": outcome.commit, "commitUrl": url, "hookOutput": text}
    clean_up = partial(commit.clean_up, services.engine, [outcome.push_id], blobs=services.blobs)
    response = JSONResponse(body, background=BackgroundTask(run_in_store_thread, clean_up) if outcome.push_id else None)
    response.headers.update(services.audit_log.checkpoint_header)
    protocol.add_warning(response, outcome.commit, text)
    return response


def _describe(name: AdapterName, outcome: CommitOutcome) -> str:
    """One line: the number of the version with its verdicts, or why it is a draft."""
    if outcome.pushed is None:
        if outcome.missing:
            return (
                f"{name}: a draft that only you see, because {outcome.missing}. Until you push that, your own pulls of "
                "this branch get the draft, and those of others what was there before. `delete_branch` drops the draft "
                "and leaves the alias"
            )
        return f"{name}: nothing has changed"
    version = outcome.pushed.version
    checks = [_verdict(verdict) for verdict in version.verdicts]
    if not any(verdict.check is Check.WEIGHTS for verdict in version.verdicts):
        checks.append("weights still being checked")
    checks += ["smoke test queued"] if outcome.pushed.job_id else []
    stays = outcome.pushed.main if outcome.pushed.main_number != version.number else ""
    return f"{name}@{version.number} on {version.base}: {'; '.join([*checks, *filter(None, [stays])])}"


def _verdict(verdict: Verdict) -> str:
    check = f"{verdict.check} {verdict.profile}".strip()
    severity = "warning" if verdict.outcome is Outcome.WARN else "error"
    if verdict.check is Check.COMPAT and verdict.outcome is Outcome.UNKNOWN:
        severity = "unknown"
    worst = next((finding for finding in verdict.findings if finding.severity == severity), None)
    return f"{check} {verdict.outcome}" + (f" ({worst.to_text()})" if worst is not None else "")


@router.get("/{namespace}/{name}/commit/{revision}")
def show_commit(request: Request, actor: Puller, engine: EngineDep, revision: str) -> Response:
    """Lead to the version that a commit is; a draft is shown as a commit."""
    name = protocol.adapter_of(request)
    with db.session(engine, write=False) as session:
        commit = revisions.find(session, actor, name, revision)
    if commit.version is None:
        return JSONResponse(commit.to_commit())
    return RedirectResponse(f"{PREFIX}/adapters/{name}/versions/{commit.version.digest}", status_code=307)
