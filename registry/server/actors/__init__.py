"""`Actor`: who sends a request and what they may do where.

    rights of an actor = scopes ∩ namespaces ∩ adapters ∩ aliases of its token ∩ roles of its subject

- `admin` includes every scope; every scope but `metrics` includes `pull`. The namespace `*` stands for all namespaces.
- A token of a subject never gives more than the subject's current roles, which add up; one without stands for itself.
- A token or a role for single aliases moves and approves these alone. What `promote` gives besides needs all aliases.
- No role in a namespace gives `work`: verdicts of workers count beyond the namespace. An owner of `*` has it.
- Every token may pull from public namespaces.
- What an actor may not see does not exist for it: it gets `NotFound`, and `Denied` only where it may look.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from registry.errors import Denied, NotFound
from registry.names import AdapterName
from registry.roles import PULLING, SUBJECT_LIMIT, GrantedRole, Role, Scope

EVERY_NAMESPACE = "*"
EVERY_SUBJECT = "*"
REACH_SHOWN = 10
OLD_SECRET_SCOPES = frozenset({Scope.PULL, Scope.PUSH})
"""All that a rotated secret may still do: its finder must not give access away."""
_SUBJECT = re.compile(rf"[!-~]{{1,{SUBJECT_LIMIT}}}\Z")


@dataclass(frozen=True, slots=True)
class Actor:
    """A token's name and rights, or the trusted owner of an embedded registry.

    `roles` is None for a token that stands for itself. `epoch` is the access epoch at which all this was read; None
    never expires. `public` are the namespaces from which every token may pull. `superseded`: it signed in with a secret
    that was rotated and is still accepted for a while; `scopes` are then `pull` and `push` at most. `groups` are those
    of the identity provider at sign-in; `roles` has theirs, too. `is_publisher`: a trusted publisher got the token.
    """

    name: str
    token_id: str
    scopes: frozenset[str]
    namespaces: frozenset[str]
    expires_at: datetime | None = None
    subject: str = ""
    roles: Mapping[str, tuple[GrantedRole, ...]] | None = None
    adapters: frozenset[str] = frozenset()
    aliases: frozenset[str] = frozenset()
    public: frozenset[str] = frozenset()
    epoch: int | None = None
    superseded: bool = False
    groups: frozenset[str] = frozenset()
    is_publisher: bool = False

    @property
    def identity(self) -> str:
        """Who is recorded as the author of a change; equal names of two kinds are two identities (ADR 41).

        A subject by its name, a token without one as `token:NAME`, or `publisher:NAME` of a trusted publisher, and the
        registry itself by one of `OWN_NAMES`. No subject can have one of these.
        """
        if self.subject or not self.token_id:
            return self.subject or self.name
        return f"{PUBLISHER if self.is_publisher else TOKEN}{self.name}"

    @property
    def owner(self) -> str:
        """Who has this actor's drafts, nodes and limits: its subject, or its token.

        A subject may have the id of a token as its name, so the kind is part of it.
        """
        return f"subject {self.subject}" if self.subject else f"token {self.token_id}"

    @property
    def tenant(self) -> str:
        """Whom limits of a process count the work for: its namespace, if not all, else its subject or token."""
        if EVERY_NAMESPACE in self.namespaces:
            return self.owner
        return f"namespace {min(self.namespaces, default='')}"

    def has_scope(self, scope: Scope) -> bool:
        """Whether the actor holds this scope in at least one namespace, if only for one alias."""
        if scope == Scope.PULL:
            return bool(self.scopes & PULLING)
        return self._has_token_scope(scope) and (
            self.roles is None
            or any(
                role.gives_some(scope) or _is_worker(scope, namespace, role)
                for namespace, roles in self.roles.items()
                for role in roles
            )
        )

    def may(self, scope: Scope, namespace: str, adapter: str = "", alias: str = "") -> bool:
        """Whether the actor may do this in a namespace, with this alias; without one, with all.

        A token bound to adapters needs `adapter`, too.
        """
        return (scope == Scope.PULL and namespace in self.public) or self.holds(scope, namespace, adapter, alias)

    def holds(self, scope: Scope, namespace: str, adapter: str = "", alias: str = "") -> bool:
        """Whether the actor itself has this scope, whether or not the namespace is public now."""
        if self.adapters and f"{namespace}/{adapter}" not in self.adapters:
            return False
        return (
            self._has_token_scope(scope)
            and self._has_alias(scope, alias)
            and self._has_namespace(namespace)
            and self._role_gives(scope, namespace, alias)
        )

    def covers(self, scopes: Iterable[str], namespaces: Iterable[str]) -> bool:
        """Whether the token itself has these scopes and namespaces, whatever the roles of its subject are."""
        return all(map(self._has_token_scope, scopes)) and all(map(self._has_namespace, namespaces))

    def sees(self, name: AdapterName) -> bool:
        """Whether the actor may pull this adapter."""
        return self.may(Scope.PULL, name.namespace, name.name)

    def namespaces_with(self, scope: Scope) -> frozenset[str] | None:
        """The namespaces in which the actor holds this scope, without the public ones; None means all."""
        if not self._has_token_scope(scope):
            return frozenset()
        if self._role_gives(scope, EVERY_NAMESPACE):
            return None if EVERY_NAMESPACE in self.namespaces else self.namespaces
        return frozenset(n for n in self.roles or () if self._has_namespace(n) and self._role_gives(scope, n))

    def require(self, scope: Scope, name: AdapterName, alias: str = "") -> None:
        """Raise `Denied` if the actor may see the adapter but lacks the scope, `NotFound` if it may not see it.

        `promote` is about one alias, or about all.
        """
        if self.may(scope, name.namespace, name.name, alias):
            return
        if not self.sees(name):
            raise unknown_adapter(name, self._reach(scope))
        raise self.lacks(scope, name.namespace, alias)

    def require_in(self, scope: Scope, namespace: str) -> None:
        """Like `require`, for what belongs to a namespace and not to an adapter."""
        if self.may(scope, namespace):
            return
        if not self.may(Scope.PULL, namespace):
            raise unknown_namespace(namespace, self._reach(scope))
        raise self.lacks(scope, namespace)

    def may_everywhere(self, scope: Scope) -> bool:
        """Whether the actor holds this scope in all namespaces."""
        return self.may(scope, EVERY_NAMESPACE)

    def require_everywhere(self, scope: Scope) -> None:
        """Raise `Denied` unless the actor holds this scope in all namespaces."""
        if not self.may_everywhere(scope):
            raise self.lacks(scope, EVERY_NAMESPACE)

    def require_current_secret(self) -> None:
        """Raise `Denied` for an actor that signed in with a rotated secret: it may only pull and push."""
        if self.superseded:
            raise Denied(
                "DENIED",
                f"this secret of token {self.name!r} was rotated: until it ends it may only pull and push",
                next_step="use the new secret, or ask an administrator to revoke the token",
            )

    def _has_token_scope(self, scope: str) -> bool:
        return (
            scope in self.scopes or Scope.ADMIN in self.scopes or (scope == Scope.PULL and bool(self.scopes & PULLING))
        )

    def _has_namespace(self, namespace: str) -> bool:
        return EVERY_NAMESPACE in self.namespaces or namespace in self.namespaces

    def _has_alias(self, scope: str, alias: str) -> bool:
        return scope != Scope.PROMOTE or not self.aliases or alias in self.aliases

    def _role_gives(self, scope: Scope, namespace: str, alias: str = "") -> bool:
        return self.roles is None or any(
            role.gives(scope, alias) or _is_worker(scope, of, role)
            for of in (namespace, EVERY_NAMESPACE)
            for role in self.roles.get(of, ())
        )

    def _reach(self, scope: Scope) -> str:
        """Where the actor holds this scope, for an error; it depends on the token alone, not on what exists."""
        reach = sorted(self.adapters or self.namespaces_with(scope) or ())
        more = f" and {len(reach) - REACH_SHOWN} more" if len(reach) > REACH_SHOWN else ""
        rights = "is an administrator" if scope is Scope.ADMIN else f"may {scope}"
        return f"token {self.name!r} {rights} only in: {', '.join(reach[:REACH_SHOWN])}{more}" if reach else ""

    def lacks(self, scope: Scope, namespace: str = "", alias: str = "") -> Denied:
        """The error for a scope that the token, or each role of its subject, lacks there; in any namespace if empty."""
        scope_text = f"'{scope}' of alias '{alias}'" if alias else f"'{scope}'"
        where = " in all namespaces" if namespace == EVERY_NAMESPACE else f" in namespace '{namespace}'"
        where = where if namespace else ""
        is_of_token = self._has_token_scope(scope) and (not namespace or self._has_namespace(namespace))
        is_of_token = is_of_token and self._has_alias(scope, alias)
        if self.roles is not None and is_of_token and not (namespace and self._role_gives(scope, namespace, alias)):
            return Denied("DENIED", f"{self.subject!r} has no role that allows {scope_text}{where}")
        return Denied("DENIED", f"token {self.name!r} lacks the scope {scope_text}{where}")


def _is_worker(scope: Scope, namespace: str, granted: GrantedRole) -> bool:
    """Whether this is `work`, which an owner of all namespaces has."""
    return scope is Scope.WORK and namespace == EVERY_NAMESPACE and granted.role is Role.OWNER


TRUSTED = Actor("owner", "", frozenset({Scope.ADMIN}), frozenset({EVERY_NAMESPACE}))
"""The actor of an embedded registry: the user who can read its folder."""

OPERATOR = Actor("operator", "", frozenset(), frozenset())
"""The actor of commands on the server's machine, which need no token."""

SYSTEM = Actor("registry", "", frozenset(), frozenset())
"""The actor of changes that no request asked for."""


GROUP = "group:"
"""Beginning of a subject that stands for a group of an identity provider."""

TOKEN, PUBLISHER = "token:", "publisher:"
EXCHANGE = "exchange"
"""Who is recorded as the creator of an exchanged token."""
OWN_NAMES = frozenset({"anonymous", EXCHANGE, OPERATOR.name, SYSTEM.name, TRUSTED.name})
"""What the registry records about itself."""


def is_subject(text: str) -> bool:
    """Whether a text can name a subject: visible ASCII such as `alice@example.org`, and nothing that names another."""
    is_reserved = text in OWN_NAMES or text.lower().startswith((TOKEN, PUBLISHER))
    return bool(_SUBJECT.match(text)) and text != EVERY_SUBJECT and not is_reserved


def unknown_adapter(name: AdapterName, next_step: str = "") -> NotFound:
    """The error for an adapter that does not exist or that the actor may not see."""
    next_step = next_step or f"`adapter list --namespace {name.namespace}` lists those that you may see"
    message = f"there is no adapter '{name}', or you may not see it"
    return NotFound("ADAPTER_UNKNOWN", message, next_step=next_step, parameters={"adapter": str(name)})


def unknown_namespace(namespace: str, next_step: str = "") -> NotFound:
    """The error for a namespace that does not exist or that the actor may not see."""
    message = f"there is no namespace '{namespace[:80]}', or you may not see it"
    return NotFound("NAMESPACE_UNKNOWN", message, next_step=next_step)
