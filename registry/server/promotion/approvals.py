"""Approvals of versions for aliases, in groups: each has its own outcome. One approval is a group of one."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sqlalchemy import bindparam, func
from sqlmodel import Session, col, select

from registry import names
from registry.api.aliases import ApprovalList, ApprovalView
from registry.errors import RegistryError, TooLarge
from registry.events import EventType
from registry.names import AdapterName, Ref, Selector
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import availability, version_groups, versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import VersionRow
from registry.server.database.models.owner_rules import ApprovalRow
from registry.server.promotion import gates
from registry.server.promotion.group import Member, results_of, without_error

ALIASES_LIMIT = 32
"""For how many aliases one identity approves a version."""
APPROVALS_LIMIT = 1000
"""Approvals of a version by all identities: an owner may make any number of tokens."""
_KEY = (col(ApprovalRow.version_id), col(ApprovalRow.alias))
_OWN = select(ApprovalRow).where(
    any_of(col(ApprovalRow.version_id), parameter="ids"), col(ApprovalRow.identity) == bindparam("identity")
)
_COUNTS = (
    select(ApprovalRow.version_id, func.count())
    .where(any_of(col(ApprovalRow.version_id), parameter="ids"))
    .group_by(col(ApprovalRow.version_id))
)
_Key = tuple[int, str]


@dataclass
class NewApproval(Member):
    """An approval to write."""

    ref: Ref
    alias: str
    comment: str = ""
    version: VersionRow | None = field(default=None, init=False)
    result: ApprovalView | None = field(default=None, init=False)


def approve(
    session: Session, actor: Actor, approvals: Sequence[NewApproval], *, atomic: bool = False, dry_run: bool = False
) -> list[ApprovalView | RegistryError]:
    """Approve versions for aliases; return the approvals or errors, in order. A second approval changes nothing.

    `Denied`, `Refused`, `NotFound`. `atomic`: an error of one lets all fail. `dry_run`: check all and write nothing.
    """
    for approval in approvals:
        with approval.collect_error():
            actor.require(Scope.PROMOTE, approval.ref.name)
            approval.alias = str(names.alias(approval.alias))
    refs = [approval.ref for approval in without_error(approvals)]
    # A move to another namespace removes approvals: none comes after it.
    rows = version_groups.find_all(session, actor, refs, lock_names=not dry_run)
    for approval in without_error(approvals):
        with approval.collect_error():
            row = rows[approval.ref]
            if isinstance(row, RegistryError):
                raise row
            availability.require_available(approval.ref.name, row)
            approval.version = row
    if not dry_run:
        db.lock_names(session, *(f"approvals of {a.version.id}" for a in approvals if a.version is not None))
    own = _find_own(session, actor, without_error(approvals))
    _check_limits(session, without_error(approvals), own)
    if not (atomic and len(without_error(approvals)) < len(approvals)):
        _write(session, actor, without_error(approvals), own, dry_run=dry_run)
    return results_of(approvals, atomic=atomic)


def _find_own(session: Session, actor: Actor, approvals: Sequence[NewApproval]) -> dict[_Key, ApprovalRow]:
    """The approvals that the actor gave these versions before, for any alias."""
    ids = sorted({a.version.id or 0 for a in approvals if a.version is not None})
    rows = session.exec(_OWN, params={"ids": ids, "identity": actor.identity}) if ids else ()
    return {(row.version_id, row.alias): row for row in rows}


def _check_limits(session: Session, approvals: Sequence[NewApproval], own: Collection[_Key]) -> None:
    keys = {(a.version.id or 0, a.alias) for a in approvals if a.version is not None}
    if keys <= set(own):
        return
    of_identity = Counter(version_id for version_id, _ in keys.union(own))
    of_all = Counter(dict(session.exec(_COUNTS, params={"ids": sorted({version_id for version_id, _ in keys})}).all()))
    of_all.update(version_id for version_id, _ in keys.difference(own))
    for approval in approvals:
        version_id = approval.version.id or 0 if approval.version is not None else 0
        if of_identity[version_id] > ALIASES_LIMIT:
            detail = f"one identity approves a version for at most {ALIASES_LIMIT} aliases"
            approval.error = TooLarge("QUOTA_EXCEEDED", f"'{approval.ref}': {detail}")
        elif of_all[version_id] > APPROVALS_LIMIT:
            detail = f"it has at most {APPROVALS_LIMIT} approvals"
            approval.error = TooLarge("QUOTA_EXCEEDED", f"'{approval.ref}': {detail}")


def _write(
    session: Session, actor: Actor, approvals: Sequence[NewApproval], own: dict[_Key, ApprovalRow], *, dry_run: bool
) -> None:
    by_key = {(a.version.id or 0, a.alias): (a, a.version) for a in approvals if a.version is not None}
    if not by_key:
        return
    new = {
        (version_id, alias): ApprovalRow(
            version_id=version_id, alias=alias, identity=actor.identity, at=db.now(), token_id=actor.token_id,
            comment=approval.comment,
        )
        for (version_id, alias), (approval, _) in sorted(by_key.items(), key=lambda item: item[0])
        if (version_id, alias) not in own
    }  # fmt: skip
    created = set(new)
    if new and not dry_run:
        values = [row.model_dump(exclude={"id"}) for row in new.values()]
        created = {(row[0], row[1]) for row in db.insert_new_rows(session, ApprovalRow, values, returning=_KEY)}
    events = [
        audit.build(
            session, actor, EventType.VERSION_APPROVE, f"{approval.ref.name}@{version.number}",
            {"alias": key[1], "digest": version.digest, "identity": actor.identity, "comment": approval.comment},
        )
        for key, (approval, version) in by_key.items()
        if key in created
    ]  # fmt: skip
    if not dry_run:
        db.bulk_insert(session, events)
    own = {**own, **{key: new[key] for key in created}}
    if by_key.keys() - own.keys():  # equal requests at the same moment
        own |= _find_own(session, actor, approvals)
    members = [(a.ref.name, a.version, a) for a in approvals if a.version is not None]
    views = _views(session, [(name, own[version.id or 0, a.alias], version) for name, version, a in members])
    for (_, version, approval), view in zip(members, views, strict=True):
        approval.result = view.model_copy(update={"created": (version.id, approval.alias) in created})


def list_approvals(session: Session, actor: Actor, name: AdapterName, selector: Selector) -> ApprovalList:
    """Who has approved this version, for which alias."""
    version = versions.find(session, actor, name, selector)
    rows = gates.find_approvals(session, [version.id or 0])
    return ApprovalList(items=_views(session, [(name, row, version) for row in rows]))


def _views(session: Session, rows: Sequence[tuple[AdapterName, ApprovalRow, VersionRow]]) -> list[ApprovalView]:
    gate_views = gates.find_gates(session, [(name, version.adapter_id, row.alias) for name, row, version in rows])
    return [
        db.to_view(row, ApprovalView, number=version.number, counts=gates.approval_counts(row, version, gate.gate))
        for (_, row, version), gate in zip(rows, gate_views, strict=True)
    ]
