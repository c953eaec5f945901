"""Sigstore's keyless signatures, verified offline by the library `sigstore` (extra `verify`)."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier
from sigstore.models import Bundle, TrustedRoot
from sigstore.verify import Verifier

from registry.attestations.certificates import Untrusted, name_of

_ISSUER, _ISSUER_BEFORE = ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), ObjectIdentifier("1.3.6.1.4.1.57264.1.1")


class _AnyIdentity:
    """Lets any identity pass: gates decide who may sign. (The library's own logs a warning at each use.)"""

    def verify(self, cert: x509.Certificate) -> None:
        pass


def signer(bundle: str, leaf: x509.Certificate, trusted_roots: Sequence[bytes]) -> str:
    """The identity that signed a bundle. `Untrusted` says why no Sigstore instance vouches for it.

    `trusted_roots`: the `trusted_root.json` of each instance, at least one.
    """
    reason = ""
    with tempfile.TemporaryDirectory(prefix="adapter-sigstore-") as folder:  # the library reads roots from files only
        for number, document in enumerate(trusted_roots):
            file = Path(folder, f"{number}.json")
            file.write_bytes(document)
            try:
                verifier = Verifier(trusted_root=TrustedRoot.from_file(str(file)))
                verifier.verify_dsse(Bundle.from_json(bundle), _AnyIdentity())
            except Exception as e:  # the library raises many kinds for input that nobody has signed
                reason = " ".join(str(e).split())[:300] or type(e).__name__
                continue
            return f"sigstore:{_provider(leaf)}/{name_of(leaf)}"
    raise Untrusted(f"Sigstore does not vouch for it: {reason}")


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
