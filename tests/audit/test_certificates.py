"""Signatures with certificates, also keyless ones: trusted, unverified and contradictory."""

from __future__ import annotations

import base64
import copy
import json
import random
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from registry.api.audit.attestations import AttestationView, SignRequest
from registry.attestations import certified
from registry.attestations.certificates import Trust, fingerprint
from registry.client import signing
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import Corrupt, Invalid, Refused
from registry.evaluation.gates import Gate
from registry.names import Ref
from registry.server.actors import TRUSTED
from registry.server.catalog import versions
from registry.server.promotion.attestations import signers_by_version
from registry.versions.manifest import BaseRef, Descriptor, Manifest
from tests.audit.certificates import EMAIL, NOW, Authority, Sigstore, bundle, key
from tests.client.test_wrong_responses import TamperingTransport
from tests.harness import URL, Harness

pytestmark = pytest.mark.security

NAME = "acme/support"
ISSUER = "https://accounts.example.org"


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    folder = tmp_path / "roots"
    folder.mkdir()
    return folder


@pytest.fixture
def harness(database_url: str, roots: Path) -> Iterator[Harness]:
    with Harness(database_url, trusted_roots=str(roots)) as harness:
        harness.add_base()
        harness.push(NAME)
        yield harness


@pytest.fixture(scope="module")
def sigstore() -> Sigstore:
    return Sigstore()


def manifest_of(harness: Harness) -> Manifest:
    return harness.admin.resolve(NAME).manifest


def attach_bundle(harness: Harness, document: dict[str, Any]) -> AttestationView:
    return Audit(harness.admin).sign(NAME, SignRequest(bundle=json.dumps(document)))


def counted_signers(harness: Harness) -> frozenset[str]:
    """Whose signatures a gate sees."""
    with harness.session() as session:
        version_id = versions.find(session, TRUSTED, Ref.parse(NAME).name, 1).id or 0
        return signers_by_version(session, [version_id]).get(version_id, frozenset())


def examined(harness: Harness, trust: Trust) -> list[signing.Signed]:
    lines = signing.examine(Audit(harness.admin).attestations(NAME).items, harness.admin.resolve(NAME), (), trust)
    return [line for line in lines if line.kind in signing.ATTACHED]


def test_a_signature_with_a_chain_to_a_trusted_root_counts_at_a_gate(harness: Harness, roots: Path) -> None:
    root = Authority()
    between, signer = Authority("acme signing", root), key()
    (roots / "acme.pem").write_bytes(root.pem)
    leaf = between.leaf(signer.public_key())
    view = attach_bundle(harness, bundle(manifest_of(harness), signer, leaf, between.certificate))
    identity = f"pki:{fingerprint(root.certificate)[:32]}/{EMAIL}"
    assert (view.kind, view.identity, view.public_key) == ("signature", identity, "")
    assert counted_signers(harness) == {identity}
    harness.admin.set_gate(NAME, "theirs", Gate(signed_by=("pki:another/" + EMAIL,)))
    harness.admin.set_gate(NAME, "ours", Gate(signed_by=(identity,)))
    with pytest.raises(Refused):
        harness.admin.promote(NAME, "theirs", "1", generation=0)
    assert harness.admin.promote(NAME, "ours", "1", generation=0).number == 1
    assert [(line.ok, line.who) for line in examined(harness, Trust.parse([root.pem]))] == [(True, identity)]
    (line,) = examined(harness, Trust())
    assert (line.ok, line.unverified) == (False, True)
    assert line.problem == f"not verified: no root is configured that could vouch for {EMAIL}"


def test_a_keyless_signature_is_verified_offline_including_its_log(
    harness: Harness, roots: Path, sigstore: Sigstore
) -> None:
    (roots / "trusted_root.json").write_bytes(sigstore.trusted_root)
    view = attach_bundle(harness, sigstore.bundle(manifest_of(harness)))
    assert (view.kind, view.identity) == ("signature", f"sigstore:{ISSUER}/{EMAIL}")
    assert counted_signers(harness) == {view.identity}
    (line,) = examined(harness, Trust.parse([sigstore.trusted_root]))
    assert (line.ok, line.who) == (True, view.identity)


def test_a_signature_without_a_trusted_root_is_stored_as_unverified_and_passes_no_gate(
    harness: Harness, sigstore: Sigstore
) -> None:
    view = attach_bundle(harness, sigstore.bundle(manifest_of(harness)))
    assert (view.kind, view.identity) == ("unverified", "not verified: no trusted root of Sigstore is configured")
    assert attach_bundle(harness, json.loads(view.bundle)) == view
    assert counted_signers(harness) == frozenset()
    assert [line.unverified for line in examined(harness, Trust())] == [True]


def test_a_signature_is_added_again_once_a_root_vouches_for_it(
    harness: Harness, roots: Path, sigstore: Sigstore
) -> None:
    document = sigstore.bundle(manifest_of(harness))
    attach_bundle(harness, document)
    (roots / "trusted_root.json").write_bytes(sigstore.trusted_root)
    assert attach_bundle(harness, document).identity == f"sigstore:{ISSUER}/{EMAIL}"
    assert counted_signers(harness) == {f"sigstore:{ISSUER}/{EMAIL}"}
    assert [(line.kind, line.ok) for line in examined(harness, Trust.parse([sigstore.trusted_root]))] == [
        ("unverified", True), ("signature", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "lie",
    [
        {"identity": "sigstore:https://accounts.example.org/mallory@example.org"},
        {"identity": f"key:{EMAIL}"},
        {"kind": "push"},
        {"kind": "unverified"},
        {"public_key": "x"},
        {"digest": "sha256:" + "0" * 64},
    ],
    ids=lambda lie: "-".join(lie),
)
def test_a_response_about_another_signature_than_the_one_with_this_certificate_is_refused(
    harness: Harness, roots: Path, sigstore: Sigstore, lie: dict[str, str]
) -> None:
    (roots / "trusted_root.json").write_bytes(sigstore.trusted_root)
    transport = TamperingTransport(harness.transport)
    transport.suffix, transport.change = "/attestations", lambda document: document | lie
    request = SignRequest(bundle=json.dumps(sigstore.bundle(manifest_of(harness))))
    with pytest.raises(Corrupt):
        Audit(Registry(URL, harness.secret, transport)).sign(NAME, request)


Case = Callable[[Authority, Any], list[x509.Certificate]]
CRITICAL = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00")


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        (lambda _, own: [Authority().leaf(own)], "does not lead to a root"),
        (lambda root, own: [Authority("acme root").leaf(own), root.certificate], "does not lead to a root"),
        (
            lambda root, own: [(odd := Authority("odd", root, ca=False)).leaf(own), odd.certificate],
            "basicConstraints.cA must be",
        ),
        (lambda root, own: [root.leaf(own, begins=NOW - timedelta(days=9))], "not valid at validation time"),
        (lambda root, own: [root.leaf(own, purpose=ExtendedKeyUsageOID.SERVER_AUTH)], "not one for signing code"),
        (lambda root, own: [root.leaf(own, (CRITICAL, True))], "critical extension"),
    ],
    ids=["other-root", "same-name", "no-authority", "expired", "for-servers", "critical"],
)
def test_a_broken_chain_is_unverified_and_the_reason_is_shown(chain: Case, why: str) -> None:
    root, signer, manifest = Authority(), key(), _manifest()
    document = bundle(manifest, signer, *chain(root, signer.public_key()))
    verified = certified.verify_with_certificate(json.dumps(document), manifest, Trust.parse([root.pem]), NOW)
    assert verified.identity == ""
    assert verified.problem.startswith("not verified: ")
    assert why in verified.problem


def _manifest() -> Manifest:
    data, kind = b"weights", "application/vnd.safetensors"
    file = Descriptor(
        path="adapter_model.safetensors",
        media_type=kind,
        digest=Digest.of(data),
        size_bytes=len(data),
    )
    return Manifest.build(BaseRef(name="base", fingerprint=Digest.of(b"base")), [file], ())


def entry_of(document: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = document["verificationMaterial"]["tlogEntries"][0]
    return entry


def other_time(document: dict[str, Any]) -> None:
    entry_of(document)["integratedTime"] = str(int(NOW.timestamp()) + 1)


def other_root(document: dict[str, Any]) -> None:
    entry_of(document)["inclusionProof"]["rootHash"] = "A" * 43 + "="


def other_checkpoint(document: dict[str, Any]) -> None:
    checkpoint = entry_of(document)["inclusionProof"]["checkpoint"]
    checkpoint["envelope"] = checkpoint["envelope"].replace("rekor.example.org\n2", "rekor.example.com\n2")


def other_body(document: dict[str, Any], sigstore: Sigstore) -> None:
    document["verificationMaterial"]["tlogEntries"] = [
        sigstore.entry(b'{"kind":"dsse","apiVersion":"0.0.1","spec":{}}')
    ]


def other_payload(document: dict[str, Any]) -> None:
    document["dsseEnvelope"]["payload"] = document["dsseEnvelope"]["payload"][:-8] + "AAAAAAA="


@pytest.mark.parametrize("change", [other_time, other_root, other_checkpoint, other_body])
def test_a_contradictory_entry_of_the_log_is_unverified_and_opens_no_gate(
    harness: Harness, roots: Path, sigstore: Sigstore, change: Callable[..., None]
) -> None:
    (roots / "trusted_root.json").write_bytes(sigstore.trusted_root)
    document = copy.deepcopy(sigstore.bundle(manifest_of(harness)))
    change(document, sigstore) if change is other_body else change(document)
    view = attach_bundle(harness, document)
    assert (view.kind, view.identity[:40]) == ("unverified", "not verified: Sigstore does not vouch for it"[:40])
    assert counted_signers(harness) == frozenset()
    assert [line.ok for line in examined(harness, Trust.parse([sigstore.trusted_root]))] == [False]


def test_another_payload_is_refused_and_not_stored(harness: Harness, roots: Path, sigstore: Sigstore) -> None:
    (roots / "trusted_root.json").write_bytes(sigstore.trusted_root)
    document = copy.deepcopy(sigstore.bundle(manifest_of(harness)))
    other_payload(document)
    with pytest.raises(Invalid) as refusal:
        attach_bundle(harness, document)
    assert refusal.value.code == "SIGNATURE_INVALID"
    assert examined(harness, Trust()) == []


def test_a_changed_certificate_verifies_nothing(sigstore: Sigstore) -> None:
    source, trust = random.Random(7), Trust.parse([sigstore.trusted_root])
    for _ in range(100):
        document = sigstore.bundle(_manifest())
        certificate = document["verificationMaterial"]["certificate"]
        data = bytearray(base64.b64decode(certificate["rawBytes"]))
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        certificate["rawBytes"] = base64.b64encode(data).decode()
        try:
            identity = certified.verify_with_certificate(json.dumps(document), _manifest(), trust, NOW).identity
        except Invalid:
            continue
        assert identity == ""


def test_a_keyless_signature_needs_every_part(sigstore: Sigstore) -> None:
    manifest = _manifest()

    def verified(document: dict[str, Any], root: Sigstore = sigstore) -> bool:
        trust = Trust.parse([root.trusted_root])
        return bool(certified.verify_with_certificate(json.dumps(document), manifest, trust, NOW).identity)

    good, timed = sigstore.bundle(manifest), sigstore.bundle(manifest)
    assert verified(good)
    assert not verified(sigstore.bundle(manifest, at=NOW + timedelta(hours=1)))
    assert not verified(sigstore.bundle(manifest, leaf=sigstore.leaf(stamped=False)))
    del entry_of(timed)["inclusionPromise"]
    assert not verified(timed)
    other = Sigstore()
    other.authority = sigstore.authority
    assert not verified(good, other)
    other.log, other.authority = sigstore.log, Authority("another")
    assert not verified(good, other)
    other.authority = sigstore.authority
    assert not verified(good, other)


def test_without_the_extra_a_keyless_signature_is_not_verified_and_says_what_to_install(
    sigstore: Sigstore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    monkeypatch.delitem(sys.modules, "registry.attestations.keyless", raising=False)
    trust = Trust.parse([sigstore.trusted_root])
    result = certified.verify_with_certificate(json.dumps(sigstore.bundle(_manifest())), _manifest(), trust, NOW)
    assert (result.identity, result.problem) == ("", "not verified here: install adapter-registry[verify]")


def test_a_bundle_without_certificate_needs_its_key_and_bad_roots_are_a_setting(harness: Harness, roots: Path) -> None:
    document = bundle(manifest_of(harness), key())
    document["verificationMaterial"] = {"publicKey": {"hint": "x"}}
    with pytest.raises(Invalid, match="give the public key"):
        attach_bundle(harness, document)
    (roots / "broken.pem").write_bytes(b"no certificate")
    signer = key()
    with pytest.raises(Invalid) as refusal:
        attach_bundle(harness, bundle(manifest_of(harness), signer, Authority().leaf(signer.public_key())))
    assert refusal.value.code == "SETTING_INVALID"
