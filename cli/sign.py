"""`adapter sign`: sign a version with a key of this machine, or bring a signature that was made elsewhere.

`adapter push` takes such options too, so that a version comes signed.

Invariants
- The private key never leaves this machine; its password comes from ADAPTER_SIGN_PASSWORD, not from an argument.
- What is signed is what DIR holds, or what the registry says after its digest was checked; never an unverified list.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from registry.api.audit import SignRequest
from registry.attestations.keys import PrivateKey
from registry.client import signing
from registry.client.audit import Audit
from registry.errors import Corrupt, Invalid
from registry.names import Ref

from . import output, session

LIMIT_BYTES = 512 * 2**10
_FILE = click.Path(path_type=Path)


def chosen(key: Path | None, bundle: Path | None, public_key: Path | None) -> signing.WithKey | signing.Brought:
    """How `adapter push` signs: with a key, or by a bundle made elsewhere. `Invalid` (SIGNATURE_INVALID): no such."""
    if key and not bundle and not public_key:
        return signing.WithKey(private_key(key))
    if bundle and not key:
        return signing.Brought(brought(bundle, public_key))
    raise click.UsageError("give --sign, or --bundle, which may have a --public-key")


def brought(bundle: Path, public_key: Path | None) -> SignRequest:
    """A signature that was made elsewhere, as it lies in files."""
    texts = [_read(path).decode(errors="replace") if path else "" for path in (bundle, public_key)]
    return SignRequest(bundle=texts[0], public_key=texts[1])


@click.command()
@click.argument("ref", type=output.REF)
@click.option("--key", type=_FILE, help="Private key: Ed25519 or ECDSA, PEM or OpenSSH.")
@click.option("--bundle", type=_FILE, help="Existing signature: a bundle of OpenSSF model signing (model.sig).")
@click.option(
    "--public-key",
    type=_FILE,
    help="With --bundle: the public key (PEM), unless the bundle has a certificate.",
)
@output.json_option
def sign(ref: Ref, key: Path | None, bundle: Path | None, public_key: Path | None) -> None:
    """Sign the version REF, or attach an existing signature.

    The private key stays on this machine; its password comes from ADAPTER_SIGN_PASSWORD. The registry verifies a
    signature before it stores it.

    \b
    adapter sign acme/support@3 --key ~/.ssh/id_ed25519
    adapter sign acme/support@3 --bundle model.sig --public-key signer.pem
    """
    if (key is None) == (bundle is None) or (bundle is None and public_key is not None):
        raise click.UsageError(
            "give --key, or --bundle with its --public-key, or --bundle alone if it has a certificate"
        )
    with session.versions() as registry:
        resolved = registry.resolve(ref)
        exactly, audit = Ref(ref.name, resolved.digest), Audit(registry)
        if key is not None:
            if resolved.manifest.digest != resolved.digest:
                raise Corrupt("DIGEST_MISMATCH", f"the manifest of {ref} does not hash to {resolved.digest}")
            attestation = signing.sign(audit, exactly, resolved.manifest, private_key(key))
        else:
            attestation = audit.sign(exactly, brought(bundle or Path(), public_key))

    def text() -> None:
        name = output.strong(f"{resolved.name}@{resolved.number}")
        if attestation.kind == "signature":
            click.echo(f"{name} is signed by {attestation.identity}")
        else:
            click.echo(f"{name}: the signature is kept, {attestation.identity}")

    output.answer(attestation, text)


def private_key(path: Path) -> PrivateKey:
    """The key of a file. `Invalid` (SIGNATURE_INVALID)."""
    password = os.environ.get("ADAPTER_SIGN_PASSWORD", "")
    return PrivateKey.parse(_read(path), password.encode() if password else None)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LIMIT_BYTES)
    except OSError as e:
        raise Invalid("SIGNATURE_INVALID", f"{path} cannot be read: {e.strerror}") from e
