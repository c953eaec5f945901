"""`Registry`: one method for each REST route that is asked often; rarer ones have a class and a file of their own.

Invariants
- As in versions.py, whose routes it has as well: it sends wire requests and answers wire answers, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from urllib.parse import quote

from registry import names
from registry.api import Request
from registry.api.access import Health, TokenCreate, TokenCreated, TokenList, TokenView, Whoami
from registry.api.aliases import AliasList, AliasView, History, PromoteRequest, RollbackRequest, WithdrawRequest
from registry.api.bases import BaseAdd, IdentityRequest, Lineage
from registry.api.catalog import BaseView, VersionView
from registry.api.desired_state import DesiredState
from registry.api.evaluation import (
    CheckRequest,
    EngineSettingsList,
    NormsView,
    RecheckEnginesPage,
    RecheckEnginesRequest,
    VerdictList,
)
from registry.api.jobs import Claimed, ClaimRequest, FailRequest, FinishRequest, JobPage, JobSubmit, RenewRequest
from registry.api.maintenance import FsckPage, FsckRequest, GcReport, GcRequest, ReindexPage, ReindexRequest
from registry.bases.identity import Identity
from registry.bases.similarity import Similarity
from registry.client.core import AnyRef, Name, Versions, path_of, path_of_adapter
from registry.client.responses import Shape, parsed
from registry.digest import Digest
from registry.evaluation.reports import Report
from registry.jobs import Job, Lease

UPKEEP_SECONDS = 900.0
"""How long one request of upkeep may take: a deep check reads at least one blob, and that may be 20 GiB."""


class Registry(Versions):
    """A registry at a URL (or, with a transport, in this process). Thread-safe; close it or use it in `with`."""

    # ------------------------------------------------------------ versions
    def report(self, ref: AnyRef, digest: Digest) -> Report:
        """The report of one of this version's verdicts."""
        return self._get(f"{path_of(ref)}/reports/{digest}", Report)

    def lineage(self, ref: AnyRef, *, down: bool = False) -> Lineage:
        return self._get(f"{path_of(ref)}/lineage", Lineage, direction="down" if down else "up")

    def lineage_of(self, *, dataset: str = "", base: str = "", down: bool = True) -> Lineage:
        """The lineage from a data set (its digest or URI) or from a base on."""
        return self._get("/lineage", Lineage, dataset=dataset, base=base, direction="down" if down else "up")

    def yank(self, ref: AnyRef, reason: str, *, undo: bool = False) -> VersionView:
        return self._post(f"{path_of(ref)}/{'unyank' if undo else 'yank'}", WithdrawRequest(reason=reason), VersionView)

    # ------------------------------------------------------------ judging
    def check(self, request: CheckRequest) -> VerdictList:
        """`compat`, then `engine` for each engine, of what is not pushed."""
        return self._post("/check", request, VerdictList)

    def verdicts(self, ref: AnyRef, engines: Sequence[str] = ()) -> VerdictList:
        """`engine` of a version for each engine, judged now; without engines what is stored about it."""
        return self._get(f"{path_of(ref)}/verdicts", VerdictList, engine=list(engines))

    def norms(self, ref: AnyRef) -> NormsView:
        """How large the updates of this version's modules are."""
        return self._get(f"{path_of(ref)}/norms", NormsView)

    def desired_state(self, base: str, alias: str, *, engine: str = "", since: str = "", wait: int = 0) -> DesiredState:
        """What the alias of every adapter of the base points at; with `since` and `wait`, once that has changed."""
        path = f"/bases/{names.base_name(base)}/adapters"
        return self._get(path, DesiredState, alias=alias, engine=engine, since=since, wait=wait or "")

    def engine_settings(self, base: str, engines: Sequence[str], *, slots: int | None = None) -> EngineSettingsList:
        """What to set so that these engines serve the newest version of every adapter of the base."""
        return self._get(
            "/engine-settings", EngineSettingsList, base=str(names.base_name(base)), engine=list(engines), slots=slots
        )

    def recheck_engines(self, request: RecheckEnginesRequest) -> RecheckEnginesPage:
        """Renew engine verdicts for some seconds. Continue with `next_cursor`."""
        return self._long("/verdicts/recheck-engines", request, RecheckEnginesPage)

    # ------------------------------------------------------------ aliases
    def aliases(self, name: Name) -> AliasList:
        return self._get(f"{path_of_adapter(name)}/aliases", AliasList)

    def alias(self, name: Name, alias: str) -> AliasView:
        return self._get(f"{path_of_adapter(name)}/aliases/{names.alias(alias)}", AliasView)

    def promote(
        self, name: Name, alias: str, version: str, *, generation: int, reason: str = "", break_glass: bool = False
    ) -> AliasView:
        """Point `alias` at `version` (a selector) if it still is at `generation`; 0 means that it must be new."""
        path = f"{path_of_adapter(name)}/aliases/{names.alias(alias)}"
        body = PromoteRequest(version=version, reason=reason, break_glass=break_glass).model_dump(mode="json")
        answer = self.connection.send("PUT", path, json=body, headers={"If-Match": f'"{generation}"'})
        return parsed(answer, AliasView)

    def rollback(self, name: Name, alias: str, *, to: str = "", reason: str = "") -> AliasView:
        path = f"{path_of_adapter(name)}/aliases/{names.alias(alias)}/rollback"
        return self._post(path, RollbackRequest(to=to, reason=reason), AliasView)

    def history(self, name: Name, *, alias: str = "", at: datetime | None = None, cursor: str = "") -> History:
        moment = at.isoformat() if at else ""
        return self._get(f"{path_of_adapter(name)}/history", History, alias=alias, at=moment, cursor=cursor)

    # ------------------------------------------------------------ bases
    def add_base(self, request: BaseAdd) -> BaseView:
        return self._post("/bases", request, BaseView)

    def identify_base(self, name: str, identity: Identity) -> BaseView:
        """Tell which weights a base has, once."""
        body = IdentityRequest(identity=identity).model_dump(mode="json")
        answer = self.connection.send("PUT", f"/bases/{names.base_name(name)}/identity", json=body)
        return parsed(answer, BaseView)

    def similarity(self, name: str, identity: Identity) -> Similarity:
        """How weights that one has here are related to those of a base."""
        return self._post(f"/bases/{names.base_name(name)}/similarity", IdentityRequest(identity=identity), Similarity)

    # ------------------------------------------------------------ jobs
    def submit(self, request: JobSubmit) -> Job:
        return self._post("/jobs", request, Job)

    def jobs(self, *, state: str = "", kind: str = "", ref: str = "", cursor: str = "") -> JobPage:
        return self._get("/jobs", JobPage, state=state, kind=kind, ref=ref, cursor=cursor)

    def job(self, job_id: str) -> Job:
        return self._get(_job(job_id), Job)

    def cancel(self, job_id: str) -> Job:
        return parsed(self.connection.send("POST", _job(job_id) + "/cancel"), Job)

    def claim(self, request: ClaimRequest) -> Claimed | None:
        """Work to do, or None when there is none now."""
        answer = self.connection.send("POST", "/jobs/claim", json=request.model_dump(mode="json"))
        return None if answer.status_code == 204 else parsed(answer, Claimed)

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
        return parsed(self.connection.send("DELETE", f"/tokens/{quote(token_id, safe='')}"), TokenView)

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
        return parsed(answer, shape)


def _job(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
