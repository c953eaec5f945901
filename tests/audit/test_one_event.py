"""Every change has exactly one event: each mutating route is called, or is listed as changing nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import update
from sqlmodel import col

from registry.api.access import NamespaceSet, PublisherAdd, TokenCreate
from registry.api.aliases import ApproveItem, DescribeItem, MoveItem
from registry.api.audit.attestations import SignRequest
from registry.api.audit.webhooks import WebhookCreate
from registry.api.catalog import MetadataChange
from registry.api.evaluation import RecheckEnginesRequest
from registry.api.jobs import (
    CampaignRequest,
    Claimed,
    ClaimRequest,
    FailRequest,
    FinishRequest,
    JobSubmit,
    RenewRequest,
)
from registry.api.maintenance import ReindexRequest
from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.api.transfer import PushRequest
from registry.attestations import models
from registry.attestations.keys import PrivateKey
from registry.bases.library import LibraryModules
from registry.client.aliases import Groups
from registry.client.audit import Audit
from registry.digest import Digest
from registry.errors import Unauthenticated
from registry.evaluation.gates import Gate
from registry.events import EventType
from registry.jobs import Kind
from registry.server import app
from registry.server.catalog import refs
from registry.server.catalog.refs import StoredBase
from registry.server.database import db
from registry.server.database.models import VerdictRow
from registry.server.database.models.owner_rules import DeliveryRow
from registry.server.storage.blobs import key_of, write_blob
from registry.versions.retention import RetentionRule
from tests import samples
from tests.access.identity import ISSUER, Provider
from tests.base_specs import spec_of
from tests.bulk import plan_push
from tests.harness import Harness
from tests.identities import make_identity, values
from tests.maintenance import collect, findings
from tests.memory_blobs import MemoryBlobs

A = "/adapters/{namespace}/{name}"
W = "/webhooks/{webhook_id}"
RETRY = f"POST {W}/deliveries/{{delivery_id}}/retry"
NOT_CHANGES = {
    "POST /pushes": "a plan holds bytes and changes nothing that anybody sees",
    "POST /pulls": "it only reads",
    "PUT /links/{key:path}": "staged bytes are nobody's yet",
    "POST /jobs/claim": "a lease is a moment's; what comes of it is an event",
    "POST /jobs/{job_id}/renew": "the same",
    "POST /bases/{base:path}/similarity": "it only reads",
    "POST /check": "it only reads",
}


@pytest.fixture
def provider(tmp_path: Path) -> Provider:
    return Provider(tmp_path)


@pytest.fixture
def harness(database_url: str, provider: Provider) -> Iterator[Harness]:
    with Harness(database_url, issuers=provider.settings, engines="vllm==0.33.0") as harness:
        yield harness


Result = TypeVar("Result")


class EventRecorder:
    """Does one thing through the API and keeps what events it made."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.by_route: dict[str, Counter[str]] = {}
        self._last = self._events()[0]

    def _events(self, after: int = 0) -> tuple[int, list[str]]:
        items = list(Audit(self.harness.admin).events(after))
        lines = [f"{item.action} {item.object}" for item in items if not item.action.startswith(("access.", "bytes."))]
        return (items[-1].seq if items else after), lines

    def __call__(self, route: str, act: Callable[[], Result]) -> Result:
        result = act()
        self._last, lines = self._events(self._last)
        assert len(lines) == len(set(lines)), f"{route}: one change tells something twice: {lines}"
        self.by_route.setdefault(route, Counter()).update(lines)
        return result


def test_each_mutating_route_adds_exactly_one_event(harness: Harness, provider: Provider) -> None:
    admin, call, audit = harness.admin, EventRecorder(harness), Audit(harness.admin)
    call("POST /bases", harness.add_base)
    call("POST /namespaces", lambda: admin.create_namespace("acme", owner="user:ann"))
    call("PATCH /namespaces/{namespace}", lambda: admin.change_namespace("acme", NamespaceSet(public=True)))
    call("PUT /namespaces/{namespace}/roles/{subject:path}", lambda: admin.grant_role("acme", "user:bob", "reader"))
    call("DELETE /namespaces/{namespace}/roles/{subject:path}", lambda: admin.revoke_role("acme", "user:bob"))
    files = harness.files()
    call("POST /pushes/commit", lambda: harness.push("acme/support", files))
    call("POST /pushes/commit", lambda: harness.push("acme/support", files))
    call("POST /pushes/commit", lambda: harness.push("acme/support"))
    claimed = _claimed(call)
    token = claimed.lease.token
    call("POST /jobs/{job_id}/renew", lambda: admin.renew(claimed.job.id, RenewRequest(lease_token=token)))
    report = harness.report(claimed.job.subject_digest or Digest.of(b""), claimed.job.base)
    finish = FinishRequest(lease_token=token, report=report)
    for _ in range(2):
        call("POST /jobs/{job_id}/finish", lambda: admin.finish(claimed.job.id, finish))
    other = _claimed(call)
    fail = FailRequest(lease_token=other.lease.token, error="no", final=True)
    call("POST /jobs/{job_id}/fail", lambda: admin.fail(other.job.id, fail))
    job = call("POST /jobs", lambda: admin.submit(JobSubmit(kind=Kind.SMOKE_TEST, ref="acme/support@1")))
    for _ in range(2):
        call("POST /jobs/{job_id}/cancel", lambda: admin.cancel(job.id))
    call(f"PUT {A}/aliases/{{alias}}", lambda: admin.promote("acme/support", "prod", "1", generation=0))
    call(f"PUT {A}/aliases/{{alias}}", lambda: admin.promote("acme/support", "canary", "1", generation=0))
    call(f"PUT {A}/aliases/{{alias}}", lambda: admin.promote("acme/support", "canary", "2", generation=1))
    call(f"POST {A}/aliases/{{alias}}/rollback", lambda: admin.rollback("acme/support", "canary"))
    call(f"DELETE {A}/aliases/{{alias}}", lambda: admin.delete_alias("acme/support", "canary", generation=3))
    call(f"PUT {A}/aliases/{{alias}}", lambda: admin.promote("acme/support", "canary", "1", generation=0))
    _a_node_reports(call)
    _about_the_base(call)
    _about_gates_and_retention(call)
    call(f"POST {A}/versions/{{selector}}/quarantine", lambda: admin.quarantine("acme/support@1", "an alarm"))
    call(f"POST {A}/versions/{{selector}}/unquarantine", lambda: admin.unquarantine("acme/support@1", "a false alarm"))
    key = PrivateKey.of_seed(b"\1" * 32)
    signed = models.sign("x", admin.resolve("acme/support@1").manifest, key)
    request = SignRequest(bundle=signed, public_key=key.public.pem)
    for _ in range(2):
        call(f"POST {A}/versions/{{selector}}/attestations", lambda: audit.sign("acme/support@1", request))
    for _ in range(2):
        call(f"POST {A}/versions/{{selector}}/yank", lambda: admin.yank("acme/support@2", "wrong"))
    for _ in range(2):
        call(f"POST {A}/versions/{{selector}}/unyank", lambda: admin.yank("acme/support@2", "no", undo=True))
    _describe(call)
    rule = PublisherAdd(issuer=ISSUER, claims={"repository": "acme/train"})
    rule_ = call(f"POST {A}/publishers", lambda: admin.add_publisher("acme/support", rule))
    _a_job_exchanges(call, provider)
    call(f"DELETE {A}/publishers/{{publisher_id}}", lambda: admin.delete_publisher("acme/support", rule_.id))
    call(f"POST {A}/rename", lambda: admin.rename("acme/support", "acme/helper"))
    call(f"DELETE {A}", lambda: admin.delete_adapter("acme/helper"))
    call("DELETE /namespaces/{namespace}", lambda: admin.delete_namespace("acme"))
    _about_tokens_and_webhooks(call, audit)
    call("POST /check", lambda: None)
    call("POST /pushes", lambda: plan_push(admin, "fresh/one", PushRequest(manifest=harness.manifest(files))))
    _maintain(call)
    _nothing_is_left_out(call)


def _groups(call: EventRecorder) -> None:
    groups = Groups(call.harness.admin)
    tagged = DescribeItem(subject="acme/support@2", tags={"reviewed": ""})
    for _ in range(2):
        call(
            "POST /moves",
            lambda: groups.move_aliases([MoveItem(name="acme/support", alias="canary", version="2")]),
        )
        call("POST /approvals", lambda: groups.approve_versions([ApproveItem(ref="acme/support@2", alias="beta")]))
        call("POST /metadata", lambda: groups.change_metadata([tagged]))


def _claimed(call: EventRecorder) -> Claimed:
    claimed = call("POST /jobs/claim", lambda: call.harness.admin.claim(ClaimRequest(worker="w")))
    assert claimed is not None
    return claimed


def _about_tokens_and_webhooks(call: EventRecorder, audit: Audit) -> None:
    harness, admin = call.harness, call.harness.admin
    issued = call("POST /tokens", lambda: admin.create_token(TokenCreate(name="ci", scopes=["pull"])))
    call("POST /tokens/{token_id}/rotate", lambda: admin.rotate_token(issued.token.id))
    for _ in range(2):
        call("DELETE /tokens/{token_id}", lambda: admin.revoke_token(issued.token.id))
    hook = call("POST /webhooks", lambda: audit.create_webhook(WebhookCreate(url="https://93.184.216.34/")))
    call(RETRY, lambda: audit.retry_delivery(hook.webhook.id, dead_delivery(harness, hook.webhook.id)))
    call(f"DELETE {W}", lambda: audit.delete_webhook(hook.webhook.id))


def _delete_versions(call: EventRecorder) -> None:
    admin, route = call.harness.admin, f"{A}/versions/{{selector}}"
    call("POST /pushes/commit", lambda: call.harness.push("other/left"))
    call("POST /pushes/commit", lambda: call.harness.push("other/left"))
    for _ in range(2):
        call(f"DELETE {route}", lambda: admin.delete_version("other/left@1"))
    for _ in range(2):
        call(f"POST {route}/undelete", lambda: admin.undelete_version("other/left@1", "needed"))


def _describe(call: EventRecorder) -> None:
    _groups(call)
    admin, change = call.harness.admin, MetadataChange(description="answers", tags={"team": "nlp"})
    for _ in range(2):
        call("PATCH /namespaces/{namespace}", lambda: admin.change_namespace("acme", NamespaceSet(strict=True)))
        call(
            "PATCH /namespaces/{namespace}",
            lambda: admin.change_namespace("acme", NamespaceSet(unregistered_bases=True)),
        )
        call(f"PATCH {A}/metadata", lambda: admin.describe_adapter("acme/support", change))
        call(f"PATCH {A}/versions/{{selector}}/metadata", lambda: admin.describe("acme/support@1", change))


def _a_node_reports(call: EventRecorder) -> None:
    version = call.harness.admin.version("acme/support@1")
    slot = SlotReport(adapter=version.name, digest=version.digest, served_name="s", state=SlotState.SERVING)
    report = NodeReport(base="tiny-llama", alias="prod", slots=[slot])
    for _ in range(2):
        call("PUT /fleet/nodes/{node}/{engine}", lambda: call.harness.admin.report_node("gpu-1", "vllm", report))


def _about_gates_and_retention(call: EventRecorder) -> None:
    admin = call.harness.admin
    rule_of = {"namespaces/{namespace}": "acme", A.removeprefix("/"): "acme/support"}
    for route, target in rule_of.items():
        call(f"PUT /{route}/gates/{{alias}}", partial(admin.set_gate, target, "beta", Gate(approvals=1)))
    call(f"POST {A}/versions/{{selector}}/approvals", lambda: admin.approve("acme/support@1", "beta"))
    for route, target in rule_of.items():
        call(f"PUT /{route}/retention", partial(admin.set_retention, target, RetentionRule(keep_newest=9)))
        call(f"DELETE /{route}/retention", partial(admin.delete_retention, target))
    for route, target in rule_of.items():
        call(f"DELETE /{route}/gates/{{alias}}", partial(admin.delete_gate, target, "beta"))


def _about_the_base(call: EventRecorder) -> None:
    admin = call.harness.admin
    built = LibraryModules(library="transformers 5.24.0")
    for _ in range(2):
        call("PUT /bases/{base:path}/identity", lambda: admin.identify_base("tiny-llama", make_identity(values())))
        call("PUT /bases/{base:path}/modules", lambda: admin.set_base_modules("tiny-llama", built))
    call("POST /bases/{base:path}/similarity", lambda: admin.similarity("tiny-llama", make_identity(values())))
    call("PUT /bases/{base:path}/thresholds", lambda: admin.set_thresholds("tiny-llama", {"golden_margin_nats": 0.5}))
    call("POST /campaigns", lambda: admin.start_campaign(CampaignRequest(base="tiny-llama")))
    call("POST /bases", lambda: call.harness.add_base(samples.llama("unused")))
    call("PUT /bases/{base:path}/aliases", lambda: admin.set_base_aliases("unused", ["hub/unused"]))
    call("DELETE /bases/{base:path}", lambda: admin.delete_base("unused"))


def _a_job_exchanges(call: EventRecorder, provider: Provider) -> None:
    """Once: the second time the identity token is used up."""
    assertion, outsider = provider.sign(), call.harness.client("")
    call("POST /tokens/exchange", lambda: outsider.exchange_token(assertion, adapter="acme/support"))
    with pytest.raises(Unauthenticated):
        call("POST /tokens/exchange", lambda: outsider.exchange_token(assertion, adapter="acme/support"))


def dead_delivery(harness: Harness, webhook_id: str) -> int:
    """A delivery of this webhook that was given up."""
    moment = db.now()
    with harness.session(write=True) as session:
        row = DeliveryRow(webhook_id=webhook_id, position=1, state="dead", next_at=moment, created_at=moment)
        session.add(row)
        session.flush()
        return row.id or 0


def _maintain(call: EventRecorder) -> None:
    """Old rules, a blob that rots and is mended, bytes that nobody needs, a tombstone that the database has lost."""
    _delete_versions(call)
    harness = call.harness
    files = harness.files()
    call("POST /pushes/commit", lambda: harness.push("other/left", files))
    good = files["adapter_model.safetensors"]
    blob = Digest.of(good)
    with harness.session(write=True) as session:
        old = update(VerdictRow).where(col(VerdictRow.check) == "engine").values(made_by={"rules": "older"})
        session.connection().execute(old)
    spare = StoredBase(created_at=db.now(), created_by="x", spec=spec_of(samples.llama("spare")), source="").to_bytes()
    write_blob(harness.blobs, f"{refs.BASES}{Digest.of(spare).hex}", [spare], limit_bytes=len(spare))
    for _ in range(2):
        call("POST /verdicts/recheck-engines", lambda: harness.admin.recheck_engines(RecheckEnginesRequest()))
        call("POST /reindex", lambda: harness.admin.reindex(ReindexRequest()))
    for data in (good[:-1] + b"?", good):
        assert isinstance(harness.blobs, MemoryBlobs)
        harness.blobs.insert(key_of(blob), data)
        for _ in range(2):
            call("POST /fsck", lambda: findings(harness))
    call("POST /gc", lambda: collect(harness))
    call("POST /gc", lambda: collect(harness))


def _nothing_is_left_out(call: EventRecorder) -> None:
    ours = [
        (method, path) for method, path in app.declared_scopes() if path.startswith("/api/v1/")
    ]  # the Hub's only read
    routes = {f"{method} {path.removeprefix('/api/v1')}" for method, path in ours}
    mutating = {route for route in routes if not route.startswith(("GET", "HEAD"))}
    assert mutating - set(call.by_route) - set(NOT_CHANGES) == set()
    for route, lines in call.by_route.items():
        assert bool(lines) == (route not in NOT_CHANGES), (route, lines)
    pushed = call.by_route["POST /pushes/commit"]
    versions = {logged: count for logged, count in pushed.items() if logged.startswith("version.push")}
    assert versions == dict.fromkeys(
        [
            f"version.push {v}"
            for v in ("acme/support@1", "acme/support@2", "other/left@1", "other/left@2", "other/left@3")
        ],
        1,
    )
    assert call.by_route["PUT /fleet/nodes/{node}/{engine}"] == {"version.serve acme/support@1": 1}
    twice = {"POST /jobs/{job_id}/finish": "job.finish", f"POST {A}/versions/{{selector}}/yank": "version.yank"}
    twice[f"POST {A}/versions/{{selector}}/unyank"] = "version.unyank"
    once = {
        "PUT /bases/{base:path}/identity": {"base.identify tiny-llama"},
        "PUT /bases/{base:path}/modules": {"base.modules tiny-llama"},
        "POST /verdicts/recheck-engines": {"engines.recheck verdicts"},
        "POST /reindex": {"base.reindex spare"},
        "POST /gc": {"gc.run blobs"},
    }
    for route, events in once.items():
        assert call.by_route[route] == dict.fromkeys(events, 1), route
    assert [line.split()[0] for line in call.by_route["POST /fsck"]] == ["blob.damage", "blob.repair"]
    for route, logged in twice.items():
        assert [count for line, count in call.by_route[route].items() if line.startswith(logged)] == [1], (
            "twice means once"
        )
    actions = {line.split()[0] for lines in call.by_route.values() for line in lines}
    assert actions - set(EventType) == set()
