"""`Aliases`: the routes of `Versions` (core.py) and those of aliases, for commands that import little.

`Groups`: the routes about many adapters. Each item has its own outcome, unless a request is atomic.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from registry import names
from registry.api import GROUP_LIMIT, aliases
from registry.api.aliases import AliasList, AliasMove, AliasView, ApprovalView, History, PromoteRequest, RollbackRequest
from registry.client import response_checks
from registry.client.core import Name, Versions, path_of_adapter
from registry.errors import Denied, Invalid, NotFound, RegistryError


class Aliases(Versions):
    """The routes of a push and a pull, and of aliases."""

    def aliases(self, name: Name) -> AliasList:
        """Return the aliases of an adapter."""
        return self._get(f"{path_of_adapter(name)}/aliases", AliasList)

    def alias(self, name: Name, alias: str) -> AliasView:
        """Return one alias."""
        return response_checks.check_alias(alias, self._get(_path_of_alias(name, alias), AliasView))

    def generation(self, name: Name, alias: str) -> int:
        """The generation of an alias; 0 for one that does not exist."""
        try:
            return self.alias(name, alias).generation
        except NotFound as e:
            if e.code != "ALIAS_UNKNOWN":
                raise
            return 0

    def promote(
        self, name: Name, alias: str, version: str, *, generation: int, reason: str = "", break_glass: bool = False
    ) -> AliasView:
        """Point `alias` at `version` (a selector) if it still is at `generation`; 0 means that it must be new."""
        request = PromoteRequest(version=version, reason=reason, break_glass=break_glass)
        headers = {"If-Match": f'"{generation}"'}
        response = self._send("PUT", _path_of_alias(name, alias), AliasView, request, headers=headers)
        return response_checks.check_alias(alias, response, response_checks.ref_of(str(name), version))

    def check_right_to_move(self, name: Name, alias: str, version: str) -> None:
        """`Denied` if the token may not move the alias. Nothing changes, and a closed gate is no error."""
        item = aliases.MoveItem(name=str(name), alias=alias, version=version)
        [outcome] = Groups(self).move_aliases([item], dry_run=True)
        if isinstance(outcome, Denied):
            raise outcome

    def rollback(self, name: Name, alias: str, *, to: str = "", reason: str = "") -> AliasView:
        """Move an alias back to the version before."""
        request = RollbackRequest(to=to, reason=reason)
        response = self._post(f"{_path_of_alias(name, alias)}/rollback", request, AliasView)
        ref = response_checks.ref_of(str(name), to) if to else None
        return response_checks.check_alias(alias, response, ref)

    def delete_alias(
        self, name: Name, alias: str, *, generation: int, reason: str = "", force: bool = False
    ) -> AliasMove:
        """Delete an alias if it still is at `generation`. `force`: although nodes serve the adapter by it."""
        headers, query = {"If-Match": f'"{generation}"'}, {"reason": reason, "force": "true" if force else ""}
        response = self._send("DELETE", _path_of_alias(name, alias), AliasMove, headers=headers, query=query)
        return response_checks.check_fields(
            response, alias=alias, generation=generation + 1, number=None, reason=reason
        )

    def history(self, name: Name, *, alias: str = "", at: datetime | None = None, cursor: str = "") -> History:
        """Return the moves of an alias, newest first."""
        moment = at.isoformat() if at else ""
        response = self._get(f"{path_of_adapter(name)}/history", History, alias=alias, at=moment, cursor=cursor)
        for move in response.moves if alias else ():
            response_checks.check_fields(move, alias=alias)
        return response_checks.check_fields(response, name=str(name))


def _path_of_alias(name: Name, alias: str) -> str:
    return f"{path_of_adapter(name)}/aliases/{names.alias(alias)}"


class Groups(Versions):
    """The routes about many adapters, over the connection of `registry`."""

    def __init__(self, registry: Versions) -> None:
        super().__init__(registry.url, connection=registry.connection)

    def move_aliases(
        self, items: Sequence[aliases.MoveItem], *, atomic: bool = False, dry_run: bool = False
    ) -> list[aliases.MovedAlias | RegistryError]:
        """Move aliases of many adapters; return where each points then, or its error, in the same order."""
        schemas = (aliases.MoveGroup, aliases.MoveResults)
        return self._in_groups("/moves", *schemas, items, response_checks.check_move, atomic=atomic, dry_run=dry_run)

    def change_together(
        self, moves: Sequence[aliases.MoveItem], metadata: Sequence[aliases.DescribeItem]
    ) -> tuple[list[aliases.MovedAlias | RegistryError], list[aliases.DescribedSubject | RegistryError]]:
        """Move aliases and change metadata, all or nothing in one transaction; return the outcomes of both."""
        if not moves:
            return [], self.change_metadata(metadata, atomic=True) if metadata else []
        _require_group(moves)
        _require_group(metadata)
        request = aliases.MoveGroup(items=tuple(moves), metadata=tuple(metadata), atomic=True)
        results = self._post("/moves", request, aliases.MoveResults)
        return (
            response_checks.check_outcomes(moves, results.items, response_checks.check_move),
            response_checks.check_outcomes(metadata, results.metadata, response_checks.check_description),
        )

    def approve_versions(
        self, items: Sequence[aliases.ApproveItem], *, atomic: bool = False, dry_run: bool = False
    ) -> list[ApprovalView | RegistryError]:
        """Approve many versions; return the approvals or errors, in the same order."""
        schemas = (aliases.ApprovalGroup, aliases.ApprovalResults)
        return self._in_groups(
            "/approvals", *schemas, items, response_checks.check_approval, atomic=atomic, dry_run=dry_run
        )

    def change_metadata(
        self, items: Sequence[aliases.DescribeItem], *, atomic: bool = False, dry_run: bool = False
    ) -> list[aliases.DescribedSubject | RegistryError]:
        """Describe many adapters and versions; return what each has then or its error, in the same order."""
        schemas = (aliases.DescribeGroup, aliases.DescribeResults)
        return self._in_groups(
            "/metadata", *schemas, items, response_checks.check_description, atomic=atomic, dry_run=dry_run
        )

    def _in_groups(
        self, path: str, request: Any, response: Any, items: Sequence[Any], check: Callable[[Any, Any], None], *,
        atomic: bool, dry_run: bool,
    ) -> list[Any]:  # fmt: skip
        if atomic:
            _require_group(items)
        outcomes: list[Any] = []
        for start in range(0, len(items), GROUP_LIMIT):
            group = tuple(items[start : start + GROUP_LIMIT])
            results = self._post(path, request(items=group, atomic=atomic, dry_run=dry_run), response)
            outcomes += response_checks.check_outcomes(group, results.items, check)
        return outcomes


def _require_group(items: Sequence[Any]) -> None:
    if len(items) > GROUP_LIMIT:
        message = f"{len(items)} items are over the limit of {GROUP_LIMIT} for all or nothing"
        raise Invalid("REQUEST_INVALID", message, next_step="select fewer adapters")
