"""`adapter verify` and `adapter sign`: a version's bytes, attestations, signatures and audit log entry.

`verify` trusts only SHA-256 and the log keys that this machine remembers, or offline those that are passed. It says who
signed, never that an adapter is safe. A private key never leaves this machine.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from registry.api.audit.attestations import SignRequest
from registry.api.catalog import FileLink, Resolved
from registry.attestations.certificates import Trust
from registry.attestations.keys import PrivateKey
from registry.client import signing
from registry.client.audit import Audit
from registry.client.core import Versions
from registry.client.signing import LIMIT_BYTES, Bundle, Examined, Reread, Signed
from registry.digest import Hasher
from registry.errors import Corrupt, Invalid, NotFound
from registry.names import Ref
from registry.tlog.notes import Verifier

from .console import arguments, output, session
from .console.arguments import KEY_FILE_LIMIT_BYTES
from .console.options import Command

_EXISTING = click.Path(path_type=Path, exists=True)


@click.command(cls=Command)
@click.argument("ref", type=arguments.REF, required=False)
@click.option("--signed-by", multiple=True, type=arguments.SIGNER,
              help="Require a signature of this identity, or of this public key in a file (repeatable).")  # fmt: skip
@click.option("--trusted-roots", type=_EXISTING, envvar="ADAPTER_TRUSTED_ROOTS",
              help="Trusted roots of certificates: PEM, Sigstore's trusted_root.json, or a folder.")  # fmt: skip
@click.option("--out", "save", type=click.Path(path_type=Path, dir_okay=False), help="Write all evidence to this file.")
@click.option("--offline", type=_EXISTING, metavar="FILE", help="Verify a file written by --out, without a registry.")
@click.option("--folder", type=_EXISTING, metavar="DIR", help="With --offline: hash the files in this folder.")
@click.option("--log-key", "keys", multiple=True, metavar="KEY", help="With --offline: own log key (repeatable).")
def verify(
    ref: Ref | None, signed_by: tuple[str, ...], trusted_roots: Path | None, save: Path | None, offline: Path | None,
    folder: Path | None, keys: tuple[str, ...],
) -> None:  # fmt: skip
    """Verify the bytes, manifest, attestations, signatures and log entry of a version.

    Exits 70 on a mismatch, and 6 if one of --signed-by has not signed it.

    It shows who pushed and who signed, not that an adapter is safe. Log keys are those this machine remembers from
    its first contact.
    """
    if (ref is None) == (offline is None) or (offline is None and (folder or keys)) or (offline and save):
        raise click.UsageError("name a REF, or --offline FILE, which may have --folder and --log-key")
    trust = _trust(trusted_roots)
    if offline is not None:
        bundle = Bundle.parse(_read(offline, LIMIT_BYTES + 1, "FOLDER_INVALID"), file=str(offline))
        verifiers = tuple(Verifier.parse(key) for key in keys or bundle.keys)
        files = signing.reread(folder, bundle.manifest) if folder else []
    else:
        with session.versions() as registry:
            resolved = registry.resolve(ref or "")
            files = [_reread(registry, resolved, file) for file in resolved.files]
            bundle, verifiers = _collect(registry, resolved)
    examined = signing.examine_bundle(bundle, verifiers, trust)
    if save is not None:
        save.write_bytes(bundle.to_bytes())
    manifest = Reread("the manifest", bundle.digest, bundle.manifest.digest, len(bundle.manifest.to_bytes()))
    identities = {item.identity for item in examined.signed if item.ok and item.kind == "signature"}
    result = _Result(
        bundle, [manifest, *files], examined, sorted(set(signed_by) - identities),
        independent_key=offline is None or bool(keys),
    )  # fmt: skip
    output.result(result.document(), lambda: _print(result))
    if not result.ok:
        output.exit_with(output.REFUSED if result.is_right else output.CORRUPT)


@dataclass(frozen=True)
class _Result:
    """What was verified. `missing`: required signers without a signature. `independent_key`: the log's keys did not
    come with the bundle that they prove."""

    bundle: Bundle
    files: list[Reread]
    examined: Examined
    missing: list[str]
    independent_key: bool

    @property
    def intact(self) -> bool:
        return all(file.ok for file in self.files)

    @property
    def is_right(self) -> bool:
        """Whether nothing contradicts what is there, though a signature that is asked for may be missing."""
        signed = all(item.ok or item.unverified for item in self.examined.signed)
        return self.intact and signed and not self.examined.problem

    @property
    def ok(self) -> bool:
        return self.is_right and not self.missing

    def document(self) -> dict[str, Any]:
        return {
            "name": self.bundle.name,
            "number": self.bundle.number,
            "digest": self.bundle.digest,
            "ok": self.ok,
            "files": [{**asdict(file), "ok": file.ok} for file in self.files],
            "signatures": [asdict(item) for item in self.examined.signed],
            "missing": self.missing,
            "log": {"seq": self.examined.seq, "problem": self.examined.problem},
            "key_given": self.independent_key,
        }


def _collect(registry: Versions, resolved: Resolved) -> tuple[Bundle, tuple[Verifier, ...]]:
    """The evidence that the registry has of a version, and the keys of its log that this machine remembers."""
    audit, trusted = Audit(registry), session.trusted_checkpoints()
    bundle, note = signing.collect(audit, resolved), audit.checkpoint()
    trusted.check(registry, note)
    return bundle, trusted.find(registry, note).verifiers


def _reread(registry: Versions, resolved: Resolved, file: FileLink) -> Reread:
    hasher = Hasher()
    expected = resolved.manifest.file(file.path)
    try:
        with registry.read(file) as chunks:
            for chunk in chunks:
                hasher.update(chunk)
    except (Corrupt, NotFound) as e:
        return Reread(file.path, str(expected.digest if expected else ""), "", hasher.size_bytes, e.detail)
    return Reread(file.path, str(expected.digest if expected else ""), str(hasher.digest()), hasher.size_bytes)


def _read(path: Path, limit: int, code: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as e:
        raise Invalid(code, f"{path} cannot be read: {e.strerror}") from e


def _trust(location: Path | None) -> Trust:
    files = sorted(location.iterdir()) if location is not None and location.is_dir() else [location] if location else []
    try:
        return Trust.parse([file.read_bytes() for file in files if file.is_file()])
    except OSError as e:
        raise Invalid("SETTING_INVALID", f"{location} cannot be read: {e.strerror}") from e


def _print(result: _Result) -> None:
    bundle, signed = result.bundle, result.examined.signed
    passed, failed = output.styled("ok     ", "green"), output.styled("differs", "red", "bold")
    output.line(f"{output.strong(f'{bundle.name}@{bundle.number}')}  {output.faint(bundle.digest)}")
    for file in result.files:
        output.line(f"  {passed if file.ok else failed}  {file.path}  {output.faint(output.size(file.size_bytes))}")
        if not file.ok:
            output.line(f"           expected {file.expected}, {file.error or f'got {file.actual}'}")
    for item in signed:
        state = output.styled("unknown", "yellow") if item.unverified else passed if item.ok else failed
        label = f"signature  {item.problem}" if item.unverified else f"{item.kind}  {item.who or item.identity}"
        output.line(f"  {state}  {label}  {output.faint(_remark(item))}")
    for identity in result.missing:
        output.line(f"  {output.styled('missing', 'red', 'bold')}  signature  {identity}")
    if result.examined.problem:
        output.line(f"  {failed}  audit log  {result.examined.problem}")
    elif result.examined.seq is not None:
        output.line(f"  {passed}  audit log  {output.faint(f'event {result.examined.seq} records this push')}")
    if len(result.files) == 1:
        output.line(output.faint("no file was read: pass their folder with --folder"))
    else:
        output.line("all files match their digests" if result.intact else "this version is damaged: do not use it")
    if not any(item.kind == "signature" and item.ok for item in signed):
        output.line(output.faint("no valid signature: a digest identifies the bytes, not their author"))
    if not result.independent_key:
        output.line(output.faint("the log's keys came with the file: pass keys from another source with --log-key"))


def _remark(item: Signed) -> str:
    if item.unverified:
        return f"the registry says {item.identity}" if item.kind == "signature" else ""
    return item.statement or item.problem


_FILE = click.Path(path_type=Path)


def signature_options(
    key: Path | None, bundle: Path | None, public_key: Path | None
) -> signing.WithKey | signing.Attached:
    """How `adapter push` signs: with a key, or with an existing bundle."""
    if key and not bundle and not public_key:
        return signing.WithKey(private_key(key))
    if bundle and not key:
        return signing.Attached(_existing_signature(bundle, public_key))
    raise click.UsageError("give --signing-key, or --bundle, which may have a --public-key")


def _existing_signature(bundle: Path, public_key: Path | None) -> SignRequest:
    bundle_text, key_text = (
        _read(path, KEY_FILE_LIMIT_BYTES, "SIGNATURE_INVALID").decode(errors="replace") if path else ""
        for path in (bundle, public_key)
    )
    return SignRequest(bundle=bundle_text, public_key=key_text)


@click.command(cls=Command)
@click.argument("ref", type=arguments.REF)
@click.option("--signing-key", "key", type=_FILE, help="Private key: Ed25519 or ECDSA, PEM or OpenSSH.")
@click.option("--bundle", type=_FILE, help="Existing signature: a bundle of OpenSSF model signing (model.sig).")
@click.option("--public-key", type=_FILE, help="With --bundle: public key (PEM), unless the bundle has a certificate.")
def sign(ref: Ref, key: Path | None, bundle: Path | None, public_key: Path | None) -> None:
    """Sign the version REF, or attach an existing signature.

    The private key stays on this machine; its password comes from ADAPTER_SIGN_PASSWORD. The registry verifies a
    signature before it stores it.
    """
    if (key is None) == (bundle is None) or (bundle is None and public_key is not None):
        raise click.UsageError(
            "give --signing-key, or --bundle with its --public-key, or --bundle alone if it has a certificate"
        )
    with session.versions() as registry:
        resolved = registry.resolve(ref)
        version, audit = Ref(ref.name, resolved.digest), Audit(registry)
        if key is not None:
            attestation = signing.sign(audit, version, resolved.manifest, private_key(key))
        else:
            attestation = audit.sign(version, _existing_signature(bundle or Path(), public_key))

    def text() -> None:
        name = output.strong(f"{ref.name}@{resolved.digest}")  # what was signed; its number is the registry's word
        if attestation.kind == "signature":
            output.line(f"{name} is signed by {attestation.identity}")
        else:
            output.line(f"{name}: the signature is stored, {attestation.identity}")

    output.result(attestation, text)


def private_key(path: Path) -> PrivateKey:
    """The key in a file. `Invalid` (SIGNATURE_INVALID): it cannot be read."""
    password = os.environ.get("ADAPTER_SIGN_PASSWORD", "")
    return PrivateKey.parse(
        _read(path, KEY_FILE_LIMIT_BYTES, "SIGNATURE_INVALID"), password.encode() if password else None
    )
