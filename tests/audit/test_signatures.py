"""Attestations: the registry's own, signatures with keys, and bundles of OpenSSF model signing."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from registry import attestations
from registry.api.audit.attestations import SignRequest
from registry.api.maintenance import GcRequest
from registry.attestations import models
from registry.attestations.keys import PrivateKey, PublicKey
from registry.client import signing
from registry.client.audit import Audit
from registry.errors import Denied, Invalid, NotFound, TooLarge
from registry.names import Ref
from registry.server import failpoints
from registry.server.actors import TRUSTED
from registry.server.audit.keys import Keys
from registry.server.catalog import versions
from registry.server.database.models import EventRow
from registry.server.database.models.owner_rules import AttestationRow
from registry.server.promotion.attestations import signatures, signers_by_version
from registry.server.promotion.attestations.attester import Attester
from registry.tlog.notes import Signer, Verifier
from tests.harness import Harness, rows

pytestmark = pytest.mark.security

NAME = "acme/support"


def log_keys(harness: Harness) -> tuple[Verifier, ...]:
    """The public keys of the audit log."""
    keys: Keys = harness.app.state.audit_log.keys
    return keys.verifiers


@pytest.fixture
def pushed(harness: Harness) -> Harness:
    harness.add_base()
    harness.push(NAME, by=harness.actor("push", name="ci"))
    return harness


def pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def request(harness: Harness, key: PrivateKey) -> SignRequest:
    manifest = harness.admin.resolve(NAME).manifest
    return SignRequest(bundle=models.sign(NAME, manifest, key), public_key=key.public.pem)


def test_a_push_and_a_verdict_are_attested_by_the_registry_from_the_log(pushed: Harness) -> None:
    pushed.validate(f"{NAME}@1")
    key = PrivateKey.of_seed(pushed.app.state.audit_log.keys.signer.seed).public
    views = Audit(pushed.admin).attestations(f"{NAME}@1").items
    assert [item.kind for item in views] == ["push", "verdict"]
    push, verdict = (attestations.verify_envelope(item.bundle.encode(), key) for item in views)
    resolved = pushed.admin.resolve(NAME)
    assert push.subjects == {f.path: f.digest.hex for f in resolved.manifest.files} | {f"{NAME}@1": resolved.digest.hex}
    assert (push.predicate["actor"], push.predicate["version"], push.predicate["compat"]) == (
        "token:ci",
        f"{NAME}@1",
        "pass",
    )
    assert push.predicate["log"]["seq"] == views[0].seq
    assert (verdict.predicate_type, verdict.predicate["result"]) == (attestations.VERDICT, "PASSED")
    examined = signing.examine(Audit(pushed.admin).attestations(NAME).items, resolved, log_keys(pushed))
    assert [(line.ok, line.who.partition(",")[0]) for line in examined] == [(True, "token:ci"), (True, "token:admin")]
    seq = views[0].seq
    assert seq is not None
    assert signing.problem_of_proof(Audit(pushed.admin).proof(seq), resolved, log_keys(pushed)) == ""
    foreign = (Signer.make(pushed.app.state.audit_log.keys.signer.name).verifier,)
    assert not any(line.ok for line in signing.examine(Audit(pushed.admin).attestations(NAME).items, resolved, foreign))
    assert signing.problem_of_proof(Audit(pushed.admin).proof(seq), resolved, foreign) != ""


def test_attesting_again_gives_the_same_bytes(pushed: Harness) -> None:
    first = Audit(pushed.admin).attestations(NAME).items
    log = pushed.app.state.audit_log
    Attester(pushed.engine, pushed.blobs, lambda: log.keys).attest_until(log.latest.size)
    assert Audit(pushed.admin).attestations(NAME).items == first


def test_an_interrupted_attestation_is_finished_by_the_next_start(
    pushed: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = pushed.app.state.audit_log
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "reach", lambda point: 1 / 0 if point == "attestation.held" else None)
        with pytest.raises(ZeroDivisionError):
            log.step()
    with pushed.session() as session:
        assert len(rows(session, AttestationRow)) == 1
    Attester(pushed.engine, pushed.blobs, lambda: log.keys).attest_until(log.latest.size)
    assert [item.kind for item in Audit(pushed.admin).attestations(NAME).items] == ["push"]


@pytest.mark.parametrize("kind", ["ed25519", "p256", "p384"])
def test_a_signature_is_verified_and_stored_once_with_the_identity_of_its_key(pushed: Harness, kind: str) -> None:
    curve = {"p256": ec.SECP256R1, "p384": ec.SECP384R1}.get(kind)
    private = ec.generate_private_key(curve()) if curve else ed25519.Ed25519PrivateKey.generate()
    key = PrivateKey.parse(pem(private))
    sign_request = request(pushed, key)
    signed = Audit(pushed.admin).sign(NAME, sign_request)
    assert (signed.identity, signed.kind) == (key.public.identity, "signature")
    assert Audit(pushed.admin).sign(NAME, sign_request) == signed
    with pushed.session() as session:
        version = versions.find(session, TRUSTED, Ref.parse(NAME).name, 1)
        assert signers_by_version(session, [version.id or 0])[version.id or 0] == {key.public.identity}
        events = [row for row in rows(session, EventRow) if row.action == "version.sign"]
    assert [(row.object, row.detail["identity"]) for row in events] == [(f"{NAME}@1", key.public.identity)]
    lines = signing.examine(
        Audit(pushed.admin).attestations(NAME).items,
        pushed.admin.resolve(NAME),
        log_keys(pushed),
    )
    assert {(line.kind, line.ok) for line in lines} == {("push", True), ("signature", True)}


def test_a_signature_of_other_files_is_refused_and_not_stored(pushed: Harness) -> None:
    key, other = (PrivateKey.of_seed(bytes([number]) * 32) for number in (1, 2))
    good = request(pushed, key)
    pushed.push("acme/other")
    foreign = models.sign("x", pushed.admin.resolve("acme/other").manifest, key)
    bundle = json.loads(good.bundle)
    cut = json.loads(json.dumps(bundle))
    cut["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(b"\0" * 64).decode()
    typed = json.loads(json.dumps(bundle))
    typed["dsseEnvelope"]["payloadType"] = "text/plain"
    twice = good.bundle.replace('"mediaType"', '"mediaType": "x", "mediaType"', 1)
    wrong = [
        SignRequest(bundle=good.bundle, public_key=other.public.pem),
        SignRequest(bundle=foreign, public_key=key.public.pem),
        SignRequest(bundle=json.dumps(cut), public_key=key.public.pem),
        SignRequest(bundle=json.dumps(typed), public_key=key.public.pem),
        SignRequest(bundle=twice, public_key=key.public.pem),
        SignRequest(bundle="[" * 100_000, public_key=key.public.pem),
        SignRequest(bundle="{}", public_key=key.public.pem),
        SignRequest(bundle=good.bundle, public_key="-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"),
    ]
    for item in wrong:
        with pytest.raises(Invalid) as caught:
            Audit(pushed.admin).sign(NAME, item)
        assert caught.value.code == "SIGNATURE_INVALID"
    with pushed.session() as session:
        assert [row for row in rows(session, AttestationRow) if row.kind == "signature"] == []
    with pytest.raises(Denied):
        Audit(pushed.actor("pull")).sign(NAME, good)
    with pytest.raises(NotFound):
        Audit(pushed.actor("push", namespaces=["globex"])).sign(NAME, good)


def test_the_signatures_of_a_version_are_limited_and_one_actor_leaves_space_for_others(
    pushed: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No quota counts them, and white space makes another bundle of the same signature."""
    monkeypatch.setattr(signatures, "SIGNATURES_OF_ACTOR_LIMIT", 3)
    good = request(pushed, PrivateKey.of_seed(b"\1" * 32))
    thief = Audit(pushed.actor("push", name="thief", namespaces=["acme"]))
    for spaces in range(3):
        thief.sign(NAME, SignRequest(bundle=good.bundle + " " * spaces, public_key=good.public_key))
    with pytest.raises(TooLarge, match="at most 3 signatures"):
        thief.sign(NAME, SignRequest(bundle=good.bundle + " " * 3, public_key=good.public_key))
    thief.sign(NAME, good)  # it is there
    large = SignRequest(bundle=good.bundle + " " * 300_000, public_key=good.public_key)
    monkeypatch.setattr(signatures, "SIGNATURES_LIMIT_BYTES", 1_000_000)
    with pytest.raises(TooLarge, match="250000 bytes"):
        Audit(pushed.admin).sign(NAME, large)
    assert Audit(pushed.admin).sign(NAME, request(pushed, PrivateKey.of_seed(b"\2" * 32))).kind == "signature"


def test_garbage_collection_keeps_attestations(pushed: Harness) -> None:
    Audit(pushed.admin).sign(NAME, request(pushed, PrivateKey.of_seed(b"\1" * 32)))
    before = Audit(pushed.admin).attestations(NAME)
    cursor = ""
    while True:
        page = pushed.admin.collect(GcRequest(grace_seconds=0, cursor=cursor))
        cursor = page.next_cursor
        if not cursor:
            break
    assert Audit(pushed.admin).attestations(NAME) == before


def test_a_key_has_one_identity_in_every_file_format() -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    encoding, form = serialization.Encoding, serialization.PrivateFormat
    openssh = private.private_bytes(encoding.PEM, form.OpenSSH, serialization.NoEncryption())
    line = private.public_key().public_bytes(encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    identities = {PrivateKey.parse(data).public.identity for data in (pem(private), openssh)}
    assert identities == {PublicKey.parse(line).identity}
    locked = private.private_bytes(encoding.PEM, form.PKCS8, serialization.BestAvailableEncryption(b"word"))
    assert {PrivateKey.parse(locked, b"word").public.identity} == identities
    with pytest.raises(Invalid) as caught:
        PrivateKey.parse(locked)
    assert "word" not in caught.value.detail.replace("password", "")
    assert repr(PrivateKey.parse(pem(private))) == "PrivateKey()"
