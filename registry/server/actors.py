"""`Actor`: who asks, and what they may do where.

Invariants
- `admin` may do everything; every other scope includes `pull`. A scope counts in the actor's namespaces, `*` is all.
- What an actor may not see does not exist for it: `demand` answers NotFound there, and Denied only where it may look.

Example
    >>> Actor("ci", "t1", frozenset({"push"}), frozenset({"acme"})).may("pull", "acme")
    True
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from registry.errors import Denied, NotFound
from registry.names import AdapterName

SCOPES = ("pull", "push", "promote", "work", "admin")
EVERYWHERE = "*"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: a token's name and rights, or the trusted owner of an embedded registry."""

    name: str
    token_id: str
    scopes: frozenset[str]
    namespaces: frozenset[str]
    expires_at: datetime | None = None

    def has(self, scope: str) -> bool:
        """Whether this scope is held in any namespace at all."""
        return scope in self.scopes or "admin" in self.scopes or (scope == "pull" and bool(self.scopes))

    def may(self, scope: str, namespace: str) -> bool:
        return self.has(scope) and (EVERYWHERE in self.namespaces or namespace in self.namespaces)

    def demand(self, scope: str, name: AdapterName) -> None:
        """`Denied` where the actor may look but not do this; `NotFound`, as for what is absent, elsewhere."""
        if self.may(scope, name.namespace):
            return
        if not self.may("pull", name.namespace):
            raise unknown_adapter(name)
        raise Denied("DENIED", f"token {self.name!r} lacks the scope '{scope}' in namespace '{name.namespace}'")

    def demand_everywhere(self, scope: str) -> None:
        """For what belongs to no namespace."""
        if not (self.has(scope) and EVERYWHERE in self.namespaces):
            raise Denied("DENIED", f"token {self.name!r} lacks the scope '{scope}' in all namespaces")


TRUSTED = Actor("owner", "", frozenset({"admin"}), frozenset({EVERYWHERE}))
"""The actor of an embedded registry: whoever may read its folder."""


def unknown_adapter(name: AdapterName) -> NotFound:
    """The one answer for an adapter that is absent or that the actor may not see."""
    return NotFound("ADAPTER_UNKNOWN", f"there is no adapter '{name}', or you may not see it")
