"""Read the whole desired state of a base, page by page."""

from collections import Counter
from collections.abc import Sequence

from registry.api.serving import DesiredAdapter, DesiredState
from registry.client import response_checks
from registry.client.registry import Registry
from registry.client.transport import invalid_response
from registry.engines import settings as engine_settings
from registry.errors import TooLarge
from registry.names import AdapterName, distinguish_served_names, served_name

PAGE_ADAPTERS = 500
PAGES_LIMIT = 500
"""A registry that never ends its pages is refused after so many; 200 full ones list 100,000 adapters."""
FILES_LIMIT = 1_000_000
"""Files of all pages, which a node has in memory."""


def read(registry: Registry, base: str, alias: str, *, engine: str = "", namespace: str = "") -> DesiredState:
    """Return what the alias of every adapter points at, or of those of one namespace.

    An alias that moves while the pages are read may be listed with either version: the cursor is that of the first
    page, so the next request with it returns at once.
    """
    first = registry.desired_state(base, alias, engine=engine, limit=PAGE_ADAPTERS)
    state = _read_on(registry, base, alias, engine, first)
    if not namespace:
        return state
    adapters = [entry for entry in state.adapters if entry.name.partition("/")[0] == namespace]
    return state.model_copy(update={"adapters": adapters})


def read_next(
    registry: Registry, base: str, alias: str, *, since: str, wait: int, engine: str = ""
) -> DesiredState | None:
    """Return the state, as `read` does, once its cursor is not `since`; None if that is so after `wait` seconds."""
    first = registry.next_desired_state(base, alias, since=since, wait=wait, engine=engine, limit=PAGE_ADAPTERS)
    return _read_on(registry, base, alias, engine, first) if first is not None else None


def _read_on(registry: Registry, base: str, alias: str, engine: str, first: DesiredState) -> DesiredState:
    pages = [first]
    files = 0
    while after := pages[-1].next_after:
        files += sum(len(entry.files) for entry in pages[-1].adapters)
        if files > FILES_LIMIT:
            message = f"the desired state of '{base}' by the alias '{alias}' has more than {FILES_LIMIT} files"
            raise TooLarge("SIZE_INVALID", message, next_step="give fewer adapters this alias")
        if len(pages) >= PAGES_LIMIT or sum(len(page.adapters) for page in pages) > PAGES_LIMIT * PAGE_ADAPTERS:
            most = f"{PAGES_LIMIT} pages of {PAGE_ADAPTERS} adapters"
            raise invalid_response(f"the desired state of {base} goes on after {most}")
        if after in (page.next_after for page in pages[:-1]):
            raise invalid_response(f"the desired state of {base} has a page that continues at {after[:80]!r} again")
        pages.append(registry.desired_state(base, alias, engine=engine, after=after, limit=PAGE_ADAPTERS))
    return pages[0] if len(pages) == 1 else _combine(pages)


def _combine(pages: Sequence[DesiredState]) -> DesiredState:
    entries = [entry for page in pages for entry in page.adapters]
    counts = Counter(entry.name for entry in entries)
    if repeated := next((name for name, count in counts.items() if count > 1), ""):  # as by a server without pages
        raise invalid_response(f"two pages of the desired state list {repeated[:80]!r}")
    versions = [(entry.name, entry.digest) for entry in entries]
    names = distinguish_served_names([_plain_name(entry) for entry in entries], versions)
    ranks = sum((Counter(page.ranks) for page in pages), Counter[str]())
    settings = [page.settings for page in pages if page.settings is not None]
    return pages[0].model_copy(
        update={
            "adapters": [
                entry.model_copy(update={"served_name": name}) for entry, name in zip(entries, names, strict=True)
            ],
            "ranks": dict(sorted(ranks.items(), key=lambda item: (len(item[0]), item[0]))),
            "settings": engine_settings.combine(settings) if len(settings) == len(pages) else None,
            "next_after": "",
        }
    )


def _plain_name(entry: DesiredAdapter) -> str:
    """The served name without a digest; that of an entry that cannot be used stays as it is."""
    if response_checks.problem_of(entry):
        return entry.served_name
    return served_name(AdapterName.parse(entry.name), entry.number)
