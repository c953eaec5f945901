"""The search page: filters and adapters, page by page. It is also the first page.

No total is shown: a page says how many adapters it lists, and whether others follow.
"""

import re
from typing import Annotated, Any

from fastapi import Query, Request, Response

from registry.adapters.formats import FORMATS
from registry.adapters.methods import METHODS
from registry.errors import Invalid, RegistryError
from registry.evaluation.verdicts import PROFILE_LIMIT, Check, Outcome
from registry.server.catalog.search import adapters
from registry.server.catalog.search.filters import Search
from registry.server.evaluation import engine_profiles
from registry.server.http.dependencies import CursorDep, SessionDep, SettingsDep, Text
from registry.server.pages.rendering import create_router, render
from registry.server.pages.sessions.visitors import VisitorDep

router = create_router()
PAGE_ADAPTERS = 25
CHECKS = (Check.COMPAT, Check.WEIGHTS, Check.SMOKE)
CheckText = Annotated[str, Query(max_length=PROFILE_LIMIT)]


@router.get("/")
@router.get("/search")
def show_search(
    request: Request,
    session: SessionDep,
    visitor: VisitorDep,
    settings: SettingsDep,
    cursor: CursorDep,
    text: Text = "",
    namespace: Text = "",
    base: Text = "",
    method: Text = "",
    format: Text = "",
    rank_min: Text = "",
    rank_max: Text = "",
    check: CheckText = "",
    outcome: Text = "",
    alias: Text = "",
    owner: Text = "",
) -> Response:
    """Show the adapters that match, by name. A form sends its empty fields too: they do not filter."""
    filters = {
        "text": text, "namespace": namespace, "base": base, "method": method, "format": format, "rank_min": rank_min,
        "rank_max": rank_max, "check": check, "outcome": outcome, "alias": alias, "owner": owner,
    }  # fmt: skip
    profiles = [str(profile) for profile in engine_profiles.parse_setting(settings.engines)]
    choices: dict[str, Any] = {
        "methods": sorted(METHODS), "formats": sorted(FORMATS), "checks": [*CHECKS, *profiles],
        "outcomes": list(Outcome),
    }  # fmt: skip
    status, problem, items, next_cursor = 200, None, [], ""
    try:
        page = adapters.search_adapters(
            session, visitor.actor, _search(filters, profiles), cursor=cursor, limit=PAGE_ADAPTERS
        )
    except RegistryError as e:  # such as a base that has a space in its name: the form stays as it was filled in
        status, problem = 422, e
    else:
        items, next_cursor = page.items, page.next_cursor
    used = sum(1 for key, value in filters.items() if value and key != "text")
    return render(
        request, "search.html", status, title=f"{text} · Search" if text else "Adapters", filters=filters, used=used,
        items=items, cursor=cursor, next_cursor=next_cursor, page_size=PAGE_ADAPTERS, problem=problem,
        **choices,
    )  # fmt: skip


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
    numbers: dict[str, Any] = {key: int(filters[key]) if filters[key] else None for key in ("rank_min", "rank_max")}
    return Search(
        text=filters["text"].strip(), namespace=filters["namespace"].strip(), base=filters["base"].strip(),
        method=filters["method"], format=filters["format"], alias=filters["alias"].strip(),
        owner=filters["owner"].strip(),
        engine=check if check in profiles else "",
        check=Check(check) if check in CHECKS else None,
        outcome=Outcome(outcome) if outcome else None,
        **numbers,
    )  # fmt: skip
