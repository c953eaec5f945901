"""The members of a bulk request: each has its own outcome. An error of one ends that one only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from registry.errors import RegistryError


class Member:
    """One member of a group."""

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
