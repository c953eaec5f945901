"""`Registry`: the routes of `Aliases` and all others except the audit log's (audit.py), a method each."""

from collections.abc import Sequence
from urllib.parse import quote

from registry import names
from registry.api import access, catalog, evaluation, maintenance, serving
from registry.api.aliases import (
    ApprovalList,
    ApprovalView,
    ApproveItem,
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
from registry.api.models import Request
from registry.bases import Similarity
from registry.bases.identity import Identity
from registry.bases.library import LibraryModules
from registry.client import response_checks
from registry.client.aliases import Aliases
from registry.client.core import AnyRef, Name, parsed_name, parsed_ref, path_of, path_of_adapter
from registry.client.response_checks import check_fields, check_items, check_withdrawn
from registry.client.transport import LIST_LIMIT_BYTES, HttpResponse
from registry.client.transport.responses import Shape, parse_response
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
    def rename(self, name: Name, to: Name) -> catalog.AdapterView:
        """Rename an adapter."""
        request = access.RenameRequest(to=str(to))
        response = self._post(f"{path_of_adapter(name)}/rename", request, catalog.AdapterView)
        return response_checks.check_adapter(parsed_name(to), response)

    def delete_adapter(self, name: Name, *, dry_run: bool = False) -> catalog.DeleteResult:
        """Delete an adapter with its versions. `dry_run`: only return what needs them."""
        query = {"dry_run": "true" if dry_run else ""}
        response = self._send("DELETE", path_of_adapter(name), catalog.DeleteResult, query=query)
        return check_fields(response, name=str(name))

    def delete_version(
        self, ref: AnyRef, reason: str = "", *, force: bool = False, dry_run: bool = False
    ) -> catalog.VersionView:
        """Delete a version. `force`: although something needs it. `dry_run`: only check; the errors are the same."""
        query = {"reason": reason, "force": "true" if force else "", "dry_run": "true" if dry_run else ""}
        response = self._send_to_version("DELETE", ref, "", query=query)
        return response if dry_run else check_withdrawn(response, deleted_at=True)  # it may be deleted already

    def undelete_version(self, ref: AnyRef, reason: str) -> catalog.VersionView:
        """Restore a deleted version."""
        return self._withdraw(ref, "/undelete", reason, deleted_at=False)

    def yank(self, ref: AnyRef, reason: str, *, undo: bool = False) -> catalog.VersionView:
        """Yank a version, or undo that."""
        return self._withdraw(ref, "/unyank" if undo else "/yank", reason, yanked_at=not undo)

    def quarantine(self, ref: AnyRef, reason: str) -> catalog.VersionView:
        """Quarantine a version."""
        return self._withdraw(ref, "/quarantine", reason, quarantined_at=True)

    def unquarantine(self, ref: AnyRef, reason: str) -> catalog.VersionView:
        """End the quarantine of a version."""
        return self._withdraw(ref, "/unquarantine", reason, quarantined_at=False)

    def _withdraw(self, ref: AnyRef, path: str, reason: str, **states: bool) -> catalog.VersionView:
        return check_withdrawn(self._send_to_version("POST", ref, path, WithdrawRequest(reason=reason)), **states)

    def lineage(self, ref: AnyRef, *, down: bool = False) -> Lineage:
        """Return the ancestors and descendants of a version."""
        response = self._get(f"{path_of(ref)}/lineage", Lineage, direction="down" if down else "up")
        response_checks.check_version(parsed_ref(ref), response_checks.check_root(response))
        return response

    def lineage_of(self, *, dataset: str = "", base: str = "", down: bool = True) -> Lineage:
        """The lineage from a data set (its digest or URI) or from a base on."""
        response = self._get("/lineage", Lineage, dataset=dataset, base=base, direction="down" if down else "up")
        root = response_checks.check_root(response)
        if base:
            check_fields(root, name=self._name_of_base(base, root.name))
        return response

    # ------------------------------------------------------------ evaluation
    def check(self, request: evaluation.CheckRequest) -> evaluation.VerdictList:
        """`compat`, then `engine` for each engine, of an adapter that is not pushed."""
        return self._post("/check", request, evaluation.VerdictList)

    def verdicts(self, ref: AnyRef, engines: Sequence[str] = ()) -> evaluation.VerdictList:
        """`engine` of a version for each engine, evaluated now; without engines the stored verdicts."""
        response = self._get(f"{path_of(ref)}/verdicts", evaluation.VerdictList, engine=list(engines))
        if engines:
            response_checks.check_engines(response)
        return response_checks.check_digests(parsed_ref(ref), [verdict.subject for verdict in response.items], response)

    def report(self, ref: AnyRef, digest: Digest) -> Report:
        """The report of one of this version's verdicts."""
        response = self.connection.send("GET", f"{path_of(ref)}/reports/{digest}")
        response_checks.check_bytes(digest, response.content)
        return parse_response(response, Report)

    def norms(self, ref: AnyRef) -> evaluation.NormsView:
        """The size of the update of each module of this version."""
        return response_checks.check_version(parsed_ref(ref), self._get(f"{path_of(ref)}/norms", evaluation.NormsView))

    def reference_logprobs(self, ref: AnyRef) -> evaluation.ReferenceLogprobsView:
        """What a serving node compares with an engine's answers after loading this version."""
        response = self._get(f"{path_of(ref)}/reference-logprobs", evaluation.ReferenceLogprobsView)
        return response_checks.check_digests(parsed_ref(ref), [response.digest], response)

    def recheck_engines(self, request: evaluation.RecheckEnginesRequest) -> evaluation.RecheckEnginesPage:
        """Renew engine verdicts for a few seconds. Continue with `next_cursor`."""
        return self._maintain("/verdicts/recheck-engines", request, evaluation.RecheckEnginesPage)

    def start_campaign(self, request: CampaignRequest) -> CampaignView:
        """Queue smoke tests of the affected versions of a base."""
        view = self._post("/campaigns", request, CampaignView)
        return check_fields(view, base=self._name_of_base(request.base, view.base))

    def campaign(self, campaign_id: str, *, patient: bool = False) -> CampaignView:
        """The progress of a campaign, and what has changed so far."""
        return check_fields(self._get(_path("campaigns", campaign_id), CampaignView, patient=patient), id=campaign_id)

    # ------------------------------------------------------------ gates
    def gates(self, scope: str) -> GateList:
        """The gates of a scope: an adapter (with a slash) or a namespace."""
        return self._get(_path_of_gates(scope), GateList)

    def gate(self, scope: str, alias: str) -> GateView:
        """Return the gate of an alias."""
        return check_fields(self._get(f"{_path_of_gates(scope)}/{names.alias(alias)}", GateView), alias=alias)

    def set_gate(self, scope: str, alias: str, gate: Gate) -> GateView:
        """Set the gate of an alias."""
        path = f"{_path_of_gates(scope)}/{names.alias(alias)}"
        view = self._send("PUT", path, GateView, GateSet(gate=gate))
        return check_fields(view, alias=alias, gate=gate if view.set_on == scope else view.gate)

    def delete_gate(self, scope: str, alias: str) -> GateView:
        """Delete the gate of an alias."""
        view = self._send("DELETE", f"{_path_of_gates(scope)}/{names.alias(alias)}", GateView)
        return check_fields(view, alias=alias)

    def retention(self, scope: str) -> RetentionView:
        """The retention rule in force for a scope: an adapter (with a slash) or a namespace."""
        return self._get(f"{_path_of_scope(scope)}/retention", RetentionView)

    def set_retention(self, scope: str, rule: RetentionRule) -> RetentionView:
        """Set which versions garbage collection keeps."""
        view = self._send("PUT", f"{_path_of_scope(scope)}/retention", RetentionView, RetentionSet(rule=rule))
        return check_fields(view, set_on=scope, rule=rule)

    def delete_retention(self, scope: str) -> RetentionView:
        """Delete a retention rule."""
        return self._send("DELETE", f"{_path_of_scope(scope)}/retention", RetentionView)

    def retention_plan(self, name: Name, rule: RetentionRule | None = None, *, cursor: str = "") -> RetentionPlan:
        """One page of what garbage collection does to each version, under `rule` or under the one in force."""
        query = rule.model_dump() if rule is not None else {}
        return self._get(f"{path_of_adapter(name)}/retention/plan", RetentionPlan, **query, cursor=cursor)

    def check_gate(self, ref: AnyRef, alias: str) -> GateCheck:
        """What a version lacks for an alias now."""
        response = self._get(f"{path_of(ref)}/gates/{names.alias(alias)}", GateCheck)
        return response_checks.check_gate(parsed_ref(ref), alias, response)

    def approve(self, ref: AnyRef, alias: str, comment: str = "") -> ApprovalView:
        """Approve a version for an alias."""
        response = self._post(f"{path_of(ref)}/approvals", ApproveRequest(alias=alias, comment=comment), ApprovalView)
        response_checks.check_approval(ApproveItem(ref=str(parsed_ref(ref)), alias=alias), response)
        return response

    def approvals(self, ref: AnyRef) -> ApprovalList:
        """Return the approvals of a version."""
        response = self._get(f"{path_of(ref)}/approvals", ApprovalList)
        response_checks.check_numbers(parsed_ref(ref), response.items)
        return response

    # ------------------------------------------------------------ bases
    def bases(self, *, modules: bool = True) -> BasePage:
        """All bases by name, of as many pages as there are. Without `modules`, their specs have none."""
        page = self._get_all("/bases", BasePage, modules="" if modules else "false")
        for view in page.items:
            response_checks.check_spec(view)
        return page

    def base(self, name: str) -> BaseView:
        """Return one base by its name or alias."""
        return response_checks.check_base(name, self._get(f"/bases/{names.base_name(name)}", BaseView))

    def add_base(self, request: BaseAdd) -> BaseView:
        """Register a base model."""
        view = response_checks.check_spec(self._post("/bases", request, BaseView))
        return check_fields(view, name=request.spec.name, fingerprint=request.spec.fingerprint)

    def set_base_aliases(self, name: str, aliases: Sequence[str]) -> BaseView:
        """Set the aliases of a base."""
        view = self._send("PUT", f"{_path_of_base(name)}/aliases", BaseView, BaseAliases(aliases=list(aliases)))
        return check_fields(response_checks.check_spec(view), aliases=sorted(set(aliases) - {view.name}))

    def delete_base(self, name: str) -> catalog.DeleteResult:
        """Delete a base that nothing uses."""
        return self._send("DELETE", _path_of_base(name), catalog.DeleteResult)

    def identify_base(self, name: str, identity: Identity) -> BaseView:
        """Set which weights a base has. Possible once."""
        request = IdentityRequest(identity=identity)
        return response_checks.check_base(name, self._send("PUT", f"{_path_of_base(name)}/identity", BaseView, request))

    def set_base_modules(self, name: str, modules: LibraryModules) -> BaseView:
        """Set the modules of a base as a library here builds them. Those of a newer version stay."""
        request = ModulesRequest(modules=modules)
        return response_checks.check_base(name, self._send("PUT", f"{_path_of_base(name)}/modules", BaseView, request))

    def similarity(self, name: str, identity: Identity) -> Similarity:
        """How the weights with this identity are related to those of a base."""
        return self._post(f"{_path_of_base(name)}/similarity", IdentityRequest(identity=identity), Similarity)

    def set_thresholds(self, base: str, thresholds: dict[str, float]) -> BaseView:
        """Set the thresholds of smoke tests on this base; the defaults apply for the others."""
        request = ThresholdsRequest(thresholds=thresholds)
        view = self._send("PUT", f"{_path_of_base(base)}/thresholds", BaseView, request)
        return response_checks.check_base(base, view)

    # ------------------------------------------------------------ serving
    def desired_state(
        self, base: str, alias: str, *, engine: str = "", since: str = "", wait: int = 0, after: str = "",
        limit: int | None = None,
    ) -> serving.DesiredState:  # fmt: skip
        """What the alias of every adapter of the base points at; with `since` and `wait`, once that has changed.

        With `limit`, a page of it (`registry.serving.desired_state` reads all of them).
        """
        path = f"{_path_of_base(base)}/adapters"
        response = self._get(
            path, serving.DesiredState, limit_bytes=LIST_LIMIT_BYTES, alias=alias, engine=engine, since=since,
            wait=wait or "", after=after, limit=limit,
        )  # fmt: skip
        return response_checks.check_desired_state(self._name_of_base(base, response.base), alias, response)

    def _name_of_base(self, base: str, actual: str) -> str:
        """The name of a base that a request named, perhaps by an alias. `actual`: as the response names it."""
        return base if actual == base else self.base(base).name

    def engine_settings(
        self, base: str, engines: Sequence[str], *, slots: int | None = None, cursor: str = "", limit: int | None = None
    ) -> evaluation.EngineSettingsList:
        """What to set so that these engines serve the newest versions of a page of the base's adapters."""
        response = self._get(
            "/engine-settings", evaluation.EngineSettingsList, base=str(names.base_name(base)), engine=list(engines),
            slots=slots, cursor=cursor, limit=limit,
        )  # fmt: skip
        return check_fields(response, base=self._name_of_base(base, response.base))

    def report_node(self, node: str, engine: str, report: serving.NodeReport) -> serving.ReportAccepted:
        """Report everything that this engine on this node holds and serves. Renews the lease."""
        path = _path("fleet", "nodes", names.node_name(node), names.node_name(engine))
        response = self._send("PUT", path, serving.ReportAccepted, report)
        response_checks.check_unknown(report, response)
        return response

    def nodes(
        self, *, base: str = "", alias: str = "", node: str = "", adapter: str = "", cursor: str = "",
        limit: int | None = None,
    ) -> serving.FleetNodes:  # fmt: skip
        """One page of nodes; the first has the convergence of all."""
        page = self._get(
            "/fleet/nodes", serving.FleetNodes, base=base, alias=alias, node=node, adapter=adapter, cursor=cursor,
            limit=limit,
        )  # fmt: skip
        return check_items(page, node=node)

    def all_nodes(self, **search: str) -> serving.FleetNodes:
        """All pages of `nodes` as one."""
        nodes = self._get_all("/fleet/nodes", serving.FleetNodes, **search, limit=NODES_OF_PAGE)
        return check_items(nodes, node=search.get("node", ""))

    # ------------------------------------------------------------ jobs
    def submit(self, request: JobSubmit) -> Job:
        """Submit a job."""
        return response_checks.check_submitted(request, self._post("/jobs", request, Job))

    def submit_smoke_test(self, ref: AnyRef) -> Job:
        """Have a worker test a version. An equal job that is queued or running is returned instead of a second one."""
        return self.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref=str(parsed_ref(ref))))

    def jobs(
        self, *, state: str = "", kind: str = "", ref: str = "", cursor: str = "", limit: int | None = None,
        count: bool | None = None,
    ) -> JobPage:  # fmt: skip
        """Return one page of jobs; with `count` also how many there are."""
        page = self._get("/jobs", JobPage, state=state, kind=kind, ref=ref, cursor=cursor, limit=limit, count=count)
        check_items(page, kind=kind, state=state)
        for job in page.items if ref else ():
            response_checks.check_subject(parsed_ref(ref), job)
        return page

    def job(self, job_id: str, *, patient: bool = False) -> Job:
        """Return one job. `patient`: wait for a registry that restarts."""
        return response_checks.check_job(job_id, self._get(_path("jobs", job_id), Job, patient=patient))

    def queue_position(self, job_id: str) -> QueuePosition:
        """What a queued job waits for."""
        return self._get(_path("jobs", job_id, "queue"), QueuePosition)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job."""
        return response_checks.check_job(job_id, self._send("POST", _path("jobs", job_id, "cancel"), Job))

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
        return self.connection.send("POST", "/jobs/claim", json=request.model_dump(mode="json"))

    def renew(self, job_id: str, request: RenewRequest) -> Lease:
        """Renew the lease of a job."""
        return check_fields(self._post(_path("jobs", job_id, "renew"), request, Lease), token=request.lease_token)

    def finish(self, job_id: str, request: FinishRequest) -> Job:
        """Finish a job with its result."""
        return response_checks.check_job(job_id, self._post(_path("jobs", job_id, "finish"), request, Job))

    def fail(self, job_id: str, request: FailRequest) -> Job:
        """Report that a job failed."""
        return response_checks.check_job(job_id, self._post(_path("jobs", job_id, "fail"), request, Job))

    # ------------------------------------------------------------ namespaces and trusted publishers
    def namespaces(self, *, cursor: str = "", limit: int | None = None) -> access.NamespacePage:
        """Return the namespaces."""
        return self._get("/namespaces", access.NamespacePage, cursor=cursor, limit=limit)

    def namespace(self, name: str) -> access.NamespaceView:
        """Return one namespace."""
        return check_fields(self._get(_path("namespaces", name), access.NamespaceView), name=name)

    def create_namespace(self, name: str, *, owner: str = "") -> access.NamespaceView:
        """Create a namespace."""
        request = access.NamespaceCreate(name=name, owner=owner)
        return check_fields(self._post("/namespaces", request, access.NamespaceView), name=name)

    def change_namespace(self, name: str, request: access.NamespaceSet) -> access.NamespaceView:
        """Change a namespace."""
        view = self._send("PATCH", _path("namespaces", name), access.NamespaceView, request)
        switches = {field: value for field, value in request.model_dump().items() if isinstance(value, bool)}
        return check_fields(view, name=name, **switches)

    def delete_namespace(self, name: str) -> catalog.DeleteResult:
        """Delete an empty namespace."""
        return check_fields(self._send("DELETE", _path("namespaces", name), catalog.DeleteResult), name=name)

    def grant_role(self, name: str, subject: str, role: str) -> access.NamespaceView:
        """Grant a role in a namespace."""
        request = access.RoleGrant(role=role)
        view = self._send("PUT", _path("namespaces", name, "roles", subject), access.NamespaceView, request)
        return response_checks.check_role(name, subject, role, view)

    def revoke_role(self, name: str, subject: str) -> access.NamespaceView:
        """Revoke a role in a namespace."""
        view = self._send("DELETE", _path("namespaces", name, "roles", subject), access.NamespaceView)
        return response_checks.check_role(name, subject, None, view)

    def publishers(self, name: Name) -> access.PublisherList:
        """Return the trusted publishers of an adapter."""
        return check_items(self._get(f"{path_of_adapter(name)}/publishers", access.PublisherList), adapter=str(name))

    def add_publisher(self, name: Name, request: access.PublisherAdd) -> access.PublisherView:
        """Add a trusted publisher."""
        view = self._post(f"{path_of_adapter(name)}/publishers", request, access.PublisherView)
        return check_fields(view, adapter=str(name), issuer=request.issuer, claims=request.claims)

    def delete_publisher(self, name: Name, publisher_id: str) -> access.PublisherView:
        """Delete a trusted publisher."""
        view = self._send("DELETE", path_of_adapter(name) + _path("publishers", publisher_id), access.PublisherView)
        return check_fields(view, adapter=str(name), id=publisher_id)

    # ------------------------------------------------------------ tokens
    def whoami(self) -> access.Whoami:
        """Return who the token belongs to, and what it may do."""
        return self._get("/whoami", access.Whoami)

    def tokens(self) -> access.TokenPage:
        """All tokens that the caller may revoke, newest first, of as many pages as there are."""
        return self._get_all("/tokens", access.TokenPage)

    def create_token(self, request: access.TokenCreate) -> access.TokenCreated:
        """Create a token; its secret is in this response only."""
        created = self._post("/tokens", request, access.TokenCreated)
        rights = {name: sorted(set(getattr(request, name))) for name in ("scopes", "namespaces", "adapters")}
        check_fields(created.token, name=request.name, **rights)
        return created

    def revoke_token(self, token_id: str) -> access.TokenView:
        """Revoke a token."""
        return check_fields(self._send("DELETE", _path("tokens", token_id), access.TokenView), id=token_id)

    def rotate_token(self, token_id: str, *, keep_seconds: int = 0) -> access.TokenCreated:
        """Give a token a new secret."""
        request = access.TokenRotate(keep_seconds=keep_seconds)
        created = self._post(_path("tokens", token_id, "rotate"), request, access.TokenCreated)
        check_fields(created.token, id=token_id)
        return created

    def exchange_token(self, assertion: str, *, adapter: str = "") -> access.TokenCreated:
        """A short-lived token for an identity token. Needs no token of the registry."""
        request = access.ExchangeRequest(assertion=assertion, adapter=adapter)
        created = self._post("/tokens/exchange", request, access.TokenCreated)
        if adapter:
            check_fields(created.token, adapters=[adapter])
        return created

    # ------------------------------------------------------------ maintenance
    def health(self, *, store: bool = False) -> maintenance.Health:
        """Return what the server says about itself."""
        return self._get("/health", maintenance.Health, store="true" if store else "")

    def collect(self, request: maintenance.GcRequest) -> maintenance.GcReport:
        """Some seconds of garbage collection; go on with `next_cursor`."""
        return self._maintain("/gc", request, maintenance.GcReport)

    def fsck(self, request: maintenance.FsckRequest) -> maintenance.FsckPage:
        """Some seconds of a check, or one large blob of a deep one; go on with `next_cursor`."""
        return self._maintain("/fsck", request, maintenance.FsckPage)

    def reindex(self, request: maintenance.ReindexRequest) -> maintenance.ReindexPage:
        """Some seconds of re-indexing; go on with `next_cursor`."""
        return self._maintain("/reindex", request, maintenance.ReindexPage)

    def _maintain(self, path: str, request: Request, shape: type[Shape]) -> Shape:
        return self._post(path, request, shape, seconds=MAINTENANCE_SECONDS)


def _path_of_gates(scope: str) -> str:
    return f"{_path_of_scope(scope)}/gates"


def _path_of_scope(scope: str) -> str:
    if "/" in scope:
        return path_of_adapter(scope)
    return _path("namespaces", names.namespace(scope))


def _path_of_base(name: str) -> str:
    return f"/bases/{names.base_name(name)}"


def _path(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='*')}" for part in parts)
