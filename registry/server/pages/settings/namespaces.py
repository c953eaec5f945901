"""The pages of settings: the namespaces, and one of them with its members, limits and retention rule."""

from typing import Any

from fastapi import Request, Response

from registry import names
from registry.api.access import NAMESPACE_RULES, NamespaceCreate, NamespaceSet, RoleGrant
from registry.api.maintenance import RetentionSet
from registry.durations import parse_duration
from registry.errors import Invalid
from registry.roles import Role, Scope
from registry.server.access import namespaces
from registry.server.actors import Actor
from registry.server.catalog.search import adapters
from registry.server.catalog.search.filters import Search
from registry.server.http.dependencies import NAMESPACE, CursorDep, SessionDep
from registry.server.http.request_body import limit_body
from registry.server.pages.rendering import create_router, redirect, render
from registry.server.pages.sessions.forms import FORM_BYTES, confirm_identity, read_fields, to_request
from registry.server.pages.sessions.visitors import SignedInDep, Visitor
from registry.server.promotion.retention import rules
from registry.versions.retention import RetentionRule

router = create_router()
PAGE_NAMESPACES = 50
PAGE_ADAPTERS = 50
SETTINGS = "/settings"
SWITCHES = ("public", *(rule.field for rule in NAMESPACE_RULES))
"""Fields of a namespace that are yes or no in forms."""


@router.get(SETTINGS)
def show_settings(request: Request, session: SessionDep, visitor: SignedInDep, cursor: CursorDep) -> Response:
    """Show the namespaces that the visitor may see, with what they use."""
    page = namespaces.list_namespaces(session, visitor.actor, cursor=cursor, limit=PAGE_NAMESPACES)
    return render(
        request, "settings.html", title="Settings", namespaces=page, cursor=cursor,
        may_create=bool(visitor.form_token) and visitor.actor.may_everywhere(Scope.ADMIN),
        owned=[item.name for item in page.items if may_administer(visitor, item.name)],
    )  # fmt: skip


@router.post(SETTINGS + "/namespaces")
@limit_body(FORM_BYTES)
def create_namespace(request: Request, session: SessionDep, visitor: SignedInDep) -> Response:
    """Create a private namespace."""
    fields = read_fields(request, visitor)
    creation = to_request(NamespaceCreate, name=fields.get("name", "").strip(), owner=fields.get("owner", "").strip())
    view = namespaces.create(session, visitor.actor, creation)
    return redirect(namespace_path(view.name))


@router.get(SETTINGS + NAMESPACE)
def show_namespace_settings(
    request: Request, session: SessionDep, visitor: SignedInDep, namespace: str, cursor: CursorDep
) -> Response:
    """Show one namespace: limits, members, retention, and its adapters."""
    view = namespaces.show(session, visitor.actor, namespace)
    page = adapters.search_adapters(
        session, visitor.actor, Search(namespace=namespace), cursor=cursor, limit=PAGE_ADAPTERS
    )
    retention = rules.show_rule(session, visitor.actor, namespace)
    return render(
        request, "settings_namespace.html", title=f"Settings of {namespace}", view=view, adapters=page, cursor=cursor,
        members=[(subject, role) for subject, roles in (view.roles or {}).items() for role in roles],
        roles=list(Role), retention=retention, rules=NAMESPACE_RULES, may_administer=may_administer(visitor, namespace),
        may_set_limits=bool(visitor.form_token) and visitor.actor.may_everywhere(Scope.ADMIN),
    )  # fmt: skip


@router.post(SETTINGS + NAMESPACE)
@limit_body(FORM_BYTES)
def change_namespace(request: Request, session: SessionDep, visitor: SignedInDep, namespace: str) -> Response:
    """Change who may read a namespace, its rules, and its limits: the fields that differ from what the page showed."""
    fields = read_fields(request, visitor)
    changed = {key: text for key, text in fields.items() if text.strip() != fields.get(f"shown_{key}")}
    values: dict[str, Any] = {key: changed[key] == "yes" for key in SWITCHES if key in changed}
    values |= {key: read_number(changed, key) for key in namespaces.LIMITS if key in changed}
    namespaces.update(session, visitor.actor, namespace, to_request(NamespaceSet, **values))
    return redirect(namespace_path(namespace))


@router.post(SETTINGS + NAMESPACE + "/members")
@limit_body(FORM_BYTES)
def change_member(request: Request, session: SessionDep, visitor: SignedInDep, namespace: str) -> Response:
    """Give a subject a role, which needs more than a session, or remove one."""
    fields = read_fields(request, visitor)
    subject = fields.get("subject", "").strip()
    if "role" in fields:
        visitor.actor.require_in(Scope.ADMIN, namespace)
        confirm_identity(request, session, visitor, fields.get("token", ""))
        aliases = fields.get("aliases", "").replace(",", " ").split()
        granted = to_request(RoleGrant, role=fields["role"], aliases=aliases)
        namespaces.grant_role(session, visitor.actor, namespace, subject, granted)
    else:
        namespaces.revoke_role(session, visitor.actor, namespace, subject, fields.get("remove", ""))
    return redirect(namespace_path(namespace) if may_administer(visitor, namespace) else SETTINGS)


@router.post(SETTINGS + NAMESPACE + "/retention")
@limit_body(FORM_BYTES)
def change_retention(request: Request, session: SessionDep, visitor: SignedInDep, namespace: str) -> Response:
    """Set or clear the retention rule of a namespace."""
    rules.set_rule(session, visitor.actor, names.namespace(namespace), read_rule(read_fields(request, visitor)))
    return redirect(namespace_path(namespace))


def may_administer(visitor: Visitor, namespace: str) -> bool:
    """Return whether a page shows this visitor the forms of an owner."""
    actor: Actor = visitor.actor
    return bool(visitor.form_token) and not actor.superseded and actor.may(Scope.ADMIN, namespace)


def namespace_path(namespace: str) -> str:
    """Return the path of the settings of a namespace."""
    return f"{SETTINGS}/namespaces/{namespace}"


def read_rule(fields: dict[str, str]) -> RetentionRule | None:
    """Return the retention rule of a form; None if both fields are empty."""
    newest, age = fields.get("keep_newest", "").strip(), fields.get("keep_age", "").strip()
    if not newest and not age:
        return None
    values = {"keep_newest": read_number(fields, "keep_newest") if newest else None,
              "keep_seconds": parse_duration(age) if age else None}  # fmt: skip
    return to_request(RetentionSet, rule=values).rule


def read_number(fields: dict[str, str], key: str) -> int:
    """Return a number of a form; 0 for an empty field. `Invalid`."""
    text = fields.get(key, "").strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Invalid("REQUEST_INVALID", f"{key}: must be a whole number")
    return int(text)
