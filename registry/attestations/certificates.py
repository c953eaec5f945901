"""Certificates that sign versions: whose they are, and whether they lead to a root that an operator has named.

`cryptography` validates the chain. A signing certificate needs the key usage `digitalSignature`, and `codeSigning`
where it lists extended usages; one that lists none is for any (RFC 5280 §4.2.1.12). Revocation is not looked up: that
needs the network, and would tell others whose signatures we look at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from registry.attestations import decode_base64, signature_error
from registry.attestations.keys import PublicKey
from registry.errors import Invalid

CHAIN_LIMIT = 8


class Untrusted(Exception):
    """What keeps a signature from being verified here, though nothing is wrong with it: the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom an operator trusts: roots of authorities, and Sigstore instances by their `trusted_root.json`."""

    roots: tuple[x509.Certificate, ...] = ()
    sigstore: tuple[bytes, ...] = ()

    @classmethod
    def parse(cls, files: Iterable[bytes]) -> Trust:
        """From PEM files of root certificates and Sigstore's `trusted_root.json`. `Invalid` (SETTING_INVALID)."""
        roots: list[x509.Certificate] = []
        sigstore: list[bytes] = []
        try:
            for data in files:
                if data.lstrip().startswith(b"{"):
                    _ = json.loads(data)["certificateAuthorities"]
                    sigstore.append(data)
                else:
                    roots += x509.load_pem_x509_certificates(data)
        except (ValueError, KeyError) as e:
            message = "trusted roots: neither PEM certificates nor a trusted_root.json of Sigstore"
            raise Invalid("SETTING_INVALID", message) from e
        return cls(tuple(roots), tuple(sigstore))


def of_material(material: Mapping[str, Any]) -> tuple[x509.Certificate, ...]:
    """The certificates of a bundle's verification material, the one that signed first; none where it has a key."""
    chain = material.get("x509CertificateChain")
    certificates = chain.get("certificates") if isinstance(chain, dict) else [material.get("certificate")]
    if not isinstance(certificates, list) or certificates == [None]:
        return ()
    if not 0 < len(certificates) <= CHAIN_LIMIT or not all(isinstance(item, dict) for item in certificates):
        raise signature_error(f"verificationMaterial: a chain has 1 to {CHAIN_LIMIT} certificates")
    return tuple(_read(decode_base64(item.get("rawBytes"), "rawBytes")) for item in certificates)


def _read(raw: bytes) -> x509.Certificate:
    """A certificate whose parts can all be read: the library parses them when they are first used."""
    try:
        certificate = x509.load_der_x509_certificate(raw)
        _ = (certificate.public_key(), certificate.subject, certificate.issuer, tuple(certificate.extensions))
    except Exception as e:  # the library raises many kinds
        raise signature_error("verificationMaterial: a certificate cannot be read") from e
    return certificate


def key_of(certificate: x509.Certificate) -> PublicKey:
    """The public key of a certificate."""
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return PublicKey.parse(certificate.public_key().public_bytes(encoding, form))


def name_of(certificate: x509.Certificate) -> str:
    """Whose a certificate is: its e-mail address or URI, else its subject."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return certificate.subject.rfc4514_string()
    subjects = names.get_values_for_type(x509.RFC822Name) + names.get_values_for_type(x509.UniformResourceIdentifier)
    return subjects[0] if subjects else certificate.subject.rfc4514_string()


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of a certificate, in hex."""
    return certificate.fingerprint(SHA256()).hex()


def root_of(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime) -> x509.Certificate:
    """The root that a chain leads to. `Untrusted` says why it leads to none."""
    leaf = chain[0]
    _require_signing_use(leaf)
    policy = PolicyBuilder().store(Store(list(roots))).time(at).max_chain_depth(CHAIN_LIMIT)
    policy = policy.extension_policies(ca_policy=_AUTHORITY, ee_policy=ExtensionPolicy.permit_all())
    try:
        return policy.build_client_verifier().verify(leaf, list(chain[1:])).chain[-1]
    except (VerificationError, x509.UnsupportedGeneralNameType, ValueError) as e:
        reason = str(e).partition(" (encountered")[0]
        message = f"its certificate ({name_of(leaf)}) does not lead to a root that is trusted here: {reason}"
        raise Untrusted(message) from e


def _require_issuing_use(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("not an authority that may issue certificates")


# Certificates of company authorities often lack the key identifiers and extended usages that the Web's must have.
_AUTHORITY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _require_issuing_use)
)


def _require_signing_use(leaf: x509.Certificate) -> None:
    by_oid = {extension.oid: extension.value for extension in leaf.extensions}
    usage, purposes = by_oid.get(ExtensionOID.KEY_USAGE), by_oid.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if usage is None or not usage.digital_signature:
        raise Untrusted("its certificate is not one for signatures")
    if purposes is not None and ExtendedKeyUsageOID.CODE_SIGNING not in purposes:
        raise Untrusted("its certificate is not one for signing code")
