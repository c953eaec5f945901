"""Certificates and logs for tests: authorities, valid and forged leaves, and bundles as Sigstore clients write them."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from registry import tlog
from registry.attestations import models
from registry.attestations.keys import PrivateKey, PublicKey
from registry.digest import canonical_json
from registry.versions.manifest import Manifest

NOW = datetime.now(UTC).replace(microsecond=0)
DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
EMAIL = "alice@example.org"
VALID_FOR = {"start": (NOW - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")}


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Authority:
    def __init__(self, name: str = "acme root", by: Authority | None = None, *, ca: bool = True) -> None:
        self.key = key()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = certificate_builder(
            self.name, by.name if by else self.name, self.key.public_key(), timedelta(days=3650)
        )
        usage = x509.KeyUsage(False, False, False, False, False, ca, False, False, False)
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True).add_extension(usage, True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
        self.certificate = builder.sign(by.key if by else self.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    def leaf(self, public: ec.EllipticCurvePublicKey, *more: Any, **how: Any) -> x509.Certificate:
        return self.unsigned(public, *more, **how).sign(self.key, hashes.SHA256())

    def unsigned(
        self,
        public: ec.EllipticCurvePublicKey,
        *more: tuple[x509.ExtensionType, bool],
        purpose: ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING,
        lasts: timedelta = timedelta(minutes=45),
        begins: datetime = NOW,
    ) -> x509.CertificateBuilder:
        builder = certificate_builder(x509.Name([]), self.name, public, lasts, begins)
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        builder = builder.add_extension(usage, True).add_extension(x509.ExtendedKeyUsage([purpose]), False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(EMAIL)]), True)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(authority, False)
        for extension, critical in more:
            builder = builder.add_extension(extension, critical)
        return builder


def certificate_builder(
    subject: x509.Name, issuer: x509.Name, public: Any, lasts: timedelta, begins: datetime = NOW
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begins - timedelta(minutes=5))
    return builder.not_valid_after(begins + lasts)


def bundle(manifest: Manifest, signer: ec.EllipticCurvePrivateKey, *chain: x509.Certificate) -> dict[str, Any]:
    """What `model_signing sign certificate` writes."""
    document: dict[str, Any] = json.loads(models.sign("acme/support", manifest, PrivateKey(signer)))
    listed = [{"rawBytes": b64(certificate.public_bytes(DER))} for certificate in chain]
    document["verificationMaterial"] = {"x509CertificateChain": {"certificates": listed}, "tlogEntries": []}
    return document


class Sigstore:
    """An authority of minutes, a transparency log with some entries, and a certificate log."""

    def __init__(self) -> None:
        self.authority, self.log, self.certificates = Authority("fulcio"), PrivateKey(key()), PrivateKey(key())
        self.signer = key()

    @property
    def trusted_root(self) -> bytes:
        chain = [{"rawBytes": b64(self.authority.certificate.public_bytes(DER))}]
        document = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "certificateAuthorities": [
                {
                    "uri": "https://fulcio.example.org",
                    "certChain": {"certificates": chain},
                    "validFor": VALID_FOR,
                    "subject": {"organization": "example", "commonName": "fulcio"},
                }
            ],
            "tlogs": [log_of(self.log.public)],
            "ctlogs": [log_of(self.certificates.public)],
        }
        return json.dumps(document).encode()

    def leaf(self, *, stamped: bool = True) -> x509.Certificate:
        """A certificate with an embedded timestamp of the certificate log, made as such logs ask for it."""
        issuer = x509.UnrecognizedExtension(
            ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), b"\x0c\x1c" + b"https://accounts.example.org"
        )
        builder = self.authority.unsigned(self.signer.public_key(), (issuer, False))
        plain = builder.sign(self.authority.key, hashes.SHA256())
        if not stamped:
            return plain
        by = hashlib.sha256(self.authority.key.public_key().public_bytes(DER, SPKI)).digest()
        certificate, at = plain.tbs_certificate_bytes, int(NOW.timestamp() * 1000)
        signed = (
            b"\0\0" + at.to_bytes(8, "big") + b"\0\1" + by + len(certificate).to_bytes(3, "big") + certificate + b"\0\0"
        )
        signature = self.certificates.sign(signed)
        log_id = bytes.fromhex(self.certificates.public.identity[4:])
        stamp = (
            b"\0" + log_id + at.to_bytes(8, "big") + b"\0\0" + b"\4\3" + len(signature).to_bytes(2, "big") + signature
        )
        listed = len(stamp).to_bytes(2, "big") + stamp
        listed = len(listed).to_bytes(2, "big") + listed
        octets = b"\x04" + (bytes([len(listed)]) if len(listed) < 128 else bytes([0x81, len(listed)])) + listed
        stamps = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2"), octets)
        return builder.add_extension(stamps, False).sign(self.authority.key, hashes.SHA256())

    def bundle(self, manifest: Manifest, *, leaf: x509.Certificate | None = None, at: datetime = NOW) -> dict[str, Any]:
        """What `model_signing sign sigstore` writes."""
        leaf = leaf or self.leaf()
        document = bundle(manifest, self.signer)
        envelope = document["dsseEnvelope"]
        digest = hashlib.sha256(base64.b64decode(envelope["payload"])).hexdigest()
        verifier = b64(leaf.public_bytes(PEM))
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(canonical_json(envelope)).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": digest},
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": verifier}],
        }
        body = canonical_json({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        material = {"certificate": {"rawBytes": b64(leaf.public_bytes(DER))}, "tlogEntries": [self.entry(body, at)]}
        return {**document, "verificationMaterial": material}

    def entry(self, body: bytes, at: datetime = NOW) -> dict[str, Any]:
        log_id = bytes.fromhex(self.log.public.identity[4:])
        signed_entry = {
            "body": b64(body),
            "integratedTime": int(at.timestamp()),
            "logID": log_id.hex(),
            "logIndex": 1007,
        }
        before = tlog.leaf_hash(b"another entry")
        root = tlog.node_hash(before, tlog.leaf_hash(body))
        text = f"rekor.example.org\n2\n{b64(root)}\n"
        note = f"{text}\n\u2014 rekor.example.org {b64(log_id[:4] + self.log.sign(text.encode()))}\n"
        return {
            "logIndex": "1007", "logId": {"keyId": b64(log_id)}, "integratedTime": str(signed_entry["integratedTime"]),
            "kindVersion": {"kind": "dsse", "version": "0.0.1"}, "canonicalizedBody": b64(body),
            "inclusionPromise": {"signedEntryTimestamp": b64(self.log.sign(canonical_json(signed_entry)))},
            "inclusionProof": {
                "logIndex": "1", "treeSize": "2", "rootHash": b64(root), "hashes": [b64(before)],
                "checkpoint": {"envelope": note},
            },
        }  # fmt: skip


def log_of(public: PublicKey) -> dict[str, Any]:
    raw = public.key.public_bytes(DER, SPKI)
    key = {"rawBytes": b64(raw), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": VALID_FOR}
    log_id = {"keyId": b64(hashlib.sha256(raw).digest())}
    return {"baseUrl": "https://log.example.org", "hashAlgorithm": "SHA2_256", "publicKey": key, "logId": log_id}
