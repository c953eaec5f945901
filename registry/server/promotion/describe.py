"""Changes descriptions, tags, links and expiries of adapters and versions, in groups. One change is a group of one.

All who may push may change them; only owners and its pusher say when a version expires, and only owners once it was
restored. Each change that changes something has one event, with the new values and with what was removed, so the audit
log keeps their history. A version in quarantine keeps its metadata as it is.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from sqlalchemy import bindparam, delete
from sqlmodel import Session, col, select

from registry.api.aliases import DescribedSubject, DescribeItem
from registry.api.catalog import TAGS_LIMIT, MetadataChange, VersionMetadataChange
from registry.errors import RegistryError, TooLarge
from registry.events import EventType
from registry.names import AdapterName, Ref, Selector
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import availability, version_groups
from registry.server.catalog.metadata import expiry_text
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import (
    DESCRIPTION,
    EXPIRES,
    LINK,
    NEVER,
    TAG,
    AdapterMetadataRow,
    EventRow,
    VersionMetadataRow,
    VersionRow,
)
from registry.server.promotion.group import Member, only, results_of, without_error
from registry.server.search import text_index

_Key = tuple[str, str]
_Values = dict[_Key, str]


def _statements(table: Any, owner: str) -> tuple[Any, Any]:
    column = col(getattr(table, owner))
    key = (column == bindparam("of_owner"), table.kind == bindparam("of_kind"), table.key == bindparam("of_key"))
    return select(table).where(any_of(column, parameter="ids")), delete(table).where(*key)


_TABLES: tuple[tuple[Any, str, Any, Any], ...] = tuple(
    (table, owner, *_statements(table, owner))
    for table, owner in ((AdapterMetadataRow, "adapter_id"), (VersionMetadataRow, "version_id"))
)


@dataclass
class Description(Member):
    """A change to make, of an adapter, or with a selector of one of its versions."""

    name: AdapterName
    selector: Selector | None
    change: MetadataChange
    owner_id: int = field(default=0, init=False)
    version: VersionRow | None = field(default=None, init=False)
    result: DescribedSubject | None = field(default=None, init=False)

    @classmethod
    def of(cls, item: DescribeItem) -> Self:
        """The change that an item of a request asks for. `Invalid` for a subject that is no name or reference."""
        if ":" not in item.subject and "@" not in item.subject:
            return cls(AdapterName.parse(item.subject), None, item)
        ref = Ref.parse(item.subject)
        return cls(ref.name, ref.selector, item)

    @property
    def ref(self) -> Ref | None:
        """The version; None for an adapter."""
        return None if self.selector is None else Ref(self.name, self.selector)

    @property
    def subject(self) -> str:
        """The adapter, or the version by its number."""
        return f"{self.name}@{self.version.number}" if self.version is not None else str(self.name)


def describe_one(session: Session, actor: Actor, description: Description) -> DescribedSubject:
    """`describe` for a group of one. Raises its error."""
    return only(describe(session, actor, [description]))


def describe(
    session: Session, actor: Actor, descriptions: Sequence[Description], *, atomic: bool = False, dry_run: bool = False
) -> list[DescribedSubject | RegistryError]:
    """Change metadata; return what each subject has then, or its error, in order.

    `NotFound`, `Denied`, `TooLarge` (SIZE_INVALID), `Refused` (QUARANTINED). `atomic`: an error of one lets all fail.
    `dry_run`: check everything and write nothing.
    """
    for description in descriptions:
        with description.collect_error():
            actor.require(Scope.PUSH, description.name)
    _find_subjects(session, actor, without_error(descriptions))
    changed: list[Description] = []
    events: list[EventRow] = []
    changes: dict[Any, list[tuple[int, _Values, _Values]]] = defaultdict(list)
    for table, owner, read, _ in _TABLES:
        members = [d for d in without_error(descriptions) if (d.version is None) == (table is AdapterMetadataRow)]
        if not members:
            continue
        before: dict[int, _Values] = {member.owner_id: {} for member in members}
        for row in session.exec(read, params={"ids": sorted(before)}):
            before[getattr(row, owner)][row.kind, row.key] = row.value
        after = {owner_id: dict(values) for owner_id, values in before.items()}
        for member in members:
            with member.collect_error():
                if before[member.owner_id].get((EXPIRES, "")) == NEVER and _get_expiry(member.change) is not None:
                    actor.require(Scope.ADMIN, member.name)  # an owner restored it
                detail = _change(member, after)
                if detail:
                    changed.append(member)
                    events.append(_build_event(session, actor, member, detail))
        changes[table] = [(owner_id, before[owner_id], after[owner_id]) for owner_id in sorted(before)]
    if changed and not dry_run and not (atomic and len(without_error(descriptions)) < len(descriptions)):
        for table, owner, _, remove in _TABLES:
            _write(session, actor, table, owner, remove, changes[table])
        adapters = {d.owner_id for d in changed if d.version is None}
        text_index.update_names(session, adapters)
        text_index.update_tags(session, {d.owner_id for d in changed} - adapters)
        db.bulk_insert(session, events)
    return results_of(descriptions, atomic=atomic)


def _find_subjects(session: Session, actor: Actor, descriptions: Sequence[Description]) -> None:
    """Lock the adapters, and find the versions."""
    ids = version_groups.find_adapter_ids(session, actor, {d.name for d in descriptions}, version_groups.NAMED_LOCKED)
    rows = version_groups.find_all(session, actor, [d.ref for d in descriptions if d.ref is not None])
    for description in descriptions:
        with description.collect_error():
            if description.name not in ids:
                raise unknown_adapter(description.name)
            description.owner_id = ids[description.name]
            if description.ref is None:
                continue
            row = rows[description.ref]
            if isinstance(row, RegistryError):
                raise row
            availability.require_not_deleted(description.name, row)
            if row.quarantined_at is not None:
                raise availability.quarantined_error(description.name, row)
            if _get_expiry(description.change) is not None and actor.identity != (row.pushed_by or row.created_by):
                actor.require(Scope.ADMIN, description.name)
            description.version, description.owner_id = row, row.id or 0


def _get_expiry(change: MetadataChange) -> str | None:
    return change.expires_at if isinstance(change, VersionMetadataChange) else None


def set_expiry(session: Session, actor: Actor, version: VersionRow, value: str) -> None:
    """Replace the expiry of a version by a text of `metadata.expiry_text`, or by NEVER."""
    own = (col(VersionMetadataRow.version_id) == version.id, col(VersionMetadataRow.kind) == EXPIRES)
    session.connection().execute(delete(VersionMetadataRow).where(*own))
    row = VersionMetadataRow(
        version_id=version.id or 0, kind=EXPIRES, key="", value=value, set_at=db.now(), set_by=actor.identity
    )
    db.bulk_insert(session, [row])


def _change(description: Description, current: dict[int, _Values]) -> dict[str, Any]:
    """Apply a change to `current`, owner → its values. Returns the detail of the event, empty if nothing differs."""
    before = current[description.owner_id]
    after = _apply(before, description.change)
    for kind, noun in ((TAG, "tags"), (LINK, "links")):
        count = sum(key[0] == kind for key in after)
        if count > TAGS_LIMIT:
            raise TooLarge("SIZE_INVALID", f"{noun}: {count} are over the limit of {TAGS_LIMIT}")
    current[description.owner_id] = after
    changed_values = {key: value for key, value in after.items() if before.get(key) != value}
    detail: dict[str, Any] = {
        f"{kind}s": {key: value for (k, key), value in changed_values.items() if k == kind} for kind in (TAG, LINK)
    }
    detail["description"] = changed_values.get((DESCRIPTION, ""), "")
    detail["expires_at"] = changed_values.get((EXPIRES, ""), "")
    detail["removed"] = [f"{kind} {key}".strip() for kind, key in sorted(before.keys() - after.keys())]
    detail = {field: value for field, value in detail.items() if value}
    description.result = DescribedSubject(
        subject=description.subject, changed=bool(detail), description=after.get((DESCRIPTION, ""), ""),
        **{f"{kind}s": {key: value for (k, key), value in after.items() if k == kind} for kind in (TAG, LINK)},
    )  # fmt: skip
    return detail


def _apply(before: _Values, change: MetadataChange) -> _Values:
    requested: dict[_Key, str | None] = {(TAG, key): value for key, value in change.tags.items()}
    requested |= {(LINK, key): value for key, value in change.links.items()}
    if change.description is not None:
        requested[DESCRIPTION, ""] = change.description.strip() or None
    if (expiry := _get_expiry(change)) is not None:
        requested[EXPIRES, ""] = expiry_text(datetime.fromisoformat(expiry)) if expiry else None
    after = {**before, **{key: value for key, value in requested.items() if value is not None}}
    return {key: value for key, value in after.items() if key not in requested or requested[key] is not None}


def _build_event(session: Session, actor: Actor, description: Description, detail: dict[str, Any]) -> EventRow:
    event_type = EventType.ADAPTER_DESCRIBE
    if description.version is not None:
        event_type, detail = EventType.VERSION_DESCRIBE, {"digest": description.version.digest, **detail}
    return audit.build(session, actor, event_type, description.subject, detail)


def _write(
    session: Session, actor: Actor, table: Any, owner: str, remove: Any,
    changes: Sequence[tuple[int, _Values, _Values]],
) -> None:  # fmt: skip
    """Write the rows that differ between the values before and after."""
    removed, inserted = [], []
    for owner_id, before, after in changes:
        differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        removed += [{"of_owner": owner_id, "of_kind": k, "of_key": key} for k, key in differing if (k, key) in before]
        inserted += [
            table(**{owner: owner_id}, set_at=db.now(), set_by=actor.identity, kind=k, key=key, value=after[k, key])
            for k, key in differing
            if (k, key) in after
        ]
    db.update_rows(session, remove, removed)
    db.bulk_insert(session, inserted)
