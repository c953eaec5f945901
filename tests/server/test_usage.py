"""The counters of what namespaces hold and of the adapters of a base: right after any history, and read alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from sqlmodel import select

from registry.api.access import NamespaceSet, TokenCreate
from registry.api.maintenance import GcRequest
from registry.bases import BaseSpec
from registry.errors import RegistryError
from registry.server.access import quotas
from registry.server.database.models import VersionRow
from tests import samples, usage
from tests.harness import Harness

BASES = ("tiny-llama", "other-llama")
UNREGISTERED = "meta-llama/unknown"
NAMES = ("acme/a", "acme/b", "globex/c", "globex/d")
STEPS = 60


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url, delete_grace_seconds=0) as harness:
        for number, base in enumerate(BASES):
            harness.add_base(samples.llama(base, seed=number))
        for namespace in ("acme", "globex"):
            harness.admin.create_namespace(namespace)
            harness.admin.change_namespace(namespace, NamespaceSet(unregistered_bases=True))
        harness.bases[UNREGISTERED] = BaseSpec.unregistered(UNREGISTERED)
        yield harness


class History:
    """Random changes of versions, as clients make them; what the registry refuses changes nothing."""

    def __init__(self, harness: Harness, seed: int) -> None:
        self.harness, self.random = harness, random.Random(seed)
        self.refused: set[str] = set()
        self.steps: list[Callable[[], object]] = [
            self.push, self.push, self.push, self.delete, self.delete, self.undelete, self.quarantine, self.rename,
            self.delete_adapter, self.set_aliases, self.collect,
        ]  # fmt: skip

    def step(self) -> str:
        step = self.random.choice(self.steps)
        try:
            step()
        except RegistryError as e:
            self.refused.add(e.code)
        return step.__name__

    def name(self) -> str:
        items = [item.name for item in self.harness.admin.adapters().items]
        return self.random.choice(items or NAMES)

    def version(self) -> str:
        name = self.name()
        items = self.harness.admin.versions(name, include_deleted=True).items
        return f"{name}@{self.random.choice(items).number}"

    def push(self) -> None:
        base = self.random.choice((*BASES, UNREGISTERED))
        name = self.random.choice((*NAMES, f"acme/new-{self.random.randrange(10**6)}"))
        self.harness.push(name, self.harness.files(samples.llama(base)), base=base)

    def delete(self) -> None:
        self.harness.admin.delete_version(self.version(), "random", force=True)

    def undelete(self) -> None:
        self.harness.admin.undelete_version(self.version(), "random")

    def quarantine(self) -> None:
        self.harness.admin.quarantine(self.version(), reason="random")

    def rename(self) -> None:
        namespace = self.random.choice(("acme", "globex"))
        self.harness.admin.rename(self.name(), f"{namespace}/moved-{self.random.randrange(10**6)}")

    def delete_adapter(self) -> None:
        self.harness.admin.delete_adapter(self.name())

    def set_aliases(self) -> None:
        self.harness.admin.set_base_aliases(BASES[0], [UNREGISTERED] if self.random.random() < 0.5 else [])

    def collect(self) -> None:
        self.harness.admin.collect(GcRequest(grace_seconds=0))


@pytest.mark.parametrize("seed", range(3))
def test_counters_equal_a_recount_after_any_history(harness: Harness, seed: int) -> None:
    history = History(harness, seed)
    steps = []
    for _ in range(STEPS):
        steps.append(history.step())
        assert usage.find_differences(harness.engine) == [], steps
    with harness.session() as session:
        versions = session.exec(select(VersionRow)).all()
        namespaces = [item.name for item in harness.admin.namespaces().items]
        counted = quotas.read_usage(session, namespaces)
    present = [version for version in versions if version.purged_at is None]
    assert sum(number for _, number in counted.values()) == len(present) > 0
    assert sum(size for size, _ in counted.values()) == sum(version.size_bytes for version in present)


@pytest.mark.security
def test_a_base_counts_the_adapters_that_the_actor_may_see(harness: Harness) -> None:
    for name in NAMES:
        harness.push(name)
    harness.push("acme/b", harness.files(samples.llama(BASES[1])), base=BASES[1])
    harness.admin.delete_version("acme/b@1", "gone", force=True)

    def count(**rights: list[str]) -> int:
        token = harness.admin.create_token(TokenCreate(name="reader", scopes=["pull"], **rights))
        return harness.client(token.secret).base(BASES[0]).adapters

    assert count(namespaces=["*"]) == 3
    assert count(namespaces=["acme"]) == 1
    assert count(namespaces=["globex"], adapters=["globex/c"]) == 1
    assert count(namespaces=["acme"], adapters=["acme/b"]) == 0
    harness.admin.change_namespace("globex", NamespaceSet(public=True))
    assert count(namespaces=["acme"]) == 3
    assert count(namespaces=["globex"], adapters=["globex/c"]) == 2, "the public ones count once"
