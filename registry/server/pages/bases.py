"""The pages of base models: a list, and one base with its relatives, its adapters and engine settings."""

from fastapi import Request, Response

from registry.server.catalog import bases, conclusions
from registry.server.catalog.search import adapters
from registry.server.catalog.search.filters import Search
from registry.server.evaluation import engine_compat, engine_profiles
from registry.server.http.dependencies import CursorDep, SessionDep, SettingsDep
from registry.server.jobs import campaigns
from registry.server.pages.rendering import create_router, render
from registry.server.pages.sessions.visitors import SignedInDep

router = create_router()
PAGE_BASES = 50
ADAPTERS_SHOWN = 20
MODULES_SHOWN = 200
SETTINGS_ADAPTERS = 200
"""For how many adapters a page shows engine settings: they are computed from the facts of each."""


@router.get("/bases")
def show_bases(request: Request, session: SessionDep, visitor: SignedInDep, cursor: CursorDep) -> Response:
    """Show the base models by name."""
    page = bases.list_bases(session, visitor.actor, cursor=cursor, limit=PAGE_BASES)
    return render(request, "bases.html", title="Base models", bases=page, cursor=cursor)


@router.get("/bases/{base:path}")
def show_base(
    request: Request, session: SessionDep, visitor: SignedInDep, settings: SettingsDep, base: str
) -> Response:
    """Show one base model."""
    view = bases.show(session, visitor.actor, base)
    page = adapters.search_adapters(session, visitor.actor, Search(base=view.name), limit=ADAPTERS_SHOWN)
    profiles = [str(profile) for profile in engine_profiles.parse_setting(settings.engines)]
    engines = None
    if profiles:
        engines = engine_compat.settings_for_base(session, visitor.actor, view.name, profiles, limit=SETTINGS_ADAPTERS)
    return render(
        request, "base.html", title=view.name, base=view, adapters=page, engines=engines,
        conclusions=conclusions.conclude_adapters(session, page.items),
        campaigns=campaigns.list_newest(session, visitor.actor, view.name),
        modules=list(view.spec.modules.items())[:MODULES_SHOWN],
    )  # fmt: skip
