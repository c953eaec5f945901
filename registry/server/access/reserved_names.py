"""Names that are taken: two that look alike are one, and what was deleted is never given again.

Invariants
- A name is claimed in the transaction that makes its adapter or namespace, by its skeleton (`names.skeleton`);
  the row's key makes that safe under races.
- Nothing removes a claim. The end of its adapter or namespace turns it into a tombstone.
- A refusal names the other name only to those who may see it.

Example
    >>> taken.claim_adapter(session, actor, AdapterName("acme", "support"))
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import and_, bindparam, or_, update
from sqlmodel import Session, col, select

from registry import names
from registry.errors import Conflict, Reason
from registry.names import AdapterName
from registry.server import audit
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models.content import NamespaceRow, TakenNameRow

NAMESPACES = ""
"""The owner of the names of namespaces."""


_ALIKE = (
    select(TakenNameRow)
    .where(
        or_(
            and_(col(TakenNameRow.owner) == bindparam("of"), col(TakenNameRow.skeleton) == bindparam("namespace")),
            and_(col(TakenNameRow.owner) == bindparam("owner"), col(TakenNameRow.skeleton) == bindparam("name")),
        )
    )
    .order_by(col(TakenNameRow.owner))
)
"""Put together once: every push asks this."""


def foresee(session: Session, actor: Actor, name: AdapterName) -> None:
    """Whether `claim_adapter` would be refused, before any byte is sent. `Conflict` as there."""
    wanted = {NAMESPACES: name.namespace, name.namespace: name.name}
    alike = {"of": NAMESPACES, "owner": name.namespace}
    alike |= {"namespace": names.skeleton(name.namespace), "name": names.skeleton(name.name)}
    for row in session.exec(_ALIKE, params=alike):
        if row.ended_at is not None or row.name != wanted[row.owner]:
            raise _refused(actor, row, wanted[row.owner])


def claim_adapter(session: Session, actor: Actor, name: AdapterName) -> None:
    """Take the name of a new adapter, and of its namespace if that is new, too.

    `Conflict` (NAME_TAKEN, NAME_TOMBSTONED).
    """
    claim_namespace(session, actor, name.namespace)
    _claim(session, actor, name.namespace, name.name)


def claim_namespace(session: Session, actor: Actor, namespace: str) -> bool:
    """Take the name of a namespace and make its row, unless it is there; whether it was new."""
    values = {"name": namespace, "created_at": db.now(), "created_by": actor.identity}
    if not db.insert_new(session, NamespaceRow, values):
        return False
    _claim(session, actor, NAMESPACES, namespace)
    audit.append(session, actor, "namespace.create", namespace)
    return True


def _claim(session: Session, actor: Actor, owner: str, word: str) -> None:
    values = {"owner": owner, "skeleton": names.skeleton(word), "name": word}
    if db.insert_new(session, TakenNameRow, values):
        return
    row = session.get_one(TakenNameRow, (owner, names.skeleton(word)), populate_existing=True)
    if row.ended_at is not None or row.name != word:
        raise _refused(actor, row, word)


def restore(session: Session, name: AdapterName) -> None:
    """Take the name of an adapter that is made anew from its records. Nothing is refused: it was there before."""
    values = {"name": name.namespace, "created_at": db.now(), "created_by": "registry"}
    db.insert_new(session, NamespaceRow, values)
    for owner, word in ((NAMESPACES, name.namespace), (name.namespace, name.name)):
        db.insert_new(session, TakenNameRow, {"owner": owner, "skeleton": names.skeleton(word), "name": word})


def bury(session: Session, owner: str, word: str, *, at: datetime | None = None) -> None:
    """A tombstone: this name and all that look like it are never given again. It ended now, or `at`."""
    key = (owner, names.skeleton(word))
    db.insert_new(session, TakenNameRow, {"owner": owner, "skeleton": key[1], "name": word})
    where = (col(TakenNameRow.owner) == owner, col(TakenNameRow.skeleton) == key[1])
    session.connection().execute(update(TakenNameRow).where(*where).values(ended_at=at or db.now(), recorded_at=None))


def is_buried(session: Session, name: AdapterName) -> bool:
    """Whether an adapter of exactly this name was deleted or moved away."""
    row = session.get(TakenNameRow, (name.namespace, names.skeleton(name.name)))
    return row is not None and row.ended_at is not None and row.name == name.name


def _refused(actor: Actor, row: TakenNameRow, word: str) -> Conflict:
    what = "adapter" if row.owner else "namespace"
    seen = actor.may("pull", row.owner, row.name) if row.owner else actor.may("pull", row.name)
    location = f"{row.owner}/{word}" if row.owner else word
    if row.ended_at is not None:
        message = "belonged to one that is gone, or looks like it; such a name is never given again"
        reason = Reason("name.tombstoned", location, message)
        return Conflict("NAME_TOMBSTONED", f"{what} name '{location}' {message}", reasons=[reason])
    other = f"'{row.name}'" if seen else "one that is taken"
    message = f"looks too much like {other}"
    return Conflict(
        "NAME_TAKEN",
        f"{what} name '{location}' {message}",
        reasons=[Reason("name.too_similar", location, message)],
        next_step="choose a name that differs in more than separators, l, i, 1, o and 0",
    )
