"""`Scope`: what a token may do. `Role`: what a subject may do in a namespace, as the scopes that it gives there."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Scope(StrEnum):
    """`admin` includes every scope; every scope includes `pull`."""

    PULL = "pull"
    PUSH = "push"
    PROMOTE = "promote"
    WORK = "work"
    ADMIN = "admin"


class Role(StrEnum):
    """Only an owner may both push and promote. No role in a namespace gives `work`."""

    READER = "reader"
    PUSHER = "pusher"
    PROMOTER = "promoter"
    OWNER = "owner"


SCOPES_OF_ROLE: Mapping[Role, frozenset[Scope]] = {
    Role.READER: frozenset({Scope.PULL}),
    Role.PUSHER: frozenset({Scope.PULL, Scope.PUSH}),
    Role.PROMOTER: frozenset({Scope.PULL, Scope.PROMOTE}),
    Role.OWNER: frozenset(Scope) - {Scope.WORK},
}
