"""`Bundle`: all that is attested of one version, as one file that is verified without the registry.

    manifest, attestations with their bundles, the log's proof of the push, the keys of the log

Invariants
- It proves itself against a key of the log that you have from elsewhere, not against those that lie in it.
- It holds no bytes of the version: the manifest says what they hash to, so a folder is compared with it.
- It is somebody else's file: read strictly by its size and its shape, and nothing of it is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, ValidationError

from registry.api import Answer
from registry.api.audit import AttestationView, EventProof
from registry.api.catalog import Resolved
from registry.attestations.certificates import Trust
from registry.client import signing
from registry.client.audit import Audit
from registry.client.signing import Signed
from registry.digest import Digest
from registry.errors import Invalid, NotFound, RegistryError
from registry.events import EventType
from registry.manifest import Manifest
from registry.names import Ref
from registry.tlog.notes import Verifier

LIMIT_BYTES = 128 * 2**20


class Bundle(Answer):
    """`proof`: that the log tells of the push; none while the log has not numbered it.

    `arrival`: that the log tells of the transfer that gave the adapter its name; none where there was none.
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
        """`Invalid` (FOLDER_INVALID) for what is none."""
        if len(data) > LIMIT_BYTES:
            raise Invalid("FOLDER_INVALID", f"{file}: over the limit of {LIMIT_BYTES} bytes")
        try:
            return cls.model_validate_json(data)
        except (ValidationError, RegistryError) as e:
            raise Invalid("FOLDER_INVALID", f"{file} is no bundle that `adapter verify --save` has written") from e

    def to_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Reread:
    """One file read again: what it should hash to and what it hashed to. `error`: it could not be read."""

    path: str
    expected: str
    found: str
    size_bytes: int
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.expected == self.found


@dataclass(frozen=True, slots=True)
class Examined:
    """What a bundle's attestations and its log's proof are worth to who has these keys."""

    signed: list[Signed] = field(default_factory=list)
    seq: int | None = None
    problem: str = ""


def collect(audit: Audit, resolved: Resolved) -> Bundle:
    """All that the registry has to show of a version."""
    items = audit.attestations(Ref.parse(f"{resolved.name}@{resolved.number}")).items
    pushed = next((item.seq for item in items if item.kind == "push" and item.seq is not None), None)
    renames = audit.events(object=resolved.name, action=[EventType.ADAPTER_RENAME_FROM])
    arrived = next((event.seq for event in renames), None)
    return Bundle(
        name=resolved.name,
        number=resolved.number,
        digest=resolved.digest,
        manifest=resolved.manifest,
        attestations=items,
        keys=list(audit.log_keys().keys),
        proof=_proof(audit, pushed),
        arrival=_proof(audit, arrived),
    )


def _proof(audit: Audit, seq: int | None) -> EventProof | None:
    try:
        return audit.proof(seq) if seq is not None else None
    except NotFound:
        return None


def examined(bundle: Bundle, keys: Sequence[Verifier], trust: Trust | None = None) -> Examined:
    """Every attestation verified here, and the log's word on the push, by these keys of the log."""
    names = signing.called(bundle, bundle.arrival, keys)
    signed = signing.examine(bundle.attestations, bundle, keys, trust, names=names)
    pushes = [item.seq for item in bundle.attestations if item.kind == "push" and item.seq is not None]
    if not pushes:
        return Examined(signed)
    if bundle.proof is None or bundle.proof.seq != pushes[0]:
        return Examined(signed, pushes[0], f"there is no proof that event {pushes[0]} is in the log")
    return Examined(signed, pushes[0], signing.included(bundle.proof, bundle, keys, names=names))


def reread(folder: Path, manifest: Manifest) -> list[Reread]:
    """The files of a folder against a manifest. What else lies there was never pushed and is not looked at."""
    return [_hashed(folder / file.path, file.path, str(file.digest)) for file in manifest.files]


def _hashed(location: Path, path: str, expected: str) -> Reread:
    try:
        return Reread(path, expected, str(Digest.of_file(location)), location.stat().st_size)
    except OSError as e:
        return Reread(path, expected, "", 0, f"{location} cannot be read: {e.strerror}")
