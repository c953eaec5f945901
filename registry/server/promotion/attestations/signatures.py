"""Signatures that users add to versions.

A signature is verified against the version's own manifest before it is stored. The row that refers to its blob is
written before the bytes; it is shown once its blob is live. No quota counts them, and the same signature can be written
in any number of ways, so a version has a limited number of bytes of them, and each actor a part of it.
"""

from pathlib import Path

from sqlmodel import Session, col, select

from registry.api.audit.attestations import AttestationView, SignRequest
from registry.attestations import certified, models
from registry.attestations.certificates import Trust
from registry.attestations.keys import PublicKey
from registry.digest import Digest
from registry.errors import Invalid, TooLarge
from registry.events import EventType
from registry.names import AdapterName, Selector, is_alias
from registry.roles import Scope
from registry.server import audit, failpoints
from registry.server.actors import Actor
from registry.server.catalog import availability, versions
from registry.server.database import db
from registry.server.database.models import VersionRow
from registry.server.database.models.owner_rules import SIGNATURE, UNVERIFIED, AttestationRow
from registry.server.promotion.attestations import attestation_row, view
from registry.server.storage import blobs, references
from registry.server.storage.blobs import BlobStore
from registry.server.storage.states import BlobState
from registry.versions.manifest import Manifest

SIGNATURES_LIMIT = 100
SIGNATURES_OF_ACTOR_LIMIT = 20
SIGNATURES_LIMIT_BYTES = 8 * 2**20
"""Bytes of all signatures of a version; a quarter of them for one actor."""


def add_signature(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, request: SignRequest, store: BlobStore, *,
    trusted_roots: str = "",
) -> tuple[AttestationView, bool]:  # fmt: skip
    """Store a signature of a version; also says whether it is new. `Invalid` (SIGNATURE_INVALID) unless it verifies.

    A certificate that leads to no root in `trusted_roots` (a file or a folder) makes the signature `unverified`.
    `session` must have begun by reading: it writes from the last check on, and no transaction is open while bytes move.
    """
    actor.require(Scope.PUSH, name)
    version = versions.find(session, actor, name, selector, include_withdrawn=not is_alias(selector))
    if version.quarantined_at is not None:
        raise availability.quarantined_error(name, version)
    kind, identity, public_key = _verify(request, Manifest.parse(version.manifest.encode()), trusted_roots)
    data = request.bundle.encode()
    digest = Digest.of(data)
    db.begin_writing(session)
    same = (
        AttestationRow.version_id == version.id, AttestationRow.digest == digest, AttestationRow.kind == kind,
        AttestationRow.identity == identity,
    )  # fmt: skip
    row = session.exec(select(AttestationRow).where(*same)).first()
    if row is None:
        _check_limits(session, actor, version, len(data))
    states = references.reserve(session, {digest: len(data)})
    if row is not None and states[digest] == BlobState.LIVE:
        return view(row, store), False
    if row is None:
        row = attestation_row(version, kind, identity, digest, len(data), made_by=actor.identity, public_key=public_key)
        session.add(row)
    db.commit_early(session)
    failpoints.reach("attestation.held")
    blobs.write_blob(store, blobs.key_of(digest), [data], limit_bytes=len(data))
    db.begin_writing(session)
    references.mark_live(session, {digest: len(data)}, written_now={digest})
    detail = {"identity": identity, "kind": kind, "signature": digest, "digest": version.digest}
    audit.append(session, actor, EventType.VERSION_SIGN, f"{name}@{version.number}", detail)
    session.flush()
    return view(row, store), True


def _check_limits(session: Session, actor: Actor, version: VersionRow, size_bytes: int) -> None:
    """`TooLarge` (QUOTA_EXCEEDED) if the version, or the actor for it, has too many signatures. Locks the version."""
    session.exec(select(VersionRow.id).where(VersionRow.id == version.id).with_for_update(key_share=True)).one()
    attached = select(AttestationRow.made_by, AttestationRow.size_bytes).where(
        AttestationRow.version_id == version.id, col(AttestationRow.kind).in_((SIGNATURE, UNVERIFIED))
    )
    of_all = session.exec(attached).all()
    own = [row for row in of_all if row[0] == actor.identity]
    for rows, who, count, limit_bytes in (
        (own, f"{actor.identity!r} for it", SIGNATURES_OF_ACTOR_LIMIT, SIGNATURES_LIMIT_BYTES // 4),
        (of_all, "it", SIGNATURES_LIMIT, SIGNATURES_LIMIT_BYTES),
    ):
        if len(rows) >= count or sum(size for _, size in rows) + size_bytes > limit_bytes:
            detail = (
                f"a version has at most {count} signatures of {limit_bytes} bytes in all, and {who} has no space left"
            )
            raise TooLarge("QUOTA_EXCEEDED", detail)


def _verify(request: SignRequest, manifest: Manifest, trusted_roots: str) -> tuple[str, str, str]:
    """The kind of a signature, who signed, and the public key that came with it."""
    if request.public_key:
        key = PublicKey.parse(request.public_key.encode())
        return SIGNATURE, models.verify_with_key(request.bundle, key, manifest), key.pem
    trust = Trust.parse(_read_roots(trusted_roots))
    signer = certified.verify_with_certificate(request.bundle, manifest, trust, db.now())
    return (SIGNATURE, signer.identity, "") if signer.identity else (UNVERIFIED, signer.problem, "")


def _read_roots(location: str) -> list[bytes]:
    """The bytes of a file, or of each file in a folder; nothing for an empty setting."""
    if not location:
        return []
    path = Path(location)
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [file.read_bytes() for file in files if file.is_file()]
    except OSError as e:
        raise Invalid("SETTING_INVALID", f"REGISTRY_TRUSTED_ROOTS: {location!r} cannot be read: {e.strerror}") from e
