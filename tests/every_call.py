"""Every method of the client is called against a real registry; what was sent, received and logged is kept.

Tests call the methods again with what was received, changed: `Call.repeat`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from sqlalchemy import update
from sqlmodel import col

from registry.api import PREFIX
from registry.api.access import NamespaceSet, PublisherAdd, TokenCreate
from registry.api.aliases import ApproveItem, DescribeItem, MoveItem
from registry.api.audit.attestations import SignRequest
from registry.api.audit.webhooks import WebhookCreate
from registry.api.bases import BaseAdd
from registry.api.catalog import MetadataChange
from registry.api.evaluation import CheckRequest, RecheckEnginesRequest
from registry.api.jobs import CampaignRequest, ClaimRequest, FailRequest, FinishRequest, JobSubmit, RenewRequest
from registry.api.maintenance import FsckRequest, GcRequest, ReindexRequest
from registry.api.operations.access import CHANGE_NAMESPACE
from registry.api.operations.operation import Operation
from registry.api.operations.table import OPERATIONS
from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.api.transfer import CommitItem, PushItem
from registry.attestations import models
from registry.attestations.keys import PrivateKey
from registry.bases.library import LibraryModules
from registry.client.aliases import Aliases, Groups
from registry.client.audit import Audit
from registry.client.core import Versions
from registry.client.registry import Registry
from registry.digest import Digest
from registry.evaluation.gates import Gate
from registry.evaluation.reference_logprobs import Prompt, ReferenceLogprobs
from registry.jobs import Kind
from registry.server.catalog import refs
from registry.server.catalog.refs import StoredBase
from registry.server.database import db
from registry.server.database.models import VerdictRow
from registry.server.database.models.owner_rules import DeliveryRow
from registry.server.storage.blobs import key_of, write_blob
from registry.versions.manifest import Edge, Relation
from registry.versions.provenance import Code, Dataset, Provenance, Run
from registry.versions.retention import RetentionRule
from tests import samples
from tests.access.identity import ISSUER, Provider
from tests.base_specs import spec_of
from tests.harness import URL, Harness, upload
from tests.httpx_transports import HttpxTransport
from tests.identities import make_identity, values
from tests.maintenance import orphan
from tests.memory_blobs import MemoryBlobs

CLIENTS = (Versions, Aliases, Groups, Registry, Audit)
CALLED_LATER = frozenset(
    {"check_health", "check_store", "collect_garbage", "rebuild_index", "reevaluate_verdicts", "set_base_modules"}
)
NOT_CALLED = {
    "Versions.call": "the others call it",
    "Versions.call_all": "the same",
    "Versions.close": "sends nothing",
    "Versions.read": "bytes of a link, verified where they arrive",
}


def row_of(method: str, path: str) -> Operation[Any, Any]:
    """The row of the table of operations for a request."""
    return max(
        (row for row in OPERATIONS.values() if row.method == method and re.fullmatch(_pattern(row.path), path)),
        key=lambda row: len(row.path),
    )


def _pattern(path: str) -> str:
    return PREFIX + re.sub(r"\{\w+\}", "[^/]+", re.sub(r"\{\w+:path\}", ".+", path))


@dataclass
class Exchange:
    """One request and its response."""

    request: httpx.Request
    response: httpx.Response

    @property
    def row(self) -> Operation[Any, Any]:
        return row_of(self.request.method, self.request.url.path)

    @property
    def shape(self) -> Any:
        """The schema of the response's JSON; None for other bodies."""
        is_document = not self.response.is_error and self.response.status_code != 204
        return self.row.response if is_document and hasattr(self.row.response, "model_fields") else None

    @property
    def sent(self) -> Any:
        """The JSON of the request; None without."""
        is_json = self.request.headers.get("Content-Type") == "application/json"
        return json.loads(self.request.content) if is_json else None

    @property
    def received(self) -> Any:
        return json.loads(self.response.content)


class RecordingTransport(HttpxTransport):
    """Responds with `canned` responses as long as there are some, then with those of the harness, and keeps these."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.exchanges: list[Exchange] = []
        self.canned: Iterator[httpx.Response] | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.canned is not None and (response := next(self.canned, None)) is not None:
            return response
        request.read()
        response = self.harness.transport.handle_request(request)
        response.read()
        self.exchanges.append(Exchange(request, response))
        return response


@dataclass
class Call:
    """One call of one method, and the events that it made."""

    name: str
    method: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    transport: RecordingTransport
    exchanges: list[Exchange] = field(default_factory=list)
    result: Any = None
    events: list[str] = field(default_factory=list)
    is_repeated: bool = False

    def run(self) -> Any:
        result = self.method(*self.arguments, **self.options)
        return list(result) if isinstance(result, Iterator) else result

    def repeat(self, documents: Sequence[Any]) -> Any:
        """The same call, with these JSON documents as responses; None stands for the one that was received."""
        self.transport.canned = iter(
            exchange.response if document is None else _with_json(exchange.response, document)
            for exchange, document in zip(self.exchanges, documents, strict=True)
        )
        try:
            return self.run()
        finally:
            self.transport.canned = None

    def repeat_changed(self, change: Callable[[Exchange], Any]) -> Any:
        """The same call with changed responses, of those that are JSON."""
        return self.repeat([change(e) if e.shape is not None else None for e in self.exchanges])


def _with_json(response: httpx.Response, document: Any) -> httpx.Response:
    headers = {name: value for name, value in response.headers.items() if name.lower() != "content-length"}
    return httpx.Response(response.status_code, headers=headers, content=json.dumps(document).encode())


def methods() -> set[str]:
    """The public methods of the client that send requests."""
    names = {f"{client.__name__}.{name}" for client in CLIENTS for name, value in vars(client).items()
             if inspect.isfunction(value) and not name.startswith("_")}  # fmt: skip
    return names - set(NOT_CALLED)


class Recorder:
    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.transport = RecordingTransport(harness)
        self.registry = Registry(URL, harness.secret, self.transport)
        self.calls: list[Call] = []
        self._last_event = 0

    def __call__(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a method, and keep the call."""
        call = Call(method.__qualname__, method, arguments, options, self.transport)
        self._read_events()
        self.transport.exchanges = call.exchanges
        call.result = call.run()
        self.transport.exchanges = []
        call.events = self._read_events()
        self.calls.append(call)
        return call.result

    def twice(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a method whose second call changes nothing; return the result of the first."""
        result = self(method, *arguments, **options)
        self.again(method, *arguments, **options)
        return result

    def again(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """A call that changes nothing: an earlier one did."""
        self(method, *arguments, **options)
        self.calls[-1].is_repeated = True

    def _read_events(self) -> list[str]:
        """Type and object of each new event. Those of look-ups are of no change."""
        events = list(Audit(self.harness.admin).events(self._last_event))
        self._last_event = events[-1].seq if events else self._last_event
        return [f"{e.action} {e.object}" for e in events if not e.action.startswith(("access.", "bytes."))]


def record(harness: Harness, provider: Provider) -> list[Call]:
    """Every method of the client, each at least once, with a response that has as much as possible in it."""
    call = Recorder(harness)
    _bases(call)
    _push(call)
    _jobs(call)
    _describe(call)
    _aliases(call)
    _gates(call)
    _serve(call)
    _read(call)
    _withdraw(call)
    _namespaces(call, provider)
    _log(call)
    _others(call)
    _maintain(call)
    return call.calls


def _bases(call: Recorder) -> None:
    registry = call.registry
    spec = spec_of(samples.llama())
    call.harness.bases["tiny-llama"] = spec
    call(registry.add_base, BaseAdd(spec=spec, source="hub/tiny"))
    call(registry.set_base_aliases, "tiny-llama", ["hub/tiny"])
    call.twice(registry.identify_base, "tiny-llama", make_identity(values()))
    tuned = BaseAdd(spec=spec_of(samples.llama("tuned")), identity=make_identity(values()))
    call(registry.add_base, tuned)
    call(registry.similarity, "tiny-llama", make_identity(values()))
    call(registry.set_thresholds, "tiny-llama", {"golden_margin_nats": 0.5})
    call(registry.bases)
    call(registry.base, "hub/tiny")
    call(registry.add_base, BaseAdd(spec=spec_of(samples.llama("unused"))))
    call(registry.delete_base, "unused")


def _push(call: Recorder) -> None:
    registry, harness = call.registry, call.harness
    provenance = Provenance(
        datasets=(Dataset(uri="https://data.example/support", digest=Digest("sha256:" + "1" * 64)),),
        run=Run(tool="mlflow", id="7"), code=Code(repository="https://code.example/train", commit="a" * 40),
    )  # fmt: skip
    parents: tuple[Edge, ...] = ()
    for number in (1, 2):
        files = harness.files()
        manifest = harness.manifest(files, parents=parents).model_copy(update={"provenance": provenance})
        item = PushItem(name="acme/support", manifest=manifest, message=f"number {number}")
        broken = PushItem(name="acme/support", manifest=manifest, base="absent")
        (plan, _) = call(registry.plan_pushes, [item, broken] if number == 1 else [item, item])
        upload(registry, plan, files)
        (pushed,) = call.twice(registry.commit_pushes, [CommitItem(push_id=plan.push_id)])
        parents = (Edge(relation=Relation.CONTINUED, digest=pushed.version.digest, name="acme/support@1"),)
    call(registry.plan_pulls, ["acme/support@1", "acme/support", "acme/absent"])


def _jobs(call: Recorder) -> None:
    registry, harness = call.registry, call.harness
    claimed = call(registry.claim, ClaimRequest(worker="w", bases=["tiny-llama"]))
    token = claimed.lease.token
    call(registry.renew, claimed.job.id, RenewRequest(lease_token=token, progress="loading"))
    prompt = Prompt(tokens=(1, 2, 3), adapter=(-0.5, -1.5), base=(-2.0, -3.0))
    report = harness.report(claimed.subject.digest, "tiny-llama").model_copy(
        update={"reference_logprobs": ReferenceLogprobs(prompts=(prompt,))}
    )
    call.twice(registry.finish, claimed.job.id, FinishRequest(lease_token=token, report=report))
    job = call(registry.submit, JobSubmit(kind=Kind.SMOKE_TEST, ref="acme/support@1"))
    call(registry.job, claimed.job.id)
    call(registry.queue_position, job.id)
    call(registry.jobs, ref="acme/support@1", kind="smoke-test", count=True)
    call.twice(registry.cancel, job.id)
    call(registry.submit_smoke_test, "acme/support@2")
    other = call(registry.claim, ClaimRequest(worker="w"))
    call(registry.fail, other.job.id, FailRequest(lease_token=other.lease.token, error="no", final=True))
    call(registry.claim, ClaimRequest(worker="w", bases=["none"]))
    campaign = call(registry.start_campaign, CampaignRequest(base="tiny-llama"))
    call(registry.campaign, campaign.id)


def _describe(call: Recorder) -> None:
    registry, groups = call.registry, Groups(call.registry)
    change = MetadataChange(description="answers", tags={"team": "nlp"}, links={"card": "https://example.org/card"})
    call(registry.describe, "acme/support@1", change)
    call.again(registry.describe, f"acme/support@{registry.version('acme/support@1').digest}", change)
    call.twice(registry.describe_adapter, "acme/support", change)
    items = [DescribeItem(subject="acme/support@2", tags={"reviewed": ""}), DescribeItem(subject="acme/absent@1")]
    call.twice(groups.change_metadata, items)


def _aliases(call: Recorder) -> None:
    registry, groups = call.registry, Groups(call.registry)
    call(registry.promote, "acme/support", "canary", "1", generation=0)
    first, second = (str(registry.version(f"acme/support@{number}").digest) for number in (1, 2))
    call(registry.promote, "acme/support", "canary", second, generation=1, reason="better")
    call(registry.rollback, "acme/support", "canary")
    call(registry.rollback, "acme/support", "canary", to="2")
    call(registry.rollback, "acme/support", "canary", to=first)
    call(registry.delete_alias, "acme/support", "canary", generation=5, reason="not used")
    call(registry.promote, "acme/support", "canary", "1", generation=0)
    call(registry.aliases, "acme/support")
    call(registry.alias, "acme/support", "canary")
    call(registry.generation, "acme/support", "canary")
    call(registry.history, "acme/support", alias="canary")
    call(registry.namespace_history, "acme", alias="canary")
    moves = [MoveItem(name="acme/support", alias="beta", version="2")]
    call(groups.move_aliases, [*moves, MoveItem(name="acme/absent", alias="beta", version="1")])
    call.again(groups.move_aliases, [MoveItem(name="acme/support", alias="beta", version=second)])
    call(groups.moves, group_id=groups.group_id, alias="beta")
    call(groups.change_together, moves, [DescribeItem(subject="acme/support@1", tags={"team": "b"})])


def _gates(call: Recorder) -> None:
    registry, groups = call.registry, Groups(call.registry)
    for scope in ("acme", "acme/support"):
        call(registry.set_gate, scope, "beta", Gate(approvals=1))
        call(registry.gates, scope)
        call(registry.gate, scope, "beta")
        call(registry.set_retention, scope, RetentionRule(keep_newest=9))
        call(registry.retention, scope)
    call(registry.retention_plan, "acme/support")
    call(registry.check_gate, "acme/support@2", "beta")
    call.twice(registry.approve, "acme/support@1", "beta", "read it")
    call(registry.approvals, "acme/support@1")
    items = [ApproveItem(ref="acme/support@2", alias="beta"), ApproveItem(ref="acme/absent@2", alias="beta")]
    call.twice(groups.approve_versions, items)
    for scope in ("acme", "acme/support"):
        call(registry.delete_gate, scope, "beta")
        call(registry.delete_retention, scope)


def _serve(call: Recorder) -> None:
    registry = call.registry
    version = registry.version("acme/support@1")
    slot = SlotReport(adapter=version.name, digest=version.digest, served_name="s", state=SlotState.SERVING)
    report = NodeReport(base="tiny-llama", alias="canary", slots=[slot], lease_seconds=3600)
    call.twice(registry.report_node, "gpu-1", "vllm", report)
    call(registry.nodes, node="gpu-1")
    call(registry.all_nodes, base="tiny-llama")
    call(registry.desired_state, "tiny-llama", "canary", engine="vllm==0.33.0")
    call(registry.desired_state, "hub/tiny", "canary")
    call(registry.next_desired_state, "tiny-llama", "canary", since="another", wait=50)
    call(registry.engine_settings, "tiny-llama", ["vllm==0.33.0"])


def _read(call: Recorder) -> None:
    registry = call.registry
    digest = registry.version("acme/support@2").digest  # it has a smoke test
    call(registry.adapters, base="tiny-llama", limit=5)
    call(registry.adapter, "acme/support")
    call(registry.versions, "acme/support", count=True)
    for ref in ("acme/support@1", f"acme/support@{digest}", "acme/support:canary"):
        call(registry.version, ref)
        call(registry.resolve, ref)
    call(registry.lineage, "acme/support@2")
    call(registry.lineage_of, base="tiny-llama")
    files = call.harness.files()
    header = files["adapter_model.safetensors"]
    call(
        registry.check,
        CheckRequest(
            base="tiny-llama", config=files["adapter_config.json"].decode(), engines=["vllm==0.33.0"],
            header=header[8 : 8 + int.from_bytes(header[:8], "little")].decode(), size_bytes=len(header),
        ),
    )  # fmt: skip
    stored = call(registry.verdicts, f"acme/support@{digest}")
    call(registry.verdicts, "acme/support@1", ["vllm==0.33.0"])
    smoke = next(verdict for verdict in stored.items if verdict.report is not None)
    call(registry.report, f"acme/support@{digest}", smoke.report)
    call(registry.norms, "acme/support@1")
    call(registry.norms, f"acme/support@{digest}")
    call(registry.reference_logprobs, f"acme/support@{digest}")


def _withdraw(call: Recorder) -> None:
    registry = call.registry
    by_digest = f"acme/old@{call.harness.push('acme/old').version.digest}"
    call.harness.push("acme/old")
    for change, reason, options in (
        (registry.quarantine, "an alarm", {}),
        (registry.unquarantine, "a false alarm", {}),
        (registry.yank, "wrong", {}),
        (registry.yank, "right", {"undo": True}),
        (registry.delete_version, "old", {}),
        (registry.undelete_version, "needed", {}),
    ):
        call(change, "acme/old@1", reason, **options)
        call.again(change, by_digest, reason, **options)
    call(registry.delete_version, "acme/old@1", dry_run=True)
    call(registry.rename, "acme/old", "acme/older")
    call(registry.delete_adapter, "acme/older", dry_run=True)
    call(registry.delete_adapter, "acme/older", "gone")
    call(registry.release_name, "acme/older", "a typo")
    call(registry.undelete_adapter, "acme/older", "back")


def _namespaces(call: Recorder, provider: Provider) -> None:
    registry = call.registry
    call(registry.create_namespace, "globex", owner="ann@example.org")
    rules = set(NamespaceSet.model_fields) & set(CHANGE_NAMESPACE.echo)
    call.twice(registry.change_namespace, "globex", NamespaceSet(**dict.fromkeys(rules, True)))
    call(registry.grant_role, "globex", "bob@example.org", "pusher", aliases=["canary"])
    call(registry.namespace, "globex")
    call(registry.namespaces)
    call(registry.revoke_role, "globex", "bob@example.org", "pusher")
    call(registry.revoke_role, "globex", "bob@example.org")
    call(registry.delete_namespace, "globex")
    rule = PublisherAdd(issuer=ISSUER, claims={"repository": "acme/train"}, aliases=["canary"])
    publisher = call(registry.add_publisher, "acme/support", rule)
    call(registry.publishers, "acme/support")
    call(registry.exchange_token, provider.sign(), adapter="acme/support")
    call(registry.delete_publisher, "acme/support", publisher.id)
    call(registry.whoami)
    issued = call(registry.create_token, TokenCreate(name="ci", scopes=["pull"], namespaces=["acme"]))
    rights = {"scopes": ["promote", "push"], "adapters": ["acme/support"], "aliases": ["canary"]}
    call(registry.create_token, TokenCreate(name="ci of one", **rights))
    call(registry.tokens)
    call(registry.rotate_token, issued.token.id)
    call.twice(registry.revoke_token, issued.token.id)


def _log(call: Recorder) -> None:
    registry, audit = call.registry, Audit(call.registry)
    key = PrivateKey.of_seed(b"\1" * 32)
    manifest = registry.resolve("acme/support@1").manifest
    request = SignRequest(bundle=models.sign("x", manifest, key), public_key=key.public.pem)
    call.twice(audit.sign, "acme/support@1", request)
    call(audit.attestations, "acme/support@1")
    call(registry.checkpoint)
    call(registry.log_keys)
    call(registry.consistency, 1, 2)
    call(audit.proof, 1)
    call(audit.page, limit=2)
    call(audit.events)
    call(audit.tile, 0, 0, 2)
    call(audit.entries, 0, 2)
    created = call(audit.create_webhook, WebhookCreate(url="https://93.184.216.34/", namespace="acme"))
    delivery = dead_delivery(call.harness, created.webhook.id)
    call(audit.webhooks)
    call(audit.deliveries, created.webhook.id)
    call(audit.retry_delivery, created.webhook.id, delivery)
    call(audit.delete_webhook, created.webhook.id)


def _others(call: Recorder) -> None:
    """Rows that nothing above has called, such as those of a new resource: their examples, about what is there."""
    called = {exchange.row.id for made in call.calls for exchange in made.exchanges}
    there = {"namespace": "acme", "name": "support", "selector": "1", "alias": "beta", "base": "tiny-llama"}
    for row in OPERATIONS.values():
        if row.id in called | CALLED_LATER or not hasattr(row.response, "model_fields"):
            continue
        request = None if row.example is None else row.request.model_validate(row.example)
        result = call(call.registry.call, row, request, **{name: there[name] for name in row.path_names})
        there |= {f"{row.id.removeprefix('create_')}_id": result.id} if row.status == 201 else {}


def dead_delivery(harness: Harness, webhook_id: str) -> int:
    """A delivery of this webhook that was given up."""
    moment = db.now()
    with harness.session(write=True) as session:
        row = DeliveryRow(webhook_id=webhook_id, position=1, state="dead", next_at=moment, created_at=moment)
        session.add(row)
        session.flush()
        return row.id or 0


def _maintain(call: Recorder) -> None:
    """Of verdicts by old rules, a base that the database has lost, a blob that rots and is mended, unneeded bytes."""
    registry, harness = call.registry, call.harness
    call.twice(registry.set_base_modules, "tiny-llama", LibraryModules(library="transformers 5.24.0"))
    call(registry.health)
    with harness.session(write=True) as session:
        old = update(VerdictRow).where(col(VerdictRow.check) == "engine").values(made_by={"rules": "older"})
        session.connection().execute(old)
    call.twice(registry.recheck_engines, RecheckEnginesRequest())
    spare = StoredBase(created_at=db.now(), created_by="x", spec=spec_of(samples.llama("spare")), source="").to_bytes()
    write_blob(harness.blobs, f"{refs.BASES}{Digest.of(spare).hex}", [spare], limit_bytes=len(spare))
    call.twice(registry.reindex, ReindexRequest())
    files = harness.files()
    harness.push("other/left", files)
    good = files[samples.WEIGHTS]
    for data in (good[:-1] + b"?", good):
        assert isinstance(harness.blobs, MemoryBlobs)
        harness.blobs.insert(key_of(Digest.of(good)), data)
        call.twice(registry.fsck, FsckRequest(deep=True))
    orphan(harness)
    call.twice(registry.collect, GcRequest(grace_seconds=0))
