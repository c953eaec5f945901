"""The REST contract of a pull: all that bringing a version takes, in one answer. Used by server and client alike.

Invariants
- What is brought is what `resolved.manifest` says; small files and direct links save requests, and are not believed.
- Each file can be had at its `url` in `resolved.files` as well, whatever became of its direct link.
"""

from __future__ import annotations

from registry.api import Answer, Resolved
from registry.api.push import Small

SMALL_TOGETHER_BYTES = 256 * 2**10
"""So much of small files one answer holds; those beyond it are asked for like large ones."""


class PullPlan(Answer):
    """GET …/versions/{selector}/pull. `small`: bytes of small files. `direct`: path → a link of the store, which takes
    no token and works for `direct_seconds`.
    """

    resolved: Resolved
    small: list[Small] = []
    direct: dict[str, str] = {}
    direct_seconds: int = 0
