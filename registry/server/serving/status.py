"""The status of serving nodes: their slots, and how far each adapter has converged.

- Only slots and desired versions that the actor may see are shown; a node is shown with one, and to its reporter.
- A page inspects `limit` nodes, at most `NODES_OF_PAGE`, so it may be shorter and not the last.
- Convergence counts live nodes that follow an alias and whose token reaches the adapter, not those that load on demand.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, distinct, func, true, tuple_
from sqlmodel import Session, col, select

from registry import names
from registry.api.serving import SLOTS_LIMIT, Convergence, FleetNodes, NodeView, SlotState, SlotView
from registry.digest import Digest
from registry.names import AdapterName
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import availability, versions
from registry.server.catalog.versions import parse_cursor
from registry.server.database import db
from registry.server.database.expressions import any_of, join_in_order
from registry.server.database.models import AdapterRow, AliasRow, BaseRow, VersionRow
from registry.server.database.models.serving import FleetNodeRow, FleetSlotRow
from registry.server.serving.reports import lease_is_live

NODES_OF_PAGE = 25
"""With `SLOTS_LIMIT` slots on each, a page has 50,000 at most: some 20 MB of JSON."""
CONVERGENCE_LIMIT = 1000
_Followed = tuple[str, str]
"""A base and an alias."""


@dataclass(frozen=True, slots=True)
class _DesiredVersion:
    number: int
    digest: Digest


_DesiredVersions = dict[_Followed, dict[AdapterName, _DesiredVersion]]


@dataclass(frozen=True, slots=True)
class NodeFilter:
    """What to show; an empty field matches everything."""

    base: str = ""
    alias: str = ""
    node: str = ""
    adapter: str = ""


def nodes(session: Session, actor: Actor, node_filter: NodeFilter, *, cursor: str = "", limit: int) -> FleetNodes:
    """One page, in the order of the nodes' first reports."""
    only = AdapterName.parse(node_filter.adapter) if node_filter.adapter else None
    conditions = _conditions(node_filter)
    statement = select(FleetNodeRow).where(col(FleetNodeRow.id) > parse_cursor(cursor), *conditions)
    limit = min(limit, NODES_OF_PAGE)
    rows = session.exec(statement.order_by(col(FleetNodeRow.id)).limit(limit + 1)).all()
    page = rows[:limit]
    slots = _slots(session, actor, page, only)
    expected = _desired_of_page(session, actor, page, slots, only)
    views = [_node(row, slots[row.id or 0], expected[row.base, row.alias]) for row in page]
    return FleetNodes(
        items=[view for view, row in zip(views, page, strict=True) if view.slots or _is_of(actor, row)],
        convergence=[] if cursor else _convergence(session, actor, conditions, only),
        next_cursor=str(page[-1].id) if len(rows) > len(page) else "",
    )


@dataclass(frozen=True, slots=True)
class Drift:
    """A node that serves another version of an adapter than the alias that it follows points at."""

    node: str
    adapter: str
    alias: str
    number: int | None
    desired_number: int


def find_drift(session: Session, actor: Actor, *, limit: int) -> list[Drift]:
    """Where live nodes serve another version than they should, as far as the actor may see it."""
    statement = (
        select(
            FleetNodeRow.node, FleetSlotRow.namespace, FleetSlotRow.name, FleetNodeRow.alias, FleetSlotRow.number,
            col(VersionRow.number).label("desired_number"),
        )  # type: ignore[call-overload]  # SQLModel has names for four columns
        .select_from(join_in_order(FleetNodeRow, FleetSlotRow, AdapterRow, AliasRow, VersionRow))
        .where(col(FleetSlotRow.node_id) == col(FleetNodeRow.id), lease_is_live(), _visible(actor),
               FleetSlotRow.state == SlotState.SERVING, col(AdapterRow.namespace) == col(FleetSlotRow.namespace),
               col(AdapterRow.name) == col(FleetSlotRow.name), col(AliasRow.adapter_id) == col(AdapterRow.id),
               col(AliasRow.alias) == col(FleetNodeRow.alias), col(VersionRow.id) == col(AliasRow.version_id),
               col(VersionRow.digest) != col(FleetSlotRow.digest), ~availability.WITHDRAWN)
        .order_by(col(FleetNodeRow.id))
        .limit(limit)
    )  # fmt: skip
    return [
        Drift(row.node, f"{row.namespace}/{row.name}", row.alias, row.number, row.desired_number)
        for row in session.exec(statement)
    ]


def _conditions(node_filter: NodeFilter) -> list[ColumnElement[bool]]:
    columns = {
        FleetNodeRow.base: node_filter.base,
        FleetNodeRow.alias: node_filter.alias,
        FleetNodeRow.node: node_filter.node,
    }
    return [col(column) == value for column, value in columns.items() if value]


def _is_of(actor: Actor, row: FleetNodeRow) -> bool:
    return row.reporter == actor.owner or actor.may_everywhere(Scope.ADMIN)


def _visible(actor: Actor) -> ColumnElement[bool]:
    """The condition on `fleet_slot`, as `versions.visible` is on `adapter`: a deleted adapter has no row any more."""
    return versions.permitted(actor, Scope.PULL, col(FleetSlotRow.namespace), _is_about)


def _is_about(name: AdapterName) -> ColumnElement[bool]:
    return and_(col(FleetSlotRow.namespace) == name.namespace, col(FleetSlotRow.name) == name.name)


def _of(only: AdapterName | None) -> list[ColumnElement[bool]]:
    return [] if only is None else [_is_about(only)]


def _slots(
    session: Session, actor: Actor, rows: Sequence[FleetNodeRow], only: AdapterName | None
) -> dict[int, list[FleetSlotRow]]:
    by_node: dict[int, list[FleetSlotRow]] = defaultdict(list)
    conditions = [any_of(col(FleetSlotRow.node_id), [row.id for row in rows]), _visible(actor), *_of(only)]
    order = (col(FleetSlotRow.namespace), col(FleetSlotRow.name), col(FleetSlotRow.served_name))
    for slot in session.exec(select(FleetSlotRow).where(*conditions).order_by(*order)):
        by_node[slot.node_id].append(slot)
    return by_node


def _desired_of_page(
    session: Session, actor: Actor, page: Sequence[FleetNodeRow], slots: dict[int, list[FleetSlotRow]],
    only: AdapterName | None,
) -> _DesiredVersions:  # fmt: skip
    """What the nodes of a page should serve; of those that load on demand, only of adapters that they have loaded."""
    loading = [row for row in page if row.on_demand]
    loaded = {(slot.namespace, slot.name) for row in loading for slot in slots[row.id or 0]}
    following = {(row.base, row.alias) for row in page if not row.on_demand}
    expected = _desired_versions(session, actor, {(row.base, row.alias) for row in loading}, only, adapters=loaded)
    return expected | _desired_versions(session, actor, following, only)


def _desired_versions(
    session: Session, actor: Actor, followed: Iterable[_Followed], only: AdapterName | None, *,
    adapters: Set[tuple[str, str]] | None = None,
) -> _DesiredVersions:  # fmt: skip
    """The versions that these aliases of these bases point at, if the actor may see and a node may serve them.

    `adapters`: only of these, by namespace and name.
    """
    pairs = sorted(followed)
    expected: _DesiredVersions = {pair: {} for pair in pairs}
    if not pairs or adapters == set():
        return expected
    statement = (
        select(
            BaseRow.name, AliasRow.alias, AdapterRow.namespace, AdapterRow.name, VersionRow.number, VersionRow.digest
        )  # type: ignore[call-overload]
        .join(VersionRow, col(VersionRow.base_id) == col(BaseRow.id))
        .join(AliasRow, col(AliasRow.version_id) == col(VersionRow.id))
        .join(AdapterRow, col(AdapterRow.id) == col(AliasRow.adapter_id))
        .where(
            tuple_(col(BaseRow.name), col(AliasRow.alias)).in_(pairs),
            ~availability.WITHDRAWN,
            versions.visible(actor),
            versions.has_name(only) if only else true(),
            true()
            if adapters is None
            else tuple_(col(AdapterRow.namespace), col(AdapterRow.name)).in_(sorted(adapters)),
        )
    )
    for base, alias, namespace, name, number, digest in session.exec(statement):
        expected[base, alias][AdapterName(namespace, name)] = _DesiredVersion(number, Digest(digest))
    return expected


def _reaches(reach: list[str] | None, name: AdapterName) -> bool:
    return reach is None or name.namespace in reach


def _node(row: FleetNodeRow, slots: list[FleetSlotRow], expected: dict[AdapterName, _DesiredVersion]) -> NodeView:
    views = []
    for slot in slots:
        now = expected.get(AdapterName(slot.namespace, slot.name))
        desired = {"desired_number": now.number, "desired_digest": now.digest} if now else {}
        views.append(db.to_view(slot, SlotView, adapter=f"{slot.namespace}/{slot.name}", **desired))
    is_live = row.expires_at > db.now()
    reported = {view.adapter for view in views}
    for name, now in sorted(expected.items()):
        if len(views) >= SLOTS_LIMIT:
            break
        if is_live and not row.on_demand and str(name) not in reported and _reaches(row.reach, name):
            views.append(SlotView(
                adapter=str(name), served_name=names.served_name(name, now.number), number=None, digest=None,
                state=SlotState.ABSENT, reason="the node has not reported it", verified=False, since=row.reported_at,
                desired_number=now.number, desired_digest=now.digest,
            ))  # fmt: skip
    return db.to_view(row, NodeView, reporter=row.reporter_name, live=is_live, slots=views)


def _convergence(
    session: Session, actor: Actor, conditions: list[ColumnElement[bool]], only: AdapterName | None
) -> list[Convergence]:
    counted = [*conditions, lease_is_live(), col(FleetNodeRow.on_demand).is_(False)]
    following: dict[_Followed, list[list[str] | None]] = defaultdict(list)
    for base, alias, reach in session.exec(
        select(FleetNodeRow.base, FleetNodeRow.alias, FleetNodeRow.reach).where(*counted)
    ):
        following[base, alias].append(list(reach) if reach is not None else None)
    slot = (FleetSlotRow.namespace, FleetSlotRow.name, FleetSlotRow.digest)
    grouped = (FleetNodeRow.base, FleetNodeRow.alias, *slot)
    statement = select(*grouped, func.count(distinct(col(FleetNodeRow.id)))).join(  # type: ignore[call-overload]
        FleetSlotRow, col(FleetSlotRow.node_id) == col(FleetNodeRow.id)
    )
    statement = statement.where(*counted, FleetSlotRow.state == SlotState.SERVING, _visible(actor), *_of(only))
    serving: Counter[tuple[str, ...]] = Counter()
    for *key, count in session.exec(statement.group_by(*grouped)):
        serving[tuple(key)] = count
    convergence = list[Convergence]()
    for (base, alias), versions_of in sorted(_desired_versions(session, actor, following, only).items()):
        for name, now in sorted(versions_of.items()):
            nodes_of_it = sum(_reaches(reach, name) for reach in following[base, alias])
            if nodes_of_it:
                key = (base, alias, name.namespace, name.name, now.digest)
                convergence.append(Convergence(
                    adapter=str(name), alias=alias, base=base, number=now.number, digest=now.digest,
                    serving=serving[key], nodes=nodes_of_it,
                ))  # fmt: skip
    behind_first = sorted(convergence, key=lambda item: item.serving >= item.nodes)
    return convergence if len(convergence) <= CONVERGENCE_LIMIT else behind_first[:CONVERGENCE_LIMIT]
