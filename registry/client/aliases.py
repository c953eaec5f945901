"""`Aliases`: the routes of `Versions` (core.py) and those of aliases, for commands that import little.

`Groups`: the routes about many adapters. Each item has its own outcome, unless a request is atomic.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from registry.api import GROUP_LIMIT, aliases
from registry.api.aliases import (
    AliasList,
    AliasMove,
    AliasView,
    ApprovalView,
    History,
    NamespaceHistory,
    PromoteRequest,
    RollbackRequest,
)
from registry.api.operations import aliases as operations
from registry.api.operations.operation import Operation
from registry.client.core import Name, Versions, parsed_name
from registry.client.response_checks import check_description, check_fields, check_item, check_outcomes, ref_of
from registry.errors import Invalid, NotFound, RegistryError


class Aliases(Versions):
    """The routes of a push and a pull, and of aliases."""

    def aliases(self, name: Name) -> AliasList:
        """Return the aliases of an adapter."""
        return self.call(operations.LIST_ALIASES, about=parsed_name(name))

    def alias(self, name: Name, alias: str) -> AliasView:
        """Return one alias."""
        return self.call(operations.SHOW_ALIAS, about=parsed_name(name), alias=alias)

    def generation(self, name: Name, alias: str) -> int:
        """The generation of an alias; 0 for one that does not exist."""
        try:
            return self.alias(name, alias).generation
        except NotFound as e:
            if e.code != "ALIAS_UNKNOWN":
                raise
            return 0

    def promote(
        self, name: Name, alias: str, version: str, *, generation: int, reason: str = "", break_glass: bool = False,
        create_alias: bool = False,
    ) -> AliasView:  # fmt: skip
        """Point `alias` at `version` (a selector) if it still is at `generation`; 0 means that it must be new."""
        request = PromoteRequest(version=version, reason=reason, break_glass=break_glass, create_alias=create_alias)
        return self.call(
            operations.PROMOTE_ALIAS, request, about=parsed_name(name), repeats=ref_of(str(name), version),
            headers={"If-Match": f'"{generation}"'}, alias=alias,
        )  # fmt: skip

    def rollback(self, name: Name, alias: str, *, to: str = "", reason: str = "") -> AliasView:
        """Move an alias back to the version before."""
        request, target = RollbackRequest(to=to, reason=reason), ref_of(str(name), to) if to else None
        return self.call(operations.ROLLBACK_ALIAS, request, about=parsed_name(name), repeats=target, alias=alias)

    def delete_alias(
        self, name: Name, alias: str, *, generation: int, reason: str = "", force: bool = False, dry_run: bool = False
    ) -> AliasMove:
        """Delete an alias if it still is at `generation`. `force`: although nodes serve the adapter by it."""
        response = self.call(
            operations.DELETE_ALIAS, about=parsed_name(name), headers={"If-Match": f'"{generation}"'}, alias=alias,
            reason=reason, force=force or None, dry_run=dry_run,
        )  # fmt: skip
        return check_fields(response, generation=generation + 1)

    def history(self, name: Name, *, alias: str = "", at: datetime | None = None, cursor: str = "") -> History:
        """Return the moves of an alias, newest first."""
        moment = at.isoformat() if at else ""
        return self.call(operations.SHOW_HISTORY, about=parsed_name(name), alias=alias, at=moment, cursor=cursor)

    def namespace_history(
        self, namespace: str, *, alias: str = "", at: datetime | None = None, cursor: str = ""
    ) -> NamespaceHistory:
        """Return the moves of all adapters of a namespace; with `at`, the one of each alias that was in effect then."""
        moment = at.isoformat() if at else ""
        return self.call(operations.SHOW_NAMESPACE_HISTORY, namespace=namespace, alias=alias, at=moment, cursor=cursor)


check_move = partial(check_item, operations.MOVE_ALIASES)


class Groups(Versions):
    """The routes about many adapters, over the connection of `registry`. All changes of one object are one group."""

    def __init__(self, registry: Versions) -> None:
        super().__init__(registry.url, connection=registry.connection)
        self.group_id = ""
        """Id of the group of the changes so far; empty before the first."""

    def move_aliases(
        self, items: Sequence[aliases.MoveItem], *, atomic: bool = False, dry_run: bool = False
    ) -> list[aliases.MovedAlias | RegistryError]:
        """Move aliases of many adapters; return where each points then, or its error, in the same order."""
        return self._in_groups(operations.MOVE_ALIASES, items, check_move, atomic=atomic, dry_run=dry_run)

    def change_together(
        self, moves: Sequence[aliases.MoveItem], metadata: Sequence[aliases.DescribeItem]
    ) -> tuple[list[aliases.MovedAlias | RegistryError], list[aliases.DescribedSubject | RegistryError]]:
        """Move aliases and change metadata, all or nothing in one transaction; return the outcomes of both."""
        if not moves:
            return [], self.change_metadata(metadata, atomic=True) if metadata else []
        _require_group(moves)
        _require_group(metadata)
        request = aliases.MoveGroup(
            items=tuple(moves), metadata=tuple(metadata), atomic=True, group_id=self.group_id
        )  # fmt: skip
        results = self.call(operations.MOVE_ALIASES, request)
        outcomes = (
            check_outcomes(moves, results.items, check_move),
            check_outcomes(metadata, results.metadata, check_description),
        )
        if not any(isinstance(outcome, RegistryError) for of_kind in outcomes for outcome in of_kind):
            self.group_id = results.group_id
        return outcomes

    def approve_versions(
        self, items: Sequence[aliases.ApproveItem], *, atomic: bool = False, dry_run: bool = False
    ) -> list[ApprovalView | RegistryError]:
        """Approve many versions; return the approvals or errors, in the same order."""
        check = partial(check_item, operations.APPROVE_VERSIONS)
        return self._in_groups(operations.APPROVE_VERSIONS, items, check, atomic=atomic, dry_run=dry_run)

    def change_metadata(
        self, items: Sequence[aliases.DescribeItem], *, atomic: bool = False, dry_run: bool = False
    ) -> list[aliases.DescribedSubject | RegistryError]:
        """Describe many adapters and versions; return what each has then or its error, in the same order."""
        return self._in_groups(operations.CHANGE_METADATA, items, check_description, atomic=atomic, dry_run=dry_run)

    def moves(
        self, *, group_id: str = "", namespace: str = "", alias: str = "", by: str = "", since: datetime | None = None,
        cursor: str = "",
    ) -> aliases.MovePage:  # fmt: skip
        """Return the moves of a group of changes, or since a time in a namespace, newest first."""
        at = since.isoformat() if since else ""
        return self.call(
            operations.LIST_MOVES, group_id=group_id, namespace=namespace, alias=alias, by=by, since=at, cursor=cursor,
        )  # fmt: skip

    def _in_groups(
        self, operation: Operation[Any, Any], items: Sequence[Any], check: Callable[[Any, Any], None], *, atomic: bool,
        dry_run: bool,
    ) -> list[Any]:  # fmt: skip
        if atomic:
            _require_group(items)
        outcomes: list[Any] = []
        for start in range(0, len(items), GROUP_LIMIT):
            group = tuple(items[start : start + GROUP_LIMIT])
            continued = "" if dry_run else self.group_id
            request = operation.request(items=group, atomic=atomic, dry_run=dry_run, group_id=continued)
            results = self.call(operation, request)
            self.group_id = results.group_id or self.group_id
            outcomes += check_outcomes(group, results.items, check)
        return outcomes


def _require_group(items: Sequence[Any]) -> None:
    if len(items) > GROUP_LIMIT:
        message = f"{len(items)} items are over the limit of {GROUP_LIMIT} for all or nothing"
        raise Invalid("REQUEST_INVALID", message, next_step="select fewer adapters")
