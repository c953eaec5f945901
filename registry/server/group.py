"""The members of a bulk request: each has its own outcome. An error of one ends that one only."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from registry.errors import Conflict, RegistryError


class Member:
    """One member of a group. A subclass has its `result`."""

    error: RegistryError | None = None
    """Why this member ended without a result."""

    @contextmanager
    def collect_error(self) -> Iterator[None]:
        """A block whose error becomes the error of this member."""
        try:
            yield
        except RegistryError as e:
            self.error = e


Result = TypeVar("Result")
MemberType = TypeVar("MemberType", bound=Member)


def without_error(members: Iterable[MemberType]) -> list[MemberType]:
    """Those members that have no error yet."""
    return [member for member in members if member.error is None]


def only(outcomes: Sequence[Result | RegistryError]) -> Result:
    """The result of a group of one. Raises its error."""
    (outcome,) = outcomes
    if isinstance(outcome, RegistryError):
        raise outcome
    return outcome


def results_of(members: Sequence[Any], *, atomic: bool) -> list[Any]:
    """The result of each member or its error, in order. `atomic`: one error is the error of all.

    `Conflict` (COMMIT_INCOMPLETE) for those that have no error of their own.
    """
    failed = next((position for position, member in enumerate(members) if member.error is not None), None)
    if atomic and failed is not None:
        incomplete = Conflict("COMMIT_INCOMPLETE", f"nothing was changed, because item {failed} has an error")
        return [member.error or incomplete for member in members]
    return [member.result if member.error is None else member.error for member in members]
