"""The counters of what namespaces hold and of the adapters of a base: right after any history, and read alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlmodel import select

from registry.api.access import NamespaceSet, TokenCreate
from registry.api.maintenance import GcRequest
from registry.bases import BaseSpec
from registry.errors import RegistryError
from registry.server.access import quotas
from registry.server.actors import TRUSTED
from registry.server.catalog import base_rows
from registry.server.catalog.bases import set_aliases
from registry.server.database.models import VersionRow
from tests import samples, usage
from tests.access.test_at_once import is_waiting, waiting
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


def test_reading_counters_reads_no_versions(harness: Harness) -> None:
    for name in NAMES:
        harness.push(name)
    with harness.statements() as sent:
        [acme, globex] = harness.admin.namespaces().items
        bases = harness.admin.bases().items
    assert (acme.used_versions, globex.used_versions) == (2, 2)
    assert {base.name: base.adapters for base in bases} == {BASES[0]: 4, BASES[1]: 0}
    assert [statement for statement in sent if " version" in statement] == []


def test_counting_a_version_reads_no_others(harness: Harness, database_kind: str) -> None:
    """Even in a session that planned its statements while the tables were empty."""
    if database_kind == "sqlite":
        pytest.skip("SQLite plans for each statement: tests/pages/test_growth.py counts its steps")
    harness.push("acme/a")
    reads = text(
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables "
        "WHERE relname IN ('version', 'adapter')"
    )
    with harness.session(write=True) as session:
        template, connection = session.exec(select(VersionRow)).one().model_dump(), session.connection()

        def add(number: int) -> int:
            before = connection.execute(reads).scalar_one() or 0
            row = {"id": 1000 + number, "number": number, "digest": f"sha256:{number:064x}"}
            connection.execute(insert(VersionRow), template | row)
            return int(connection.execute(reads).scalar_one() - before)

        first, *_, last = (add(number) for number in range(2, 400))
    assert last <= first + 5


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


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
def test_a_deletion_counts_what_another_transaction_gives_to_its_base(harness: Harness) -> None:
    """Neither of the two locks what the other changes: the counters make them take turns."""
    for base in (UNREGISTERED, BASES[0]):
        harness.push("acme/a", harness.files(samples.llama(base)), base=base)
    harness.push("acme/a", harness.files(samples.llama(BASES[1])), base=BASES[1])
    deletion = threading.Thread(target=harness.admin.delete_version, args=("acme/a@2", "gone"))
    with harness.session(write=True) as session:
        set_aliases(session, TRUSTED, BASES[0], [UNREGISTERED])
        deletion.start()
        waiting(harness)
    deletion.join()
    assert usage.find_differences(harness.engine) == []
    assert harness.admin.base(BASES[0]).adapters == 1


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
def test_a_restore_does_not_wait_for_an_alias_that_waits_for_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore locks the namespace's counter, and then refers to the base; an alias locks them the other way round."""
    for base in (UNREGISTERED, BASES[0]):
        harness.push("acme/a", harness.files(samples.llama(base)), base=base)
    harness.admin.delete_version("acme/a@2", "gone", force=True)
    restored, waited, adopt = threading.Event(), list[bool](), base_rows.adopt

    def restore() -> None:
        harness.admin.undelete_version("acme/a@2", "needed")
        restored.set()

    restoration = threading.Thread(target=restore)

    def adopt_during_restore(*arguments: Any) -> None:
        restoration.start()
        while not restored.wait(0.02) and not waited and restoration.is_alive():
            waited.extend([True] * is_waiting(harness))
        adopt(*arguments)

    monkeypatch.setattr(base_rows, "adopt", adopt_during_restore)
    harness.admin.set_base_aliases(BASES[0], [UNREGISTERED])
    restoration.join()
    assert restored.is_set()
    assert not waited
    assert usage.find_differences(harness.engine) == []
    assert harness.admin.base(BASES[0]).adapters == 1
