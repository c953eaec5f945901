"""`Registry`: the routes of `Aliases` and all others except the audit log's (audit.py), a method each."""

from collections.abc import Sequence
from typing import Any, Unpack

from registry import names
from registry.api import access, catalog, evaluation, maintenance, serving
from registry.api.aliases import (
    ApprovalList,
    ApprovalView,
    ApproveRequest,
    GateCheck,
    GateList,
    GateSet,
    GateView,
    WithdrawRequest,
)
from registry.api.bases import (
    BaseAdd,
    BaseAliases,
    BasePage,
    BaseView,
    IdentityRequest,
    ModulesRequest,
    ThresholdsRequest,
)
from registry.api.jobs import (
    CampaignRequest,
    CampaignView,
    Claimed,
    ClaimRequest,
    FailRequest,
    FinishRequest,
    JobPage,
    JobSubmit,
    QueuePosition,
    RenewRequest,
)
from registry.api.lineage import Lineage
from registry.api.maintenance import RetentionPlan, RetentionSet, RetentionView
from registry.api.operations import access as of_access
from registry.api.operations import adapters as of_adapters
from registry.api.operations import aliases as of_aliases
from registry.api.operations import bases as of_bases
from registry.api.operations import evaluation as of_evaluation
from registry.api.operations import jobs as of_jobs
from registry.api.operations import maintenance as of_maintenance
from registry.api.operations import serving as of_serving
from registry.api.operations import transfer as of_transfer
from registry.api.operations.operation import OwnerOperations, Received, Sent
from registry.bases import Similarity
from registry.bases.identity import Identity
from registry.bases.library import LibraryModules
from registry.client import response_checks
from registry.client.aliases import Aliases
from registry.client.core import AnyRef, Change, Name, parsed_name, parsed_ref
from registry.client.response_checks import check_fields
from registry.client.transport import LIST_LIMIT_BYTES, HttpResponse, invalid_response
from registry.client.transport.responses import parse_document, parse_response
from registry.client.transport.retries import Retries
from registry.digest import Digest
from registry.errors import Unavailable
from registry.evaluation.gates import Gate
from registry.evaluation.reports import Report
from registry.jobs import Job, Kind, Lease
from registry.versions.retention import RetentionRule

MAINTENANCE_SECONDS = 900.0
"""Timeout of one maintenance request: a deep check reads at least one blob, and that may be 20 GiB."""
NODES_OF_PAGE = 200
_JOBS_HELD = Unavailable("TRY_LATER", "other requests hold the jobs that are left", retry_after_seconds=1)


class Registry(Aliases):
    """A registry at a URL (or, with a transport, in this process). Thread-safe; close it or use it in `with`."""

    # ------------------------------------------------------------ adapters and versions
    def rename(self, name: Name, to: Name, reason: str = "", *, dry_run: bool = False) -> catalog.AdapterView:
        """Rename an adapter."""
        request = access.RenameRequest(to=str(to), reason=reason)
        return self.call(of_access.RENAME_ADAPTER, request, about=parsed_name(name), dry_run=dry_run)

    def delete_adapter(
        self, name: Name, reason: str = "", *, force: bool = False, dry_run: bool = False
    ) -> catalog.DeleteResult:
        """Delete an adapter with its versions. `force`: although something needs it. `dry_run`: only say what does."""
        return self.call(
            of_access.DELETE_ADAPTER, about=parsed_name(name), reason=reason, force=force or None,
            dry_run=dry_run or None,
        )  # fmt: skip

    def undelete_adapter(self, name: Name, reason: str) -> catalog.DeleteResult:
        """Restore a deleted adapter."""
        return self.call(of_access.UNDELETE_ADAPTER, WithdrawRequest(reason=reason), about=parsed_name(name))

    def release_name(self, name: Name, reason: str) -> catalog.DeleteResult:
        """Let the next push have the name of a deleted adapter of which nobody else ever had bytes."""
        return self.call(of_access.RELEASE_NAME, WithdrawRequest(reason=reason), about=parsed_name(name))

    def delete_version(
        self, ref: AnyRef, reason: str = "", *, force: bool = False, dry_run: bool = False
    ) -> catalog.VersionView:
        """Delete a version. `force`: although something needs it. `dry_run`: only check; the errors are the same."""
        view = self.call(
            of_aliases.DELETE_VERSION, about=parsed_ref(ref), reason=reason, force=force or None,
            dry_run=dry_run or None,
        )  # fmt: skip
        if view.deleted_at is None and not dry_run:
            raise invalid_response(f"the version {ref} is not deleted in the response")
        return view

    def undelete_version(self, ref: AnyRef, reason: str) -> catalog.VersionView:
        """Restore a deleted version."""
        return self.call(of_aliases.UNDELETE_VERSION, WithdrawRequest(reason=reason), about=parsed_ref(ref))

    def yank(self, ref: AnyRef, reason: str, *, undo: bool = False) -> catalog.VersionView:
        """Yank a version, or undo that."""
        operation = of_aliases.UNYANK_VERSION if undo else of_aliases.YANK_VERSION
        return self.call(operation, WithdrawRequest(reason=reason), about=parsed_ref(ref))

    def quarantine(self, ref: AnyRef, reason: str) -> catalog.VersionView:
        """Quarantine a version."""
        return self.call(of_aliases.QUARANTINE_VERSION, WithdrawRequest(reason=reason), about=parsed_ref(ref))

    def unquarantine(self, ref: AnyRef, reason: str) -> catalog.VersionView:
        """End the quarantine of a version."""
        return self.call(of_aliases.UNQUARANTINE_VERSION, WithdrawRequest(reason=reason), about=parsed_ref(ref))

    def lineage(self, ref: AnyRef, *, down: bool = False) -> Lineage:
        """Return the ancestors and descendants of a version."""
        response = self.call(of_adapters.SHOW_LINEAGE, about=parsed_ref(ref), direction="down" if down else "up")
        response_checks.check_version(parsed_ref(ref), response_checks.check_root(response))
        return response

    def lineage_of(self, *, dataset: str = "", base: str = "", down: bool = True) -> Lineage:
        """The lineage from a data set (its digest or URI) or from a base on."""
        direction = "down" if down else "up"
        response = self.call(of_adapters.FIND_LINEAGE, dataset=dataset, base=base, direction=direction)
        root = response_checks.check_root(response)
        if base:
            check_fields(root, name=self._name_of_base(base, root.name))
        return response

    # ------------------------------------------------------------ evaluation
    def check(self, request: evaluation.CheckRequest) -> evaluation.VerdictList:
        """`compat`, then `engine` for each engine, of an adapter that is not pushed."""
        return self.call(of_evaluation.CHECK_ADAPTER, request)

    def verdicts(self, ref: AnyRef, engines: Sequence[str] = ()) -> evaluation.VerdictList:
        """`engine` of a version for each engine, evaluated now; without engines the stored verdicts."""
        response = self.call(of_evaluation.LIST_VERDICTS, about=parsed_ref(ref), engine=list(engines))
        if engines:
            response_checks.check_engines(response)
        return response

    def report(self, ref: AnyRef, digest: Digest) -> Report:
        """The report of one of this version's verdicts."""
        data = self.call(of_transfer.READ_REPORT, about=parsed_ref(ref), digest=digest)
        response_checks.check_bytes(digest, data)
        return parse_document(Report, data, f"the request for the report {digest.short}")

    def norms(self, ref: AnyRef) -> evaluation.NormsView:
        """The size of the update of each module of this version."""
        return self.call(of_evaluation.SHOW_NORMS, about=parsed_ref(ref))

    def reference_logprobs(self, ref: AnyRef) -> evaluation.ReferenceLogprobsView:
        """What a serving node compares with an engine's answers after loading this version."""
        return self.call(of_evaluation.READ_REFERENCE_LOGPROBS, about=parsed_ref(ref))

    def recheck_engines(self, request: evaluation.RecheckEnginesRequest) -> evaluation.RecheckEnginesPage:
        """Renew engine verdicts for a few seconds. Continue with `next_cursor`."""
        return self.call(of_maintenance.REEVALUATE_VERDICTS, request, seconds=MAINTENANCE_SECONDS)

    def start_campaign(self, request: CampaignRequest) -> CampaignView:
        """Queue smoke tests of the affected versions of a base."""
        view = self.call(of_jobs.START_CAMPAIGN, request)
        return check_fields(view, base=self._name_of_base(request.base, view.base))

    def campaign(self, campaign_id: str, *, patient: bool = False) -> CampaignView:
        """The progress of a campaign, and what has changed so far."""
        return self.call(of_jobs.SHOW_CAMPAIGN, patient=patient, campaign_id=campaign_id)

    # ------------------------------------------------------------ gates and retention
    def _call_on(
        self, operations: OwnerOperations[Sent, Received], owner: str, request: Sent | None = None, **parameters: Any
    ) -> Received:
        """An operation on an adapter (with a slash) or a namespace."""
        if "/" in owner:
            return self.call(operations.adapter, request, about=parsed_name(owner), **parameters)
        return self.call(operations.namespace, request, namespace=names.namespace(owner), **parameters)

    def gates(self, scope: str) -> GateList:
        """The gates of a scope: an adapter (with a slash) or a namespace."""
        return self._call_on(of_aliases.LIST_GATES, scope)

    def gate(self, scope: str, alias: str) -> GateView:
        """Return the gate of an alias."""
        return self._call_on(of_aliases.SHOW_GATE, scope, alias=alias)

    def set_gate(self, scope: str, alias: str, gate: Gate, reason: str = "", *, dry_run: bool = False) -> GateView:
        """Set the gate of an alias."""
        request = GateSet(gate=gate, reason=reason)
        view = self._call_on(of_aliases.SET_GATE, scope, request, alias=alias, dry_run=dry_run)
        return check_fields(view, gate=gate) if view.set_on == scope else view

    def delete_gate(self, scope: str, alias: str, **change: Unpack[Change]) -> GateView:
        """Delete the gate of an alias."""
        return self._call_on(of_aliases.DELETE_GATE, scope, alias=alias, **change)

    def retention(self, scope: str) -> RetentionView:
        """The retention rule in force for a scope: an adapter (with a slash) or a namespace."""
        return self._call_on(of_maintenance.SHOW_RETENTION, scope)

    def set_retention(self, scope: str, rule: RetentionRule, reason: str = "") -> RetentionView:
        """Set which versions garbage collection keeps."""
        view = self._call_on(of_maintenance.SET_RETENTION, scope, RetentionSet(rule=rule, reason=reason))
        return check_fields(view, set_on=scope)

    def delete_retention(self, scope: str, **change: Unpack[Change]) -> RetentionView:
        """Delete a retention rule."""
        return self._call_on(of_maintenance.DELETE_RETENTION, scope, **change)

    def retention_plan(self, name: Name, rule: RetentionRule | None = None, *, cursor: str = "") -> RetentionPlan:
        """One page of what garbage collection does to each version, under `rule` or under the one in force."""
        query = rule.model_dump() if rule is not None else {}
        return self.call(of_maintenance.PLAN_RETENTION, about=parsed_name(name), **query, cursor=cursor)

    def check_gate(self, ref: AnyRef, alias: str) -> GateCheck:
        """What a version lacks for an alias now."""
        return self.call(of_aliases.CHECK_GATE, about=parsed_ref(ref), alias=alias)

    def approve(self, ref: AnyRef, alias: str, comment: str = "") -> ApprovalView:
        """Approve a version for an alias."""
        request = ApproveRequest(alias=alias, comment=comment)
        return self.call(of_aliases.APPROVE_VERSION, request, about=parsed_ref(ref))

    def approvals(self, ref: AnyRef) -> ApprovalList:
        """Return the approvals of a version."""
        return self.call(of_aliases.LIST_APPROVALS, about=parsed_ref(ref))

    # ------------------------------------------------------------ bases
    def bases(self, *, modules: bool = True) -> BasePage:
        """All bases by name, of as many pages as there are. Without `modules`, their specs have none."""
        page = self.call_all(of_bases.LIST_BASES, modules=None if modules else False)
        for view in page.items:
            response_checks.check_spec(view)
        return page

    def base(self, name: str) -> BaseView:
        """Return one base by its name or alias."""
        return response_checks.check_base(name, self.call(of_bases.SHOW_BASE, base=name))

    def add_base(self, request: BaseAdd) -> BaseView:
        """Register a base model."""
        return response_checks.check_spec(self.call(of_bases.ADD_BASE, request))

    def set_base_aliases(self, name: str, aliases: Sequence[str], reason: str = "") -> BaseView:
        """Set the aliases of a base."""
        view = self.call(of_bases.SET_BASE_ALIASES, BaseAliases(aliases=list(aliases)), base=name, reason=reason)
        return check_fields(response_checks.check_spec(view), aliases=sorted(set(aliases) - {view.name}))

    def delete_base(self, name: str, reason: str = "") -> catalog.DeleteResult:
        """Delete a base that nothing uses."""
        return self.call(of_bases.DELETE_BASE, base=name, reason=reason)

    def identify_base(self, name: str, identity: Identity) -> BaseView:
        """Set which weights a base has. Possible once."""
        view = self.call(of_bases.IDENTIFY_BASE, IdentityRequest(identity=identity), base=name)
        return response_checks.check_base(name, view)

    def set_base_modules(self, name: str, modules: LibraryModules) -> BaseView:
        """Set the modules of a base as a library here builds them. Those of a newer version stay."""
        view = self.call(of_bases.SET_BASE_MODULES, ModulesRequest(modules=modules), base=name)
        return response_checks.check_base(name, view)

    def similarity(self, name: str, identity: Identity) -> Similarity:
        """How the weights with this identity are related to those of a base."""
        return self.call(of_bases.COMPARE_BASE, IdentityRequest(identity=identity), base=name)

    def set_thresholds(self, base: str, thresholds: dict[str, float]) -> BaseView:
        """Set the thresholds of smoke tests on this base; the defaults apply for the others."""
        view = self.call(of_bases.SET_THRESHOLDS, ThresholdsRequest(thresholds=thresholds), base=base)
        return response_checks.check_base(base, view)

    # ------------------------------------------------------------ serving
    def desired_state(
        self, base: str, alias: str, *, engine: str = "", after: str = "", limit: int | None = None
    ) -> serving.DesiredState:
        """What the alias of every adapter of the base points at.

        With `limit`, a page of it (`registry.serving.desired_state` reads all of them).
        """
        response = self.call(
            of_serving.SHOW_DESIRED_STATE, base=base, limit_bytes=LIST_LIMIT_BYTES, alias=alias, engine=engine,
            after=after, limit=limit,
        )  # fmt: skip
        return response_checks.check_desired_state(self._name_of_base(base, response.base), response)

    def next_desired_state(
        self, base: str, alias: str, *, since: str, wait: int, engine: str = "", limit: int | None = None
    ) -> serving.DesiredState | None:
        """The state, or its first page, once its cursor is not `since`; None if that is so after `wait` seconds."""
        operation = of_serving.SHOW_DESIRED_STATE
        query = {"alias": alias, "engine": engine, "since": since, "wait": wait, "limit": limit}
        response = self.connection.send(
            operation.method, operation.fill_path({"base": base}), query=query, limit_bytes=LIST_LIMIT_BYTES
        )
        if response.status == 204:
            return None
        state = self._read(operation, response, None, {**query, "base": base})
        return response_checks.check_desired_state(self._name_of_base(base, state.base), state)

    def _name_of_base(self, base: str, actual: str) -> str:
        """The name of a base that a request named, perhaps by an alias. `actual`: as the response names it."""
        return base if actual == base else self.base(base).name

    def engine_settings(
        self, base: str, engines: Sequence[str], *, slots: int | None = None, cursor: str = "", limit: int | None = None
    ) -> evaluation.EngineSettingsList:
        """What to set so that these engines serve the newest versions of a page of the base's adapters."""
        response = self.call(
            of_evaluation.RECOMMEND_ENGINE_SETTINGS, base=str(names.base_name(base)), engine=list(engines),
            slots=slots, cursor=cursor, limit=limit,
        )  # fmt: skip
        return check_fields(response, base=self._name_of_base(base, response.base))

    def report_node(self, node: str, engine: str, report: serving.NodeReport) -> serving.ReportAccepted:
        """Report everything that this engine on this node holds and serves. Renews the lease."""
        response = self.call(of_serving.REPORT_NODE, report, node=node, engine=engine)
        response_checks.check_unknown(report, response)
        return response

    def nodes(
        self, *, base: str = "", alias: str = "", node: str = "", adapter: str = "", cursor: str = "",
        limit: int | None = None,
    ) -> serving.FleetNodes:  # fmt: skip
        """One page of nodes; the first has the convergence of all."""
        return self.call(
            of_serving.LIST_NODES, base=base, alias=alias, node=node, adapter=adapter, cursor=cursor, limit=limit
        )

    def all_nodes(self, **search: str) -> serving.FleetNodes:
        """All pages of `nodes` as one."""
        return self.call_all(of_serving.LIST_NODES, **search, limit=NODES_OF_PAGE)

    # ------------------------------------------------------------ jobs
    def submit(self, request: JobSubmit) -> Job:
        """Submit a job."""
        return response_checks.check_submitted(request, self.call(of_jobs.SUBMIT_JOB, request))

    def submit_smoke_test(self, ref: AnyRef) -> Job:
        """Have a worker test a version. An equal job that is queued or running is returned instead of a second one."""
        return self.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=str(parsed_ref(ref))))

    def jobs(
        self, *, state: str = "", kind: str = "", ref: str = "", cursor: str = "", limit: int | None = None,
        count: bool | None = None,
    ) -> JobPage:  # fmt: skip
        """Return one page of jobs; with `count` also how many there are."""
        page = self.call(of_jobs.LIST_JOBS, state=state, kind=kind, ref=ref, cursor=cursor, limit=limit, count=count)
        for job in page.items if ref else ():
            response_checks.check_subject(parsed_ref(ref), job)
        return page

    def job(self, job_id: str, *, patient: bool = False) -> Job:
        """Return one job. `patient`: wait for a registry that restarts."""
        return self.call(of_jobs.SHOW_JOB, patient=patient, job_id=job_id)

    def queue_position(self, job_id: str) -> QueuePosition:
        """What a queued job waits for."""
        return self.call(of_jobs.SHOW_QUEUE_POSITION, job_id=job_id)

    def cancel(self, job_id: str, reason: str = "") -> Job:
        """Cancel a job."""
        return self.call(of_jobs.CANCEL_JOB, job_id=job_id, reason=reason)

    def claim(self, request: ClaimRequest) -> Claimed | None:
        """The next job, or None. Asks again, for a time, while other requests hold all jobs that are left."""
        retries = Retries(self.connection)
        response = self._send_claim(request)
        while response.status == 204:
            if not response.headers.get("Retry-After") or not retries.wait(_JOBS_HELD):
                return None
            response = self._send_claim(request)
        return response_checks.check_claim(request.kinds, request.bases, parse_response(response, Claimed))

    def _send_claim(self, request: ClaimRequest) -> HttpResponse:
        operation = of_jobs.CLAIM_JOB
        return self.connection.send(operation.method, operation.path, json=request.model_dump(mode="json"))

    def renew(self, job_id: str, request: RenewRequest) -> Lease:
        """Renew the lease of a job."""
        return self.call(of_jobs.RENEW_JOB, request, job_id=job_id)

    def finish(self, job_id: str, request: FinishRequest) -> Job:
        """Finish a job with its result."""
        return self.call(of_jobs.FINISH_JOB, request, job_id=job_id)

    def fail(self, job_id: str, request: FailRequest) -> Job:
        """Report that a job failed."""
        return self.call(of_jobs.FAIL_JOB, request, job_id=job_id)

    # ------------------------------------------------------------ namespaces and trusted publishers
    def namespaces(self, *, cursor: str = "", limit: int | None = None) -> access.NamespacePage:
        """Return the namespaces."""
        return self.call(of_access.LIST_NAMESPACES, cursor=cursor, limit=limit)

    def namespace(self, name: str) -> access.NamespaceView:
        """Return one namespace."""
        return self.call(of_access.SHOW_NAMESPACE, namespace=name)

    def create_namespace(self, name: str, *, owner: str = "", rehearsal: bool = False) -> access.NamespaceView:
        """Create a namespace."""
        request = access.NamespaceCreate(name=name, owner=owner, rehearsal=rehearsal)
        return self.call(of_access.CREATE_NAMESPACE, request)

    def change_namespace(
        self, name: str, request: access.NamespaceSet, **change: Unpack[Change]
    ) -> access.NamespaceView:
        """Change a namespace."""
        return self.call(of_access.CHANGE_NAMESPACE, request, namespace=name, **change)

    def delete_namespace(self, name: str, **change: Unpack[Change]) -> catalog.DeleteResult:
        """Delete an empty namespace."""
        return self.call(of_access.DELETE_NAMESPACE, namespace=name, **change)

    def grant_role(
        self, name: str, subject: str, role: str, *, aliases: Sequence[str] = (), **change: Unpack[Change]
    ) -> access.SubjectRoles:
        """Grant a role in a namespace beside those that the subject has, perhaps for single aliases."""
        granted = access.RoleGrant(role=role, aliases=list(aliases))
        view = self.call(of_access.GRANT_ROLE, granted, namespace=name, subject=subject, **change)
        return response_checks.check_granted(granted, view)

    def revoke_role(self, name: str, subject: str, role: str = "", **change: Unpack[Change]) -> access.SubjectRoles:
        """Revoke a role in a namespace, or all that the subject has there."""
        view = self.call(of_access.REVOKE_ROLE, namespace=name, subject=subject, role=role, **change)
        return response_checks.check_revoked(role, view)

    def publishers(self, name: Name) -> access.PublisherList:
        """Return the trusted publishers of an adapter."""
        return self.call(of_access.LIST_PUBLISHERS, about=parsed_name(name))

    def add_publisher(self, name: Name, request: access.PublisherAdd) -> access.PublisherView:
        """Add a trusted publisher."""
        return self.call(of_access.ADD_PUBLISHER, request, about=parsed_name(name))

    def delete_publisher(self, name: Name, publisher_id: str, **change: Unpack[Change]) -> access.PublisherView:
        """Delete a trusted publisher."""
        about = parsed_name(name)
        return self.call(of_access.DELETE_PUBLISHER, about=about, publisher_id=publisher_id, **change)

    # ------------------------------------------------------------ tokens
    def whoami(self) -> access.Whoami:
        """Return who the token belongs to, and what it may do."""
        return self.call(of_access.SHOW_CALLER)

    def tokens(self) -> access.TokenPage:
        """All tokens that the caller may revoke, newest first, of as many pages as there are."""
        return self.call_all(of_access.LIST_TOKENS)

    def create_token(self, request: access.TokenCreate) -> access.TokenCreated:
        """Create a token; its secret is in this response only."""
        return self.call(of_access.CREATE_TOKEN, request)

    def revoke_token(self, token_id: str, **change: Unpack[Change]) -> access.TokenView:
        """Revoke a token."""
        return self.call(of_access.REVOKE_TOKEN, token_id=token_id, **change)

    def rotate_token(self, token_id: str, *, keep_seconds: int = 0) -> access.TokenCreated:
        """Give a token a new secret."""
        return self.call(of_access.ROTATE_TOKEN, access.TokenRotate(keep_seconds=keep_seconds), token_id=token_id)

    def exchange_token(self, assertion: str, *, adapter: str = "") -> access.TokenCreated:
        """A short-lived token for an identity token. Needs no token of the registry."""
        return self.call(of_access.EXCHANGE_TOKEN, access.ExchangeRequest(assertion=assertion, adapter=adapter))

    # ------------------------------------------------------------ maintenance
    def health(self, *, store: bool = False) -> maintenance.Health:
        """Return what the server says about itself."""
        return self.call(of_access.CHECK_HEALTH, store=store or None)

    def collect(self, request: maintenance.GcRequest) -> maintenance.GcReport:
        """Some seconds of garbage collection; go on with `next_cursor`."""
        return self.call(of_maintenance.COLLECT_GARBAGE, request, seconds=MAINTENANCE_SECONDS)

    def fsck(self, request: maintenance.FsckRequest) -> maintenance.FsckPage:
        """Some seconds of a check, or one large blob of a deep one; go on with `next_cursor`."""
        return self.call(of_maintenance.CHECK_STORE, request, seconds=MAINTENANCE_SECONDS)

    def reindex(self, request: maintenance.ReindexRequest) -> maintenance.ReindexPage:
        """Some seconds of re-indexing; go on with `next_cursor`."""
        return self.call(of_maintenance.REBUILD_INDEX, request, seconds=MAINTENANCE_SECONDS)
