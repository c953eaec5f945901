"""`Bundle`: all attestations of one version in one file that is verified without the registry.

    manifest, attestations with their bundles, the log's proof of the push, the keys of the log

It proves itself against a log key that you have independently, and holds no bytes of the version. It is untrusted
input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, ValidationError

from registry.api.audit import AttestationView, EventProof
from registry.api.catalog import Resolved
from registry.api.models import Answer
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
    """`proof`: of the push, None until the log has numbered it. `arrival`: of the adapter's rename, if any."""

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
            raise Invalid("FOLDER_INVALID", f"{file} is not a bundle of `adapter verify --save`") from e

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


def examined(bundle: Bundle, keys: Sequence[Verifier], trust: Trust | None = None) -> Examined:
    """Verify every attestation and the proof of the push with these log keys."""
    names = signing.names_of(bundle, bundle.arrival, keys)
    signed = signing.examine(bundle.attestations, bundle, keys, trust, names=names)
    pushes = [item.seq for item in bundle.attestations if item.kind == "push" and item.seq is not None]
    if not pushes:
        return Examined(signed)
    if bundle.proof is None or bundle.proof.seq != pushes[0]:
        return Examined(signed, pushes[0], f"there is no proof that event {pushes[0]} is in the log")
    return Examined(signed, pushes[0], signing.included(bundle.proof, bundle, keys, names=names))


def reread(folder: Path, manifest: Manifest) -> list[Reread]:
    """Hash the files of a manifest in a folder. Other files there are ignored."""
    return [_hashed(folder / file.path, file.path, str(file.digest)) for file in manifest.files]


def _hashed(location: Path, path: str, expected: str) -> Reread:
    try:
        return Reread(path, expected, str(Digest.of_file(location)), location.stat().st_size)
    except OSError as e:
        return Reread(path, expected, "", 0, f"{location} cannot be read: {e.strerror}")
