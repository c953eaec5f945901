"""`Registry`: one method for each REST route. It sends wire requests and answers wire answers, nothing else.

Invariants
- Names and refs are parsed here, before anything is sent; what is not a name is `Invalid` without a request.
- Errors are the server's own classes (see connection.py); an answer that does not parse is a `RegistryError`.
- A fresh `Registry` costs no request.

Example
    >>> with Registry("https://registry.example.org", token) as registry:
    ...     registry.resolve("acme/support:prod").number
    3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx

from registry import names
from registry.bases.identity import Identity, Likeness
from registry.client.answers import Shape
from registry.client.answers import parsed as _parsed
from registry.client.connection import Body, Connection
from registry.digest import Digest
from registry.jobs import Job, Lease
from registry.names import AdapterName, Ref
from registry.verdicts import Report
from registry.wire import (
    AdapterPage,
    AdapterView,
    AliasList,
    AliasView,
    BaseAdd,
    BaseList,
    BaseView,
    History,
    IdentityGiven,
    Lineage,
    PromoteRequest,
    Request,
    Resolved,
    RollbackRequest,
    VersionPage,
    VersionView,
    YankRequest,
)
from registry.wire.access import Health, TokenCreate, TokenCreated, TokenList, TokenView, Whoami
from registry.wire.jobs import Claimed, ClaimRequest, FailRequest, FinishRequest, JobPage, JobSubmit, RenewRequest
from registry.wire.pull import PullPlan
from registry.wire.push import PushCommit, Pushed, PushPlan, PushRequest, Small, Upload
from registry.wire.roster import Roster
from registry.wire.upkeep import FsckPage, FsckRequest, GcReport, GcRequest, ReindexPage, ReindexRequest
from registry.wire.verdicts import CheckRequest, FleetView, RejudgePage, RejudgeRequest, ValuesView, VerdictList

UPKEEP_SECONDS = 900.0
"""How long one request of upkeep may take: a deep check reads at least one blob, and that may be 20 GiB."""
Name = AdapterName | str
AnyRef = Ref | str


class Registry:
    """A registry at a URL (or, with a transport, in this process). Thread-safe; close it or use it in `with`."""

    def __init__(
        self,
        url: str,
        token: str = "",
        transport: httpx.BaseTransport | None = None,
        *,
        connection: Connection | None = None,
    ) -> None:
        self.connection = connection or Connection(url, token, transport=transport)
        self.url = self.connection.url

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------ push and bytes
    def plan_push(self, name: Name, request: PushRequest) -> PushPlan:
        return self._post(f"/adapters/{_name(name)}/pushes", request, PushPlan)

    def upload(self, upload: Upload, body: Body) -> None:
        """Send one missing blob where its plan says. `body` must be readable again from the start."""
        headers = {"Content-Length": str(upload.size_bytes), **upload.headers}
        self.connection.upload(upload.method, upload.url, body, headers=headers)

    def commit_push(self, push_id: str, *, alias: str = "", small: Sequence[Small] = ()) -> Pushed:
        """The version, once every blob of the plan was sent or is among the `small` ones."""
        request = PushCommit(alias=alias, small=tuple(small))
        return self._post(f"/pushes/{quote(push_id, safe='')}/commit", request, Pushed)

    def plan_pull(self, ref: AnyRef) -> PullPlan:
        return self._get(f"{_version(ref)}/pull", PullPlan)

    @contextmanager
    def read(self, url: str, *, start: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
        """The bytes behind a link of a `FileLink`, from `start`, chunk by chunk. Nothing is verified here."""
        end = "" if length is None else str(start + length - 1)
        headers = {"Range": f"bytes={start}-{end}"} if start or length is not None else {}
        with self.connection.stream(url, headers=headers) as answer:
            yield answer.iter_bytes()

    def report(self, ref: AnyRef, digest: Digest) -> Report:
        """The report of one of this version's verdicts."""
        return self._get(f"{_version(ref)}/reports/{digest}", Report)

    # ------------------------------------------------------------ adapters and versions
    def adapters(self, *, cursor: str = "", limit: int | None = None, **search: Any) -> AdapterPage:
        """One page. `search`: the fields of the route, such as base, method, rank_min, target, engine, owner, text."""
        return self._get("/adapters", AdapterPage, **search, cursor=cursor, limit=limit)

    def adapter(self, name: Name) -> AdapterView:
        return self._get(f"/adapters/{_name(name)}", AdapterView)

    def versions(self, name: Name, *, cursor: str = "", limit: int | None = None) -> VersionPage:
        return self._get(f"/adapters/{_name(name)}/versions", VersionPage, cursor=cursor, limit=limit)

    def version(self, ref: AnyRef) -> VersionView:
        return self._get(_version(ref), VersionView)

    def resolve(self, ref: AnyRef) -> Resolved:
        parsed = _ref(ref)
        return self._get(f"/resolve/{parsed.name}/{parsed.selector}", Resolved)

    def lineage(self, ref: AnyRef, *, down: bool = False) -> Lineage:
        return self._get(f"{_version(ref)}/lineage", Lineage, direction="down" if down else "up")

    def lineage_of(self, *, dataset: str = "", base: str = "", down: bool = True) -> Lineage:
        """The lineage from a data set (its digest or URI) or from a base on."""
        return self._get("/lineage", Lineage, dataset=dataset, base=base, direction="down" if down else "up")

    def yank(self, ref: AnyRef, reason: str, *, undo: bool = False) -> VersionView:
        return self._post(f"{_version(ref)}/{'unyank' if undo else 'yank'}", YankRequest(reason=reason), VersionView)

    # ------------------------------------------------------------ judging
    def check(self, request: CheckRequest) -> VerdictList:
        """`fits`, then `loads` for each engine, of what is not pushed."""
        return self._post("/check", request, VerdictList)

    def verdicts(self, ref: AnyRef, engines: Sequence[str] = ()) -> VerdictList:
        """`loads` of a version for each engine, judged now; without engines what is stored about it."""
        return self._get(f"{_version(ref)}/verdicts", VerdictList, engine=list(engines))

    def values(self, ref: AnyRef) -> ValuesView:
        """How large the updates of this version's modules are."""
        return self._get(f"{_version(ref)}/values", ValuesView)

    def roster(self, base: str, alias: str, *, engine: str = "", since: str = "", wait: int = 0) -> Roster:
        """What the alias of every adapter of the base points at; with `since` and `wait`, once that has changed."""
        path = f"/bases/{names.base_name(base)}/adapters"
        return self._get(path, Roster, alias=alias, engine=engine, since=since, wait=wait or "")

    def fleet(self, base: str, engines: Sequence[str], *, slots: int | None = None) -> FleetView:
        """What to set so that these engines serve the newest version of every adapter of the base."""
        return self._get("/fleet", FleetView, base=str(names.base_name(base)), engine=list(engines), slots=slots)

    def rejudge(self, request: RejudgeRequest) -> RejudgePage:
        """Some seconds of renewal; go on with `next_cursor`."""
        return self._long("/verdicts/rejudge", request, RejudgePage)

    # ------------------------------------------------------------ aliases
    def aliases(self, name: Name) -> AliasList:
        return self._get(f"/adapters/{_name(name)}/aliases", AliasList)

    def alias(self, name: Name, alias: str) -> AliasView:
        return self._get(f"/adapters/{_name(name)}/aliases/{names.alias(alias)}", AliasView)

    def promote(
        self, name: Name, alias: str, version: str, *, generation: int, reason: str = "", break_glass: bool = False
    ) -> AliasView:
        """Point `alias` at `version` (a selector) if it still is at `generation`; 0 means that it must be new."""
        path = f"/adapters/{_name(name)}/aliases/{names.alias(alias)}"
        body = PromoteRequest(version=version, reason=reason, break_glass=break_glass).model_dump(mode="json")
        answer = self.connection.send("PUT", path, json=body, headers={"If-Match": f'"{generation}"'})
        return _parsed(answer, AliasView)

    def rollback(self, name: Name, alias: str, *, to: str = "", reason: str = "") -> AliasView:
        path = f"/adapters/{_name(name)}/aliases/{names.alias(alias)}/rollback"
        return self._post(path, RollbackRequest(to=to, reason=reason), AliasView)

    def history(self, name: Name, *, alias: str = "", at: datetime | None = None, cursor: str = "") -> History:
        moment = at.isoformat() if at else ""
        return self._get(f"/adapters/{_name(name)}/history", History, alias=alias, at=moment, cursor=cursor)

    # ------------------------------------------------------------ bases
    def add_base(self, request: BaseAdd) -> BaseView:
        return self._post("/bases", request, BaseView)

    def bases(self) -> BaseList:
        return self._get("/bases", BaseList)

    def base(self, name: str) -> BaseView:
        return self._get(f"/bases/{names.base_name(name)}", BaseView)

    def identify_base(self, name: str, identity: Identity) -> BaseView:
        """Tell which weights a base has, once."""
        body = IdentityGiven(identity=identity).model_dump(mode="json")
        answer = self.connection.send("PUT", f"/bases/{names.base_name(name)}/identity", json=body)
        return _parsed(answer, BaseView)

    def likeness(self, name: str, identity: Identity) -> Likeness:
        """How weights that one has here are related to those of a base."""
        return self._post(f"/bases/{names.base_name(name)}/likeness", IdentityGiven(identity=identity), Likeness)

    # ------------------------------------------------------------ jobs
    def submit(self, request: JobSubmit) -> Job:
        return self._post("/jobs", request, Job)

    def jobs(self, *, state: str = "", kind: str = "", ref: str = "", cursor: str = "") -> JobPage:
        return self._get("/jobs", JobPage, state=state, kind=kind, ref=ref, cursor=cursor)

    def job(self, job_id: str) -> Job:
        return self._get(_job(job_id), Job)

    def cancel(self, job_id: str) -> Job:
        return _parsed(self.connection.send("POST", _job(job_id) + "/cancel"), Job)

    def claim(self, request: ClaimRequest) -> Claimed | None:
        """Work to do, or None when there is none now."""
        answer = self.connection.send("POST", "/jobs/claim", json=request.model_dump(mode="json"))
        return None if answer.status_code == 204 else _parsed(answer, Claimed)

    def renew(self, job_id: str, request: RenewRequest) -> Lease:
        return self._post(_job(job_id) + "/renew", request, Lease)

    def finish(self, job_id: str, request: FinishRequest) -> Job:
        return self._post(_job(job_id) + "/finish", request, Job)

    def fail(self, job_id: str, request: FailRequest) -> Job:
        return self._post(_job(job_id) + "/fail", request, Job)

    # ------------------------------------------------------------ access
    def create_token(self, request: TokenCreate) -> TokenCreated:
        return self._post("/tokens", request, TokenCreated)

    def tokens(self) -> TokenList:
        return self._get("/tokens", TokenList)

    def revoke_token(self, token_id: str) -> TokenView:
        return _parsed(self.connection.send("DELETE", f"/tokens/{quote(token_id, safe='')}"), TokenView)

    def whoami(self) -> Whoami:
        return self._get("/whoami", Whoami)

    def health(self, *, store: bool = False) -> Health:
        return self._get("/health", Health, store="true" if store else "")

    # ------------------------------------------------------------ upkeep
    def collect(self, request: GcRequest) -> GcReport:
        """Some seconds of garbage collection; go on with `next_cursor`."""
        return self._long("/gc", request, GcReport)

    def fsck(self, request: FsckRequest) -> FsckPage:
        """Some seconds of a check, or one large blob of a deep one; go on with `next_cursor`."""
        return self._long("/fsck", request, FsckPage)

    def reindex(self, request: ReindexRequest) -> ReindexPage:
        """Some seconds of re-indexing; go on with `next_cursor`."""
        return self._long("/reindex", request, ReindexPage)

    # ------------------------------------------------------------ inside
    def _long(self, path: str, request: Request, shape: type[Shape]) -> Shape:
        answer = self.connection.send("POST", path, json=request.model_dump(mode="json"), seconds=UPKEEP_SECONDS)
        return _parsed(answer, shape)

    def _get(self, path: str, shape: type[Shape], **query: Any) -> Shape:
        return _parsed(self.connection.send("GET", path, query=query), shape)

    def _post(self, path: str, request: Request, shape: type[Shape]) -> Shape:
        return _parsed(self.connection.send("POST", path, json=request.model_dump(mode="json")), shape)


def _name(name: Name) -> AdapterName:
    return name if isinstance(name, AdapterName) else AdapterName.parse(name)


def _ref(ref: AnyRef) -> Ref:
    return ref if isinstance(ref, Ref) else Ref.parse(ref)


def _version(ref: AnyRef) -> str:
    parsed = _ref(ref)
    return f"/adapters/{parsed.name}/versions/{parsed.selector}"


def _job(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
