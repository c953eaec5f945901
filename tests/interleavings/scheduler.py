"""A deterministic scheduler: of several tasks exactly one runs, and a seeded generator picks the next at each pause.

Equal seeds give equal runs, so a failure is repeated by its seed. A task pauses where the code under test calls
`pause`: before a transaction begins, at a failpoint, at each operation of the blob store. It never pauses inside a
transaction, because then it would hold locks that the others wait for. Tasks are greenlets of one thread: a switch
costs a hundredth of one between threads, and no other process delays it.

Half of the runs switch at random. In the others each task has a priority, the highest runs, and at a few random steps
the running task falls to the lowest (probabilistic concurrency testing, Burckhardt et al. 2010): that finds errors that
need a whole request between two steps of another, which random switching hardly ever makes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from greenlet import getcurrent, greenlet

CHANGES = 4
"""How often a run with priorities lowers the priority of the running task, at most."""
STEPS = 60
"""The steps among which these changes are chosen: about as many as a run has."""


@dataclass
class _Task:
    name: str
    greenlet: greenlet
    priority: float
    transactions: set[int] = field(default_factory=set)


class Scheduler:
    """Runs tasks one step at a time. `trace` has the task and the point of each step of the last run."""

    def __init__(self) -> None:
        self.trace: list[tuple[str, str]] = []
        self._random = random.Random()
        self._tasks: dict[greenlet, _Task] = {}
        self._errors: list[BaseException] = []
        self._changes: set[int] | None = None

    def run(self, seed: int, actions: Sequence[tuple[str, Callable[[], None]]]) -> None:
        """Run these named actions to their ends, interleaved as the seed says; raise the first error of any."""
        self._random = random.Random(seed)
        self.trace, self._errors = [], []
        tasks = [_Task(name, greenlet(partial(self._work, action)), self._random.random()) for name, action in actions]
        by_priority = self._random.random() < 0.5
        self._changes = set(self._random.sample(range(STEPS), CHANGES)) if by_priority else None
        self._tasks = {task.greenlet: task for task in tasks}
        while self._tasks:  # goes on here whenever a task has ended
            self._choose(list(self._tasks.values())).greenlet.switch()
        if self._errors:
            raise self._errors[0]

    def pause(self, point: str) -> None:
        """Let the generator pick who goes on. Does nothing outside of a task and inside a transaction."""
        task = self._tasks.get(getcurrent())
        if task is None or task.transactions:
            return
        self.trace.append((task.name, point))
        if self._changes and len(self.trace) in self._changes:
            task.priority = -len(self.trace)
        chosen = self._choose(list(self._tasks.values()))
        if chosen is not task:
            chosen.greenlet.switch()

    def wait(self) -> None:
        """Let the others go first, as a client does that tries again later."""
        if task := self._tasks.get(getcurrent()):
            task.priority = -len(self.trace)
        self.pause("wait")

    def begin_transaction(self, connection: object) -> None:
        """Do not pause until this connection's transaction has ended."""
        if task := self._tasks.get(getcurrent()):
            task.transactions.add(id(connection))

    def end_transaction(self, connection: object) -> None:
        """This connection holds no locks any more."""
        if task := self._tasks.get(getcurrent()):
            task.transactions.discard(id(connection))

    def _choose(self, tasks: list[_Task]) -> _Task:
        if self._changes is None:
            return self._random.choice(tasks)
        return max(tasks, key=lambda task: task.priority)

    def _work(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            self._errors.append(error)
        finally:
            del self._tasks[getcurrent()]
