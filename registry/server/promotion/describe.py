"""Changes descriptions, tags, links and expiries of adapters and versions, in groups. One change is a group of one.

All who may push may change them; only owners and its pusher say when a version expires, and only owners once it was
restored. Each change that changes something has one event, with the new values and with what was removed, so the audit
log keeps their history. A version in quarantine keeps its metadata as it is.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
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
from registry.server.catalog.search import text_index
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
from registry.server.outcomes import all_or_none, collect_outcomes, has_error, only, results_of

MetadataKey = tuple[str, str]
"""The kind of a value, and the key of a tag or a link."""
Metadata = dict[MetadataKey, str]
Subject = tuple[bool, int]
"""Whether it is a version, and the id of its row, or of the adapter's."""


def _statements(table: Any, owner: str) -> tuple[Any, Any]:
    column = col(getattr(table, owner))
    key = (column == bindparam("of_owner"), table.kind == bindparam("of_kind"), table.key == bindparam("of_key"))
    return select(table).where(any_of(column, parameter="ids")), delete(table).where(*key)


_TABLES: tuple[tuple[Any, str, Any, Any], ...] = tuple(
    (table, owner, *_statements(table, owner))
    for table, owner in ((AdapterMetadataRow, "adapter_id"), (VersionMetadataRow, "version_id"))
)


@dataclass(frozen=True)
class Description:
    """A change to make, of an adapter, or with a selector of one of its versions."""

    name: AdapterName
    selector: Selector | None
    change: MetadataChange

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


@dataclass(frozen=True)
class DescriptionFacts:
    """What a change depends on beside what its subject is described by."""

    description: Description
    adapter_id: int
    version: VersionRow | None

    @property
    def subject(self) -> Subject:
        """The key of the subject's values."""
        return (False, self.adapter_id) if self.version is None else (True, self.version.id or 0)


@dataclass(frozen=True)
class DescriptionDecision:
    """What a subject is described by after a change, and the detail of the event, empty if nothing differs."""

    facts: DescriptionFacts
    after: Metadata
    detail: dict[str, Any]

    def view(self) -> DescribedSubject:
        """What the response says of the subject."""
        return DescribedSubject(
            subject=_subject_text(self.facts), changed=bool(self.detail),
            description=self.after.get((DESCRIPTION, ""), ""),
            **{f"{kind}s": {key: value for (k, key), value in self.after.items() if k == kind} for kind in (TAG, LINK)},
        )  # fmt: skip


def describe_one(session: Session, actor: Actor, description: Description) -> DescribedSubject:
    """`describe` for a group of one. Raises its error."""
    return only(describe(session, actor, [description]))


def describe(
    session: Session, actor: Actor, descriptions: Sequence[Description | RegistryError], *, atomic: bool = False,
    dry_run: bool = False,
) -> list[DescribedSubject | RegistryError]:  # fmt: skip
    """Change metadata; return what each subject has then, or its error, in order.

    `NotFound`, `Denied`, `TooLarge` (SIZE_INVALID), `Refused` (QUARANTINED). `atomic`: an error of one lets all fail.
    `dry_run`: check everything and write nothing.
    """
    requested = collect_outcomes(descriptions, partial(_check_request, actor))
    facts = _load_subjects(session, actor, requested)
    before = _load_metadata(session, {of_one.subject for of_one in results_of(facts)})
    current = dict(before)

    def decide_next(of_one: DescriptionFacts) -> DescriptionDecision:
        decision = decide(actor, of_one, current[of_one.subject])
        current[of_one.subject] = decision.after  # a later item of the request may change it again
        return decision

    decisions = collect_outcomes(facts, decide_next)
    outcomes = collect_outcomes(decisions, DescriptionDecision.view)
    if not dry_run and not (atomic and has_error(decisions)):
        _write(session, actor, [decision for decision in results_of(decisions) if decision.detail], before, current)
    return all_or_none(outcomes) if atomic else outcomes


def _check_request(actor: Actor, description: Description) -> Description:
    actor.require(Scope.PUSH, description.name)
    return description


# ------------------------------------------------------------------ facts
def _load_subjects(
    session: Session, actor: Actor, requested: Sequence[Description | RegistryError]
) -> list[DescriptionFacts | RegistryError]:
    """Lock the adapters, and find the versions."""
    adapter_names = {description.name for description in results_of(requested)}
    ids = version_groups.find_adapter_ids(session, actor, adapter_names, version_groups.NAMED_LOCKED)
    refs = [description.ref for description in results_of(requested) if description.ref is not None]
    rows = version_groups.find_all(session, actor, refs)
    missing = version_groups.explain_missing(session, actor, adapter_names - ids.keys())

    def find(description: Description) -> DescriptionFacts:
        if description.name not in ids:
            raise missing.get(description.name) or unknown_adapter(description.name)
        version = rows[description.ref] if description.ref is not None else None
        if isinstance(version, RegistryError):
            raise version
        return DescriptionFacts(description, ids[description.name], version)

    return collect_outcomes(requested, find)


def _load_metadata(session: Session, subjects: Collection[Subject]) -> dict[Subject, Metadata]:
    """What each subject is described by."""
    metadata: dict[Subject, Metadata] = {subject: {} for subject in subjects}
    for is_version, (_, owner, read, _) in enumerate(_TABLES):
        ids = sorted(owner_id for of_version, owner_id in subjects if of_version == bool(is_version))
        for row in session.exec(read, params={"ids": ids}) if ids else ():
            metadata[bool(is_version), getattr(row, owner)][row.kind, row.key] = row.value
    return metadata


# ------------------------------------------------------------------ the decision
def decide(actor: Actor, facts: DescriptionFacts, before: Metadata) -> DescriptionDecision:
    """Decide one change of a subject that is described by `before`. Errors as in `describe`."""
    name, version, change = facts.description.name, facts.version, facts.description.change
    expiry = _get_expiry(change)
    if version is not None:
        availability.require_not_deleted(name, version)
        if version.quarantined_at is not None:
            raise availability.quarantined_error(name, version)
        if expiry is not None and actor.identity != version.created_by:
            actor.require(Scope.ADMIN, name)
    if expiry is not None and before.get((EXPIRES, "")) == NEVER:
        actor.require(Scope.ADMIN, name)  # an owner restored it
    after = _apply(before, change)
    for kind, noun in ((TAG, "tags"), (LINK, "links")):
        count = sum(key[0] == kind for key in after)
        if count > TAGS_LIMIT:
            raise TooLarge("SIZE_INVALID", f"{noun}: {count} are over the limit of {TAGS_LIMIT}")
    changed_values = {key: value for key, value in after.items() if before.get(key) != value}
    detail: dict[str, Any] = {
        f"{kind}s": {key: value for (k, key), value in changed_values.items() if k == kind} for kind in (TAG, LINK)
    }
    detail["description"] = changed_values.get((DESCRIPTION, ""), "")
    detail["expires_at"] = changed_values.get((EXPIRES, ""), "")
    detail["removed"] = [f"{kind} {key}".strip() for kind, key in sorted(before.keys() - after.keys())]
    return DescriptionDecision(facts, after, {field: value for field, value in detail.items() if value})


def _apply(before: Metadata, change: MetadataChange) -> Metadata:
    requested: dict[MetadataKey, str | None] = {(TAG, key): value for key, value in change.tags.items()}
    requested |= {(LINK, key): value for key, value in change.links.items()}
    if change.description is not None:
        requested[DESCRIPTION, ""] = change.description.strip() or None
    if (expiry := _get_expiry(change)) is not None:
        requested[EXPIRES, ""] = expiry_text(datetime.fromisoformat(expiry)) if expiry else None
    after = {**before, **{key: value for key, value in requested.items() if value is not None}}
    return {key: value for key, value in after.items() if key not in requested or requested[key] is not None}


def _get_expiry(change: MetadataChange) -> str | None:
    return change.expires_at if isinstance(change, VersionMetadataChange) else None


def _subject_text(facts: DescriptionFacts) -> str:
    name = str(facts.description.name)
    return f"{name}@{facts.version.number}" if facts.version is not None else name


# ------------------------------------------------------------------ rows
def _write(
    session: Session, actor: Actor, changes: Sequence[DescriptionDecision], before: Mapping[Subject, Metadata],
    after: Mapping[Subject, Metadata],
) -> None:  # fmt: skip
    """Write the rows that differ between the values before and after all changes, and an event for each change."""
    if not changes:
        return
    for is_version, (table, owner, _, remove) in enumerate(_TABLES):
        removed, inserted = [], []
        for subject in sorted(subject for subject in before if subject[0] == bool(is_version)):
            old, new = before[subject], after[subject]
            differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
            removed += [
                {"of_owner": subject[1], "of_kind": k, "of_key": key} for k, key in differing if (k, key) in old
            ]
            inserted += [
                table(**{owner: subject[1]}, set_at=db.now(), set_by=actor.identity, kind=k, key=key, value=new[k, key])
                for k, key in differing
                if (k, key) in new
            ]
        db.update_rows(session, remove, removed)
        db.bulk_insert(session, inserted)
    subjects = {change.facts.subject for change in changes}
    text_index.update_names(session, {adapter_id for is_version, adapter_id in subjects if not is_version})
    text_index.update_tags(session, {version_id for is_version, version_id in subjects if is_version})
    db.bulk_insert(session, [_build_event(session, actor, change) for change in changes])


def _build_event(session: Session, actor: Actor, change: DescriptionDecision) -> EventRow:
    version, subject = change.facts.version, _subject_text(change.facts)
    if version is None:
        return audit.build(session, actor, EventType.ADAPTER_DESCRIBE, subject, change.detail)
    detail = {"digest": version.digest, **change.detail}
    return audit.build(session, actor, EventType.VERSION_DESCRIBE, subject, detail)


def set_expiry(session: Session, actor: Actor, version: VersionRow, value: str) -> None:
    """Replace the expiry of a version by a text of `metadata.expiry_text`, or by NEVER."""
    own = (col(VersionMetadataRow.version_id) == version.id, col(VersionMetadataRow.kind) == EXPIRES)
    session.connection().execute(delete(VersionMetadataRow).where(*own))
    row = VersionMetadataRow(
        version_id=version.id or 0, kind=EXPIRES, key="", value=value, set_at=db.now(), set_by=actor.identity
    )
    db.bulk_insert(session, [row])
