"""The items of a bulk request: each ends with its own result, or with the error that it alone has.

Every step takes the outcomes of the step before and leaves errors where they are, so outcomes stay in the order of the
request: read each item, load for all, decide each, write for all.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from registry.errors import Conflict, RegistryError

Item = TypeVar("Item")
Result = TypeVar("Result")


def collect_outcomes(
    items: Iterable[Item | RegistryError], act: Callable[[Item], Result]
) -> list[Result | RegistryError]:
    """Act on each item that has no error yet; return its result, or the error that it has or gets now, in order."""
    outcomes: list[Result | RegistryError] = []
    for item in items:
        if isinstance(item, RegistryError):
            outcomes.append(item)
            continue
        try:
            outcomes.append(act(item))
        except RegistryError as e:
            outcomes.append(e)
    return outcomes


def results_of(outcomes: Iterable[Result | RegistryError]) -> list[Result]:
    """The results, without the errors."""
    return [outcome for outcome in outcomes if not isinstance(outcome, RegistryError)]


def only(outcomes: Sequence[Result | RegistryError]) -> Result:
    """The result of a group of one. Raises its error."""
    (outcome,) = outcomes
    if isinstance(outcome, RegistryError):
        raise outcome
    return outcome


def has_error(outcomes: Iterable[Any]) -> bool:
    """Whether one of the outcomes is an error."""
    return any(isinstance(outcome, RegistryError) for outcome in outcomes)


def all_or_none(outcomes: Sequence[Result | RegistryError]) -> list[Result | RegistryError]:
    """The outcomes of an atomic group: the error of one is an error of all."""
    return [*fail_incomplete(outcomes)] if has_error(outcomes) else list(outcomes)


def fail_incomplete(outcomes: Sequence[Any]) -> list[RegistryError]:
    """Errors for all items of a group in which one has an error."""
    failed = next((position for position, outcome in enumerate(outcomes) if isinstance(outcome, RegistryError)), 0)
    return fail_all(outcomes, f"item {failed} has an error")


def fail_all(outcomes: Iterable[Any], reason: str) -> list[RegistryError]:
    """`Conflict` (COMMIT_INCOMPLETE) for each outcome that is no error."""
    incomplete = Conflict("COMMIT_INCOMPLETE", f"nothing was changed, because {reason}")
    return [outcome if isinstance(outcome, RegistryError) else incomplete for outcome in outcomes]
