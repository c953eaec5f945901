"""`Scope`: what a token may do. `Role`: what a subject may do in a namespace, as the scopes that it gives there.

`GrantedRole`: a role as a subject has it, perhaps for single aliases. A subject has the rights of all its roles.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

SUBJECT_LIMIT = 200


class Scope(StrEnum):
    """`admin` includes every scope; every scope but `metrics` includes `pull`. `audit` reads the whole audit log."""

    PULL = "pull"
    PUSH = "push"
    PROMOTE = "promote"
    WORK = "work"
    AUDIT = "audit"
    METRICS = "metrics"
    ADMIN = "admin"


PULLING = frozenset(Scope) - {Scope.METRICS}
"""Scopes that include `pull`."""


class Role(StrEnum):
    """No role in a namespace gives `work`."""

    READER = "reader"
    PUSHER = "pusher"
    PROMOTER = "promoter"
    OWNER = "owner"
    AUDITOR = "auditor"


SCOPES_OF_ROLE: Mapping[Role, frozenset[Scope]] = {
    Role.READER: frozenset({Scope.PULL}),
    Role.PUSHER: frozenset({Scope.PULL, Scope.PUSH}),
    Role.PROMOTER: frozenset({Scope.PULL, Scope.PROMOTE}),
    Role.OWNER: frozenset(Scope) - {Scope.WORK},
    Role.AUDITOR: frozenset({Scope.PULL, Scope.AUDIT}),
}

FOR_ALIASES = frozenset({Role.PUSHER, Role.PROMOTER})
"""Roles that can be granted for single aliases."""


@dataclass(frozen=True, slots=True)
class GrantedRole:
    """A role of a subject. With `aliases` it moves these alone; without, a pusher moves none and a promoter all."""

    role: Role
    aliases: frozenset[str] = frozenset()

    def gives(self, scope: Scope, alias: str = "") -> bool:
        """Whether it gives this scope, about this alias; without one, about all that the scope is for."""
        if scope is Scope.PROMOTE and self.aliases:
            return alias in self.aliases
        return scope in SCOPES_OF_ROLE[self.role]

    def gives_some(self, scope: Scope) -> bool:
        """Whether it gives this scope, if only about some alias."""
        return self.gives(scope) or (scope is Scope.PROMOTE and bool(self.aliases))

    def __str__(self) -> str:
        return f"{self.role} (moves {', '.join(sorted(self.aliases))})" if self.aliases else str(self.role)


def in_words(roles: Iterable[object]) -> str:
    """Roles in a sentence, such as "reader and pusher (moves canary)"."""
    texts = [str(role) for role in roles]
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))
