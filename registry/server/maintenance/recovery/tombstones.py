"""Tombstones made anew: names that ended, from their records beside the blobs, before anybody could take them again.

Invariants
- A name that is in use here stays in use: a record that says it ended is a finding then, not a change. (The database
  is a backup from before the end, and somebody has to end it again.)
- Which name a record tells of stands in its key, so looking for what is missing reads no record.
"""

from __future__ import annotations

from sqlalchemy import Engine
from sqlmodel import Session

from registry import names
from registry.api.records import TombstoneRecord
from registry.evaluation.verdicts import Finding
from registry.events import EventType
from registry.server import audit
from registry.server.access import reserved_names
from registry.server.actors import Actor
from registry.server.catalog import metadata_backup
from registry.server.database import db
from registry.server.database.models import TakenNameRow
from registry.server.storage.blobs import BlobStore, Stat


def are_missing(engine: Engine, blobs: BlobStore) -> bool:
    """Whether a tombstone is recorded for a name of which the database knows nothing."""
    with db.session(engine, write=False) as session:
        return any(_row(session, stat) is None for stat in blobs.list(metadata_backup.TOMBSTONES))


def restore(engine: Engine, blobs: BlobStore, actor: Actor, findings: list[Finding], *, dry_run: bool) -> int:
    """Bury again what is not known here any more; how many names that were (or, in a dry run, would be)."""
    missing: set[str] = set()
    for stat in sorted(blobs.list(metadata_backup.TOMBSTONES), key=lambda stat: stat.key):
        with db.session(engine, write=not dry_run) as session:
            row = _row(session, stat)
            if row is not None and row.ended_at is None:
                message = "ended, and is in use here: this database is from before; delete it again"
                findings.append(Finding.of("error", "record.name_in_use", _place(stat), message))
            elif row is None and (record := _read(blobs, stat, findings)) is not None:
                missing.add(_place(stat))
                if not dry_run:
                    _bury(session, actor, record, _place(stat))
    return len(missing)


def _bury(session: Session, actor: Actor, record: TombstoneRecord, location: str) -> None:
    reserved_names.add_tombstone(session, record.owner, record.name, at=record.created_at)
    row = session.get_one(TakenNameRow, (record.owner, names.skeleton(record.name)), populate_existing=True)
    row.recorded_at = db.now()
    session.add(row)
    audit.append(session, actor, EventType.NAME_REINDEX, location)


def _read(blobs: BlobStore, stat: Stat, findings: list[Finding]) -> TombstoneRecord | None:
    """The record, if it tells of the name that its key says."""
    record = metadata_backup.parse_record(blobs, stat.key, stat.size_bytes, TombstoneRecord, findings)
    if record is None or (record.owner, record.name) == _name(stat):
        return record
    findings.append(Finding.of("error", "record.damaged", stat.key, "tells of another name than its key"))
    return None


def _row(session: Session, stat: Stat) -> TakenNameRow | None:
    owner, word = _name(stat)
    return session.get(TakenNameRow, (owner, names.skeleton(word)))


def _name(stat: Stat) -> tuple[str, str]:
    """Owner and name, from the key."""
    words = stat.key.removeprefix(metadata_backup.TOMBSTONES).split("/")[:-1]
    return (words[0], words[1]) if len(words) == 2 else (reserved_names.NAMESPACES, words[0])


def _place(stat: Stat) -> str:
    return "/".join(word for word in _name(stat) if word)
