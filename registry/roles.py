"""`Scope`: what a token may do. `Role`: what a subject may do in a namespace, as the scopes that it gives there."""

from collections.abc import Mapping
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
    """Only an owner may both push and promote. No role in a namespace gives `work`."""

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
