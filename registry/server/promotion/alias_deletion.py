"""Delete an alias: its row goes, its history stays and ends with a move to no version.

Its gate and the approvals for it stay, and what a soak counts ends. Nodes that follow the alias unload the adapter. An
alias of this name that is promoted again goes on with the next generation.
"""

from sqlalchemy import delete
from sqlmodel import Session, col, select

from registry import names
from registry.api.aliases import AliasMove
from registry.errors import Conflict, Refused
from registry.events import EventType
from registry.findings import Finding
from registry.names import AdapterName
from registry.next_steps import NextStep, StepKind
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.database.models import AliasMoveRow, AliasRow, VersionRow
from registry.server.promotion import deletion
from registry.server.promotion.aliases import unknown_alias
from registry.server.promotion.move_decisions import AliasState, moved_error
from registry.server.promotion.moves import next_time
from registry.server.serving import reports


def delete_alias(
    session: Session, actor: Actor, name: AdapterName, alias: str, generation: int, *, reason: str = "",
    force: bool = False,
) -> AliasMove:  # fmt: skip
    """Delete an alias that is at this generation. `NotFound`, `Denied`, `Conflict` (ALIAS_MOVED, ALIAS_IN_USE).

    `force` deletes it although live nodes serve the adapter by it. `Refused` (GATE_CLOSED) for `main`.
    """
    actor.require(Scope.PROMOTE, name, names.alias(alias))
    if alias == names.NEWEST:
        raise Refused("GATE_CLOSED", f"alias '{alias}' follows the newest version: it lasts as long as the adapter")
    adapter = versions.find_adapter(session, actor, name, lock=True)
    statement = select(AliasRow).where(AliasRow.adapter_id == adapter.id, AliasRow.alias == alias).with_for_update()
    row = session.exec(statement.execution_options(populate_existing=True)).first()
    if row is None:
        raise unknown_alias(name, alias)
    if row.generation != generation:
        now = AliasState(row.generation, moved_at=row.moved_at, moved_by=row.moved_by)
        raise moved_error(name, alias, generation, now)
    deletion.require_reason(force, reason)
    if not force:
        _require_unused(session, name, alias)
    return end(session, actor, name, row, reason)


def end(session: Session, actor: Actor, name: AdapterName, row: AliasRow, reason: str) -> AliasMove:
    """Delete the row of an alias, which the caller has locked, and end its history."""
    number = session.exec(select(VersionRow.number).where(VersionRow.id == row.version_id)).one()
    move = db.new_row(
        AliasMoveRow,
        adapter_id=row.adapter_id, alias=row.alias, generation=row.generation + 1, at=next_time(row.moved_at),
        actor=actor.identity, token_id=actor.token_id, from_version_id=row.version_id, reason=reason,
    )  # fmt: skip
    key = (col(AliasRow.adapter_id) == row.adapter_id, col(AliasRow.alias) == row.alias)
    session.connection().execute(delete(AliasRow).where(*key))
    session.expunge(row)
    session.add(move)
    detail = {"from": number, "generation": move.generation, "reason": reason}
    audit.append(session, actor, EventType.ALIAS_DELETE, f"{name}:{row.alias}", detail)
    session.flush()
    return db.to_view(move, AliasMove, from_number=number, number=None, digest=None)


def _require_unused(session: Session, name: AdapterName, alias: str) -> None:
    nodes = reports.find_serving_nodes(session, name, alias=alias)
    if nodes:
        count = "1 node serves" if len(nodes) == 1 else f"{len(nodes)} nodes serve"
        findings = [
            Finding.of("error", "version.on_node", node.node, f"node {node.node} reports it as {node.state}")
            for node in nodes
        ]
        raise Conflict(
            "ALIAS_IN_USE", f"{count} {name} by its alias '{alias}', and would unload it",
            findings=findings, next_step=NextStep(StepKind.RELEASE_ALIAS, str(name), alias),
        )  # fmt: skip
