"""The pages of the fleet: whether all is well, what is not, which node serves which version, and one node."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from fastapi import Request, Response

from registry.api.serving import Convergence, FleetNodes, NodeView, SlotState, SlotView
from registry.errors import NotFound
from registry.server.http.dependencies import CursorDep, SessionDep, Text
from registry.server.pages.rendering import create_router, render
from registry.server.pages.sessions.visitors import SignedInDep
from registry.server.serving import status
from registry.server.serving.status import NODES_OF_PAGE, NodeFilter

router = create_router()
PROBLEMS_SHOWN, ROWS_SHOWN, SLOTS_SHOWN = 50, 40, 200
_LACKING = {SlotState.REFUSED, SlotState.FAILED, SlotState.ABSENT}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong on a node. Without an adapter: with the node itself."""

    node: NodeView
    text: str
    since: datetime
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a node does with an adapter. `outcome`: as of a verdict."""

    mark: str
    outcome: str
    title: str


@router.get("/fleet")
def show_fleet(
    request: Request, session: SessionDep, visitor: SignedInDep, cursor: CursorDep, base: Text = "", alias: Text = "",
    adapter: Text = "",
) -> Response:  # fmt: skip
    """Show what is wrong on the serving nodes, and who serves what, as they reported last."""
    filters = {"base": base.strip(), "alias": alias.strip(), "adapter": adapter.strip()}
    page = status.nodes(session, visitor.actor, NodeFilter(**filters), cursor=cursor, limit=NODES_OF_PAGE)
    problems = [problem for node in page.items for problem in find_problems(node)]
    rows = _matrix(page)
    return render(
        request, "fleet.html", is_live=True, title="Fleet", page=page, filters=filters, cursor=cursor,
        lost=sum(not node.live for node in page.items), problems=problems, problems_shown=PROBLEMS_SHOWN,
        converged=sum(item.serving >= item.nodes for item in page.convergence), rows=rows, rows_shown=ROWS_SHOWN,
        behind=[item for item in page.convergence if item.serving < item.nodes],
    )  # fmt: skip


@router.get("/fleet/{node}")
def show_node(request: Request, session: SessionDep, visitor: SignedInDep, node: str) -> Response:
    """Show the engines of one node, and each version on them."""
    engines = status.nodes(session, visitor.actor, NodeFilter(node=node), limit=NODES_OF_PAGE).items
    if not engines:
        raise NotFound("ROUTE_UNKNOWN", f"no node {node[:100]!r} has reported what you may see")
    return render(
        request, "node.html", is_live=True, title=f"Node {node}", node=node, engines=engines, shown=SLOTS_SHOWN,
        problems_first=_problems_first, find_problem=find_problem, serves_another=serves_another,
    )  # fmt: skip


def find_problems(node: NodeView) -> Iterator[Problem]:
    """Yield what is wrong on a node. What a lost one serves is not known."""
    if not node.live:
        yield Problem(node, "lost: its last report has expired", node.expires_at)
        return
    for slot in node.slots:
        text = find_problem(slot)
        if text:
            yield Problem(node, text, slot.since, slot.adapter)


def find_problem(slot: SlotView) -> str:
    """What is wrong with a version on a live node; empty if nothing is."""
    if serves_another(slot):
        return f"serves {slot.number or 'an unknown version'}, should be {slot.desired_number}"
    if slot.state is SlotState.ABSENT:
        return f"does not serve {slot.desired_number}"
    return f"{slot.state}: {slot.reason}" if slot.state in _LACKING else ""


def serves_another(slot: SlotView) -> bool:
    """Whether a node serves bytes that it should not: another version than the desired one."""
    return slot.state is SlotState.SERVING and slot.desired_digest not in (None, slot.digest)


def _problems_first(slots: Iterable[SlotView]) -> list[SlotView]:
    """What is wrong, what is under way or not to be served, and the rest."""
    return sorted(slots, key=lambda slot: (not find_problem(slot), slot.state is SlotState.SERVING))


def _cell(node: NodeView, slot: SlotView) -> Cell:
    if not node.live:
        return Cell("?", "unknown", f"lost, was {slot.state}")
    problem = find_problem(slot)
    if problem:
        mark = f"!{slot.number or '?'}" if serves_another(slot) else "–" if slot.state is SlotState.ABSENT else "✕"
        return Cell(mark, "fail", problem)
    if slot.state is SlotState.SERVING:
        return Cell(str(slot.number or "?"), "pass", f"serves version {slot.number or 'unknown'}")
    return Cell("…", "unknown", f"{slot.state} version {slot.number or 'unknown'}")


def _matrix(page: FleetNodes) -> list[tuple[str, str, Convergence | None, list[Cell | None]]]:
    """Adapter, alias, how far it has come, and what each node does with it; those with a problem first."""
    cells: dict[tuple[str, str], dict[int, Cell]] = defaultdict(dict)
    for column, node in enumerate(page.items):
        for slot in node.slots:
            key, cell = (slot.adapter, node.alias), _cell(node, slot)
            if column not in cells[key] or cell.outcome == "fail":
                cells[key][column] = cell
    progress = {(item.adapter, item.alias): item for item in page.convergence}
    return [
        (adapter, alias, progress.get((adapter, alias)), [row.get(column) for column in range(len(page.items))])
        for (adapter, alias), row in sorted(cells.items(), key=lambda item: (_is_well(item[1].values()), item[0]))
    ]


def _is_well(cells: Iterable[Cell]) -> bool:
    return all(cell.outcome == "pass" for cell in cells)
