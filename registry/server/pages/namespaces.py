"""The page of a namespace, its release board: which version each alias has, and what may be approved or promoted."""

from collections.abc import Mapping, Sequence

from fastapi import Request, Response
from sqlmodel import Session

from registry import names
from registry.api.aliases import GateCheck, PromoteRequest
from registry.api.catalog import AdapterPage
from registry.errors import Invalid, RegistryError
from registry.evaluation.conclusions import Conclusion
from registry.evaluation.verdicts import Outcome
from registry.names import AdapterName, Ref
from registry.roles import Scope
from registry.server.access import namespaces
from registry.server.actors import Actor, unknown_namespace
from registry.server.catalog import conclusions
from registry.server.catalog.search import adapters
from registry.server.catalog.search.filters import Search
from registry.server.http.dependencies import NAMESPACE, CursorDep, SessionDep
from registry.server.http.request_body import limit_body
from registry.server.pages.rendering import create_router, redirect, render
from registry.server.pages.sessions.forms import FORM_BYTES, may_change, read_fields, to_request
from registry.server.pages.sessions.visitors import SignedInDep, Visitor, VisitorDep
from registry.server.promotion import approvals, gates, moves, release_board
from registry.server.promotion.approvals import NewApproval
from registry.server.promotion.move_decisions import Move

router = create_router()
PAGE_ADAPTERS = 50
NOT_CHOSEN = ("reason", "change")
"""The fields of the form that are no choice of an alias."""


@router.get(NAMESPACE)
def show_namespace(
    request: Request, session: SessionDep, visitor: VisitorDep, namespace: str, cursor: CursorDep
) -> Response:
    """Show where the aliases of all adapters of a namespace point, each with its conclusion."""
    actor = visitor.actor
    if not actor.may(Scope.PULL, names.namespace(namespace)):
        raise unknown_namespace(namespace)
    page = adapters.search_adapters(
        session, actor, Search(namespace=namespace), cursor=cursor, limit=PAGE_ADAPTERS, count=True
    )
    if not page.items:
        namespaces.show(session, actor, namespace)  # raises if there is no such namespace
    rules = gates.list_gates(session, actor, namespace).items if visitor.signed_in else []
    checks = release_board.check_newest(session, actor, page.items) if visitor.signed_in else {}
    columns = release_board.choose_columns(page.items, [rule.alias for rule in rules])
    concluded = conclusions.conclude_adapters(session, page.items)
    return render(
        request, "namespace.html", title=namespace, namespace=namespace, adapters=page, cursor=cursor, checks=checks,
        columns=columns, rules=rules, conclusions=concluded, summary=_summarize(page, columns, concluded),
        generations=release_board.read_generations(session, page.items),
        choices={name: _choices(visitor, name, of_adapter) for name, of_adapter in checks.items()},
    )  # fmt: skip


def _summarize(page: AdapterPage, columns: list[str], concluded: Mapping[tuple[str, int], Conclusion]) -> str:
    """How many adapters there are, and of those on the page how many are released, behind, and failing."""
    failing = sum(concluded[adapter.name, adapter.newest].outcome is Outcome.FAIL for adapter in page.items)
    parts = [
        f"{page.total if page.total is not None else 'many'} adapters",
        f"of {len(page.items)} here {failing} failing",
    ]
    for alias in columns[:1]:
        numbers = [(adapter.aliases[alias], adapter.newest) for adapter in page.items if alias in adapter.aliases]
        behind = sum(number != newest for number, newest in numbers)
        parts.append(f"{len(numbers)} in {alias}, {behind} of them behind the newest")
    return " · ".join(parts)


def _choices(visitor: Visitor, adapter: str, checks: list[GateCheck]) -> set[str]:
    """The aliases for which this visitor may promote or approve the newest version of an adapter now."""
    name = AdapterName.parse(adapter)
    return {
        check.alias
        for check in checks
        if may_change(visitor, Scope.PROMOTE, name, check.alias)
        and (check.open or release_board.may_approve(visitor.actor, adapter, check))
    }


@router.post(NAMESPACE + "/releases")
@limit_body(FORM_BYTES)
def release_versions(request: Request, session: SessionDep, visitor: SignedInDep, namespace: str) -> Response:
    """Approve or promote the versions that were chosen, all or none, if their aliases are where the page showed them.

    A choice is `NAME:ALIAS` with the number of the version and the generation of the alias.
    """
    fields = read_fields(request, visitor)
    reason = to_request(PromoteRequest, version="1", reason=fields.get("reason", "")).reason
    releases = [_read_choice(namespace, key, text) for key, text in fields.items() if key not in NOT_CHOSEN]
    if not releases:
        raise Invalid("REQUEST_INVALID", "choose the versions first, in the column for what is newest")
    change = _approve if fields.get("change") == "approve" else _promote
    change(session, visitor.actor, releases, reason)
    return redirect(f"/namespaces/{namespace}")


_Choice = tuple[Ref, str, int]
"""A version, the alias that it is for, and the generation of that alias."""


def _read_choice(namespace: str, key: str, text: str) -> _Choice:
    name, _, alias = key.partition(":")
    number, _, generation = text.partition(".")
    if not (generation.isascii() and generation.isdigit() and len(generation) < 10):
        raise Invalid("REQUEST_INVALID", "generation: must be the one that the page has shown")
    return Ref(AdapterName(namespace, name), names.selector(number)), names.alias(alias), int(generation)


def _approve(session: Session, actor: Actor, releases: list[_Choice], reason: str) -> None:
    new = [NewApproval(ref, alias, reason) for ref, alias, _ in releases]
    _raise_first(approvals.approve(session, actor, new))


def _promote(session: Session, actor: Actor, releases: list[_Choice], reason: str) -> None:
    requested = [
        Move(ref.name, alias, ref.selector, generation, reason, creates_alias=True)
        for ref, alias, generation in releases
    ]
    _raise_first(moves.move_aliases(session, actor, requested))


def _raise_first(outcomes: Sequence[object]) -> None:
    """Raise the first error, which undoes the others with this transaction."""
    for outcome in outcomes:
        if isinstance(outcome, RegistryError):
            raise outcome
