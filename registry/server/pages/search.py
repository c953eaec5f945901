"""The search page: filters and adapters, page by page. It is also the first page.

No total is shown: a page says how many adapters it lists, and whether others follow.
"""

import re
from typing import Any

from fastapi import Request, Response
from pydantic import ValidationError

from registry.adapters.formats import FORMATS
from registry.adapters.methods import METHODS
from registry.errors import Invalid, RegistryError
from registry.evaluation.verdicts import Check, Outcome
from registry.server.catalog.search import adapters
from registry.server.catalog.search.filters import Search
from registry.server.evaluation import engine_profiles
from registry.server.http.dependencies import CursorDep, SessionDep, SettingsDep
from registry.server.pages.rendering import create_router, render
from registry.server.pages.sessions.visitors import VisitorDep
from registry.validation import first_problem

router = create_router()
PAGE_ADAPTERS = 25
CHECKS = (Check.COMPAT, Check.WEIGHTS, Check.SMOKE)
FIELDS = (
    "text", "namespace", "base", "method", "format", "rank_min", "rank_max", "check", "outcome", "alias", "owner",
)  # fmt: skip
"""The filters of the form, and the check that must have an outcome."""


@router.get("/")
@router.get("/search")
def show_search(
    request: Request,
    session: SessionDep,
    visitor: VisitorDep,
    settings: SettingsDep,
    cursor: CursorDep,
) -> Response:
    """Show the adapters that match, by name. A form sends its empty fields too: they do not filter."""
    filters = {name: request.query_params.get(name, "") for name in FIELDS}
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
    used, text = sum(1 for key, value in filters.items() if value and key != "text"), filters["text"]
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
    used: dict[str, Any] = {name: value.strip() for name, value in filters.items() if value.strip()}
    used.pop("check", None)
    of_check = {"engine": check} if check in profiles else {"check": check or None}
    try:
        return Search(**used, **of_check)
    except ValidationError as e:
        raise Invalid("REQUEST_INVALID", ": ".join(first_problem(e, "search"))) from e
