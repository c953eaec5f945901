"""Sigstore's keyless signatures: a short-lived certificate, and the transparency log's signed time of its use.

The signing time comes from the log's signed promise alone, and the certificate was valid then. The log entry names the
payload's digest, the signature and the certificate. An inclusion proof, where there is one, leads to a checkpoint that
the log has signed. A trusted certificate log has signed a timestamp. Offline; RFC 3161 times are "not verified".
"""

import base64
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ObjectIdentifier

from registry import tlog
from registry.attestations import certificates, decode_base64, signature_error
from registry.attestations.certificates import Trust, Untrusted
from registry.attestations.keys import PublicKey
from registry.digest import canonical_json

_ISSUER, _ISSUER_BEFORE = ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def signer(
    material: Mapping[str, Any], envelope: Mapping[str, Any], chain: Sequence[x509.Certificate], trust: Trust
) -> str:
    """The identity that signed. `Untrusted` says what is missing here; `Invalid` what contradicts the signature."""
    if not trust.authorities or not trust.logs:
        raise Untrusted("no trusted root of Sigstore is configured")
    entries = material.get("tlogEntries")
    entry = entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else None
    if entry is None:
        raise Untrusted("it brings no entry of a transparency log")
    leaf = chain[0]
    body = decode_base64(entry.get("canonicalizedBody"), "canonicalizedBody")
    at = _promised(entry, trust)
    _about(body, envelope, leaf)
    _included(entry, body, trust)
    _, issuer = certificates.root_of([*chain, *trust.authorities], trust.authorities, at, code_only=True)
    _logged(leaf, issuer, trust)
    return f"sigstore:{_provider(leaf)}/{certificates.name_of(leaf)}"


def _log_of(entry: Mapping[str, Any], trust: Trust) -> tuple[str, PublicKey]:
    log_id = entry.get("logId")
    name = decode_base64(log_id.get("keyId") if isinstance(log_id, dict) else None, "logId").hex()
    if name not in trust.logs:
        raise Untrusted(f"the transparency log {name[:16]}… is not trusted here")
    return name, trust.logs[name]


def _promised(entry: Mapping[str, Any], trust: Trust) -> datetime:
    """When the log says that it took the entry, by its signature over body, time and place."""
    name, key = _log_of(entry, trust)
    promise = entry.get("inclusionPromise")
    if not isinstance(promise, dict):
        raise Untrusted("its log promises no time (RFC 3161 timestamps are not read here)")
    seconds = _number(entry.get("integratedTime"), "integratedTime")
    canonical = {
        "body": entry.get("canonicalizedBody"),
        "integratedTime": seconds,
        "logID": name,
        "logIndex": _number(entry.get("logIndex"), "logIndex"),
    }
    signature = decode_base64(promise.get("signedEntryTimestamp"), "signedEntryTimestamp")
    if not key.verifies(canonical_json(canonical), signature):
        raise signature_error("the transparency log did not sign the time of this entry")
    return _EPOCH + timedelta(seconds=min(seconds, 2**35))


def _about(body: bytes, envelope: Mapping[str, Any], leaf: x509.Certificate) -> None:
    try:
        entry = json.loads(body)
        kind, spec = f"{entry['kind']} {entry['apiVersion']}", entry["spec"]
        if kind != "dsse 0.0.1":
            raise Untrusted(f"its log entry is of the kind '{kind[:40]}', which is not read here")
        payload, signatures = spec["payloadHash"], spec["signatures"]
        pem = base64.b64encode(leaf.public_bytes(serialization.Encoding.PEM)).decode()
        expected = (str(envelope["signatures"][0]["sig"]), pem)
        digest = hashlib.sha256(decode_base64(envelope.get("payload"), "payload")).hexdigest()
        same = (payload["algorithm"], payload["value"]) == ("sha256", digest)
        same = same and expected in [(item["signature"], item["verifier"]) for item in signatures]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        raise signature_error("the entry of the transparency log cannot be read") from e
    if not same:
        raise signature_error("the entry of the transparency log is about another signature")


def _included(entry: Mapping[str, Any], body: bytes, trust: Trust) -> None:
    """A promise may stand alone; a proof that is there must hold."""
    proof = entry.get("inclusionProof")
    if proof is None:
        return
    try:
        hashes = [decode_base64(text, "hashes") for text in proof.get("hashes", ())]
        root, size = decode_base64(proof["rootHash"], "rootHash"), _number(proof["treeSize"], "treeSize")
        index, note = _number(proof["logIndex"], "logIndex"), str(proof["checkpoint"]["envelope"])
    except (KeyError, TypeError, AttributeError) as e:
        raise signature_error("the inclusion proof cannot be read") from e
    if not tlog.verify_inclusion(tlog.leaf_hash(body), index, size, hashes, root):
        raise signature_error("the inclusion proof does not lead from the entry to its root")
    if not _signed_root(note, size, root, _log_of(entry, trust)[1]):
        raise signature_error("the transparency log did not sign the root of the inclusion proof")


def _signed_root(note: str, size: int, root: bytes, key: PublicKey) -> bool:
    """Whether a checkpoint (C2SP signed note, with ECDSA) tells of this root and is signed with this key."""
    text, _, signatures = note.partition("\n\n")
    lines = text.split("\n")
    if len(lines) < 3 or (lines[1], lines[2]) != (str(size), base64.b64encode(root).decode()):
        return False
    for line in signatures.splitlines()[:8]:
        packed = decode_base64(line.rpartition(" ")[2], "checkpoint")
        if line.startswith("\u2014 ") and key.verifies(f"{text}\n".encode(), packed[4:]):
            return True
    return False


def _logged(leaf: x509.Certificate, issuer: x509.Certificate, trust: Trust) -> None:
    """Whether a certificate log that is trusted here has signed a timestamp for this certificate (RFC 6962 §3.2)."""
    try:
        stamps = leaf.extensions.get_extension_for_class(x509.PrecertificateSignedCertificateTimestamps).value
    except (x509.ExtensionNotFound, ValueError):
        raise Untrusted("its certificate is in no certificate log") from None
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    by = hashlib.sha256(issuer.public_key().public_bytes(serialization.Encoding.DER, form)).digest()
    body = leaf.tbs_precertificate_bytes
    for stamp in stamps:
        key = trust.certificate_logs.get(stamp.log_id.hex())
        at = (stamp.timestamp.replace(tzinfo=UTC) - _EPOCH) // (datetime.resolution * 1000)
        head = struct.pack(">BBQH", 0, 0, at, 1) + by + len(body).to_bytes(3, "big")
        signed = head + body + len(stamp.extension_bytes).to_bytes(2, "big") + stamp.extension_bytes
        if key is not None and key.verifies(signed, stamp.signature):
            return
    raise Untrusted("no certificate log that is trusted here has its certificate")


def _provider(leaf: x509.Certificate) -> str:
    """Who says who it was: the issuer of the identity token that the certificate was given for."""
    for oid, start in ((_ISSUER, 2), (_ISSUER_BEFORE, 0)):
        try:
            value = leaf.extensions.get_extension_for_oid(oid).value
        except x509.ExtensionNotFound:
            continue
        if isinstance(value, x509.UnrecognizedExtension):
            return value.value[start:].decode(errors="replace")
    raise Untrusted("its certificate does not say who identified its owner")


def _number(value: object, field: str) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise signature_error(f"{field}: not a whole number")
    return int(text)
