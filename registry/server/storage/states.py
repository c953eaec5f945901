"""The states of blobs and pushes in the database, and which blobs are damaged."""

from collections.abc import Iterable
from enum import StrEnum

from sqlmodel import Session, col, select

from registry.digest import Digest
from registry.server.database.expressions import any_of
from registry.server.database.models import BlobRow


class BlobState(StrEnum):
    """The state of a blob's row."""

    PENDING = "pending"
    LIVE = "live"
    DEAD = "dead"
    DELETING = "deleting"
    CORRUPT = "corrupt"


class PushState(StrEnum):
    """The state of a push. Only an open one references its blobs; the other states are final."""

    OPEN = "open"
    COMMITTED = "committed"
    EXPIRED = "expired"


_SELECT_CORRUPT = select(BlobRow.digest).where(
    any_of(col(BlobRow.digest), parameter="digests"), col(BlobRow.state) == BlobState.CORRUPT
)


def find_damaged(session: Session, digests: Iterable[Digest]) -> set[Digest]:
    """Return those of these blobs, which the caller holds, whose bytes are wrong or missing."""
    return {Digest(digest) for digest in session.exec(_SELECT_CORRUPT, params={"digests": list(digests)})}
