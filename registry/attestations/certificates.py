"""Certificates that sign versions: whose they are, and whether they lead to a root that an operator has named.

A signing certificate needs the key usage `digitalSignature`, and `codeSigning` where it lists extended usages; one that
lists none is for any (RFC 5280 §4.2.1.12). An unknown critical extension breaks the chain. Revocation is not looked up:
that needs the network, and would tell others whose signatures we look at.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from registry.attestations import decode_base64, signature_error
from registry.attestations.keys import PublicKey
from registry.errors import Invalid

CHAIN_LIMIT = 8
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}


class Untrusted(Exception):
    """What keeps a signature from being verified here, though nothing is wrong with it: the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom an operator trusts: roots of authorities, Sigstore's authorities, its logs by key id (SHA-256 in hex)."""

    roots: tuple[x509.Certificate, ...] = ()
    authorities: tuple[x509.Certificate, ...] = ()
    logs: Mapping[str, PublicKey] = field(default_factory=dict)
    certificate_logs: Mapping[str, PublicKey] = field(default_factory=dict)

    @classmethod
    def parse(cls, files: Iterable[bytes]) -> Trust:
        """From PEM files of root certificates and Sigstore's `trusted_root.json`. `Invalid` (SETTING_INVALID)."""
        roots: list[x509.Certificate] = []
        certificates: dict[str, list[Any]] = {"certificateAuthorities": [], "tlogs": [], "ctlogs": []}
        try:
            for data in files:
                if data.lstrip().startswith(b"{"):
                    document = json.loads(data)
                    for name, entries in certificates.items():
                        entries += document.get(name, [])
                else:
                    roots += x509.load_pem_x509_certificates(data)
            chains = [authority["certChain"]["certificates"] for authority in certificates["certificateAuthorities"]]
            authorities = tuple(_certificate(raw["rawBytes"]) for chain in chains for raw in chain)
            return cls(tuple(roots), authorities, _logs(certificates["tlogs"]), _logs(certificates["ctlogs"]))
        except (ValueError, KeyError, TypeError, AttributeError, Invalid) as e:
            message = "trusted roots: neither PEM certificates nor a trusted_root.json of Sigstore"
            raise Invalid("SETTING_INVALID", message) from e


def _logs(entries: Iterable[Any]) -> dict[str, PublicKey]:
    """The keys of logs that we can verify with; other kinds of key are passed over, so nothing of theirs verifies."""
    keys = {}
    for log in entries:
        try:
            key = serialization.load_der_public_key(base64.b64decode(log["publicKey"]["rawBytes"]))
            pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            keys[base64.b64decode(log["logId"]["keyId"]).hex()] = PublicKey.parse(pem)
        except Invalid:
            continue
    return keys


def _certificate(text: str) -> x509.Certificate:
    return x509.load_der_x509_certificate(base64.b64decode(text))


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


def root_of(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime, *, code_only: bool = False
) -> tuple[x509.Certificate, x509.Certificate]:
    """The root that a chain leads to, and who issued its first certificate. `Untrusted` says why it leads to none.

    `code_only`: it must say itself that it is for signing code, as Sigstore's do.
    """
    current, issuer = chain[0], None
    _made_for_signing(current, code_only=code_only)
    for below in range(CHAIN_LIMIT):
        _valid(current, at)
        trusted = next((root for root in roots if _has_issued(current, root)), None)
        above = trusted or next((other for other in chain[1:] if _has_issued(current, other)), None)
        if above is None:
            break
        _authority(above, below)
        issuer = issuer or above
        if trusted is not None:
            _valid(trusted, at)
            return trusted, issuer
        current = above
    raise Untrusted(f"its certificate ({name_of(chain[0])}) does not lead to a root that is trusted here")


def _has_issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except Exception:  # the library raises many kinds for keys and signatures that do not go together
        return False
    return True


def _valid(certificate: x509.Certificate, at: datetime) -> None:
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        time_text = at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
        raise Untrusted(f"the certificate of {name_of(certificate)} was not valid at {time_text} UTC")
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise Untrusted(f"the certificate of {name_of(certificate)} has a critical extension that is unknown here")


def _made_for_signing(leaf: x509.Certificate, *, code_only: bool) -> None:
    by_oid = {extension.oid: extension.value for extension in leaf.extensions}
    usage, purposes = by_oid.get(ExtensionOID.KEY_USAGE), by_oid.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if usage is None or not usage.digital_signature:
        raise Untrusted("its certificate is not one for signatures")
    unnamed = purposes is None and not code_only
    if not unnamed and ExtendedKeyUsageOID.CODE_SIGNING not in (purposes or ()):
        raise Untrusted("its certificate is not one for signing code")


def _authority(certificate: x509.Certificate, below: int) -> None:
    """Whether it may sign certificates, with so many others between it and the one at the end."""
    by_oid = {extension.oid: extension.value for extension in certificate.extensions}
    basic, usage = by_oid.get(ExtensionOID.BASIC_CONSTRAINTS), by_oid.get(ExtensionOID.KEY_USAGE)
    if basic is None or not basic.ca or (usage is not None and not usage.key_cert_sign):
        raise Untrusted(f"{certificate.subject.rfc4514_string()} is not an authority that may issue certificates")
    if basic.path_length is not None and below > basic.path_length:
        raise Untrusted(f"{certificate.subject.rfc4514_string()} may not issue a chain as long as this one")
