"""Gates: set and show what an alias requires, and gather the evidence that a gate evaluates.

- The adapter's own gate counts, else its namespace's, else the default of the alias. `main` has none.
- Only an owner of the namespace sets a gate; all who may promote approve.
- Engine compatibility is evaluated now, from stored facts, so a gate may name any profile.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import func, or_
from sqlalchemy import select as plain_select
from sqlmodel import Session, col, select

from registry import names
from registry.api.aliases import GateCheck, GateList, GateView
from registry.digest import Digest, canonical_json
from registry.errors import Invalid, Refused, TooLarge
from registry.evaluation import gates as domain
from registry.evaluation.gates import ABSENT, FAILED, MISSED_GOLDEN, Approval, Evidence, Gate
from registry.evaluation.verdicts import Check, Verdict
from registry.events import EventType
from registry.findings import Finding
from registry.names import AdapterName, Ref, Selector
from registry.next_steps import NextStep, StepKind
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import base_rows, verdicts, version_groups, versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AliasMoveRow, BaseRow, UtcTime, VersionFileRow, VersionRow
from registry.server.database.models.owner_rules import ApprovalRow, RuleKind, RuleRow
from registry.server.evaluation import engine_compat, engine_profiles
from registry.server.promotion import attestations, owner_rules
from registry.server.promotion.owner_rules import Owner
from registry.versions.files import GOLDEN

_WITH_GOLDEN = select(VersionFileRow.version_id).where(
    any_of(col(VersionFileRow.version_id), parameter="ids"), col(VersionFileRow.path) == GOLDEN
)
GATES_LIMIT = 100
"""Gates of an adapter, and of a namespace: all who may read it list them."""
_GATES = (
    select(RuleRow)
    .where(
        RuleRow.kind == RuleKind.GATE,
        any_of(col(RuleRow.alias), parameter="aliases"),
        or_(any_of(col(RuleRow.adapter_id), parameter="ids"), any_of(col(RuleRow.namespace), parameter="namespaces")),
    )
    .execution_options(populate_existing=True)
)
_MOVES = (
    plain_select(
        col(AliasMoveRow.adapter_id),
        col(AliasMoveRow.alias),
        col(AliasMoveRow.to_version_id).label("version_id"),
        col(AliasMoveRow.at),
        func.lead(col(AliasMoveRow.at), type_=UtcTime())
        .over(
            partition_by=(col(AliasMoveRow.adapter_id), col(AliasMoveRow.alias)), order_by=col(AliasMoveRow.generation)
        )
        .label("ended_at"),
    )
    .where(any_of(col(AliasMoveRow.adapter_id), parameter="ids"), any_of(col(AliasMoveRow.alias), parameter="aliases"))
    .subquery()
)
_SPANS = plain_select(_MOVES).where(any_of(_MOVES.c.version_id, parameter="version_ids"))
"""How long aliases pointed at versions: only these moves are read, however long the history is."""
_MEASURED = (
    select(VersionRow.id, version_groups.OF_FACTS, BaseRow)
    .options(*base_rows.DEFER_SPECS)
    .join(BaseRow, col(BaseRow.id) == col(VersionRow.base_id))
    .where(any_of(col(VersionRow.id), parameter="ids"))
    .order_by(col(VersionRow.base_id), col(VersionRow.id))
)
_FACTS = plain_select(col(VersionRow.id), col(VersionRow.facts)).where(any_of(col(VersionRow.id), parameter="ids"))
_APPROVALS = (
    select(ApprovalRow)
    .where(any_of(col(ApprovalRow.version_id), parameter="ids"))
    .order_by(col(ApprovalRow.id))
    .execution_options(populate_existing=True)
)
_APPROVALS_FOR = _APPROVALS.where(any_of(col(ApprovalRow.alias), parameter="aliases"))


def find_gates(session: Session, aliases: Sequence[tuple[AdapterName, int | None, str]]) -> list[GateView]:
    """The gate that counts for each alias of an adapter, in order. An id of None: only its namespace counts."""
    params = {
        "ids": sorted({adapter_id for _, adapter_id, _ in aliases if adapter_id}),
        "namespaces": sorted({name.namespace for name, _, _ in aliases}),
        "aliases": sorted({alias for _, _, alias in aliases}),
    }
    rows = {(row.adapter_id, row.namespace, row.alias): row for row in session.exec(_GATES, params=params)}
    gates = []
    for name, adapter_id, alias in aliases:
        own, inherited = rows.get((adapter_id, None, alias)), rows.get((None, name.namespace, alias))
        row = own or inherited
        if row is None:
            gates.append(GateView(alias=alias, gate=domain.gate_of(alias)))
        else:
            where = str(name) if own else name.namespace
            gates.append(_view(row, where))
    return gates


def list_gates(session: Session, actor: Actor, owner: Owner) -> GateList:
    """The gates that were set for an adapter, or for a namespace, by alias."""
    if isinstance(owner, AdapterName):
        adapter = versions.find_adapter(session, actor, owner)
        key = owner_rules.key_of(adapter.id)
    else:
        actor.require_in(Scope.PULL, owner)
        key = owner_rules.key_of(owner)
    rows = session.exec(select(RuleRow).filter_by(**key, kind=RuleKind.GATE).order_by(RuleRow.alias))
    return GateList(items=[_view(row, str(owner)) for row in rows])


def find_gated_aliases(session: Session, namespaces: Iterable[str]) -> dict[str, list[str]]:
    """Namespace → the aliases for which it has set a gate, by name. Every namespace is a key."""
    aliases: dict[str, list[str]] = {namespace: [] for namespace in namespaces}
    statement = select(RuleRow.namespace, RuleRow.alias).where(
        RuleRow.kind == RuleKind.GATE, any_of(col(RuleRow.namespace), sorted(aliases))
    )
    for namespace, alias in session.exec(statement.order_by(RuleRow.alias)):
        aliases[namespace or ""].append(alias)
    return aliases


def show_gate(session: Session, actor: Actor, owner: Owner, alias: str) -> GateView:
    """The gate that counts for an alias, no matter who has set it."""
    alias = names.alias(alias)
    if isinstance(owner, AdapterName):
        return find_gates(session, [(owner, versions.find_adapter(session, actor, owner).id, alias)])[0]
    actor.require_in(Scope.PULL, owner)
    row = session.exec(_GATES, params={"ids": [], "namespaces": [owner], "aliases": [alias]}).first()
    return _view(row, owner) if row is not None else GateView(alias=alias, gate=domain.gate_of(alias))


def set_gate(session: Session, actor: Actor, owner: Owner, alias: str, gate: Gate | None, reason: str = "") -> GateView:
    """Set the gate of an alias, or remove it (None); returns the gate that counts then. `Invalid`, `Denied`."""
    alias = names.alias(alias)
    key = owner_rules.lock_owner(session, actor, owner) | {"kind": RuleKind.GATE, "alias": alias}
    if alias == names.NEWEST:
        raise Refused("GATE_CLOSED", f"alias '{alias}' has no gate: it follows the newest version")
    if gate is not None:
        _check_gate(gate, alias)
        others = select(RuleRow.id).filter_by(**{**key, "alias": RuleRow.alias}).where(RuleRow.alias != alias)
        if db.count_rows(session, others) >= GATES_LIMIT:
            raise TooLarge("QUOTA_EXCEEDED", f"'{owner}' has gates of {GATES_LIMIT} aliases, which is the limit")
    after = gate.model_dump(mode="json") if gate is not None else None
    before = owner_rules.replace_rule(session, actor, key, after)
    if before != after:
        namespace = owner_rules.namespace_of(owner)
        detail = {"alias": alias, "before": before, "after": after, "reason": reason}
        event_type = EventType.GATE_SET if gate else EventType.GATE_DELETE
        audit.append(session, actor, event_type, f"{owner}:{alias}", detail, namespace=namespace)
    return show_gate(session, actor, owner, alias)


def remove_overridden(session: Session, actor: Actor, to: AdapterName, adapter_id: int | None) -> None:
    """Remove the gates of an adapter that moves to another namespace where that has set one: it would not count."""
    of_namespace = select(RuleRow.alias).where(RuleRow.namespace == to.namespace, RuleRow.kind == RuleKind.GATE)
    own = select(RuleRow).where(RuleRow.adapter_id == adapter_id, RuleRow.kind == RuleKind.GATE)
    for row in session.exec(own.where(col(RuleRow.alias).in_(of_namespace)).order_by(RuleRow.alias)).all():
        session.delete(row)
        detail = {"alias": row.alias, "before": row.rule, "after": None}
        audit.append(session, actor, EventType.GATE_DELETE, f"{to}:{row.alias}", detail, namespace=to.namespace)


def _check_gate(gate: Gate, alias: str) -> None:
    engine_profiles.parse_profiles(gate.engines)
    if gate.soak_in == alias:
        raise Invalid("REQUEST_INVALID", f"gate: a version cannot be '{alias}' for a time before it is '{alias}'")
    if gate.approvers and not gate.approvals:
        message = "gate: it names approvers but requires no approval, so everything would pass"
        raise Invalid("REQUEST_INVALID", message, next_step="say how many of them must approve, with `approvals`")
    if gate.soak_in:
        names.alias(gate.soak_in)
    for identity in (*gate.approvers, *gate.signed_by):
        if not identity or len(identity) > 300:
            raise Invalid("REQUEST_INVALID", "gate: an identity has 1 to 300 characters")


def _view(row: RuleRow, where: str) -> GateView:
    return db.to_view(row, GateView, gate=row.rule, set_on=where)


def check_gate(session: Session, actor: Actor, name: AdapterName, selector: Selector, alias: str) -> GateCheck:
    """What a version still needs to be promoted to an alias. Nothing moves."""
    version = versions.find(session, actor, name, selector)
    return _check(session, actor, [(name, names.alias(alias), version)])[0]


def check_gates(
    session: Session, actor: Actor, channels: Sequence[tuple[Ref, str]]
) -> dict[tuple[Ref, str], GateCheck]:
    """What each of these versions still needs for an alias, by both. Those that the actor may not see are left out."""
    rows = version_groups.find_all(session, actor, [ref for ref, _ in channels])
    existing = [(ref, alias, row) for ref, alias in channels if isinstance(row := rows[ref], VersionRow)]
    checks = _check(session, actor, [(ref.name, alias, row) for ref, alias, row in existing])
    return {(ref, alias): check for (ref, alias, _), check in zip(existing, checks, strict=True)}


def _check(session: Session, actor: Actor, moves: Sequence[tuple[AdapterName, str, VersionRow]]) -> list[GateCheck]:
    checks = []
    for (name, alias, version), (gate, evidence) in zip(moves, gather_evidence(session, actor, moves), strict=True):
        missing = gate.gate.missing(evidence)
        step = next_step(actor, name, version, alias, gate.gate, evidence)
        checks.append(GateCheck(
            alias=alias, number=version.number, gate=gate, open=not missing, missing=missing,
            next_step=step.as_command() if step is not None else "", step=step,
        ))  # fmt: skip
    return checks


def next_step(
    actor: Actor, name: AdapterName, version: VersionRow, alias: str, gate: Gate, evidence: Evidence
) -> NextStep | None:  # fmt: skip
    """What helps with the first of what is missing; None if nothing is.

    A check that failed comes first: for these bytes nothing else can help.
    """
    missing = [finding.code for finding in gate.missing(evidence)]
    if not missing:
        return None
    ref = f"{name}@{version.number}"
    code = next((code for code in missing if code in FAILED.values()), missing[0])
    if code in (ABSENT[Check.COMPAT], ABSENT[Check.WEIGHTS], ABSENT[Check.SMOKE]):
        return verdicts.testing_step(actor, ref)
    if code == "gate.approvals_missing":
        return NextStep(StepKind.APPROVE, ref, alias, _approvers_to_ask(actor, gate, evidence))
    kinds = {"gate.signature_absent": StepKind.SIGN, "gate.soak_short": StepKind.SOAK}
    return NextStep(kinds.get(code, StepKind.SHOW_VERSION), ref, alias)


def _approvers_to_ask(actor: Actor, gate: Gate, evidence: Evidence) -> tuple[str, ...]:
    """Whom to ask for an approval; nobody if one of the actor counts."""
    approved = {approval.identity for approval in evidence.approvals}
    if actor.identity not in approved and gate.accepts_approval_of(actor.identity, evidence):
        return ()
    others = (i for i in gate.approvers if i not in approved and gate.accepts_approval_of(i, evidence))
    return tuple(others) or ("someone else who may promote",)


def gather_evidence(
    session: Session, actor: Actor, moves: Sequence[tuple[AdapterName, str, VersionRow]]
) -> list[tuple[GateView, Evidence]]:
    """Of each alias its gate, and everything about the version that the gate evaluates if this actor promotes it.

    Some statements for all moves, more only for what their gates require.
    """
    if not moves:
        return []
    views = find_gates(session, [(name, version.adapter_id, alias) for name, alias, version in moves])
    rows = [version for _, _, version in moves]
    ids = sorted({version.id or 0 for version in rows})
    newest = verdicts.newest_by_version(session, rows, findings=False)
    approvals: dict[tuple[int, str], list[Approval]] = defaultdict(list)
    approved = sorted({alias for (_, alias, _), view in zip(moves, views, strict=True) if view.gate.approvals})
    rows_of_approvals = session.exec(_APPROVALS_FOR, params={"ids": ids, "aliases": approved}) if approved else ()
    for row in rows_of_approvals:
        approvals[row.version_id, row.alias].append(Approval(identity=row.identity, at=row.at))
    soaked = _soak_seconds(session, [(v, g.gate.soak_in) for v, g in zip(rows, views, strict=True) if g.gate.soak_in])
    signed = [v.id or 0 for v, g in zip(rows, views, strict=True) if g.gate.signed_by]
    signers = attestations.signers_by_version(session, signed)
    golden = {v.id or 0 for v, g in zip(rows, views, strict=True) if g.gate.golden}
    with_golden = set(session.exec(_WITH_GOLDEN, params={"ids": sorted(golden)})) if golden else set()
    _add_golden_findings(session, newest, with_golden)
    engines = _evaluate_engines(session, [(v, g.gate, newest[v.id or 0]) for v, g in zip(rows, views, strict=True)])
    return [
        (
            gate,
            Evidence(
                verdicts=tuple(newest[version.id or 0]),
                weights_pending=version.measured_at is None,
                engines=evaluated,
                files=frozenset({GOLDEN} if version.id in with_golden else ()),
                approvals=tuple(approvals[version.id or 0, alias]),
                soak_seconds={soak: soaked[version.id or 0, soak]} if (soak := gate.gate.soak_in) else {},
                signed_by=signers.get(version.id or 0, frozenset()),
                pushed_by=frozenset({version.created_by}),
                promoted_by=actor.identity,
            ),
        )
        for (_, alias, version), gate, evaluated in zip(moves, views, engines, strict=True)
    ]


def _add_golden_findings(session: Session, newest: Mapping[int, list[Verdict]], version_ids: Collection[int]) -> None:
    """Give the last smoke test of each version its first finding about a golden sample: gates read no other."""
    for version_id, stored in version_groups.last_findings(session, version_ids, Check.SMOKE) if version_ids else ():
        findings = (Finding.from_dict(finding) for finding in stored)
        missed = (finding for finding in findings if finding is not None and finding.code in MISSED_GOLDEN)
        own, update = newest[version_id], {"findings": tuple(islice(missed, 1))}
        for position in [i for i, verdict in enumerate(own) if verdict.check is Check.SMOKE][-1:]:
            own[position] = own[position].model_copy(update=update)


def summarize_evidence(gate: Gate, evidence: Evidence) -> list[dict[str, Any]]:
    """The evidence for a move through a gate, or past a closed one, as the alias's history stores it."""
    checks = set(gate.required_checks())
    counted = [v for v in evidence.verdicts if v.check in checks]
    summary: list[dict[str, Any]] = [_summarize(v) for v in (*counted, *evidence.engines)]
    summary += [{"check": "golden", "outcome": "pass"}] if gate.golden_passed(evidence) else []
    if gate.approvals:
        approvals = gate.valid_approvals(evidence)
        summary += [{"check": "approval", "by": a.identity, "at": a.at.isoformat()} for a in approvals]
    if gate.soak_in:
        summary.append({"check": "soak", "alias": gate.soak_in, "seconds": evidence.soak_seconds.get(gate.soak_in, 0)})
    summary += [{"check": "signature", "by": identity} for identity in sorted(evidence.signed_by & set(gate.signed_by))]
    return summary


def _summarize(verdict: Verdict) -> dict[str, Any]:
    summary: dict[str, Any] = {"check": verdict.check, "outcome": verdict.outcome, "report": verdict.report}
    summary["base_fingerprint"] = verdict.base_fingerprint
    summary |= {"by_owner": True} if verdict.by_owner else {}
    return summary | ({"profile": verdict.profile, "made_by": verdict.made_by} if verdict.profile else {})


def _evaluate_engines(
    session: Session, moves: Sequence[tuple[VersionRow, Gate, list[Verdict]]]
) -> list[tuple[Verdict, ...]]:
    """The verdicts of the engines that each gate names, in order.

    Facts are read some at a time, base by base: those of 500 versions may have 128 MB. Equal ones are evaluated once:
    of a fleet trained alike, most are equal.
    """
    evaluated: list[tuple[Verdict, ...]] = [()] * len(moves)
    positions: dict[int, list[int]] = defaultdict(list)
    for position, (version, gate, _) in enumerate(moves):
        if gate.engines:
            positions[version.id or 0].append(position)
    rows = session.exec(_MEASURED, params={"ids": sorted(positions)}).all() if positions else []
    measured, bases = [(version_id, length) for version_id, length, _ in rows], {row[0]: row[2] for row in rows}
    del rows  # so that the specs of bases go with their last version
    of_equal: dict[tuple[object, ...], list[Verdict]] = {}
    for version_id, facts in version_groups.read_in_batches(session, measured, _FACTS):
        base = bases.pop(version_id)
        digest = Digest.of(canonical_json(facts.get("engine")))
        for position in positions[version_id]:
            version, gate, newest = moves[position]
            outcomes = engine_compat.newest_outcomes(newest)
            key = (base.id, outcomes, gate.engines, digest)
            if key not in of_equal:
                spec = base_rows.load_spec(base)
                of_equal[key] = [
                    engine_compat.evaluate_profile(facts, profile, version.digest, spec, *outcomes)
                    for profile in engine_profiles.parse_profiles(gate.engines)
                ]
            own = {"subject": Digest(version.digest)}
            evaluated[position] = tuple(
                verdict.model_copy(update={**own, "profile": text})
                for text, verdict in zip(gate.engines, of_equal[key], strict=True)
            )
    return evaluated


def _soak_seconds(session: Session, soaking: Sequence[tuple[VersionRow, str]]) -> dict[tuple[int, str], int]:
    """(version, alias) → how long that alias has pointed at the version, in total."""
    if not soaking:
        return {}
    now = db.now()
    ids, aliases = {version.adapter_id for version, _ in soaking}, {alias for _, alias in soaking}
    version_ids = sorted({version.id or 0 for version, _ in soaking})
    params = {"ids": sorted(ids), "aliases": sorted(aliases), "version_ids": version_ids}
    seconds: Counter[tuple[int, str]] = Counter()
    for _, alias, version_id, at, ended_at in session.connection().execute(_SPANS, params):
        seconds[version_id, alias] += ((ended_at or now) - at).total_seconds()
    return {(v.id or 0, alias): max(0, int(seconds[v.id or 0, alias])) for v, alias in soaking}


def find_approvals(session: Session, version_ids: Iterable[int]) -> list[ApprovalRow]:
    """The approvals of these versions, oldest first."""
    return list(session.exec(_APPROVALS, params={"ids": sorted(version_ids)}))


def approval_counts(row: ApprovalRow, version: VersionRow, gate: Gate) -> bool:
    """Whether a gate accepts this approval of a version, as far as this approval alone decides."""
    approvals = (Approval(identity=row.identity, at=row.at),)
    evidence = Evidence(approvals=approvals, pushed_by=frozenset({version.created_by}))
    return bool(gate.valid_approvals(evidence))
