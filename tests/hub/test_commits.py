"""Commits: what becomes a version, what is refused, and what is left afterwards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx
import pytest

from registry.api.access import NamespaceSet
from registry.client.audit import Audit
from registry.evaluation.gates import Gate
from registry.hub import commit_id
from registry.server.database.models import VersionRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.hub.commits import Committer
from tests import non_peft_files, raw_asgi, samples
from tests.access.tenants import of_subject, send
from tests.harness import Harness, rows
from tests.hub.commits import CARD, Pusher, add, add_large, delete, drafts_of, header, staged, warning
from tests.hub.xet import XetClient


# ------------------------------------------------------------------ versions
def test_a_whole_adapter_is_a_version_like_any_other(harness: Harness, pusher: Pusher) -> None:
    pusher.create()
    files = harness.files()
    response = pusher.push(files, summary="Train")
    assert response.status_code == 200, response.text
    version = harness.admin.version("acme/support@1")
    assert response.json()["commitOid"] == commit_id(version.digest) == pusher.info().json()["sha"]
    assert response.json()["success"] is True
    assert warning(response).endswith("acme/support@1 on tiny-llama: compat pass; weights pass; smoke test queued")
    assert (version.message, version.parents, version.base) == ("Train", [], "tiny-llama")
    harness.transport.settle()
    assert (drafts_of(harness), staged(harness)) == ((0, 0), [])
    [location] = {
        pusher.send("GET", f"/acme/support/commit/{revision}").headers["location"]
        for revision in (response.json()["commitOid"], "main", "v1")
    }
    assert pusher.send("GET", location).json()["digest"] == version.digest


def test_the_response_says_what_a_check_warns_of(harness: Harness, pusher: Pusher) -> None:
    pusher.create()
    files = harness.files()
    response = pusher.push(files | {f"copy/{samples.WEIGHTS}": files[samples.WEIGHTS]})
    assert "compat warn (" in warning(response)
    assert f"copy/{samples.WEIGHTS}" in warning(response)


def test_the_parent_of_a_version_is_the_version_at_the_branch(harness: Harness, pusher: Pusher) -> None:
    digests = [harness.push("acme/support").version.digest]
    first = pusher.commit(add(CARD, b"# New\n"), parentCommit=commit_id(digests[0]))
    second = pusher.commit(delete(CARD))
    versions = [harness.admin.version(f"acme/support@{number}") for number in (1, 2, 3)]
    assert [commit_id(v.digest) for v in versions[1:]] == [a.json()["commitOid"] for a in (first, second)]
    parents = [(edge.relation, edge.digest) for version in versions[1:] for edge in version.parents]
    assert parents == [("continued", versions[0].digest), ("continued", versions[1].digest)]
    assert [file.path for file in versions[2].files] == [samples.CONFIG, samples.WEIGHTS]


def test_a_repeated_commit_returns_the_version_that_it_made(harness: Harness, pusher: Pusher) -> None:
    pusher.create()
    files = harness.files()
    commits = {pusher.push(files).json()["commitOid"] for _ in range(2)}
    assert len(commits) == harness.admin.adapter("acme/support").versions == 1


def test_a_commit_on_a_parent_that_is_repeated_returns_its_version(harness: Harness, pusher: Pusher) -> None:
    """Clients repeat a commit whose response was lost. One that would have made another version is refused."""
    parent = commit_id(harness.push("acme/support", {**harness.files(), CARD: b"# Old\n"}).version.digest)
    for lines in ((delete(CARD), add("LICENSE", b"MIT")), (add(CARD, b"# New\n"),)):
        responses = [pusher.commit(*lines, parentCommit=parent) for _ in range(2)]
        assert [response.status_code for response in responses] == [200, 200]
        assert len({response.json()["commitOid"] for response in responses}) == 1
        for others in ((add(CARD, b"# Other\n"),), (delete("absent"),), (add_large(samples.WEIGHTS, "0" * 64, 9),)):
            assert pusher.commit(*others, parentCommit=parent).status_code == 412
        parent = responses[0].json()["commitOid"]
    assert harness.admin.adapter("acme/support").versions == 3


def test_of_two_commits_on_one_parent_one_is_refused(harness: Harness, pusher: Pusher) -> None:
    parent = commit_id(harness.push("acme/support").version.digest)
    responses = [pusher.commit(add(CARD, text), parentCommit=parent) for text in (b"one", b"two")]
    assert [response.status_code for response in responses] == [200, 412]
    assert "another commit" in responses[1].headers["x-error-message"]
    assert harness.admin.adapter("acme/support").newest == 2


@pytest.mark.parametrize("revision", ["main", "canary"])
def test_a_commit_during_which_the_branch_moves_is_refused(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    """Otherwise the files of the other commit would be missing in the newest version, and nobody would be told."""
    harness.push("acme/support")
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    pusher = Pusher(harness, harness.issue("push", "promote", namespaces=["acme"])[1])
    stage = Committer._stage

    def move_branch(committer: Committer, tree: Any) -> None:
        stage(committer, tree)
        harness.push("acme/support")
        harness.admin.promote("acme/support", "canary", "2", generation=1)

    monkeypatch.setattr(Committer, "_stage", move_branch)
    refused = pusher.commit(add(CARD, b"lost"), revision=revision)
    assert (refused.status_code, "another commit" in refused.headers["x-error-message"]) == (412, True)
    monkeypatch.setattr(Committer, "_stage", stage)
    assert harness.admin.adapter("acme/support").newest == 2
    assert pusher.commit(add(CARD, b"on the newest"), revision=revision).status_code == 200


def test_a_branch_is_an_alias_that_needs_the_right_to_promote(harness: Harness, pusher: Pusher) -> None:
    harness.push("acme/support")
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    assert pusher.commit(add(CARD, b"no"), revision="canary").status_code == 403
    promoter = Pusher(harness, harness.issue("push", "promote", namespaces=["acme"])[1])
    response = promoter.commit(add(CARD, b"yes"), revision="canary")
    aliases = harness.admin.adapter("acme/support").aliases
    assert (response.status_code, aliases) == (200, {"main": 2, "canary": 2})
    created = promoter.send("POST", "/api/models/acme/support/branch/next", json={"startingPoint": "v1"})
    assert (created.status_code, harness.admin.adapter("acme/support").aliases["next"]) == (200, 1)
    assert promoter.send("POST", "/api/models/acme/support/branch/next", json={}).status_code == 409
    assert pusher.send("POST", "/api/models/acme/support/branch/other", json={}).status_code == 403


@pytest.mark.parametrize("database_kind", ["sqlite", "postgres"])
def test_a_commit_to_a_branch_whose_gate_stays_closed_is_refused_and_leaves_nothing(harness: Harness) -> None:
    """A client takes a response of 200 for a moved branch: older ones print no warning."""
    harness.push("acme/support")
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    promoter = Pusher(harness, harness.issue("push", "promote", namespaces=["acme"])[1])
    wide = samples.lora(dataclasses.replace(samples.llama(hidden=128), name="tiny-llama"))
    weights = wide[samples.WEIGHTS]
    for _ in range(2):
        XetClient(promoter).upload(weights)
        large = add_large(samples.WEIGHTS, sha256(weights).hexdigest(), len(weights))
        refused = promoter.commit(large, add(samples.CONFIG, wide[samples.CONFIG]), revision="canary")
        message = refused.headers["x-error-message"]
        assert refused.status_code == 422, message
        assert "nothing was stored" in message
        assert "may not become 'canary'" in message
        assert "correct the adapter and commit again" in message
        assert "adapter promote" not in message, "main would become the version that fails"
        harness.transport.settle()
        assert (harness.admin.adapter("acme/support").aliases, staged(harness)) == ({"main": 1, "canary": 1}, [])
        with harness.session() as session:
            assert [row.number for row in rows(session, VersionRow)] == [1]
            assert [row.id for row in rows(session, PushRow) if row.state == "open"] == []
    assert promoter.push(wide).status_code == 200, "main has no gate"
    harness.admin.set_gate("acme/support", "canary", Gate(approvals=1))
    refused = promoter.push(harness.files(), revision="canary")
    assert "commit to main, then move the branch: adapter promote" in refused.headers["x-error-message"]


def test_a_name_without_a_namespace_is_in_the_only_one_that_the_token_may_push_to(harness: Harness) -> None:
    """`model.push_to_hub("support")`, and a trainer that takes the name of its output folder."""
    body = {"name": "support", "organization": None}
    bound = Pusher(harness, harness.issue("push", namespaces=["acme"])[1])
    assert bound.send("GET", "/api/whoami-v2").json()["name"] == "acme"
    created = bound.send("POST", "/api/repos/create", json=body)
    assert (created.status_code, created.json()["id"], bound.files()) == (200, "acme/support", [])
    assert bound.send("DELETE", "/api/repos/delete", json=body).status_code == 200
    for namespaces in (["acme", "globex"], ["*"]):
        other = Pusher(harness, harness.issue("push", namespaces=namespaces, name="laptop")[1])
        assert other.send("GET", "/api/whoami-v2").json()["name"] == "laptop"
        refused = other.send("POST", "/api/repos/create", json=body)
        assert (refused.status_code, "name the repository NAMESPACE/NAME" in refused.text) == (422, True)


@pytest.mark.security
def test_creating_in_a_namespace_of_others_is_denied_with_the_ones_to_push_to(harness: Harness) -> None:
    """With 404 the client says that there is no such repository, and to create it, and hides the text."""
    harness.push("globex/secret")
    pusher = Pusher(harness, harness.issue("push", namespaces=["acme"])[1])
    responses = []
    for name in ("globex/secret", "globex/absent"):
        response = Pusher(harness, pusher.secret, name).create()
        responses.append((response.status_code, response.headers["x-error-message"].replace(name, "NAME")))
        assert "x-error-code" not in response.headers
    assert responses == [(403, "you may not push to 'NAME'; token 'somebody' may push only in: acme")] * 2


# ------------------------------------------------------------------ the base
def test_the_name_of_a_deleted_adapter_is_refused_with_a_text_that_clients_show(
    harness: Harness, pusher: Pusher
) -> None:
    """They take a 409 for a repository that exists, and look for its URL."""
    harness.push("acme/support")
    harness.admin.delete_adapter("acme/support")
    response = pusher.create()
    assert (response.status_code, "never used again" in response.headers["x-error-message"]) == (422, True)


@pytest.mark.parametrize("kind", ["datasets", "spaces"])
def test_an_upload_to_a_repository_of_another_type_says_where_it_belongs(pusher: Pusher, kind: str) -> None:
    response = pusher.send("POST", f"/api/{kind}/acme/support/preupload/main", json={"files": []})
    assert (response.status_code, "keep them in another Hub" in response.headers["x-error-message"]) == (501, True)


def test_an_unknown_base_is_refused_with_how_to_add_it(harness: Harness, pusher: Pusher) -> None:
    pusher.create()
    config = {"base_model_name_or_path": "meta-llama/Llama-3.1-8B"}
    response = pusher.push(harness.files(config=config))
    assert response.status_code == 404
    assert "`adapter base add meta-llama/Llama-3.1-8B DIR`" in response.headers["x-error-message"]
    assert "x-error-code" not in response.headers
    harness.admin.set_base_aliases("tiny-llama", ["meta-llama/Llama-3.1-8B"])
    assert pusher.push(harness.files(config=config)).status_code == 200
    assert harness.admin.version("acme/support@1").base == "tiny-llama"


def test_a_base_that_is_a_folder_is_the_base_of_that_name_or_that_of_the_readme_or_the_parent(
    harness: Harness, pusher: Pusher
) -> None:
    by_folder = Pusher(harness, pusher.secret, "acme/by-folder")
    by_folder.create()
    named = harness.files(config={"base_model_name_or_path": "/home/trainer/models/Tiny-Llama/"})
    assert by_folder.push(named).status_code == 200
    assert harness.admin.version("acme/by-folder@1").base == "tiny-llama"
    pusher.create()
    files = harness.files(config={"base_model_name_or_path": "/home/trainer/base"})
    refused = pusher.push({**files, CARD: b"# No base\n"})
    assert (refused.status_code, "`adapter push --base`" in refused.headers["x-error-message"]) == (404, True)
    assert pusher.push({**files, CARD: b"---\nbase_model: tiny-llama\n---\n"}).status_code == 200
    assert pusher.commit(add(CARD, b"# No base\n")).status_code == 200
    assert harness.admin.version("acme/support@2").base == "tiny-llama"


def test_a_script_that_uploads_files_without_a_base_needs_a_readme_first(harness: Harness, pusher: Pusher) -> None:
    """As kohya's `--huggingface_repo_id` does: one file a commit, each of another name with `--save_every_n_epochs`."""
    pusher.create()
    refused = pusher.commit(add("style.safetensors", non_peft_files.kohya()))
    message = refused.headers["x-error-message"]
    assert (refused.status_code, "`base_model` in README.md" in message) == (404, True)
    pusher.commit(add(CARD, b"---\nbase_model: tiny-llama\n---\n"))
    for epoch in ("1", "2"):
        weights = non_peft_files.kohya(metadata={"ss_epoch": epoch})
        assert pusher.commit(add("style.safetensors", weights)).status_code == 200
    second = harness.admin.version("acme/support@2")
    assert [edge.digest for edge in second.parents] == [harness.admin.version("acme/support@1").digest]
    several = pusher.commit(add("style-000003.safetensors", weights))
    assert 400 <= several.status_code < 500, several.headers
    assert "style" in several.headers["x-error-message"]


def test_a_strict_namespace_refuses_what_does_not_fit(harness: Harness, pusher: Pusher) -> None:
    harness.admin.create_namespace("acme", owner="owner@acme")
    pusher.create()
    wide = samples.lora(dataclasses.replace(samples.llama(hidden=128), name="tiny-llama"))
    harness.admin.change_namespace("acme", NamespaceSet(strict=True))
    response = pusher.push(wide)
    message = response.headers["x-error-message"]
    assert (response.status_code, "does not fit its base 'tiny-llama'" in message) == (422, True)
    assert (message.count("q_proj.lora_A"), message.count("[8, 128]"), message.count("[8, 64]")) == (1, 1, 1), message
    with harness.session() as session:
        assert rows(session, VersionRow) == []
    harness.admin.change_namespace("acme", NamespaceSet(strict=False))
    stored = pusher.push(wide)
    assert (stored.status_code, "compat fail (" in warning(stored), "q_proj" in warning(stored)) == (200, True, True)
    assert "; this version of acme/support failed its check: compat" in warning(pusher.info())
    good = pusher.push(harness.files())
    again = pusher.push(samples.lora(dataclasses.replace(samples.llama(hidden=96), name="tiny-llama")))
    assert (again.status_code, "; main stays at version 2: compat fails" in warning(again)) == (200, True)
    info = pusher.info()
    assert (info.headers["x-repo-commit"], "x-hf-warning" in info.headers) == (good.json()["commitOid"], False)


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize("database_kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("case", ["strict", "malformed", "unknown base"])
def test_a_refused_commit_leaves_only_the_draft_before_it(harness: Harness, pusher: Pusher, case: str) -> None:
    """Neither bytes nor open pushes: else a trainer that is refused fills the quota, and may push nothing more."""
    harness.admin.create_namespace("acme", owner="alice")
    harness.admin.change_namespace("acme", NamespaceSet(strict=True))
    pusher.create()
    pusher.commit(add(CARD, b"# Mine\n"))
    before = staged(harness)
    for _ in range(2):
        base = samples.llama(hidden=128) if case == "strict" else samples.llama()
        name = "another/base" if case == "unknown base" else "tiny-llama"
        files = harness.files(dataclasses.replace(base, name=name))
        good = files.pop(samples.WEIGHTS)
        weights = b"no tensors" if case == "malformed" else good
        XetClient(pusher).upload(weights)
        lines = [add(path, data) for path, data in {**files, CARD: b"# Mine\n", "LICENSE": b"MIT"}.items()]
        refused = pusher.commit(add_large(samples.WEIGHTS, sha256(weights).hexdigest(), len(weights)), *lines)
        assert refused.status_code in (400, 404, 422), refused.text
        harness.transport.settle()
        assert (staged(harness), pusher.files()) == (before, [CARD])
        with harness.session() as session:
            pushes = [row.id.split("_")[0] for row in rows(session, PushRow) if row.state == "open"]
            digests = [row.digest for row in rows(session, PushBlobRow) if row.push_id.startswith("hub_")]
        assert (pushes, len(digests)) == (["hub"], 1)
    assert pusher.push(harness.files()).status_code == 200


def test_staged_bytes_count_towards_the_quota(harness: Harness, pusher: Pusher) -> None:
    harness.admin.create_namespace("acme", owner="owner@acme")
    harness.admin.change_namespace("acme", NamespaceSet(quota_bytes=1000))
    pusher.create()
    assert pusher.commit(add(CARD, b"x" * 900)).status_code == 200
    refused = pusher.commit(add("LICENSE", b"x" * 200))
    assert (refused.status_code, "quota of namespace 'acme' is full" in refused.text) == (413, True)
    assert pusher.files() == [CARD]


def ask_for_links(pusher: Pusher, oid: str, size: int) -> httpx.Response:
    client_request = {"operation": "upload", "objects": [{"oid": oid, "size": size}]}
    return pusher.send("POST", f"/{pusher.name}.git/info/lfs/objects/batch", json=client_request)


@pytest.mark.security
def test_a_token_that_ends_while_its_commit_arrives_commits_nothing(harness: Harness) -> None:
    harness.push("acme/support")
    token_id, secret = harness.issue("push", namespaces=["acme"])

    def body() -> Iterator[bytes]:
        yield json.dumps(header()).encode() + b"\n"
        harness.admin.revoke_token(token_id)
        yield json.dumps(add(CARD)).encode()

    bearer = [("Authorization", f"Bearer {secret}")]
    response = raw_asgi.call(harness.app, "POST", "/api/models/acme/support/commit/main", bearer, body())
    assert (response.status, harness.admin.adapter("acme/support").versions) == (401, 1)


def test_a_readme_that_names_no_base_gets_a_warning_and_no_error(pusher: Pusher) -> None:
    cards = {"# Mine": "has no front matter", "---\nbase_model: x\n---\n# Mine": "", "---\n": "without an end"}
    for content, message in cards.items():
        body = {"content": content, "repoType": "model"}
        response = pusher.send("POST", "/api/validate-yaml", json=body).json()
        assert (response["errors"], len(response["warnings"])) == ([], 1 if message else 0)
        assert message in str(response["warnings"])


def test_a_readme_of_a_stranger_is_read_up_to_a_limit(harness: Harness, pusher: Pusher) -> None:
    body = {"content": "x" * 30_000}
    assert pusher.send("POST", "/api/validate-yaml", json=body).status_code == 200
    assert send(harness, "POST", "/api/validate-yaml", json={"content": "---\n"}).status_code == 200
    assert send(harness, "POST", "/api/validate-yaml", json=body).status_code == 413


@pytest.mark.parametrize("folder", ["checkpoint-500", "last-checkpoint", "unet/checkpoint-1"])
def test_checkpoints_in_folders_are_left_out(pusher: Pusher, folder: str) -> None:
    """Training scripts leave them beside the adapter, and push all."""
    pusher.create()
    paths = [samples.WEIGHTS, f"{folder}/{samples.WEIGHTS}"]
    body: dict[str, list[Any]] = {"files": [{"path": path, "size": 1} for path in paths]}
    response = pusher.send("POST", "/api/models/acme/support/preupload/main", json=body)
    assert [file["shouldIgnore"] for file in response.json()["files"]] == [False, True]
    assert "push that folder as its own adapter" in warning(response)
    body["files"].append({"path": "training_args.bin", "size": 1})
    other = pusher.send("POST", "/api/models/acme/support/preupload/main", json=body)
    topics = [warning(each).partition(";")[0] for each in (response, other)]
    assert topics[0] != topics[1], "clients print one warning for each topic"


def test_bytes_that_never_arrived_are_named(harness: Harness, pusher: Pusher) -> None:
    pusher.create()
    files = harness.files()
    response = pusher.commit(add(samples.CONFIG, files[samples.CONFIG]), add_large(samples.WEIGHTS, "0" * 64, 500))
    assert (response.status_code, samples.WEIGHTS in response.headers["x-error-message"]) == (422, True)
    assert "was not uploaded" in response.headers["x-error-message"]
    assert pusher.files() == []


@pytest.mark.security
def test_the_bytes_of_another_tenant_are_not_committed_by_their_digest(harness: Harness, pusher: Pusher) -> None:
    files = harness.files()
    weights = harness.push("globex/secret", files).version.files[-1]
    pusher.create()
    lines = [add(samples.CONFIG, files[samples.CONFIG])]
    for size in ({"size": weights.size_bytes}, {}):
        line = add_large(samples.WEIGHTS, weights.digest.hex, 0)
        line["value"] = {key: value for key, value in line["value"].items() if key != "size"} | size
        response = pusher.commit(*lines, line)
        absent = pusher.commit(*lines, {**line, "value": {**line["value"], "oid": "0" * 64}})
        assert (response.status_code, absent.status_code) == (422, 422)
        assert (
            response.headers["x-error-message"].replace(weights.digest.hex, "0" * 64)
            == absent.headers["x-error-message"]
        )


@pytest.mark.security
def test_a_draft_gives_no_version_bytes_that_its_pusher_may_not_read_any_more(harness: Harness) -> None:
    files = harness.files()
    weights = harness.push("globex/secret", files).version.files[-1]
    harness.admin.create_namespace("acme", owner="ann")
    harness.admin.grant_role("globex", "ann", "reader")
    pusher = Pusher(harness, of_subject(harness, "ann"))
    pusher.create()
    draft = pusher.commit(add_large(samples.WEIGHTS, weights.digest.hex, weights.size_bytes)).json()["commitOid"]
    assert pusher.send("GET", f"/acme/support/resolve/{draft}/{samples.WEIGHTS}").status_code == 200
    [event] = Audit(harness.admin).events(action=["bytes.read"])
    assert (event.actor, event.object) == ("ann", f"acme/support@sha256:{draft}")
    harness.admin.revoke_role("globex", "ann")
    refused = pusher.commit(add(samples.CONFIG, files[samples.CONFIG]))
    assert (refused.status_code, "was not uploaded" in refused.headers["x-error-message"]) == (422, True)
    [item] = ask_for_links(pusher, weights.digest.hex, weights.size_bytes).json()["objects"]
    assert "upload" in item["actions"], "its pusher has to send the bytes"
    assert pusher.push(files).status_code == 200


def test_a_token_that_ends_in_the_middle_is_refused_as_by_the_hub(harness: Harness) -> None:
    secret = of_subject(harness, "ann", namespaces=["acme"])
    harness.admin.create_namespace("acme", owner="ann")
    pusher = Pusher(harness, secret)
    pusher.create()
    pusher.commit(add(CARD))
    harness.admin.revoke_role("acme", "ann")
    assert pusher.commit(add(CARD, b"y")).status_code in (403, 404)
    [token] = [item for item in harness.admin.tokens().items if item.subject == "ann"]
    harness.admin.revoke_token(token.id)
    response = pusher.commit(add(CARD, b"z"))
    expected = (401, "Invalid credentials in Authorization header")
    assert (response.status_code, response.headers["x-error-message"]) == expected


def test_an_upload_to_a_name_without_a_namespace_says_what_is_missing(harness: Harness) -> None:
    """`create_repo` returns the full name; who does not call it sends the name as it is."""
    for namespaces, full_name in ((["acme"], "acme/support"), (["acme", "globex"], "NAMESPACE/support")):
        pusher = Pusher(harness, harness.issue("push", namespaces=namespaces)[1])
        response = pusher.send("POST", "/api/models/support/preupload/main", json={"files": []})
        assert response.status_code == 422
        assert response.headers["x-error-message"] == f"the repository 'support' has no namespace; name it {full_name}"
