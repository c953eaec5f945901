"""Attestations: in-toto statements about a version in DSSE envelopes, signed with a key.

The signature covers DSSE's pre-authentication encoding, so that it is never valid for anything but an envelope. A
statement's bytes are kept as they were signed and read strictly. A signature says whose key it was, nothing more.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from registry.attestations.keys import PrivateKey, PublicKey
from registry.digest import canonical_json
from registry.errors import Invalid
from registry.strict import json as strict_json
from registry.strict.json import Dialect

STATEMENT = "https://in-toto.io/Statement/v1"
PAYLOAD = "application/vnd.in-toto+json"
PUSH = "urn:adapter-registry:push:v1"
VERDICT = "https://in-toto.io/attestation/test-result/v0.1"
BUNDLE_LIMIT_BYTES = 512 * 2**10
_DIALECT = Dialect("SIGNATURE_INVALID", "signature", depth=24)


@dataclass(frozen=True, slots=True)
class Statement:
    """What an envelope says: about which digests (name → SHA-256 in hex), of which sort, and what."""

    subjects: Mapping[str, str]
    predicate_type: str
    predicate: Mapping[str, Any]


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (secure-systems-lab/dsse, protocol.md)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def statement(predicate_type: str, subjects: Mapping[str, str], predicate: Mapping[str, Any]) -> bytes:
    """The canonical bytes of an in-toto statement (in-toto/attestation, Statement v1)."""
    subject = [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())]
    content = {"subject": subject, "predicateType": predicate_type, "predicate": dict(predicate)}
    return canonical_json({"_type": STATEMENT, **content})


def sign_statement(payload: bytes, key: PrivateKey) -> bytes:
    """The DSSE envelope of a statement, as canonical JSON."""
    signature = {"keyid": key.public.identity, "sig": base64.b64encode(key.sign(pae(PAYLOAD, payload))).decode()}
    encoded = base64.b64encode(payload).decode()
    return canonical_json({"payload": encoded, "payloadType": PAYLOAD, "signatures": [signature]})


def verify_envelope(envelope: bytes | Mapping[str, Any], key: PublicKey) -> Statement:
    """The statement of an envelope that this key has signed. `Invalid` (SIGNATURE_INVALID) says what is wrong."""
    document = read(envelope) if isinstance(envelope, bytes) else envelope
    payload_type, signatures = document.get("payloadType"), document.get("signatures")
    if payload_type != PAYLOAD or not isinstance(signatures, list):
        raise signature_error(f"the envelope is not a DSSE envelope of {PAYLOAD}")
    payload = decode_base64(document.get("payload"), "payload")
    signed = pae(PAYLOAD, payload)
    for signature in signatures[:8]:
        if isinstance(signature, dict) and key.verifies(signed, decode_base64(signature.get("sig"), "signatures.sig")):
            return _statement(payload)
    raise signature_error(f"no signature of the envelope is one of the key {key.identity}")


def read(text: bytes) -> dict[str, Any]:
    """A JSON object, read strictly. `Invalid` (SIGNATURE_INVALID)."""
    if len(text) > BUNDLE_LIMIT_BYTES:
        raise signature_error(f"the bundle is over {BUNDLE_LIMIT_BYTES} bytes")
    return strict_json.parse_object(text, _DIALECT, file="the bundle")


def _statement(payload: bytes) -> Statement:
    document = read(payload)
    subjects, predicate = document.get("subject"), document.get("predicate")
    if document.get("_type") != STATEMENT or not isinstance(subjects, list) or not isinstance(predicate, dict):
        raise signature_error(f"the payload is not a {STATEMENT}")
    hex_digests: dict[str, str] = {}
    for item in subjects:
        digests = item.get("digest") if isinstance(item, dict) else None
        hex_digest = digests.get("sha256") if isinstance(digests, dict) else None
        if not isinstance(hex_digest, str):
            raise signature_error("subject: one has no sha256")
        hex_digests[str(item.get("name", ""))] = hex_digest
    return Statement(hex_digests, str(document.get("predicateType", "")), predicate)


def decode_base64(text: object, field: str) -> bytes:
    """Base64 of a field. `Invalid` (SIGNATURE_INVALID) otherwise."""
    try:
        return base64.b64decode(str(text).encode(), validate=True)
    except (binascii.Error, ValueError) as e:
        raise signature_error(f"{field}: not base64") from e


def signature_error(message: str) -> Invalid:
    """The error for a signature that cannot be read or does not hold."""
    return Invalid("SIGNATURE_INVALID", message)
