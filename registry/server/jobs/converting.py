"""Converting: a request is checked and a job is queued. What the version's files say is judged by client and worker.

Invariants
- Whoever asks must see the source, and must be allowed to push where the result goes.
- The job is about one version by its number; an alias that moves meanwhile changes nothing.
"""

from __future__ import annotations

from sqlmodel import Session

from registry.api.jobs import JobSubmit
from registry.jobs import Kind
from registry.merging import conversions
from registry.names import AdapterName, Ref
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database.models import BaseRow, JobRow
from registry.server.jobs import queue

KINDS = (Kind.CONVERT, Kind.CONVERT_ON_BASE)


def submit_conversion(session: Session, actor: Actor, request: JobSubmit) -> JobRow:
    """The job of this conversion. `Invalid` (REQUEST_INVALID) for a payload that is none."""
    conversion = conversions.conversion(request.payload)
    ref = Ref.parse(request.ref)
    version = versions.find(session, actor, ref.name, ref.selector, include_withdrawn=False)
    actor.require(Scope.PUSH, AdapterName.parse(conversion.into))
    base = session.get_one(BaseRow, version.base_id)
    payload = conversion.model_dump(mode="json")
    return queue.enqueue(session, actor, request.kind, version, name=ref.name, base=base.name, payload=payload)
