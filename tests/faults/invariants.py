"""The invariants of a registry that survives faults; each is held after every fault of `make soak` and `make faults`.

    I1  every acknowledged version is pulled byte for byte        I10 the usage shown equals a recount
    I2  no version lacks a blob, whole and right                  I11 one event for each change, and no gap
    I3  a version's digest never changes                          I12 each checkpoint extends all earlier ones
    I4  a number of an adapter never means two contents           I13 no secret in the server's log
    I5  an alias's history is one chain                           I14 a repeated push has one response and one effect
    I6  an alias names an existing, usable version                I15 a job or push that has ended stays as it ended
    I7  no blob without a row after collection, no row without    I16 another tenant sees the same as before
    I8  nothing staged is left after collection                   I17 the server is ready again by itself
    I9  no blob in use is marked for deletion                     I18 memory and descriptors return after load

`Deployment` holds I1 and I2 (it pulls, and runs fsck over every byte), I7 and I8 (after a collection) and I14; the
client that gets its response after each kill, without help, is I17; `races.churn_twice` is I18, since that needs a
server that lives.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from registry.api.audit import LogKeys
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.client.transport.connection import Connection
from registry.jobs import FINAL
from registry.server.storage.states import PushState
from registry.tlog import verify_consistency
from registry.tlog.notes import Checkpoint, Verifier

INVARIANTS = [f"I{number}" for number in range(1, 19)]
FINAL_PUSHES = (PushState.COMMITTED, PushState.EXPIRED)
Row = tuple[Any, ...]


@dataclass
class Observations:
    """What earlier checks saw; it must not change, or only in one direction."""

    digests: dict[tuple[str, str, int], str] = field(default_factory=dict)
    moves: dict[tuple[int, str, int], Row] = field(default_factory=dict)
    ended: dict[tuple[str, str], str] = field(default_factory=dict)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    tenant_view: list[object] = field(default_factory=list)


class Invariants:
    """Checks one deployment again and again, and remembers what it saw."""

    def __init__(self, engine: Callable[[], Engine], log: Path, secrets: Sequence[str]) -> None:
        self._open, self._log, self._secrets = engine, log, secrets
        self._memory = Observations()
        self.checked: Counter[str] = Counter()

    def violations(self, client: Registry, other_tenant: str, *secrets: str) -> list[str]:
        """Check what rows, log and responses tell. `other_tenant`: the token of a tenant with an adapter of its own;
        `secrets`: tokens that no log may hold."""
        engine = self._open()
        try:
            with engine.connect() as connection:

                def rows(statement: str) -> Sequence[Row]:
                    return [tuple(row) for row in connection.execute(text(statement))]

                problems = [*self._of_rows(rows), *self._of_usage(client, rows), *self._of_events(rows)]
        finally:
            engine.dispose()
        problems += self._of_checkpoints(client)
        problems += self._of_log([*self._secrets, other_tenant, *secrets])
        problems += self._of_tenant(client.url, other_tenant)
        return problems

    def held(self, invariant: str, problems: Iterator[str] | Sequence[str]) -> Iterator[str]:
        """Count a check of this invariant; yield its violations with its name in front."""
        self.checked[invariant] += 1
        return (f"{invariant}: {problem}" for problem in problems)

    # ------------------------------------------------------------ rows
    def _of_rows(self, rows: Callable[[str], Sequence[Row]]) -> list[str]:
        versions = rows(
            "SELECT a.namespace, a.name, v.number, v.digest FROM version v JOIN adapter a ON a.id = v.adapter_id"
        )
        moves = rows("SELECT adapter_id, alias, generation, from_version_id, to_version_id FROM alias_move")
        return [
            *self.held("I3", self._changed_digests(versions)),
            *self.held("I4", _numbered_twice(versions)),
            *self.held("I5", [*_broken_chains(moves), *self._changed_moves(moves)]),
            *self.held("I6", _dangling_aliases(rows)),
            *self.held("I9", _used_and_dying(rows)),
            *self.held("I15", self._revived(rows)),
        ]

    def _changed_digests(self, versions: Sequence[Row]) -> Iterator[str]:
        now = {(namespace, name, number): digest for namespace, name, number, digest in versions}
        for key, digest in self._memory.digests.items():
            if now.get(key, digest) != digest:
                yield f"{key} was {digest} and is {now[key]}"
        self._memory.digests |= now

    def _changed_moves(self, moves: Sequence[Row]) -> Iterator[str]:
        now = {(adapter, alias, generation): tuple(rest) for adapter, alias, generation, *rest in moves}
        for key, before in self._memory.moves.items():
            if now.get(key) != before:
                yield f"move {key} was {before} and is {now.get(key)}"
        self._memory.moves |= now

    def _revived(self, rows: Callable[[str], Sequence[Row]]) -> Iterator[str]:
        now = {("job", identity): state for identity, state in rows("SELECT id, state FROM job")}
        now |= {("push", identity): state for identity, state in rows("SELECT id, state FROM push")}
        for key, state in self._memory.ended.items():
            if now.get(key, state) != state:
                yield f"{key} ended as {state} and is {now[key]}"
        final = {"job": FINAL, "push": FINAL_PUSHES}
        self._memory.ended |= {key: state for key, state in now.items() if state in final[key[0]]}

    # ------------------------------------------------------------ usage, events
    def _of_usage(self, client: Registry, rows: Callable[[str], Sequence[Row]]) -> Iterator[str]:
        counted = rows(
            "SELECT a.namespace, SUM(f.size_bytes), COUNT(DISTINCT v.id) FROM adapter a JOIN version v ON "
            "v.adapter_id = a.id JOIN version_file f ON f.version_id = v.id GROUP BY a.namespace"
        )
        problems = []
        for namespace, size_bytes, versions in counted:
            view = client.namespace(namespace)
            if (view.used_bytes, view.used_versions) != (int(size_bytes), versions):
                problems.append(
                    f"{namespace} shows {view.used_bytes}, {view.used_versions}; has {size_bytes}, {versions}"
                )
        return self.held("I10", problems)

    def _of_events(self, rows: Callable[[str], Sequence[Row]]) -> Iterator[str]:
        events = rows("SELECT position, action, object FROM event ORDER BY position")
        positions = [position for position, _, _ in events if position is not None]
        problems = [] if positions == list(range(1, len(positions) + 1)) else ["positions of events have a gap"]
        pushed = Counter(subject for _, action, subject in events if action == "version.push")
        promised = {
            f"{namespace}/{name}@{number}"
            for namespace, name, number in rows(
                "SELECT a.namespace, a.name, v.number FROM version v JOIN adapter a ON a.id = v.adapter_id"
            )
        }
        problems += [f"{subject} has {count} push events" for subject, count in pushed.items() if count != 1]
        problems += [f"{subject} has no push event" for subject in promised - set(pushed)]
        return self.held("I11", problems)

    # ------------------------------------------------------------ what others see
    def _of_checkpoints(self, client: Registry) -> Iterator[str]:
        keys: LogKeys = client.log_keys()
        checkpoint = Checkpoint.of_note(Audit(client).checkpoint(), *map(Verifier.parse, keys.keys))
        if checkpoint is None:
            return self.held("I12", ["the checkpoint is not signed by a key of the log"])
        earlier = self._memory.checkpoints
        forks = [old.size for old in (*earlier[:1], *earlier[-1:]) if not _extends(client, old, checkpoint)]
        earlier.append(checkpoint)
        return self.held("I12", [f"{checkpoint.size} entries do not extend the {size} seen before" for size in forks])

    def _of_log(self, secrets: Sequence[str]) -> Iterator[str]:
        logged = self._log.read_text(errors="replace") if self._log.exists() else ""
        leaked = [f"the log holds a secret ({secret[:4]}…)" for secret in secrets if secret and secret in logged]
        return self.held("I13", leaked)

    def _of_tenant(self, url: str, token: str) -> Iterator[str]:
        view = tenant_view(url, token)
        self._memory.tenant_view = self._memory.tenant_view or view
        changed = [f"{a} became {b}" for a, b in zip(self._memory.tenant_view, view, strict=True) if a != b]
        return self.held("I16", changed)


def tenant_view(url: str, token: str) -> list[object]:
    """What a tenant that does nothing reads from each route that lists.

    That somebody who may read its bytes took them over is an event of its own, and no effect of anything else.
    """
    connection = Connection(url, token)
    paths = ["/adapters", "/namespaces", "/bases", "/whoami", "/adapters/other/quiet", "/adapters/other/quiet/versions"]
    responses: list[object] = [connection.send("GET", path).json() for path in paths]
    events = connection.send("GET", "/events", query={"limit": "200"}).json()
    return [*responses, [event["action"] for event in events["items"] if event["action"] != "bytes.copy"]]


def _extends(client: Registry, old: Checkpoint, new: Checkpoint) -> bool:
    hashes: list[bytes] = []
    if 0 < old.size < new.size:
        hashes = [bytes.fromhex(line) for line in client.consistency(old.size, new.size).hashes]
    return old.size <= new.size and verify_consistency(old.size, old.root, new.size, new.root, hashes)


def _numbered_twice(versions: Sequence[Row]) -> list[str]:
    counts = Counter((namespace, name, number) for namespace, name, number, _ in versions)
    return [f"{key} stands {count} times" for key, count in counts.items() if count > 1]


def _broken_chains(moves: Sequence[Row]) -> Iterator[str]:
    """Each generation once, from 1 on, and each move begins where the one before it ended."""
    chains: dict[tuple[int, str], dict[int, tuple[int | None, int | None]]] = {}
    for adapter, alias, generation, source, target in moves:
        chains.setdefault((adapter, alias), {})[generation] = (source, target)
    for key, chain in chains.items():
        if sorted(chain) != list(range(1, len(chain) + 1)):
            yield f"alias {key} has the generations {sorted(chain)}"
        ends = [chain[generation] for generation in sorted(chain)]
        if any(before[1] != after[0] for before, after in itertools.pairwise(ends)):
            yield f"alias {key} has a fork: {ends}"


def _dangling_aliases(rows: Callable[[str], Sequence[Row]]) -> list[str]:
    dangling = rows(
        "SELECT l.adapter_id, l.alias FROM alias l LEFT JOIN version v ON v.id = l.version_id AND "
        "v.adapter_id = l.adapter_id WHERE v.id IS NULL OR v.quarantined_at IS NOT NULL"
    )
    return [f"alias {row} names no usable version" for row in dangling]


def _used_and_dying(rows: Callable[[str], Sequence[Row]]) -> list[str]:
    dying = rows(
        "SELECT b.digest, b.state FROM blob b JOIN version_file f ON f.digest = b.digest "
        "WHERE b.state NOT IN ('live', 'corrupt')"
    )
    return [f"blob {digest} is in use and {state}" for digest, state in dying]
