"""docs/reference/limits.md: `registry.server.limits.LIMITS`, the files of a version, and deliveries of webhooks."""

from __future__ import annotations

from registry.server import limits
from registry.server.settings import Settings
from registry.server.webhooks import dispatch
from registry.versions.files import KINDS
from scripts.reference.tables import table

INTRODUCTION = """\
# Limits

What users and operators meet. Limits that operators change are [settings](settings.md); namespaces have quotas.
A tenant is the namespace that a token is limited to, else its subject or the token; without a token, the network.

`adapter config show` and the page *Status* show these tables.
Readers of untrusted files have further limits, and say so in their errors.
"""


def attempts() -> int:
    """How often the delivery of an event is tried."""
    return len(dispatch.RETRY_SECONDS) + 1


def markdown() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for section, rows in limits.by_section():
        parts += [f"## {section}\n", table(["limit", "value", "why"], ((row.name, row.value, row.why) for row in rows))]
    kinds = ((f"`{kind.pattern}`", limits.size(kind.limit_bytes), f"`{kind.media_type}`") for kind in KINDS)
    parts += ["## Files\n", "Files of other kinds are refused.\n", table(["file", "at most", "media type"], kinds)]
    waits = ", ".join(limits.time(seconds) for seconds in dispatch.RETRY_SECONDS)
    parts.append(f"A webhook delivery has {attempts()} attempts; the pauses between them are {waits}.\n")
    parts.append(
        f"Garbage collection keeps unreferenced blobs for {limits.time(Settings().gc_grace_seconds)} by default.\n"
    )
    return "\n".join(parts)
