"""The members of a bulk request: each has its own outcome. An error of one ends that one only."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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


Item = TypeVar("Item")


def run_readable(
    items: Sequence[Item],
    read: Callable[[Item], MemberType],
    run: Callable[[Sequence[MemberType]], Sequence[Any]],
    *,
    atomic: bool,
) -> list[Any]:
    """Read each item as a member and run those that can be read; return the outcome of each item, in order."""
    errors: dict[int, RegistryError] = {}
    readable: list[MemberType] = []
    for position, item in enumerate(items):
        try:
            readable.append(read(item))
        except RegistryError as e:
            errors[position] = e
    if atomic and errors:
        return [errors.get(position) or _incomplete(min(errors)) for position in range(len(items))]
    outcomes = iter(run(readable) if readable else ())
    return [errors.get(position) or next(outcomes) for position in range(len(items))]


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
        return [member.error or _incomplete(failed) for member in members]
    return [member.result if member.error is None else member.error for member in members]


def has_error(outcomes: Sequence[Any]) -> bool:
    """Whether one of the outcomes is an error."""
    return any(isinstance(outcome, RegistryError) for outcome in outcomes)


def fail_all(outcomes: Sequence[Any], failed: str) -> list[RegistryError]:
    """`Conflict` (COMMIT_INCOMPLETE) for each outcome that is no error, because those of `failed` have one."""
    incomplete = Conflict("COMMIT_INCOMPLETE", f"nothing was changed, because one of the {failed} has an error")
    return [outcome if isinstance(outcome, RegistryError) else incomplete for outcome in outcomes]


def _incomplete(failed: int) -> Conflict:
    return Conflict("COMMIT_INCOMPLETE", f"nothing was changed, because item {failed} has an error")
