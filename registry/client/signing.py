"""Signs and verifies versions on this machine: `adapter push --signing-key` and `adapter verify`.

A private key never leaves this machine. Every signature is verified here against the manifest whose digest is the
version; the registry's own statements count only with a log key that this machine remembers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from pydantic import Field, ValidationError

from registry import attestations
from registry.api.audit import EventProof
from registry.api.audit.attestations import AttestationView, SignRequest
from registry.api.catalog import Resolved
from registry.api.models import Response
from registry.attestations import Statement, certified, keys, models
from registry.attestations.certificates import Trust
from registry.attestations.keys import PrivateKey, PublicKey
from registry.client.audit import Audit
from registry.client.core import Versions
from registry.digest import Digest
from registry.errors import Invalid, NotFound, RegistryError
from registry.events import EventType
from registry.names import Ref
from registry.tlog import notes
from registry.tlog.notes import Verifier
from registry.versions.manifest import Manifest

LIMIT_BYTES = 128 * 2**20


class Bundle(Response):
    """All attestations of one version in one file that is verified without the registry. It is untrusted input.

    It proves itself against a log key that you have independently, and holds no bytes of the version. `proof`: of the
    push, None until the log has numbered it. `arrival`: of the adapter's rename, if any.
    """

    name: str
    number: int
    digest: Digest
    manifest: Manifest
    attestations: list[AttestationView] = Field(max_length=1000)
    keys: list[str] = Field(max_length=100)
    proof: EventProof | None = None
    arrival: EventProof | None = None

    @classmethod
    def parse(cls, data: bytes, *, file: str = "the bundle") -> Bundle:
        """Parse a file. `Invalid` (FOLDER_INVALID)."""
        if len(data) > LIMIT_BYTES:
            raise Invalid("FOLDER_INVALID", f"{file}: over the limit of {LIMIT_BYTES} bytes")
        try:
            return cls.model_validate_json(data)
        except (ValidationError, RegistryError) as e:
            raise Invalid("FOLDER_INVALID", f"{file} is not a bundle of `adapter verify --out`") from e

    def to_bytes(self) -> bytes:
        """The file's content, which `parse` reads."""
        return self.model_dump_json(indent=1).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Reread:
    """The expected and the actual digest of a file. `error`: why it could not be read."""

    path: str
    expected: str
    actual: str
    size_bytes: int
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the file has the bytes that the manifest names."""
        return self.expected == self.actual


@dataclass(frozen=True, slots=True)
class Examined:
    """The verified attestations of a bundle, and what is wrong with its proof."""

    signed: list[Signed] = field(default_factory=list)
    seq: int | None = None
    problem: str = ""


def collect(audit: Audit, resolved: Resolved) -> Bundle:
    """Collect the attestations and proofs of a version."""
    items = audit.attestations(Ref.parse(f"{resolved.name}@{resolved.number}")).items
    pushed = next((item.seq for item in items if item.kind == "push" and item.seq is not None), None)
    renames = audit.events(object=resolved.name, action=[EventType.ADAPTER_RENAME_FROM])
    arrived = next((event.seq for event in renames), None)
    return Bundle(
        name=resolved.name, number=resolved.number, digest=resolved.digest, manifest=resolved.manifest,
        attestations=items, keys=list(audit.log_keys().keys), proof=_proof(audit, pushed),
        arrival=_proof(audit, arrived),
    )  # fmt: skip


def _proof(audit: Audit, seq: int | None) -> EventProof | None:
    try:
        return audit.proof(seq) if seq is not None else None
    except NotFound:
        return None


def examine_bundle(bundle: Bundle, keys: Sequence[Verifier], trust: Trust | None = None) -> Examined:
    """Verify every attestation and the proof of the push with these log keys."""
    names = names_of(bundle, bundle.arrival, keys)
    signed = examine(bundle.attestations, bundle, keys, trust, names=names)
    pushes = [item.seq for item in bundle.attestations if item.kind == "push" and item.seq is not None]
    if not pushes:
        return Examined(signed)
    if bundle.proof is None or bundle.proof.seq != pushes[0]:
        return Examined(signed, pushes[0], f"there is no proof that event {pushes[0]} is in the log")
    return Examined(signed, pushes[0], problem_of_proof(bundle.proof, bundle, keys, names=names))


def reread(folder: Path, manifest: Manifest) -> list[Reread]:
    """Hash the files of a manifest in a folder. Other files there are ignored."""
    return [_hashed(folder / file.path, file.path, str(file.digest)) for file in manifest.files]


def _hashed(location: Path, path: str, expected: str) -> Reread:
    try:
        return Reread(path, expected, str(Digest.of_file(location)), location.stat().st_size)
    except OSError as e:
        return Reread(path, expected, "", 0, f"{location} cannot be read: {e.strerror}")


ATTACHED = ("signature", "unverified")
"""Kinds of attestations that users attach."""


@dataclass(frozen=True, slots=True)
class Signed:
    """One attestation of a version: its kind, whose it is, and whether it verifies here."""

    kind: str
    identity: str
    who: str
    statement: str
    digest: str
    seq: int | None
    ok: bool
    problem: str = ""
    unverified: bool = False
    """It is well-formed, but no root that this machine trusts vouches for it."""


def sign(audit: Audit, ref: Ref, manifest: Manifest, key: PrivateKey) -> AttestationView:
    """Sign a version with a key of this machine and attach the signature."""
    bundle = models.sign(str(ref.name), manifest, key)
    return audit.sign(ref, SignRequest(bundle=bundle, public_key=key.public.pem))


@dataclass(frozen=True, slots=True)
class WithKey:
    """Sign the version here after the push."""

    key: PrivateKey

    def check(self, manifest: Manifest) -> None:
        """Nothing to check: the signature will be of these files."""

    def attach(self, registry: Versions, ref: Ref, manifest: Manifest) -> None:
        """Sign the pushed version and attach the signature."""
        sign(Audit(registry), ref, manifest, self.key)


@dataclass(frozen=True, slots=True)
class Attached:
    """Attach a signature made elsewhere after the push."""

    request: SignRequest

    def check(self, manifest: Manifest) -> None:
        """`Invalid` (SIGNATURE_INVALID) unless it is of these files."""
        if self.request.public_key:
            models.verify_with_key(self.request.bundle, PublicKey.parse(self.request.public_key.encode()), manifest)
        else:
            certified.verify_with_certificate(self.request.bundle, manifest, Trust(), datetime.now(UTC))

    def attach(self, registry: Versions, ref: Ref, _manifest: Manifest) -> None:
        """Attach the signature to the pushed version."""
        Audit(registry).sign(ref, self.request)


class Signable(Protocol):
    """A version as requested."""

    @property
    def name(self) -> str:
        """`namespace/name`, as the version is called today."""

    @property
    def number(self) -> int:
        """The number of the version."""

    @property
    def digest(self) -> Digest:
        """The digest of its manifest."""

    @property
    def manifest(self) -> Manifest:
        """The manifest that signatures are verified against."""


def names_of(version: Signable, arrival: EventProof | None = None, log_keys: Sequence[Verifier] = ()) -> list[str]:
    """The name of this version, and earlier names that the log proves: `namespace/name@3`.

    `arrival`: the event that gave its adapter the current name. It counts only if it is in the log.
    """
    names = [str(version.name)]
    if arrival is not None and notes.verify_proof(arrival.proof, arrival.entry.encode(), *log_keys) is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            event = arrival.event()
            if event["action"] == EventType.ADAPTER_RENAME_FROM and event["object"] == names[0]:
                names += [str(name) for name in event["detail"]["names"]]
    return [f"{name}@{version.number}" for name in names]


def examine(
    views: Iterable[AttestationView], version: Signable, log_keys: Sequence[Verifier], trust: Trust | None = None, *,
    names: Sequence[str] = (),
) -> list[Signed]:  # fmt: skip
    """Verify every attestation of a version, certificates against the roots in `trust`.

    `names`: its current and earlier names (`names_of`); default: the current one.
    """
    examined = []
    for view in views:
        try:
            attached = view.kind in ATTACHED
            if attached:
                examined.append(_signature(view, version, trust or Trust()))
            else:
                examined.append(_own(view, version, log_keys, names or names_of(version)))
        except Invalid as e:
            examined.append(_line(view, "", "", e.detail))
    return examined


def problem_of_proof(
    proved: EventProof, version: Signable, log_keys: Sequence[Verifier], *, names: Sequence[str] = ()
) -> str:
    """What is wrong with the proof of a push; empty if its entry is in the log and is about this version."""
    if notes.verify_proof(proved.proof, proved.entry.encode(), *log_keys) is None:
        return f"the log does not prove event {proved.seq} with a key that this machine remembers"
    try:
        event = proved.event()
        event_key = (event["seq"], event["action"], event["detail"].get("digest"))
        its_own = event["object"] in (names or names_of(version))
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"event {proved.seq} of the log cannot be read"
    if event_key != (proved.seq, EventType.VERSION_PUSH, str(version.digest)) or not its_own:
        return f"event {proved.seq} of the log is about something else"
    return ""


def _signature(view: AttestationView, version: Signable, trust: Trust) -> Signed:
    if Digest.of(view.bundle.encode()) != view.digest:
        raise attestations.signature_error(f"the registry says that this is the signature of {view.identity}")
    if not view.public_key:
        return _certified(view, version, trust)
    key = PublicKey.parse(view.public_key.encode())
    identity = models.verify_with_key(view.bundle, key, version.manifest)
    if identity != view.identity:
        raise attestations.signature_error(f"the registry says that this is the signature of {view.identity}")
    return _line(view, identity, f"signed these files; uploaded by {view.made_by}", "")


def _certified(view: AttestationView, version: Signable, trust: Trust) -> Signed:
    """A signature with a certificate, as of the time at which the registry says it was attached."""
    signer = certified.verify_with_certificate(view.bundle, version.manifest, trust, view.made_at)
    if not signer.identity:
        return replace(_line(view, view.identity, "", signer.problem), unverified=True)
    if view.kind == "signature" and signer.identity != view.identity:
        raise attestations.signature_error(f"the registry says that this is the signature of {view.identity}")
    return _line(view, signer.identity, f"signed these files; uploaded by {view.made_by}", "")


def _own(view: AttestationView, version: Signable, log_keys: Sequence[Verifier], names: Sequence[str]) -> Signed:
    by_identity = {keys.of_raw(v.public).identity: (keys.of_raw(v.public), v.name) for v in log_keys}
    if view.identity not in by_identity:
        raise attestations.signature_error(
            f"the registry signed with {view.identity}, which this machine does not remember "
            "(`adapter audit key` shows what it does; a lost key: `adapter audit key --trust --former KEY`)"
        )
    key, origin = by_identity[view.identity]
    statement = attestations.verify_envelope(view.bundle.encode(), key)
    name = next((name for name in names if statement.subjects.get(name) == Digest(version.digest).hex), None)
    if name is None:
        raise attestations.signature_error(f"the statement is not about {names[0]} with this manifest")
    actor = str(statement.predicate.get("actor", ""))
    former = f" as {name}" if name != names[0] else ""
    return _line(view, f"{actor}, according to {origin}", _describe(statement) + former, "")


def _describe(statement: Statement) -> str:
    at = str(statement.predicate.get("at", ""))[:16].replace("T", " ")
    if statement.predicate_type == attestations.PUSH:
        return f"pushed this version at {at}"
    return f"evaluated it at {at}: {statement.predicate.get('check')} {statement.predicate.get('outcome')}"


def _line(view: AttestationView, who: str, statement: str, problem: str) -> Signed:
    return Signed(view.kind, view.identity, who, statement, str(view.digest), view.seq, not problem, problem)
