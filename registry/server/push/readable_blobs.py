"""Blobs that a push need not send, because its sender may read them in a version; and what the log says of that.

What is taken over is read from then on as a file of the new adapter. So it is an event of the adapter that has it, too.
"""

from collections.abc import Mapping, Set

from sqlalchemy import func, or_, true
from sqlmodel import Session, col, select

from registry.digest import Digest
from registry.events import EventType
from registry.names import AdapterName
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database import db, models
from registry.server.database.expressions import any_of
from registry.server.storage.states import BlobState

READERS_LIMIT = 1000
"""How many versions that have a blob are looked at to find one that may be read."""


def find(
    session: Session, actor: Actor, digests: Set[Digest], *, of: AdapterName | None = None
) -> dict[tuple[str, int], int]:
    """Digest and size of those blobs that versions visible to the actor have, undamaged → the id of such a version.

    Looked for among the versions of one adapter and the `READERS_LIMIT` newest ones of each blob, so that no push waits
    for how many share a file. A blob that only older ones have is sent again.
    Versions in quarantine do not count: pushing their bytes under another name would circumvent it.
    """
    file, version, adapter, blob = models.VersionFileRow, models.VersionRow, models.AdapterRow, models.BlobRow
    having = select(col(file.version_id)).where(col(file.digest) == col(blob.digest)).correlate(blob)
    newest = having.order_by(col(file.version_id).desc()).limit(READERS_LIMIT).subquery()
    all_holders = [newest]
    if of is not None:
        own = having.join(version, col(version.id) == col(file.version_id))
        own = own.join(adapter, col(adapter.id) == col(version.adapter_id)).where(versions.has_name(of))
        all_holders.insert(0, own.subquery())
    readers = [
        select(col(version.id))
        .join_from(holders, version, col(version.id) == holders.c.version_id)
        .join(adapter, col(adapter.id) == col(version.adapter_id))
        .where(versions.visible(actor), col(version.quarantined_at).is_(None))
        .limit(1)
        .scalar_subquery()
        for holders in all_holders
    ]
    reader = func.coalesce(*readers, None)
    conditions = any_of(col(blob.digest), sorted(digests)), col(blob.state) == BlobState.LIVE
    rows = session.exec(select(blob.digest, blob.size_bytes, reader).where(*conditions)).all() if digests else []
    return {(digest, size_bytes): version_id for digest, size_bytes, version_id in rows if version_id is not None}


def record_copies(session: Session, actor: Actor, copied: Mapping[AdapterName, Set[Digest]]) -> None:
    """Add events about versions that have these blobs, for adapters that have no version with them themselves."""
    digests: set[Digest] = set().union(*copied.values())
    if not digests:
        return
    file, version, adapter = models.VersionFileRow, models.VersionRow, models.AdapterRow
    has_file = select(col(file.version_id)).join(version, col(version.id) == col(file.version_id))
    has_file = has_file.where(
        col(version.adapter_id) == col(adapter.id), col(file.digest) == col(models.BlobRow.digest)
    )
    pairs = select(adapter.namespace, adapter.name, models.BlobRow.digest).join(models.BlobRow, true())
    own = pairs.where(
        or_(*map(versions.has_name, copied)),
        any_of(col(models.BlobRow.digest), sorted(digests)),
        has_file.correlate(adapter, models.BlobRow).exists(),
    )
    present = {(AdapterName(namespace, name), digest) for namespace, name, digest in session.exec(own)}
    foreign = {name: {digest for digest in of if (name, digest) not in present} for name, of in copied.items()}
    readers = {digest: version for (digest, _), version in find(session, actor, set().union(*foreign.values())).items()}
    numbers = (
        select(version.id, adapter.namespace, adapter.name, version.number)
        .join(adapter, col(version.adapter_id) == col(adapter.id))
        .where(any_of(col(version.id), sorted(set(readers.values()))))
    )
    refs = (
        {i: f"{AdapterName(namespace, name)}@{n}" for i, namespace, name, n in session.exec(numbers)} if readers else {}
    )
    events = [
        audit.build(session, actor, EventType.BYTES_COPY, ref, {"to": str(name)})
        for name, of in foreign.items()
        for ref in sorted({refs[readers[digest]] for digest in of if digest in readers})
    ]
    db.bulk_insert(session, events)
