"""`Actor`: who asks, and what they may do where. `Role`: what somebody may do in one namespace.

    what an actor may do = scopes of its token ∩ namespaces of its token ∩ roles of its subject ∩ adapters of its token

Invariants
- `admin` may do everything; every other scope includes `pull`. A scope counts in the actor's namespaces, `*` is all.
- A token of a subject gives no more than the subject's role in a namespace, whenever it is asked; one without a subject
  stands for itself. A token that is bound to adapters gives nothing outside them.
- Whoever has a token may pull from a public namespace, and nothing more by that.
- What an actor may not see does not exist for it: `demand` answers NotFound there, and Denied only where it may look.

Example
    >>> Actor("ci", "t1", frozenset({"push"}), frozenset({"acme"})).may("pull", "acme")
    True
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from registry.errors import Denied, NotFound
from registry.names import AdapterName

SCOPES = ("pull", "push", "promote", "work", "admin")
EVERYWHERE = "*"
EVERYBODY = "*"


class Role(StrEnum):
    """What a subject may do in a namespace. Who pushes does not promote, unless it owns the place."""

    READER = "reader"
    PUSHER = "pusher"
    PROMOTER = "promoter"
    OWNER = "owner"


GIVES: Mapping[Role, frozenset[str]] = {
    Role.READER: frozenset({"pull"}),
    Role.PUSHER: frozenset({"pull", "push"}),
    Role.PROMOTER: frozenset({"pull", "promote"}),
    Role.OWNER: frozenset(SCOPES),
}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: a token's name and rights, or the trusted owner of an embedded registry.

    `roles` is None for a token that stands for itself. `generation` is the state of access that all this was read at;
    None needs no asking again.
    """

    name: str
    token_id: str
    scopes: frozenset[str]
    namespaces: frozenset[str]
    expires_at: datetime | None = None
    subject: str = ""
    roles: Mapping[str, Role] | None = None
    adapters: frozenset[str] = frozenset()
    public: frozenset[str] = frozenset()
    generation: int | None = None

    @property
    def identity(self) -> str:
        """Who stands behind the token, for the record: its subject, else its own name."""
        return self.subject or self.name

    def has(self, scope: str) -> bool:
        """Whether this scope is held in any namespace at all. Any token may pull from what is public."""
        if scope == "pull":
            return bool(self.scopes)
        return self._scoped(scope) and (self.roles is None or any(scope in GIVES[r] for r in self.roles.values()))

    def may(self, scope: str, namespace: str, adapter: str = "") -> bool:
        """Whether this scope is held in a namespace; for a token that is bound to adapters, name the adapter, too."""
        if scope == "pull" and namespace in self.public:
            return True
        if self.adapters and f"{namespace}/{adapter}" not in self.adapters:
            return False
        return self._scoped(scope) and self._covers(namespace) and self._role_gives(scope, namespace)

    def spans(self, scopes: Iterable[str], namespaces: Iterable[str]) -> bool:
        """Whether the token itself reaches so far, whatever its subject may do there: one of that subject, say."""
        return all(map(self._scoped, scopes)) and all(map(self._covers, namespaces))

    def sees(self, name: AdapterName) -> bool:
        return self.may("pull", name.namespace, name.name)

    def reach(self, scope: str) -> frozenset[str] | None:
        """The namespaces in which this scope is held, those that are public apart; None is all of them."""
        if not self._scoped(scope):
            return frozenset()
        if self._role_gives(scope, EVERYWHERE):
            return None if EVERYWHERE in self.namespaces else self.namespaces
        return frozenset(n for n, role in (self.roles or {}).items() if scope in GIVES[role] and self._covers(n))

    def demand(self, scope: str, name: AdapterName) -> None:
        """`Denied` where the actor may look but not do this; `NotFound`, as for what is absent, elsewhere."""
        if self.may(scope, name.namespace, name.name):
            return
        if not self.sees(name):
            raise unknown_adapter(name)
        raise self._denied(scope, name.namespace)

    def demand_in(self, scope: str, namespace: str) -> None:
        """The same for what belongs to a namespace and to no adapter."""
        if self.may(scope, namespace):
            return
        if not self.may("pull", namespace):
            raise unknown_namespace(namespace)
        raise self._denied(scope, namespace)

    def may_everywhere(self, scope: str) -> bool:
        return self.may(scope, EVERYWHERE)

    def demand_everywhere(self, scope: str) -> None:
        """For what belongs to no namespace."""
        if not self.may_everywhere(scope):
            raise Denied("DENIED", f"token {self.name!r} lacks the scope '{scope}' in all namespaces")

    def _scoped(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes or (scope == "pull" and bool(self.scopes))

    def _covers(self, namespace: str) -> bool:
        return EVERYWHERE in self.namespaces or namespace in self.namespaces

    def _role_gives(self, scope: str, namespace: str) -> bool:
        if self.roles is None:
            return True
        held = [self.roles.get(namespace), self.roles.get(EVERYWHERE)]
        return any(role is not None and scope in GIVES[role] for role in held)

    def _denied(self, scope: str, namespace: str) -> Denied:
        return Denied("DENIED", f"token {self.name!r} lacks the scope '{scope}' in namespace '{namespace}'")


TRUSTED = Actor("owner", "", frozenset({"admin"}), frozenset({EVERYWHERE}))
"""The actor of an embedded registry: whoever may read its folder."""


CLOCKWORK = Actor("registry", "", frozenset(), frozenset())
"""Who does what no request asked for."""


def unknown_adapter(name: AdapterName) -> NotFound:
    """The one answer for an adapter that is absent or that the actor may not see."""
    return NotFound("ADAPTER_UNKNOWN", f"there is no adapter '{name}', or you may not see it")


def unknown_namespace(namespace: str) -> NotFound:
    """The one answer for a namespace that is absent or that the actor may not see."""
    return NotFound("NAMESPACE_UNKNOWN", f"there is no namespace '{namespace[:80]}', or you may not see it")
