"""The failpoints, and how often one push (with a promotion) or one garbage collection reaches each.

Example
    >>> armed("push.after_promote", seed=3)
    'push.after_promote=kill@2'
"""

from __future__ import annotations

PUSH = {
    "push.plan.before_rows": 1,
    "push.plan.after_rows": 1,
    "upload.half": 1,
    "upload.received": 1,
    "upload.written": 1,
    "push.hashed": 1,
    "push.before_promote": 1,
    "push.after_promote": 2,
    "push.before_rows": 1,
    "push.before_commit": 1,
    "request.committed": 2,
    "alias.swapped": 2,
}
GC = {"gc.marked": 1, "gc.claimed": 1, "gc.deleted": 1}
AUDIT = {"audit.numbered": 1, "audit.stored": 1, "attestation.held": 1}
DIRECT = {"upload.half", "upload.received", "upload.written"}
"""Not reached where clients send bytes straight to the store."""


def armed(point: str, seed: int) -> str:
    """The setting that kills the server at this point, the n-th time where it is reached more than once."""
    return f"{point}=kill@{1 + seed % (PUSH | GC | AUDIT)[point]}"
