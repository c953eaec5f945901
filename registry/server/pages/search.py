"""The first page, which is also the search: filters, adapters page by page, and what happened or waits for the visitor.

A text that names something exactly leads there: a reference, a digest, a training run, a job.
"""

import re
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from pydantic import ValidationError
from sqlmodel import Session

from registry import names
from registry.adapters.formats import FORMATS
from registry.adapters.methods import METHODS
from registry.api.catalog import AdapterPage, AdapterView
from registry.errors import Invalid, NotFound, RegistryError
from registry.evaluation.verdicts import Check, Outcome
from registry.names import AdapterName, Ref
from registry.roles import Scope
from registry.server.access import namespaces
from registry.server.actors import Actor
from registry.server.catalog import conclusions, versions
from registry.server.catalog.search import adapters, exact, text_index
from registry.server.catalog.search.filters import Search
from registry.server.evaluation import engine_profiles
from registry.server.http.dependencies import ADAPTER, CursorDep, SessionDep, SettingsDep
from registry.server.pages.rendering import adapter_path, create_router, redirect, render
from registry.server.pages.sessions.visitors import Visitor, VisitorDep
from registry.server.promotion import aliases, release_board
from registry.server.serving import status as fleet
from registry.validation import first_problem

router = create_router()
PAGE_ADAPTERS = 25
NAMESPACES_SHOWN = 30
EXACT_SHOWN = 10
MOVES_SHOWN = 8
FAILED_SHOWN = 5
CHECKS = (Check.COMPAT, Check.WEIGHTS, Check.SMOKE)
FIELDS = (
    "text", "namespace", "base", "method", "format", "rank_min", "rank_max", "check", "outcome", "alias", "owner",
)  # fmt: skip
"""The filters of the form, and the check that must have an outcome."""
UPDATED, NAME, FAILING = "updated", "name", "failing"
ORDERS = {UPDATED: "last updated", NAME: "name", FAILING: "failing"}
PAGES_OF_IDS = {"job_": "/jobs", "cam_": "/campaigns"}


@router.get("/")
@router.get("/search")
def show_search(
    request: Request, session: SessionDep, visitor: VisitorDep, settings: SettingsDep, cursor: CursorDep
) -> Response:
    """Show the adapters that match. A form sends its empty fields too: they do not filter."""
    filters = {name: request.query_params.get(name, "") for name in FIELDS}
    used = {key: value for key, value in filters.items() if value.strip() and key != "text"}
    text = filters["text"].strip()
    exact_matches = [] if used or not text else _find_exactly(session, visitor.actor, text)
    if len(exact_matches) == 1:
        return redirect(exact_matches[0][1])
    profiles = [str(profile) for profile in engine_profiles.parse_setting(settings.engines)]
    order = request.query_params.get("sort", "")
    order = order if order in ORDERS else NAME if used or text else UPDATED
    status, problem, page = 200, None, AdapterPage(items=[])
    try:
        page = _list(session, visitor.actor, _search(filters, profiles), order, cursor)
    except RegistryError as e:  # such as a base that has a space in its name: the form stays as it was filled in
        status, problem = 422, e
    is_home = not (used or text or cursor or problem)
    near = "" if page.items or page.next_cursor or problem or not text else text_index.suggest(
        session, text, versions.visible(visitor.actor)
    )  # fmt: skip
    return render(
        request, "search.html", status, title=f"{text} · Search" if text else "Adapters", filters=filters, used=used,
        page=page, cursor=cursor, page_size=PAGE_ADAPTERS, problem=problem, order=order, orders=ORDERS,
        exact_matches=exact_matches, near=near, production=release_board.PRODUCTION,
        conclusions=conclusions.conclude_adapters(session, page.items),
        choices={"method": sorted(METHODS), "format": sorted(FORMATS), "check": [*CHECKS, *profiles],
                 "outcome": list(Outcome)},
        home=_home(session, visitor, page.items) if is_home else None,
    )  # fmt: skip


def _list(session: Session, actor: Actor, search: Search, order: str, cursor: str) -> AdapterPage:
    if order == NAME:
        return adapters.search_adapters(session, actor, search, cursor=cursor, limit=PAGE_ADAPTERS, count=not cursor)
    is_failing = order == FAILING
    page = adapters.list_recent(session, actor, search, is_failing=is_failing, cursor=cursor, limit=PAGE_ADAPTERS)
    if is_failing or cursor:
        return page
    return page.model_copy(
        update={"total": adapters.search_adapters(session, actor, search, limit=1, count=True).total}
    )


def _home(session: Session, visitor: Visitor, items: list[AdapterView]) -> dict[str, Any]:
    """What stands beside the list: namespaces, and for who has signed in the last moves and what waits for them."""
    actor = visitor.actor
    listed = namespaces.list_namespaces(session, actor, limit=NAMESPACES_SHOWN)
    counts = adapters.count_in_namespaces(session, [namespace.name for namespace in listed.items])
    values: dict[str, Any] = {"namespaces": counts, "count_limit": adapters.COUNT_LIMIT, "more": listed.next_cursor}
    if not visitor.signed_in:
        return values | {"moves": [], "drift": [], "approvals": [], "failed": []}
    checks = release_board.check_newest(session, actor, items)
    failed = adapters.list_recent(session, actor, Search(), is_failing=True, limit=FAILED_SHOWN).items
    return values | {
        "drift": fleet.find_drift(session, actor, limit=FAILED_SHOWN),
        "moves": aliases.list_last_moves(session, actor, limit=MOVES_SHOWN),
        "approvals": [
            (name, check) for name, of_adapter in checks.items() for check in of_adapter
            if release_board.may_approve(actor, name, check)
        ],
        "failed": [adapter for adapter in failed if actor.may(Scope.PUSH, *adapter.name.split("/"))],
    }  # fmt: skip


# ------------------------------------------------------------------ what a text names exactly
def _find_exactly(session: Session, actor: Actor, text: str) -> list[tuple[str, str]]:
    """What the text names, and where that is; nothing for words to search."""
    if of_kind := [path for prefix, path in PAGES_OF_IDS.items() if text.startswith(prefix)]:
        return [(text, f"{of_kind[0]}/{quote(text)}")]
    try:
        return [(text, path_of_ref(session, actor, Ref.parse(text)))]
    except (Invalid, NotFound):
        matches = exact.find_versions(session, actor, text, limit=EXACT_SHOWN)
    return [(f"{name}@{number}", adapter_path(str(name), number)) for name, number in matches]


def path_of_ref(session: Session, actor: Actor, ref: Ref) -> str:
    """The page of an adapter, an alias or a version. `NotFound`."""
    if ref.selector == names.NEWEST:
        versions.find_adapter(session, actor, ref.name)
        return adapter_path(str(ref.name))
    row = versions.find(session, actor, ref.name, ref.selector)
    rest = f"aliases/{ref.selector}" if names.is_alias(ref.selector) else ""
    return adapter_path(str(ref.name), "" if rest else row.number, rest)


@router.get("/adapters")
@router.get("/namespaces")
def open_list() -> Response:
    """Lead to the first page, which lists both."""
    return redirect("/")


@router.get("/adapters/{namespace}")
def open_namespace(namespace: str) -> Response:
    """Lead to the page of a namespace."""
    return redirect(f"/namespaces/{names.namespace(namespace)}")


@router.get(ADAPTER + "@{selector}")
@router.get(ADAPTER + ":{selector}")
def open_ref(session: SessionDep, visitor: VisitorDep, namespace: str, name: str, selector: str) -> Response:
    """Lead to the page of what a reference names."""
    ref = Ref(AdapterName(namespace, name), names.selector(selector))
    return redirect(path_of_ref(session, visitor.actor, ref))


# ------------------------------------------------------------------ filters
def _search(filters: dict[str, str], profiles: list[str]) -> Search:
    """Return the filters as the catalog has them. `Invalid` for a check or an outcome that the form does not offer."""
    check, outcome = filters["check"], filters["outcome"]
    if check and check not in (*CHECKS, *profiles):
        raise Invalid("REQUEST_INVALID", f"check: this server searches {', '.join((*CHECKS, *profiles))}")
    if outcome and outcome not in set(Outcome):
        raise Invalid("REQUEST_INVALID", f"outcome: must be one of {', '.join(Outcome)}")
    if outcome and not check:
        raise Invalid("REQUEST_INVALID", f"outcome: choose the check that must have the outcome {outcome}")
    for key in ("rank_min", "rank_max"):
        if not re.fullmatch("[0-9]{0,9}", filters[key]):
            raise Invalid("REQUEST_INVALID", f"{key}: must be a number of at most 9 digits")
    used: dict[str, Any] = {name: value.strip() for name, value in filters.items() if value.strip()}
    used.pop("check", None)
    of_check = {"engine": check} if check in profiles else {"check": check or None}
    try:
        return Search(**used, **of_check)
    except ValidationError as e:
        raise Invalid("REQUEST_INVALID", ": ".join(first_problem(e, "search"))) from e
