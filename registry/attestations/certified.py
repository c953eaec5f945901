"""Bundles of OpenSSF model signing that a certificate has signed: of a company's authority, or Sigstore's (keyless)."""

from dataclasses import dataclass
from datetime import datetime

from registry import attestations, lazy
from registry.attestations import certificates
from registry.attestations.certificates import Trust, Untrusted
from registry.attestations.models import certificates_of, envelope_of, require_files
from registry.versions.manifest import Manifest

KEYLESS = "registry.attestations.keyless:signer"
"""It needs the extra `verify`, which imports boto3: only a keyless signature loads it."""
NOT_INSTALLED = "not verified here: install adapter-registry[verify]"


@dataclass(frozen=True, slots=True)
class SignerIdentity:
    """Who signed, or why that cannot be said here: exactly one of the two is set."""

    identity: str
    problem: str = ""


def verify_with_certificate(bundle: str, manifest: Manifest, trust: Trust, at: datetime) -> SignerIdentity:
    """Who signed the files of this version with a certificate: a chain of its own, or Sigstore's with a log's entry.

    A chain is looked at as of `at`. `Invalid` (SIGNATURE_INVALID) where the files or the certificate's key contradict
    the signature; a `SignerIdentity` without identity where they do not, but no one who is trusted here vouches for it.
    """
    document = attestations.read(bundle.encode())
    material, chain = certificates_of(document)
    require_files(attestations.verify_envelope(envelope_of(document), certificates.key_of(chain[0])), manifest)
    try:
        if material.get("tlogEntries"):
            if not trust.sigstore:
                raise Untrusted("no trusted root of Sigstore is configured")
            try:
                signer = lazy.load(KEYLESS)
            except ImportError:
                return SignerIdentity("", NOT_INSTALLED)
            return SignerIdentity(signer(bundle, chain[0], trust.sigstore))
        if not trust.roots:
            raise Untrusted(f"no root is configured that could vouch for {certificates.name_of(chain[0])}")
        root = certificates.root_of(chain, trust.roots, at)
        return SignerIdentity(f"pki:{certificates.fingerprint(root)[:32]}/{certificates.name_of(chain[0])}")
    except Untrusted as e:
        return SignerIdentity("", f"not verified: {e}")
