"""Approvals of versions for aliases, in groups: each has its own outcome. One approval is a group of one."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

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
from registry.server.database.models import EventRow, VersionRow
from registry.server.database.models.owner_rules import ApprovalRow
from registry.server.outcomes import all_or_none, collect_outcomes, results_of
from registry.server.promotion import gates

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
"""A version and the alias that it is approved for."""


@dataclass(frozen=True)
class NewApproval:
    """An approval to write."""

    ref: Ref
    alias: str
    comment: str = ""


@dataclass(frozen=True)
class ApprovalFacts:
    """What the decision about an approval depends on: how many there are once all of the request are written."""

    approval: NewApproval
    version: VersionRow
    is_new: bool
    of_identity: int
    """For how many aliases this identity approves the version."""
    of_all: int
    """Approvals of the version by all identities."""

    @property
    def key(self) -> _Key:
        """The version and the alias."""
        return self.version.id or 0, self.approval.alias


def approve(
    session: Session, actor: Actor, approvals: Sequence[NewApproval | RegistryError], *, atomic: bool = False,
    dry_run: bool = False,
) -> list[ApprovalView | RegistryError]:  # fmt: skip
    """Approve versions for aliases; return the approvals or errors, in order. A second approval changes nothing.

    `Denied`, `Refused`, `NotFound`. `atomic`: an error of one lets all fail. `dry_run`: check all and write nothing.
    """
    requested = collect_outcomes(approvals, partial(_check_request, actor))
    # A move to another namespace removes approvals: none comes after it.
    refs = [approval.ref for approval in results_of(requested)]
    rows = version_groups.find_all(session, actor, refs, lock_names=not dry_run)
    pairs = collect_outcomes(requested, lambda approval: (approval, _require_version(approval, rows)))
    if not dry_run:
        db.lock_names(session, *(f"approvals of {version.id}" for _, version in results_of(pairs)))
    own = _find_own(session, actor, {version.id or 0 for _, version in results_of(pairs)})
    decisions = collect_outcomes(_load_facts(session, pairs, own), decide)
    decisions = all_or_none(decisions) if atomic else decisions
    views = _write(session, actor, results_of(decisions), own, dry_run=dry_run)
    return collect_outcomes(decisions, lambda decision: views[decision.key])


def _check_request(actor: Actor, approval: NewApproval) -> NewApproval:
    alias = str(names.alias(approval.alias))
    actor.require(Scope.PROMOTE, approval.ref.name, alias)
    return replace(approval, alias=alias)


def _require_version(approval: NewApproval, rows: Mapping[Ref, VersionRow | RegistryError]) -> VersionRow:
    row = rows[approval.ref]
    if isinstance(row, RegistryError):
        raise row
    availability.require_available(approval.ref.name, row)
    return row


def _find_own(session: Session, actor: Actor, version_ids: Collection[int]) -> dict[_Key, ApprovalRow]:
    """The approvals that the actor gave these versions before, for any alias."""
    params = {"ids": sorted(version_ids), "identity": actor.identity}
    rows = session.exec(_OWN, params=params) if version_ids else ()
    return {(row.version_id, row.alias): row for row in rows}


def _load_facts(
    session: Session, pairs: Sequence[tuple[NewApproval, VersionRow] | RegistryError], own: Collection[_Key]
) -> list[ApprovalFacts | RegistryError]:
    """Count what each version has with these approvals. Nothing is counted if all exist."""
    keys = {(version.id or 0, approval.alias) for approval, version in results_of(pairs)}
    new = keys.difference(own)
    of_identity = Counter(version_id for version_id, _ in keys.union(own))
    counted = {"ids": sorted({version_id for version_id, _ in keys})}
    of_all = Counter(dict(session.exec(_COUNTS, params=counted).all()) if new else {})
    of_all.update(version_id for version_id, _ in new)

    def gather(pair: tuple[NewApproval, VersionRow]) -> ApprovalFacts:
        approval, version = pair
        version_id = version.id or 0
        is_new = (version_id, approval.alias) in new
        return ApprovalFacts(approval, version, is_new, of_identity[version_id], of_all[version_id])

    return collect_outcomes(pairs, gather)


def decide(facts: ApprovalFacts) -> ApprovalFacts:
    """The approval, if there is space for it: `TooLarge` (QUOTA_EXCEEDED). One that exists needs none."""
    ref = facts.approval.ref
    if facts.is_new and facts.of_identity > ALIASES_LIMIT:
        detail = f"one identity approves a version for at most {ALIASES_LIMIT} aliases"
        raise TooLarge("QUOTA_EXCEEDED", f"'{ref}': {detail}")
    if facts.is_new and facts.of_all > APPROVALS_LIMIT:
        raise TooLarge("QUOTA_EXCEEDED", f"'{ref}': it has at most {APPROVALS_LIMIT} approvals")
    return facts


def _write(
    session: Session, actor: Actor, approvals: Sequence[ApprovalFacts], own: Mapping[_Key, ApprovalRow], *,
    dry_run: bool,
) -> dict[_Key, ApprovalView]:  # fmt: skip
    """Write the approvals that are new, and their events; return all as they are then."""
    if not approvals:
        return {}
    by_key = {approval.key: approval for approval in approvals}
    new = {
        key: ApprovalRow(
            version_id=key[0], alias=key[1], identity=actor.identity, at=db.now(), token_id=actor.token_id,
            comment=facts.approval.comment,
        )
        for key, facts in sorted(by_key.items(), key=lambda item: item[0])
        if facts.is_new
    }  # fmt: skip
    created = set(new)
    if new and not dry_run:
        values = [row.model_dump(exclude={"id"}) for row in new.values()]
        created = {(row[0], row[1]) for row in db.insert_new_rows(session, ApprovalRow, values, returning=_KEY)}
    if not dry_run:
        db.bulk_insert(session, [_build_event(session, actor, f) for key, f in by_key.items() if key in created])
    rows = {**own, **{key: new[key] for key in created}}
    if by_key.keys() - rows.keys():  # equal requests at the same moment
        rows |= _find_own(session, actor, {version_id for version_id, _ in by_key})
    views = _views(session, [(f.approval.ref.name, rows[key], f.version) for key, f in by_key.items()])
    return {key: view.model_copy(update={"created": key in created}) for key, view in zip(by_key, views, strict=True)}


def _build_event(session: Session, actor: Actor, facts: ApprovalFacts) -> EventRow:
    approval, version = facts.approval, facts.version
    detail = {
        "alias": approval.alias, "digest": version.digest, "identity": actor.identity, "comment": approval.comment,
    }  # fmt: skip
    return audit.build(session, actor, EventType.VERSION_APPROVE, f"{approval.ref.name}@{version.number}", detail)


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
