"""Uploads by Xet to a server in this process: what becomes of them, who can reach them, and what is left."""

from __future__ import annotations

import random
import time
from datetime import timedelta
from hashlib import sha256

import httpx
import pytest
from sqlmodel import col, update

from registry.api.access import NamespaceSet
from registry.client.audit import Audit
from registry.server.audit.audit_log import DENIAL_ACTIONS
from registry.server.database import db
from registry.server.database.models.hub import XorbRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.hub.xet import access_tokens, files, sessions
from registry.server.storage.signed_links import LIMIT_SECONDS
from tests import samples
from tests.harness import Harness, rows
from tests.hub import commits
from tests.hub.commits import Pusher
from tests.hub.hostile_xet import HOSTILE_SHARDS, HOSTILE_XORBS
from tests.hub.xet import XetClient, Xorb, commit, pack, shard_of, split, xorb_of
from tests.maintenance import collect

CHUNK = 1000


@pytest.fixture(autouse=True)
def repository(pusher: Pusher) -> None:
    """Each upload needs a repository; here it is empty."""
    pusher.create()


def oid(data: bytes) -> str:
    return sha256(data).hexdigest()


def staged(harness: Harness) -> list[str]:
    return [key.partition("_")[0] for key in commits.staged(harness)]


def xorbs_of(harness: Harness) -> int:
    with harness.session() as session:
        return len(rows(session, XorbRow))


def refused(response: httpx.Response, status: int, message: str) -> None:
    """The response has the shape of the Hub API: the text in the header and in the field `error`."""
    assert response.status_code == status, response.text
    assert message in response.headers["x-error-message"]
    assert message in response.json()["error"]


# ------------------------------------------------------------------ files
@pytest.mark.parametrize("scheme", [0, 1, 2])
def test_a_file_sent_by_xet_becomes_that_of_a_version(harness: Harness, pusher: Pusher, scheme: int) -> None:
    files = harness.files()
    weights = files.pop(samples.WEIGHTS)
    client = XetClient(pusher)
    client.upload(weights, scheme)
    assert (staged(harness), xorbs_of(harness)) == (["hub"], 0), "of the session nothing is left"
    response = commit(pusher, {samples.WEIGHTS: weights}, **files)
    assert response.status_code == 200, response.text
    version = harness.admin.version("acme/support@1")
    assert {file.path: file.digest.hex for file in version.files}[samples.WEIGHTS] == oid(weights)
    assert pusher.send("GET", f"/acme/support/resolve/main/{samples.WEIGHTS}").content == weights
    assert (staged(harness), xorbs_of(harness)) == ([], 0)


def test_files_share_chunks_and_span_xorbs(pusher: Pusher) -> None:
    data = random.Random(3).randbytes(10 * CHUNK)
    xorbs = [xorb_of(split(data[: 6 * CHUNK], CHUNK)), xorb_of(split(data[6 * CHUNK :], CHUNK), 1)]
    first, second = data, data[5 * CHUNK : 7 * CHUNK] + data[: 2 * CHUNK]
    client = XetClient(pusher)
    assert [client.send_xorb(xorb).json()["was_inserted"] for xorb in [*xorbs, *xorbs]] == [True, True, False, False]
    shard = shard_of(
        (oid(first), [xorbs[0].segment(), xorbs[1].segment()]),
        (oid(second), [xorbs[0].segment(5, 6), xorbs[1].segment(0, 1), xorbs[0].segment(0, 2)]),
    )
    assert client.send_shard(shard).status_code == 200
    assert commit(pusher, {"LICENSE": first, "README.md": second}).status_code == 200
    for path, expected in (("LICENSE", first), ("README.md", second)):
        assert pusher.send("GET", f"/acme/support/resolve/main/{path}").content == expected


# ------------------------------------------------------------------ hostile requests
@pytest.mark.security
@pytest.mark.parametrize("word", ["x", "A" * 24, "a" * 25, "a" * 4000])
def test_a_url_that_the_registry_did_not_give_out_names_no_session(harness: Harness, pusher: Pusher, word: str) -> None:
    """Its word was stored as it came, as long as a request's head may be."""
    client, xorb = XetClient(pusher), xorb_of([b"one"])
    client.url = f"{client.url.rpartition('/')[0]}/{word}"
    refused(client.send_xorb(xorb), 400, "names no upload session")
    refused(client.send_shard(shard_of((oid(b"one"), [xorb.segment()]))), 400, "names no upload session")
    assert (staged(harness), xorbs_of(harness)) == ([], 0)


@pytest.mark.security
def test_what_does_not_hash_to_its_name_is_not_stored(harness: Harness, pusher: Pusher) -> None:
    client, xorb = XetClient(pusher), xorb_of([b"one", b"two"])
    refused(client.send_xorb(Xorb(xorb.hash, pack(b"one"), ())), 422, "the xorb hashes to")
    refused(client.send_xorb(Xorb("0" * 63, xorb.body, ())), 400, "is not 64 lower-case hex digits")
    refused(client.send_xorb(Xorb(xorb.hash, b"", ())), 400, "the body is empty")
    refused(client.send_xorb(Xorb(xorb.hash, xorb.body[:-1], ())), 400, "ends after the body")
    assert (staged(harness), xorbs_of(harness)) == ([], 0)
    client.send_xorb(xorb)
    for segments, message in (
        ([xorb.segment()], "hash to"),
        ([Xorb(xorb.hash, b"", (3, 4)).segment()], "has a segment of 7 bytes"),
        ([Xorb(xorb.hash, b"", (3, 3, 3)).segment()], "has a segment of 9 bytes"),
        ([Xorb("f" * 64, b"", (3,)).segment()], "does not have"),
    ):
        refused(client.send_shard(shard_of((oid(b"other"), segments))), 422, message)
    assert staged(harness) == ["xet"]
    shard = shard_of((oid(b"a"), [xorb.segment()]), (oid(b"a"), [xorb.segment(0, 1)]))
    refused(client.send_shard(shard), 400, "two sizes")


@pytest.mark.security
@pytest.mark.parametrize("database_kind", ["sqlite", "postgres"])
def test_a_shard_with_a_wrong_file_leaves_none_of_its_files(harness: Harness, pusher: Pusher) -> None:
    """Neither bytes nor what they count for in a quota; files of earlier shards and drafts stay, and it can be sent
    again."""
    client, xorb = XetClient(pusher), xorb_of([b"one", b"two", b"six"])
    client.send_xorb(xorb)
    whole, first, wrong = (oid(b"onetwosix"), [xorb.segment()]), (oid(b"one"), [xorb.segment(0, 1)]), oid(b"other")
    assert client.send_shard(shard_of((oid(b"two"), [xorb.segment(1, 2)]))).status_code == 200
    client = XetClient(pusher)
    client.send_xorb(xorb)
    before = sorted(stat.key for stat in harness.blobs.list("blobs/"))
    for described in ([whole, first, (wrong, [xorb.segment(0, 1)])], [(wrong, [xorb.segment(1)]), first]):
        refused(client.send_shard(shard_of(*described)), 422, "hash to")
        assert sorted(stat.key for stat in harness.blobs.list("blobs/")) == before
    with harness.session() as session:
        digests = [row.digest for row in rows(session, PushBlobRow) if row.push_id.startswith("hub_")]
    assert digests == [f"sha256:{oid(b'two')}"]
    assert client.send_shard(shard_of(whole, first)).status_code == 200
    assert commit(pusher, {"LICENSE": b"onetwosix", "README.md": b"one", "more/README.md": b"two"}).status_code == 200
    assert pusher.send("GET", "/acme/support/resolve/main/README.md").content == b"one"


@pytest.mark.security
def test_no_other_token_repository_or_tenant_reaches_a_session(harness: Harness, pusher: Pusher) -> None:
    client, xorb = XetClient(pusher), xorb_of([b"secret bytes"])
    shard = shard_of((oid(b"secret bytes"), [xorb.segment()]))
    client.send_xorb(xorb)
    other_token = Pusher(harness, harness.issue("push", namespaces=["acme"])[1])
    other_repository = Pusher(harness, pusher.secret, "acme/other")
    other_repository.create()
    other_tenant = Pusher(harness, harness.issue("push", namespaces=["globex"])[1], "globex/own")
    other_tenant.create()
    other_token.create()
    for other in (other_token, other_repository, other_tenant):
        theirs = XetClient(other)
        theirs.url = theirs.url.rpartition("/")[0] + "/" + client.url.rpartition("/")[2]
        refused(theirs.send_shard(shard), 422, "does not have")
        assert theirs.send_xorb(xorb).json() == {"was_inserted": True}, "nothing says that someone has it"
    foreign = XetClient(other_tenant)
    foreign.url = client.url
    refused(foreign.send_shard(shard), 401, "Invalid credentials")
    refused(other_tenant.send("POST", client.url + "/v1/shards", content=shard), 404, "acme/support")
    assert client.send_shard(shard).status_code == 200


@pytest.mark.security
def test_chunks_are_unknown_whether_or_not_they_are_stored(harness: Harness, pusher: Pusher) -> None:
    client, xorb = XetClient(pusher), xorb_of([b"one"])
    client.send_xorb(xorb)
    responses = [client.send("GET", f"/v1/chunks/default/{name}") for name in (xorb.hash, "0" * 64)]
    assert [(response.status_code, response.json()["detail"]) for response in responses] == [
        (404, "this registry does not say which chunks it has")
    ] * 2
    for path in ("/v2/shards", f"/v1/xorb-grants/default/{xorb.hash}"):
        assert client.send("POST", path, content=b"x").status_code == 404, "clients try these first"
    assert pusher.send("GET", "/api/models/acme/none/xet-write-token/main").status_code == 404
    recorded = [event.object for event in Audit(harness.admin).events(action=[DENIAL_ACTIONS["NotFound"]])]
    assert recorded == ["GET /api/models/acme/none/xet-write-token/main"], "answers of the protocol are no denials"
    refused(pusher.send("GET", "/api/models/acme/support/xet-read-token/main"), 501, "sends whole files")


@pytest.mark.security
def test_hostile_bodies_get_errors_of_the_hub_and_nothing_is_stored(harness: Harness, pusher: Pusher) -> None:
    """Lengths that lie, bombs, a million segments and others: what each is, `test_xet_codec.py` says."""
    client = XetClient(pusher)
    xorbs = {name: (client.send_xorb(Xorb("0" * 64, body, ())), text) for name, (body, text) in HOSTILE_XORBS.items()}
    shards = {name: (client.send_shard(body), text) for name, (body, text) in HOSTILE_SHARDS.items()}
    for response, _ in [xorbs.pop("empty"), shards.pop("empty")]:
        refused(response, 400, "the body is empty")
    for response, message in [*xorbs.values(), *shards.values()]:
        assert response.status_code in (400, 413)
        refused(response, response.status_code, message)
    assert (staged(harness), xorbs_of(harness), pusher.files()) == ([], 0, [])


# ------------------------------------------------------------------ tokens
@pytest.mark.security
def test_an_access_token_is_for_one_repository_and_a_short_time(
    harness: Harness, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = pusher.send("GET", "/api/models/acme/support/xet-write-token/refs%2Fpr%2F1")
    assert response.json() == {
        "casUrl": response.headers["x-xet-cas-url"], "accessToken": response.headers["x-xet-access-token"],
        "exp": int(response.headers["x-xet-token-expiration"]),
    }  # fmt: skip
    assert response.headers["cache-control"] == "no-store"
    assert 0 < response.json()["exp"] - time.time() <= LIMIT_SECONDS
    client, xorb = XetClient(pusher), xorb_of([b"one"])
    assert pusher.secret not in client.token
    other_end = "0" if client.token[-1] != "0" else "1"
    for token in (client.token[:-1] + other_end, client.token.replace("_1", "_2", 1), "xet_"):
        forged = Pusher(harness, token).send("POST", client.url + "/v1/shards", content=b"x")
        refused(forged, 401, "Invalid credentials")
    assert Pusher(harness, client.token).send("GET", "/api/v1/whoami").status_code == 401
    monkeypatch.setattr(time, "time", lambda: response.json()["exp"] + 60)
    refused(client.send_xorb(xorb), 401, "Invalid credentials")
    assert xorbs_of(harness) == 0


@pytest.mark.security
def test_a_revoked_token_ends_its_access_tokens(harness: Harness) -> None:
    token_id, secret = harness.issue("push", namespaces=["acme"])
    own_pusher = Pusher(harness, secret)
    own_pusher.create()
    client, xorb = XetClient(own_pusher), xorb_of([b"one"])
    assert client.send_xorb(xorb).status_code == 200
    harness.admin.revoke_token(token_id)
    refused(client.send_shard(shard_of((oid(b"one"), [xorb.segment()]))), 401, "Invalid credentials")


def test_an_access_token_may_expire_while_a_body_arrives(pusher: Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    client, xorb = XetClient(pusher), xorb_of([b"one"])
    checks = iter([False, True])
    find = access_tokens.find_secret
    monkeypatch.setattr(access_tokens, "find_secret", lambda *args: (find(*args)[0], next(checks)))  # type: ignore[index]
    assert client.send_xorb(xorb).json() == {"was_inserted": True}
    assert next(checks, None) is None, "it was looked at before and after the body"


@pytest.mark.parametrize("scope", ["pull", "promote"])
def test_only_who_may_push_gets_an_access_token(harness: Harness, pusher: Pusher, scope: str) -> None:
    harness.push("acme/support")
    secret = harness.issue(scope, namespaces=["acme"])[1]
    reader = Pusher(harness, secret)
    assert reader.send("GET", "/api/models/acme/support/xet-write-token/main").status_code == 403
    assert reader.send("POST", XetClient(pusher).url + "/v1/shards", content=b"x").status_code == 403


# ------------------------------------------------------------------ quotas and collection
def test_a_quota_counts_a_file_once_while_its_xorbs_are_staged(harness: Harness, pusher: Pusher) -> None:
    harness.admin.create_namespace("acme", owner="alice")
    harness.admin.change_namespace("acme", NamespaceSet(quota_bytes=10 * CHUNK))
    large = random.Random(1).randbytes(6 * CHUNK)
    client, xorb = XetClient(pusher), xorb_of(split(large, CHUNK))
    assert client.send_xorb(xorb).status_code == 200
    refused(client.send_xorb(xorb_of([bytes(5 * CHUNK)])), 413, "the quota of namespace 'acme' is full")
    refused(client.send_shard(shard_of((oid(large * 2), [xorb.segment()] * 2))), 413, "the quota")
    assert client.send_shard(shard_of((oid(large), [xorb.segment()]))).status_code == 200
    refused(XetClient(pusher).send_xorb(xorb_of([bytes(5 * CHUNK)])), 413, "the quota")


def test_a_session_has_a_limit_of_xorbs(pusher: Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "XORBS_LIMIT", 2)
    client = XetClient(pusher)
    responses = [client.send_xorb(xorb_of([bytes([number])])) for number in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 413]


@pytest.mark.security
def test_files_that_repeat_a_chunk_without_end_are_not_written(
    harness: Harness, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "XORB_LIMIT_BYTES", CHUNK)
    client, xorb = XetClient(pusher), xorb_of([bytes(CHUNK)])
    client.send_xorb(xorb)
    many = [(oid(bytes([number])), [xorb.segment()] * 9) for number in range(2)]
    refused(client.send_shard(shard_of(*many)), 413, "over the limit of 16 times")
    assert staged(harness) == ["xet"]
    repeated = bytes(16 * CHUNK)
    assert client.send_shard(shard_of((oid(repeated), [xorb.segment()] * 16))).status_code == 200


@pytest.mark.security
def test_a_shard_reads_the_store_in_proportion_to_its_bytes(
    harness: Harness, pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each segment is a read of the store, and a shard of 3 MB describes 65,536 segments of one byte."""
    client, xorb = XetClient(pusher), xorb_of([b"a", b"b"])
    client.send_xorb(xorb)
    opened: list[str] = []
    monkeypatch.setattr(harness.blobs, "open", lambda key, *_span: opened.append(key))
    segments = [xorb.segment(number % 2, number % 2 + 1) for number in range(1000)]
    refused(client.send_shard(shard_of((oid(b"ab" * 500), segments))), 400, "more segments than")
    assert (opened, staged(harness)) == ([], ["xet"])


def test_what_a_client_has_left_behind_is_collected(harness: Harness, pusher: Pusher) -> None:
    client = XetClient(pusher)
    client.send_xorb(xorb_of([b"one"]))
    collect(harness)
    assert (staged(harness), xorbs_of(harness)) == (["xet"], 1), "the session may go on"
    past = db.now() - timedelta(days=8)
    with harness.session() as session:
        session.connection().execute(update(PushRow).where(col(PushRow.id).startswith("xet_")).values(expires_at=past))
    refused(client.send_shard(shard_of((oid(b"one"), [xorb_of([b"one"]).segment()]))), 422, "does not have")
    collect(harness)
    collect(harness)
    assert (staged(harness), xorbs_of(harness)) == ([], 0)
