"""How a version comes to exist: plan, upload, commit, and what each of them refuses."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta

import pytest

from registry.api.access import NamespaceSet
from registry.api.transfer import PushPlan, PushRequest
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Conflict, Denied, Invalid, NotFound, Refused, RegistryError, TooLarge
from registry.evaluation.golden import SAMPLES_LIMIT
from registry.evaluation.verdicts import Outcome
from registry.server.database import db
from registry.server.database.models import BlobRow, EdgeRow, EventRow, VersionRow
from registry.server.database.models.jobs import JobRow
from registry.server.database.models.pushes import PushRow
from registry.server.push import commit
from registry.server.storage.states import PushState
from registry.versions.files import GOLDEN
from registry.versions.manifest import BaseRef, Edge, Relation
from tests import samples
from tests.access.tenants import of_subject
from tests.bulk import commit_push, plan_push
from tests.harness import Harness, rows, send_blob, upload
from tests.maintenance import check, collect

STATEMENTS_LIMIT = 52
"""Of a push of three files: sign-in for each request, the plan, the bytes, the commit, the record."""


def plan(harness: Harness, files: samples.Files, name: str = "acme/support", by: Registry | None = None) -> PushPlan:
    return plan_push(by or harness.admin, name, PushRequest(manifest=harness.manifest(files)))


def send(harness: Harness, plan: PushPlan, files: samples.Files) -> None:
    upload(harness.admin, plan, files)


def test_a_push_creates_a_version_with_facts_verdict_alias_job_and_event(filled_harness: Harness) -> None:
    pushed = filled_harness.push("acme/support", message="first try")
    version = pushed.version
    assert (version.number, version.name, version.message, pushed.created) == (1, "acme/support", "first try", True)
    assert version.facts["rank"] == 8
    assert version.facts["targets"] == ["q_proj", "v_proj"]
    assert [(v.check, v.outcome) for v in version.verdicts] == [("compat", Outcome.PASS), ("weights", Outcome.PASS)]
    assert version.aliases == ["main"]
    assert filled_harness.admin.job(pushed.job_id).subject == "acme/support@1"
    with filled_harness.session() as session:
        events = [e for e in rows(session, EventRow) if e.action == "version.push"]
        assert [(e.object, e.actor, e.detail["compat"]) for e in events] == [("acme/support@1", "token:admin", "pass")]
        assert all(e.request_id for e in events)


def test_the_same_bytes_again_are_the_same_version_and_send_nothing(filled_harness: Harness) -> None:
    files = filled_harness.files()
    first = filled_harness.push("acme/support", files)
    again = plan(filled_harness, files)
    assert again.uploads == []
    second = commit_push(filled_harness.admin, again.push_id)
    assert (second.created, second.version.number, second.version.digest) == (False, 1, first.version.digest)
    with filled_harness.session() as session:
        assert len(rows(session, VersionRow)) == 1
        assert len(rows(session, JobRow)) == 1


def test_main_follows_versions_that_do_not_fail(filled_harness: Harness) -> None:
    """Version after version of one adapter: whether it fits its base → what `main` does."""
    admin, name = filled_harness.admin, "acme/support"
    wide = dataclasses.replace(samples.llama(hidden=128), name="tiny-llama")
    expected = [
        (False, 1, "main is now version 1, although compat fails"),
        (False, 2, "main is now version 2, although compat fails"),
        (True, 3, "main is now version 3"),
        (False, 3, "main stays at version 3: compat fails"),
    ]
    for fits, number, sentence in expected:
        pushed = filled_harness.push(name, filled_harness.files(None if fits else wide))
        assert (pushed.main_number, pushed.main) == (number, sentence)
        assert ("main" in pushed.version.aliases) == (number == pushed.version.number)
        assert (admin.resolve(name).number, admin.adapter(name).newest) == (number, number)
    admin.yank(f"{name}@3", "bad data")
    assert admin.resolve(name).number == 4, "there is nothing better"
    admin.yank(f"{name}@3", "good data", undo=True)
    assert admin.resolve(name).number == 3
    assert [finding.code for page in check(filled_harness) for finding in page.findings] == []
    admin.change_namespace("acme", NamespaceSet(main_skips_failing=False))
    assert filled_harness.push(name, filled_harness.files(wide)).main == "main is now version 5, although compat fails"


def test_committing_twice_is_committing_once(filled_harness: Harness) -> None:
    files = filled_harness.files()
    planned = plan(filled_harness, files)
    send(filled_harness, planned, files)
    created = commit_push(filled_harness.admin, planned.push_id)
    repeated = commit_push(filled_harness.admin, planned.push_id)
    assert (created.created, repeated.created, repeated.version.digest) == (True, False, created.version.digest)


def test_an_ended_push_has_no_manifest(filled_harness: Harness) -> None:
    """No quota counts it, and any number of pushes of one version kept a megabyte each for a week."""
    files = filled_harness.files()
    pushes = [filled_harness.push("acme/support", files)]
    planned = [plan(filled_harness, files) for _ in range(2)]
    pushes += [commit_push(filled_harness.admin, again.push_id) for again in planned]
    assert [push.created for push in pushes] == [True, False, False]
    with filled_harness.session() as session:
        assert {(row.state, row.manifest) for row in rows(session, PushRow)} == {("committed", "")}
    filled_harness.push("acme/support")
    filled_harness.admin.delete_version("acme/support@1", "mistaken")
    with pytest.raises(Conflict) as conflict:
        commit_push(filled_harness.admin, planned[0].push_id)
    assert conflict.value.code == "VERSION_TOMBSTONED"
    filled_harness.admin.rename("acme/support", "acme/helper")
    with pytest.raises(NotFound) as refusal:
        commit_push(filled_harness.admin, planned[0].push_id)
    assert refusal.value.code == "VERSION_UNKNOWN"


def test_a_file_of_a_visible_version_is_not_requested_again(filled_harness: Harness) -> None:
    files = filled_harness.files()
    filled_harness.push("acme/support", files)
    changed = {**files, "README.md": b"# another card\n"}
    assert [u.digest for u in plan(filled_harness, changed).uploads] == [Digest.of(b"# another card\n")]
    pushed = filled_harness.push("acme/support", changed)
    assert pushed.version.number == 2


def test_a_file_of_another_tenant_is_requested_again(filled_harness: Harness) -> None:
    files = filled_harness.files()
    filled_harness.push("acme/support", files)
    other = filled_harness.actor("push", namespaces=["initech"], name="other")
    assert len(plan(filled_harness, files, "initech/copy", other).uploads) == len(files)


def test_an_interrupted_push_is_resumed(filled_harness: Harness) -> None:
    files = filled_harness.files()
    first = plan(filled_harness, files)
    weights = Digest.of(files[samples.WEIGHTS])
    upload = next(u for u in first.uploads if u.digest == weights)
    send_blob(filled_harness.admin, upload, files[samples.WEIGHTS])
    second = plan(filled_harness, files)
    assert second.push_id == first.push_id
    assert weights not in [u.digest for u in second.uploads]


def test_a_commit_without_its_bytes_says_what_is_missing_and_stores_nothing(filled_harness: Harness) -> None:
    files = filled_harness.files()
    planned = plan(filled_harness, files)
    with pytest.raises(Conflict) as refusal:
        commit_push(filled_harness.admin, planned.push_id)
    assert refusal.value.code == "UPLOAD_INCOMPLETE"
    assert {r.location for r in refusal.value.findings} == set(files)
    with filled_harness.session() as session:
        assert rows(session, VersionRow) == []
        assert {row.state for row in rows(session, BlobRow)} == {"pending"}


def test_another_tenants_blob_cannot_be_committed_by_naming_its_digest(filled_harness: Harness) -> None:
    files = filled_harness.files()
    filled_harness.push("acme/support", files)
    other = filled_harness.actor("push", namespaces=["initech"], name="other")
    planned = plan(filled_harness, files, "initech/copy", other)
    with pytest.raises(Conflict) as theirs:
        commit_push(other, planned.push_id)
    nobodys = filled_harness.files()
    unknown = plan(filled_harness, nobodys, "initech/new", other)
    with pytest.raises(Conflict) as absent:
        commit_push(other, unknown.push_id)
    assert theirs.value.code == absent.value.code == "UPLOAD_INCOMPLETE"


def test_the_push_of_another_token_does_not_exist(filled_harness: Harness) -> None:
    files = filled_harness.files()
    planned = plan(filled_harness, files)
    other = filled_harness.actor("push", name="other")
    for push_id in (planned.push_id, "psh_000000000000000000000000"):
        with pytest.raises(RegistryError) as refusal:
            commit_push(other, push_id)
        assert refusal.value.code == "PUSH_UNKNOWN"


def test_an_expired_push_is_gone(filled_harness: Harness) -> None:
    planned = plan(filled_harness, filled_harness.files())
    with filled_harness.session(write=True) as session:
        row = session.get_one(PushRow, planned.push_id)
        row.expires_at = db.now() - timedelta(seconds=1)
        session.add(row)
    with pytest.raises(NotFound, match="no open push"):
        commit_push(filled_harness.admin, planned.push_id)


@pytest.mark.parametrize("case", ["malformed", "strict", "large"])
def test_a_refused_commit_ends_its_push_and_deletes_its_bytes(
    filled_harness: Harness, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Else both count for a day, and 500 refused pushes keep a token from pushing anything. The error is kept."""
    filled_harness.admin.create_namespace("acme", owner="alice")
    filled_harness.admin.change_namespace("acme", NamespaceSet(strict=True))
    files = filled_harness.files(samples.llama(hidden=32) if case == "strict" else None)
    files |= {samples.WEIGHTS: b"no tensors"} if case == "malformed" else {}
    files |= {GOLDEN: b"{}\n" * (SAMPLES_LIMIT + 1)} if case == "large" else {}
    for limit in (commit.REFUSAL_LIMIT, 1):
        monkeypatch.setattr(commit, "REFUSAL_LIMIT", limit)
        planned = plan(filled_harness, files)
        send(filled_harness, planned, files)
        with pytest.raises((Invalid, Refused, TooLarge)) as refused:
            commit_push(filled_harness.admin, planned.push_id)
        filled_harness.transport.settle()
        assert [*filled_harness.blobs.list("blobs/")] == []
        with filled_harness.session() as session:
            row = session.get_one(PushRow, planned.push_id)
        assert (row.state, row.manifest) == (PushState.EXPIRED, "")
        with pytest.raises(type(refused.value)) as repeated:
            commit_push(filled_harness.admin, planned.push_id)
        expected = refused.value.to_problem()
        assert repeated.value.to_problem() == {
            **expected,
            "findings": expected["findings"][: 1 if limit == 1 else None],
        }
        with pytest.raises(NotFound, match="no open push"):
            commit_push(filled_harness.actor("push"), planned.push_id)
    assert collect(filled_harness).blobs_marked == 0
    assert filled_harness.push("acme/support").created


def test_a_push_with_an_invalid_request_stays_open(filled_harness: Harness) -> None:
    files = filled_harness.files()
    planned = plan(filled_harness, files)
    send(filled_harness, planned, files)
    with pytest.raises(Invalid):
        commit_push(filled_harness.admin, planned.push_id, alias="not an alias")
    assert commit_push(filled_harness.admin, planned.push_id).created


def test_a_push_near_its_end_is_kept_open_while_it_is_committed(filled_harness: Harness) -> None:
    files = filled_harness.files()
    planned = plan(filled_harness, files)
    send(filled_harness, planned, files)
    with filled_harness.session(write=True) as session:
        row = session.get_one(PushRow, planned.push_id)
        row.expires_at = db.now() + timedelta(minutes=1)
        session.add(row)
    commit_push(filled_harness.admin, planned.push_id)
    with filled_harness.session() as session:
        row = session.get_one(PushRow, planned.push_id)
    assert row.expires_at > db.now() + timedelta(seconds=commit.COMMIT_SECONDS / 2)


def test_a_push_costs_few_statements_and_the_same_however_many_versions_there_are(filled_harness: Harness) -> None:
    counts = []
    for seed in range(4):
        with filled_harness.statements() as sent:
            filled_harness.push("acme/support", filled_harness.files(seed=seed))
            filled_harness.transport.settle()  # what follows the response counts, too
        counts.append(len(sent))
    assert counts[-1] == counts[-2] <= STATEMENTS_LIMIT


def test_an_incompatible_adapter_is_stored_with_its_verdict_and_without_a_job(filled_harness: Harness) -> None:
    wide = samples.lora(samples.llama(hidden=128))
    pushed = filled_harness.push("acme/support", wide, alias="canary")
    verdict = pushed.version.verdicts[0]
    assert (verdict.outcome, pushed.job_id) == (Outcome.FAIL, "")
    assert any(f.code == "compat.shape" and f.expected and f.actual for f in verdict.findings)
    assert "compat" in pushed.alias_refused
    assert filled_harness.admin.version("acme/support").aliases == ["main"]


def test_an_alias_moves_with_the_push_when_its_gate_is_open(filled_harness: Harness) -> None:
    pushed = filled_harness.push("acme/support", alias="canary")
    assert (pushed.version.aliases, pushed.alias_refused) == (["canary", "main"], "")


def test_an_alias_needs_the_scope_to_promote_and_the_version_does_not(filled_harness: Harness) -> None:
    pusher = filled_harness.actor("push", name="pusher")
    pushed = filled_harness.push("acme/support", alias="canary", by=pusher)
    assert (pushed.created, pushed.version.aliases) == (True, ["main"])
    assert "lacks the scope 'promote' of alias 'canary'" in pushed.alias_refused


def test_an_unknown_base_is_refused_before_any_byte(filled_harness: Harness) -> None:
    manifest = filled_harness.manifest(filled_harness.files())
    strange = manifest.model_copy(update={"base": BaseRef(name="nobody/knows", fingerprint=manifest.base.fingerprint)})
    with pytest.raises(NotFound) as refusal:
        plan_push(filled_harness.admin, "acme/support", PushRequest(manifest=strange))
    assert refusal.value.code == "BASE_UNKNOWN"


def test_another_fingerprint_of_the_base_is_refused(filled_harness: Harness) -> None:
    manifest = filled_harness.manifest(filled_harness.files())
    other = BaseRef(name=manifest.base.name, fingerprint=Digest.of(b"other"))
    with pytest.raises(Invalid) as refusal:
        plan_push(
            filled_harness.admin, "acme/support", PushRequest(manifest=manifest.model_copy(update={"base": other}))
        )
    assert (refusal.value.code, refusal.value.findings[0].code) == ("BASE_INVALID", "base.fingerprint_differs")


def test_a_namespace_that_the_token_does_not_have_is_refused(filled_harness: Harness) -> None:
    pusher = filled_harness.actor("push", namespaces=["acme"], name="pusher")
    with pytest.raises(NotFound):
        filled_harness.push("initech/support", by=pusher)
    reader = filled_harness.actor("pull", name="reader")
    with pytest.raises(Denied):
        filled_harness.push("acme/support", by=reader)


def test_one_digest_with_two_sizes_is_refused(filled_harness: Harness) -> None:
    manifest = json.loads(filled_harness.manifest(filled_harness.files()).to_bytes())
    same = manifest["files"][0] | {"path": "LICENSE", "media_type": "text/plain", "size_bytes": 3}
    manifest["files"] = sorted([*manifest["files"], same], key=lambda f: f["path"])
    with pytest.raises(Invalid) as refusal:
        plan_push(filled_harness.admin, "acme/support", PushRequest.model_validate({"manifest": manifest}))
    assert refusal.value.findings[0].code == "manifest.sizes_differ"


def test_parents_are_edges_whether_they_are_here_or_not(filled_harness: Harness) -> None:
    parent = filled_harness.push("acme/support").version
    edges = [
        Edge(relation=Relation.CONTINUED, digest=parent.digest, name="acme/support@1"),
        Edge(relation=Relation.MERGED, digest=Digest.of(b"somewhere else")),
    ]
    child = filled_harness.push("acme/support", parents=edges)
    assert {e.digest for e in child.version.parents} == {e.digest for e in edges}
    with filled_harness.session() as session:
        assert len(rows(session, EdgeRow)) == 2


@pytest.mark.security
def test_a_push_takes_over_no_bytes_that_its_pusher_may_not_read_any_more(filled_harness: Harness) -> None:
    files = filled_harness.files()
    filled_harness.push("globex/secret", files)
    filled_harness.admin.create_namespace("acme", owner="ann")
    filled_harness.admin.grant_role("globex", "ann", "reader")
    pusher = filled_harness.client(of_subject(filled_harness, "ann"))
    planned = plan(filled_harness, files, "acme/copy", pusher)
    assert planned.uploads == []
    filled_harness.admin.revoke_role("globex", "ann")
    with pytest.raises(Conflict) as refusal:
        commit_push(pusher, planned.push_id)
    assert refusal.value.code == "UPLOAD_INCOMPLETE"
    assert {finding.location for finding in refusal.value.findings} == set(files)
    again = plan(filled_harness, files, "acme/copy", pusher)
    assert {upload.digest for upload in again.uploads} == {Digest.of(data) for data in files.values()}
