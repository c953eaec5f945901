"""The failpoints at which tests kill a server, and how often each is reached by two pushes in one group, with a
promotion of one of them, or by one GC run.

Example
    >>> kill_at("push.hashed", seed=3)
    'push.hashed=kill@2'
"""

from __future__ import annotations

PUSH = {
    "push.plan.before_rows": 1,
    "push.plan.after_rows": 1,
    "upload.half": 1,
    "upload.received": 1,
    "upload.stored": 1,
    "upload.written": 1,
    "push.hashed": 2,
    "push.before_rows": 1,
    "push.before_commit": 1,
    "request.committed": 2,
    "alias.swapped": 2,
}
RETENTION = {"retention.deleted": 1}
GC = {"gc.marked": 1, "gc.claimed": 1, "gc.deleted": 1}
HUB = {
    "hub.draft.before_commit": 2,
    "hub.lfs.after_rows": 1,
    "hub.commit.staged": 2,
    "hub.xorb.after_rows": 1,
    "hub.xorb.stored": 1,
    "hub.shard.written": 1,
    "hub.shard.before_commit": 1,
    "hub.version.planned": 1,
    "hub.version.before_commit": 1,
}
AUDIT = {"audit.numbered": 1, "audit.stored": 1, "attestation.held": 1}


def is_reached(point: str, store: str) -> bool:
    """Whether a server with this store reaches the point: only a bucket has blobs that are stored before a commit."""
    return store == "s3" or point != "upload.stored"


def kill_at(point: str, seed: int) -> str:
    """Return the setting that kills the server there; `seed` chooses the time if it is reached several times."""
    return f"{point}=kill@{1 + seed % (PUSH | RETENTION | GC | HUB | AUDIT)[point]}"
