"""The page of the fleet: how far each version has come, and which node serves what."""

from collections.abc import Sequence

from fastapi import Request, Response

from registry.api.serving import SlotState, SlotView
from registry.server.http.dependencies import CursorDep, SessionDep, Text
from registry.server.pages.rendering import create_router, render
from registry.server.pages.sessions.visitors import SignedInDep
from registry.server.serving import status

router = create_router()
PAGE_NODES = 20
SHOWN = {"versions": 50, "slots": 10}
"""How many versions of the convergence, and of each node."""


@router.get("/fleet")
def show_fleet(
    request: Request, session: SessionDep, visitor: SignedInDep, cursor: CursorDep, base: Text = "", alias: Text = "",
    adapter: Text = "",
) -> Response:  # fmt: skip
    """Show the serving nodes as they reported last."""
    filters = {"base": base.strip(), "alias": alias.strip(), "adapter": adapter.strip()}
    page = status.nodes(session, visitor.actor, status.NodeFilter(**filters), cursor=cursor, limit=PAGE_NODES)
    return render(request, "fleet.html", is_live=True, title="Fleet", page=page, filters=filters, cursor=cursor,
                  shown=SHOWN, problems_first=_problems_first, serves_another=serves_another)  # fmt: skip


def _problems_first(slots: Sequence[SlotView]) -> list[SlotView]:
    """What serves another version than it should, what was refused, failed, is absent or under way, and the rest."""

    def rank(slot: SlotView) -> int:
        if serves_another(slot):
            return 0
        return 2 if slot.state is SlotState.SERVING else 1 if slot.desired_digest is not None else 3

    return sorted(slots, key=rank)


def serves_another(slot: SlotView) -> bool:
    """Whether a node serves bytes that it should not: another version than the desired one."""
    return slot.state is SlotState.SERVING and slot.desired_digest not in (None, slot.digest)
