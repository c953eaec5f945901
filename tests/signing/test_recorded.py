"""Our reader against bundles that model_signing wrote: what they sign, who signed, and changes of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509

from registry.attestations import certified, models
from registry.attestations.certificates import Trust, fingerprint
from registry.attestations.keys import PublicKey
from registry.digest import Digest
from registry.errors import Invalid
from registry.versions.files import kind_of
from registry.versions.manifest import BaseRef, Descriptor, Manifest
from tests.signing.setup import LEFT_OUT, RECORDED

TOLD: dict[str, Any] = json.loads(RECORDED.read_text())
KEYS = [way for way, record in TOLD["signed"].items() if "public_key" in record]
CERTIFICATES = [way for way, record in TOLD["signed"].items() if "root" in record]
AT = datetime(2027, 1, 1, tzinfo=UTC)
"""A day on which the recorded certificates are valid."""


def pushed(**others: str) -> Manifest:
    """The version that a push of the signed folder makes; `others` are files whose bytes are different."""
    described = []
    for path, (digest, size_bytes) in TOLD["files"].items():
        kind = kind_of(path)
        if kind is not None:
            digest_ = Digest.of(others[path].encode()) if path in others else Digest(digest)
            described.append(Descriptor(path=path, media_type=kind.media_type, digest=digest_, size_bytes=size_bytes))
    return Manifest.build(BaseRef(name="tiny", fingerprint=Digest.of(b"base")), described, ())


def bundle_of(way: str) -> str:
    return str(TOLD["signed"][way]["bundle"])


def test_what_is_recorded_is_an_adapter_of_peft_and_more_was_signed_than_is_pushed() -> None:
    paths = {file.path for file in pushed().files}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} == paths
    assert set(TOLD["files"]) - paths == {LEFT_OUT}
    assert (len(KEYS), len(CERTIFICATES)) == (3, 2)


@pytest.mark.parametrize("way", KEYS)
def test_a_bundle_of_a_key_says_whose_it_is_and_counts_for_these_bytes_only(way: str) -> None:
    key = PublicKey.parse(TOLD["signed"][way]["public_key"].encode())
    assert models.verify_with_key(bundle_of(way), key, pushed()) == key.identity
    with pytest.raises(Invalid, match=r"other bytes of README\.md"):
        models.verify_with_key(bundle_of(way), key, pushed(**{"README.md": "another"}))
    for other in set(KEYS) - {way}:
        with pytest.raises(Invalid, match="no signature of the envelope"):
            models.verify_with_key(
                bundle_of(way), PublicKey.parse(TOLD["signed"][other]["public_key"].encode()), pushed()
            )


@pytest.mark.parametrize("way", CERTIFICATES)
def test_a_bundle_of_a_certificate_is_its_owners_where_its_root_is_named(way: str) -> None:
    pem = TOLD["signed"][way]["root"].encode()
    root = fingerprint(x509.load_pem_x509_certificate(pem))[:32]
    owner = "alice@example.org" if way == "certificate" else "CN=acme release"
    assert (
        certified.verify_with_certificate(bundle_of(way), pushed(), Trust.parse([pem]), AT).identity
        == f"pki:{root}/{owner}"
    )
    unknown = certified.verify_with_certificate(bundle_of(way), pushed(), Trust(), AT)
    assert (unknown.identity, unknown.problem.startswith("not verified: no root is configured")) == ("", True)
    late = certified.verify_with_certificate(
        bundle_of(way), pushed(), Trust.parse([pem]), datetime(2099, 1, 1, tzinfo=UTC)
    )
    assert "not valid at validation time" in late.problem


@pytest.mark.parametrize("way", [KEYS[0], CERTIFICATES[0]])
def test_no_changed_byte_of_what_was_signed_or_of_the_signature_is_taken(way: str) -> None:
    document = json.loads(bundle_of(way))
    envelope, pem = document["dsseEnvelope"], TOLD["signed"][way].get("public_key")
    key = PublicKey.parse(pem.encode()) if pem else None
    payload, signature = (base64.b64decode(text) for text in (envelope["payload"], envelope["signatures"][0]["sig"]))
    changes: tuple[tuple[bytes, Callable[[str], None]], ...] = (
        (payload, lambda text: envelope.update(payload=text)),
        (signature, lambda text: envelope["signatures"][0].update(sig=text)),
    )
    for data, put in changes:
        for at in range(0, len(data), max(1, len(data) // 60)):
            put(base64.b64encode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]).decode())
            with pytest.raises(Invalid) as caught:
                if key is not None:
                    models.verify_with_key(json.dumps(document), key, pushed())
                else:
                    certified.verify_with_certificate(json.dumps(document), pushed(), Trust(), AT)
            assert caught.value.code == "SIGNATURE_INVALID"
        put(base64.b64encode(data).decode())
