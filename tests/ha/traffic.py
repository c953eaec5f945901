"""Traffic on a cluster while a test disturbs it, and what must hold afterwards.

- `promote` moves one alias by compare-and-swap from several threads; what was acknowledged is remembered.
- `violations` compares that with the history, the numbers of the events, and a deep check.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from registry.api.bases import BaseAdd
from registry.api.maintenance import FsckRequest
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.client.transfer import push as pushing
from registry.errors import Conflict, RegistryError
from registry.names import AdapterName
from tests import samples
from tests.base_specs import spec_of
from tests.ha.cluster import Cluster

BASE = samples.llama()
NAME = "acme/support"
ALIAS = "canary"
PROMOTERS = 3


@dataclass
class Traffic:
    """What clients of a cluster did: acknowledged generations of the alias, acknowledged pushes, errors."""

    cluster: Cluster
    folder: Path
    generations: list[int] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    progress: threading.Condition = field(default_factory=threading.Condition)

    def prepare(self) -> None:
        """Register the base, push two versions, and point the alias at the first."""
        with self.cluster.client() as client:
            client.add_base(BaseAdd(spec=spec_of(BASE), source=""))
            for seed in range(2):
                self.push(NAME, seed)
            self.generations.append(client.promote(NAME, ALIAS, "1", generation=0).generation)

    def push(self, name: str, seed: int) -> None:
        """Push an adapter through the proxy."""
        folder = self.folder / f"{name.replace('/', '-')}-{seed}"
        samples.write(samples.lora(BASE, seed=seed), folder)
        with self.cluster.client() as client:
            result = pushing.push_folder(client, folder, AdapterName.parse(name), base=BASE.name)
        self.pushed.append(f"{result.version.name}@{result.version.number}")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Promote in this block, from several threads."""
        ended = threading.Event()
        threads = [threading.Thread(target=self._promote, args=[ended]) for _ in range(PROMOTERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def wait_for_promotes(self, count: int, *, seconds: float = 120) -> None:
        """Wait until this many more promotes were acknowledged."""
        with self.progress:
            goal = len(self.generations) + count
            reached = self.progress.wait_for(lambda: len(self.generations) >= goal, seconds)
        assert reached, f"{len(self.generations)} of {goal} promotes; errors: {self.errors[-3:]}"

    def _promote(self, ended: threading.Event) -> None:
        with self.cluster.client() as client:
            while not ended.is_set():
                try:
                    generation = client.alias(NAME, ALIAS).generation
                    version = client.version(f"{NAME}@{1 + generation % 2}")
                    moved = client.promote(NAME, ALIAS, version.digest, generation=generation)
                except Conflict:
                    continue
                except RegistryError as error:
                    self.errors.append(f"{error.code}: {error.detail}")
                    continue
                with self.progress:
                    self.generations.append(moved.generation)
                    self.progress.notify_all()

    def violations(self) -> list[str]:
        """What was acknowledged and is not there, gaps of the log, and findings of a deep check."""
        problems = []
        twice = [generation for generation, count in Counter(self.generations).items() if count > 1]
        if twice:
            problems.append(f"generations {twice} were given twice")
        with self.cluster.client() as client:
            history = _generations(client)
            if history != list(range(1, len(history) + 1)):
                problems.append(f"the history has a gap: {history}")
            problems += [f"generation {g} was acknowledged and is lost" for g in set(self.generations) - set(history)]
            numbers = [event.seq for event in Audit(client).events()]
            if sorted(numbers) != list(range(1, len(numbers) + 1)):
                problems.append("the numbers of the events have a gap")
            for name in self.pushed:
                client.version(name)
            page = client.fsck(FsckRequest(deep=True))
            problems += [f"fsck: {finding.code} {finding.location}" for finding in page.findings]
        return problems


def _generations(client: Registry) -> list[int]:
    """All generations of the alias, oldest first."""
    generations: list[int] = []
    cursor = ""
    while True:
        page = client.history(NAME, alias=ALIAS, cursor=cursor)
        generations += [move.generation for move in page.moves]
        cursor = page.next_cursor
        if not cursor:
            return sorted(generations)
