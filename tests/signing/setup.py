"""Signers for these tests: keys on each curve and certificate chains, as files, and the recorded signatures.

`SigningSetup(folder).signed(tool, adapter)` lets the real tool sign a folder in every way that works offline. It yields
the name of the way, the bundle, and the key or root that verifies it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.audit.certificates import NOW, PEM, SPKI, Authority, certificate_builder
from tests.signing.tool import Tool

CURVES: dict[str, ec.EllipticCurve] = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
LASTS = timedelta(days=3650)
RECORDED = Path(__file__).with_name("recorded.json")
LEFT_OUT = "training_args.bin"
"""A file of the signed folder that is never pushed."""


@dataclass(frozen=True)
class Signed:
    """One bundle: `public_key` (PEM) or, for a certificate, `root` (PEM)."""

    way: str
    bundle: Path
    public_key: bytes = b""
    root: bytes = b""


class SigningSetup:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def key(self, name: str, curve: ec.EllipticCurve) -> tuple[Path, ec.EllipticCurvePublicKey]:
        private = ec.generate_private_key(curve)
        plain = serialization.NoEncryption()
        (self.folder / f"{name}.pem").write_bytes(private.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))
        return self.folder / f"{name}.pem", private.public_key()

    def put(self, name: str, certificate: x509.Certificate) -> Path:
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(PEM))
        return self.folder / f"{name}.pem"

    def signed(self, tool: Tool, adapter: Path) -> Iterator[Signed]:
        for name, curve in CURVES.items():
            key, public = self.key(name, curve)
            bundle = tool.sign_with_key(adapter, key, self.folder / f"{name}.sig")
            yield Signed(f"key {name}", bundle, public_key=public.public_bytes(PEM, SPKI))
        root = Authority("acme root")
        between = Authority("acme signing", root)
        key, public = self.key("signer", CURVES["p256"])
        leaves = {"certificate": between.leaf(public, lasts=LASTS), "certificate for any use": _plain(between, public)}
        above = [self.put("between", between.certificate), self.put("root", root.certificate)]
        for way, leaf in leaves.items():
            certificate = self.put(way, leaf)
            bundle = tool.sign_with_certificate(adapter, key, certificate, above, self.folder / f"{way}.sig")
            yield Signed(way, bundle, root=root.pem)


def _plain(by: Authority, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
    """A certificate that signs and lists no extended use, with a subject in place of an address."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "acme release")])
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    builder = certificate_builder(name, by.name, public, LASTS, NOW).add_extension(usage, True)
    return builder.sign(by.key, hashes.SHA256())
