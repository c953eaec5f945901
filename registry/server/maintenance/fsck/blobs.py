"""Check blobs: each row has its bytes and each final key its row; what is referenced has a blob; bytes hash right.

- A shard is all blobs whose digests begin with the same two hexadecimal digits; its rows and keys are compared. A
  bucket with few blobs is one shard: it is listed with one request.
- What looks wrong is looked up again, the row after the bytes: a push or GC may have been in the middle of it.
- What cannot be read (a folder, a bad sector) is a finding and does not stop the check, unless the store does not
  respond at all. It is not marked, because no one has seen that it is wrong.
- The deep stage marks a blob with wrong bytes `corrupt`, and restores it from a second copy as a push
  writes it: verified, then replaced atomically. Bytes that hash to their digest are right, whatever the row says.
- A row changes only if it is as it was before the bytes were read, so a repair in the meantime is not undone. Each
  change to `corrupt` or back to `live` is an audit event.
"""

import contextlib
import time
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, and_, update
from sqlmodel import Session, col, select

from registry.digest import Digest, Hasher
from registry.errors import Invalid, NotFound, TooLarge, Unavailable, invalid_cursor
from registry.events import EventType
from registry.server import audit
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import BlobRow, VerdictRow, VersionFileRow, VersionRow
from registry.server.database.models.owner_rules import AttestationRow
from registry.server.database.models.pushes import PushRow
from registry.server.maintenance.fsck.run import FsckRun
from registry.server.storage.blobs import BlobStore, digest_of, key_of, write_blob
from registry.server.storage.states import BlobState, PushState

FIRST_SHARD = "00"
FEW_BLOBS = 1000
BATCH = 32
SECONDS = 5.0
EVENTS = {BlobState.CORRUPT: EventType.BLOB_DAMAGE, BlobState.LIVE: EventType.BLOB_REPAIR}
READABLE = (BlobState.LIVE, BlobState.CORRUPT)
_ATTESTATION = "an attestation"


def check_shard(run: FsckRun, prefix: str) -> str:
    """Check the shard of this prefix; return the next prefix, empty at the end."""
    if len(prefix) != 2 or set(prefix) - set("0123456789abcdef"):
        raise invalid_cursor()
    if prefix == FIRST_SHARD and run.blobs.is_remote and _has_few_blobs(run):
        _compare(run, "")
        _count_staged(run)
        return ""
    try:
        _compare(run, prefix)
    except Unavailable as e:
        if run.blobs.is_remote:  # one prefix of a bucket does not fail alone: a retry gets all of it
            raise
        run.add_unreadable(f"blobs/sha256/{prefix}/", e)
    if prefix == "ff":
        _count_staged(run)
        return ""
    return f"{int(prefix, 16) + 1:02x}"


def _has_few_blobs(run: FsckRun) -> bool:
    """Whether neither the database nor the bucket has more blobs than one page of a list."""
    with run.snapshot() as session:
        rows = session.exec(select(BlobRow.digest).limit(FEW_BLOBS + 1)).all()
    return (
        len(rows) <= FEW_BLOBS and sum(1 for _ in islice(run.blobs.list("blobs/sha256/"), FEW_BLOBS + 1)) <= FEW_BLOBS
    )


def _compare(run: FsckRun, prefix: str) -> None:
    with run.snapshot() as session:
        statement = select(BlobRow).where(_is_in_shard(col(BlobRow.digest), prefix))
        rows = {row.digest: row for row in session.exec(statement)}
        referenced = _select_referenced(session, prefix)
    folder = f"blobs/sha256/{prefix}/" if prefix else "blobs/sha256/"
    sizes = {str(digest_of(stat.key)): stat.size_bytes for stat in run.blobs.list(folder)}
    for digest in sorted(set(rows) | referenced):
        row = rows.get(digest)
        if row is None or row.state != BlobState.LIVE or sizes.get(digest) != row.size_bytes:
            _check_again(run, digest)
    for digest in sorted(set(sizes) - set(rows)):
        _check_stray(run, digest)
    run.count("blobs", len(rows))


def _is_in_shard(column: Any, prefix: str) -> ColumnElement[bool]:
    """Condition that a digest begins with this. A range is looked up in the index under every collation."""
    return and_(column >= f"sha256:{prefix}", column < f"sha256:{prefix}g")


def _select_referenced(session: Session, prefix: str) -> set[str]:
    """The blobs of this shard that versions, verdicts and attestations refer to."""
    columns = (col(VersionFileRow.digest), col(VerdictRow.report), col(AttestationRow.digest))
    selects = [select(column).where(_is_in_shard(column, prefix)).distinct() for column in columns]
    manifests = select(VersionRow.digest).where(_is_in_shard(col(VersionRow.digest), prefix))
    referenced = set(session.exec(manifests.where(col(VersionRow.purged_at).is_(None))))
    return referenced | {digest for statement in selects for digest in session.exec(statement) if digest}


def _check_again(run: FsckRun, digest: str) -> None:
    with run.snapshot() as session:
        row = session.get(BlobRow, digest)
        user = _find_user(session, digest)
    if row is None:
        if user:
            run.add("blob.row_missing", digest, f"has no row, and {user} refers to it")
        return
    if row.state not in (BlobState.LIVE, BlobState.CORRUPT):
        being_written = row.state == BlobState.PENDING and user.startswith(_ATTESTATION)  # its row precedes its bytes
        if user and not being_written:
            run.add("blob.state_invalid", digest, f"is {row.state}, and {user} refers to it")
        return
    if run.deep:
        return  # a later stage of this run reads its bytes
    if row.state == BlobState.CORRUPT:
        message = f"its bytes are known to be wrong or lost; {user or 'nothing'} refers to it"
        run.add("blob.damaged", digest, message)
        return
    stat = run.blobs.stat(key_of(Digest(digest)))
    if stat is not None and stat.size_bytes == row.size_bytes:
        return
    with run.snapshot() as session:  # deleted with its row meanwhile?
        current = session.get(BlobRow, digest)
    if current is None or current.state != BlobState.LIVE:
        return
    suffix = f"; {user} refers to it" if user else ""
    if stat is None:
        run.add("blob.bytes_missing", digest, f"the store has no bytes of it{suffix}")
    else:
        message = f"the store has {stat.size_bytes} bytes instead of {row.size_bytes}{suffix}"
        run.add("blob.size_differs", digest, message)


def _find_user(session: Session, digest: str) -> str:
    """Describe something that refers to a blob; empty if nothing does."""
    file = session.exec(select(VersionFileRow).where(VersionFileRow.digest == digest).limit(1)).first()
    if file is not None:
        return f"file '{file.path}' of a version"
    is_manifest = (VersionRow.digest == digest, col(VersionRow.purged_at).is_(None))
    if session.exec(select(VersionRow.id).where(*is_manifest).limit(1)).first() is not None:
        return "a version"
    report = session.exec(select(VerdictRow.id).where(VerdictRow.report == digest).limit(1)).first()
    if report is not None:
        return "a verdict"
    kind = session.exec(select(AttestationRow.kind).where(AttestationRow.digest == digest).limit(1)).first()
    return f"{_ATTESTATION} ({kind}) of a version" if kind is not None else ""


def _check_stray(run: FsckRun, digest: str) -> None:
    with run.snapshot() as session:
        has_row = session.get(BlobRow, digest) is not None
    if not has_row and run.blobs.stat(key_of(Digest(digest))) is not None:
        message = "the store has bytes without a row; after a restore run `adapter reindex` before any `adapter gc`"
        run.add("blob.orphan", digest, message)


def _count_staged(run: FsckRun) -> None:
    """Count ended pushes with staged bytes. They are no damage: the next GC deletes them."""
    push_ids = {stat.key.split("/")[1] for stat in run.blobs.list("staging/")}
    with run.snapshot() as session:
        open_pushes = select(PushRow.id).where(any_of(col(PushRow.id), push_ids), PushRow.state == PushState.OPEN)
        ended = push_ids - set(session.exec(open_pushes).all())
    run.count("pushes_ended_with_staged_bytes", len(ended))


def check_bytes(run: FsckRun, after: str) -> str:
    """Check the next blobs after this digest, for a few seconds; return the last digest, empty at the end."""
    started = time.monotonic()
    with run.snapshot() as session:
        statement = select(BlobRow).where(col(BlobRow.digest) > after, col(BlobRow.state).in_(READABLE))
        rows = session.exec(statement.order_by(col(BlobRow.digest)).limit(BATCH)).all()
    for row in rows:
        _check_bytes_of(run, row)
        if time.monotonic() - started > SECONDS:
            return row.digest
    return rows[-1].digest if len(rows) == BATCH else ""


def _check_bytes_of(run: FsckRun, row: BlobRow) -> None:
    digest = Digest(row.digest)
    try:
        problem = _find_problem(run, digest, row.size_bytes)
    except Unavailable as e:
        _restore_unreadable(run, digest, row.size_bytes, e)
        return
    run.count("hashed")
    if not problem:
        if row.state == BlobState.CORRUPT and _set_state(run, row, BlobState.LIVE):
            run.add("blob.repaired", digest, "its bytes are right again", severity="info")
        else:
            _set_state(run, row, BlobState(row.state))
        return
    if not _set_state(run, row, BlobState.CORRUPT):
        return  # changed meanwhile: deleted, or repaired by a push
    if run.second_copy is None:
        run.add("blob.damaged", digest, problem)
    elif _restore(run, run.second_copy, digest, row.size_bytes):
        run.add("blob.restored", digest, f"{problem}; restored from the second copy", severity="warning")
    else:
        run.add("blob.damaged", digest, f"{problem}; the second copy has no good bytes either")


def _restore_unreadable(run: FsckRun, digest: Digest, size_bytes: int, error: Unavailable) -> None:
    with contextlib.suppress(Unavailable):
        if run.second_copy is not None and _restore(run, run.second_copy, digest, size_bytes):
            run.add("blob.restored", digest, f"{error.detail}; restored from the second copy", severity="warning")
            return
    run.add_unreadable(digest, error)


def _find_problem(run: FsckRun, digest: Digest, size_bytes: int) -> str:
    """Describe what is wrong with a blob's bytes; empty if they are right."""
    hasher = Hasher()
    try:
        for chunk in run.blobs.open(key_of(digest)):
            hasher.update(chunk)
    except NotFound:
        return "the store has no bytes of it"
    run.bytes_hashed += hasher.size_bytes
    if hasher.digest() == digest and hasher.size_bytes == size_bytes:
        return ""
    return f"its {hasher.size_bytes} bytes hash to {hasher.digest()}"


def _restore(run: FsckRun, second_copy: BlobStore, digest: Digest, size_bytes: int) -> bool:
    key = key_of(digest)
    try:
        write_blob(run.blobs, key, second_copy.open(key), limit_bytes=size_bytes)
    except (NotFound, Invalid, TooLarge):  # the copy is missing, or damaged as well
        return False
    with db.session(run.engine) as session:
        row = session.get(BlobRow, digest)
    return row is not None and _set_state(run, row, BlobState.LIVE)


def _set_state(run: FsckRun, row: BlobRow, state: BlobState) -> bool:
    """Set the state and the time of the check unless the row has changed since; return whether it was set."""
    checked_at = col(BlobRow.checked_at)
    unchanged = checked_at.is_(None) if row.checked_at is None else checked_at == row.checked_at
    unchanged = and_(unchanged, col(BlobRow.created_at) == row.created_at)  # a row that was deleted and created again
    with db.session(run.engine) as session:
        rows = update(BlobRow).where(col(BlobRow.digest) == row.digest, col(BlobRow.state) == row.state, unchanged)
        was_set = bool(session.connection().execute(rows.values(state=state, checked_at=db.now())).rowcount)
        if was_set and state != row.state:
            audit.append(session, run.actor, EVENTS[state], row.digest)
        return was_set
