"""A dictionary that knows the rules, against the registry: push, promote, roll back, yank, delete, transfer, rights.

Each step is an act of an actor on an object, through the API; the registry and the dictionary must agree on what comes
of it (an error's code, or done), and at the end on what every actor may see. `make model` makes 300 × 50 steps, a plain
run fewer (MODEL_EXAMPLES, MODEL_STEPS), in parts that may run side by side and each draw their own steps.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, strategies

from registry import names
from registry.api.access import NamespaceSet
from registry.client.registry import Registry
from registry.errors import RegistryError
from registry.roles import FOR_ALIASES, SCOPES_OF_ROLE, GrantedRole, Role
from tests import samples
from tests.access.tenants import of_subject
from tests.harness import Harness

pytestmark = pytest.mark.security

PARTS = 6
EXAMPLES = -(-int(os.environ.get("MODEL_EXAMPLES", "6")) // PARTS)
STEPS = int(os.environ.get("MODEL_STEPS", "40"))
SUBJECTS = ("ann", "bob")
WORDS = ("one", "two", "0ne")
ALIAS = "canary"
DONE = "done"
ACTS = ("push", "push", "push", "promote", "promote", "stale", "rollback", "yank", "drop", "drop", "undrop", "delete",
        "rename", "grant", "revoke", "publish", "hide", "end_token", "look")  # fmt: skip


@dataclass
class AdapterModel:
    """One adapter: its versions' contents by number, what is yanked or deleted, and the moves of its alias."""

    contents: list[int] = field(default_factory=list)
    yanked: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    moves: list[tuple[int, int, bool]] = field(default_factory=list)  # from, to, went back

    @property
    def held(self) -> int:
        return self.moves[-1][1] if self.moves else 0

    @property
    def newest(self) -> int:
        """Where `main` points: the newest version that is there and not yanked, if there is one."""
        present = set(range(1, len(self.contents) + 1)) - self.dropped
        return max(present - self.yanked or present)

    def before(self) -> int:
        """What rolling back leads to: what was held before this version came, yanked ones passed over; 0 is nothing."""
        came_from = {to: origin for origin, to, back in self.moves if not back}
        visited, number = {self.held}, came_from.get(self.held, 0)
        while number and number not in visited:
            if number not in self.yanked | self.dropped:
                return number
            visited.add(number)
            number = came_from.get(number, 0)
        return 0


class Oracle:
    """The dictionary. Every act responses with the code that the registry should respond with."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], AdapterModel] = {}
        self.used_names: dict[tuple[str, str], str] = {}
        self.buried: set[tuple[str, str]] = set()
        self.roles: dict[tuple[str, str], dict[Role, GrantedRole]] = defaultdict(dict)
        self.public: set[str] = set()

    def may(self, who: str, scope: str, space: str, alias: str = "") -> bool:
        if who == "admin" or (scope == "pull" and space in self.public):
            return True
        return any(
            alias in role.aliases if scope == "promote" and role.aliases else scope in SCOPES_OF_ROLE[role.role]
            for role in self.roles[space, who].values()
        )

    def has(self, who: str, scope: str) -> bool:
        own_roles = [role for (_, subject), roles in self.roles.items() if subject == who for role in roles.values()]
        return (
            who == "admin"
            or scope == "pull"
            or any(scope in SCOPES_OF_ROLE[role.role] or (scope == "promote" and role.aliases) for role in own_roles)
        )

    def barred(self, who: str, scope: str, space: str, absent: str = "ADAPTER_UNKNOWN", alias: str = "") -> str:
        """Why `who` may not, or nothing: denied without the scope anywhere, unknown where it may not look."""
        if not self.has(who, scope):
            return "DENIED"
        if self.may(who, scope, space, alias):
            return ""
        return "DENIED" if self.may(who, "pull", space) else absent

    def refused(self, space: str, word: str) -> str:
        key = (space, names.skeleton(word))
        if key in self.buried:
            return "NAME_TOMBSTONED"
        return "NAME_TAKEN" if self.used_names.get(key, word) != word else ""

    def push(self, who: str, space: str, word: str, content: int) -> str:
        wrong = self.barred(who, "push", space) or self.refused(space, word)
        if wrong:
            return wrong
        self.used_names[space, names.skeleton(word)] = word
        line = self.lines.setdefault((space, word), AdapterModel())
        if content not in line.contents:
            line.contents.append(content)
        return "VERSION_TOMBSTONED" if line.contents.index(content) + 1 in line.dropped else DONE

    def found(self, who: str, scope: str, space: str, word: str, number: int, alias: str = "") -> str:
        wrong = self.barred(who, scope, space, alias=alias)
        line = self.lines.get((space, word))
        if wrong or line is None:
            return wrong or "ADAPTER_UNKNOWN"
        if number in line.dropped:
            return "VERSION_DELETED"
        return "" if number <= len(line.contents) else "VERSION_UNKNOWN"

    def promote(self, who: str, space: str, word: str, number: int, *, stale: bool) -> str:
        wrong = self.found(who, "promote", space, word, number, ALIAS)
        if wrong:
            return wrong
        line = self.lines[space, word]
        if number in line.yanked:
            return "YANKED"
        if stale:
            return "ALIAS_MOVED"
        line.moves.append((line.held, number, False))
        return DONE

    def rollback(self, who: str, space: str, word: str) -> str:
        wrong = self.found(who, "promote", space, word, 0, ALIAS)
        if wrong:
            return wrong
        line = self.lines[space, word]
        if not line.moves:
            return "ALIAS_UNKNOWN"
        number = line.before()
        if not number:
            return "VERSION_UNKNOWN"
        line.moves.append((line.held, number, True))
        return DONE

    def yank(self, who: str, space: str, word: str, number: int) -> str:
        wrong = self.found(who, "promote", space, word, number)
        if not wrong:
            self.lines[space, word].yanked.add(number)
        return wrong or DONE

    def drop(self, who: str, space: str, word: str, number: int, *, undo: bool) -> str:
        """Delete one version, or undo that. A second time nothing happens."""
        wrong = self.found(who, "admin", space, word, number)
        if wrong == "VERSION_DELETED":
            if undo:
                self.lines[space, word].dropped.discard(number)
            return DONE
        if wrong or undo:
            return wrong or DONE
        line = self.lines[space, word]
        if line.held == number or len(line.contents) - len(line.dropped) == 1:
            return "VERSION_IN_USE"
        line.dropped.add(number)
        return DONE

    def delete(self, who: str, space: str, word: str) -> str:
        wrong = self.found(who, "admin", space, word, 0)
        if not wrong:
            del self.lines[space, word]
            self.buried.add((space, names.skeleton(word)))
        return wrong or DONE

    def rename(self, who: str, space: str, word: str, to: tuple[str, str]) -> str:
        wrong = self.found(who, "admin", space, word, 0)
        if wrong:
            return wrong
        if to == (space, word):
            return "NAME_TAKEN"
        wrong = self.barred(who, "admin", to[0], "NAMESPACE_UNKNOWN")
        if wrong:
            return wrong
        looks_like_itself = to[0] == space and names.skeleton(to[1]) == names.skeleton(word)
        wrong = "NAME_TAKEN" if to in self.lines else "NAME_TOMBSTONED" if looks_like_itself else self.refused(*to)
        if wrong:
            return wrong
        self.buried.add((space, names.skeleton(word)))
        self.lines[to] = self.lines.pop((space, word))
        self.used_names[to[0], names.skeleton(to[1])] = to[1]
        return DONE

    def change(self, who: str, space: str, act: Callable[[], object]) -> str:
        wrong = self.barred(who, "admin", space, "NAMESPACE_UNKNOWN")
        return wrong or (act(), DONE)[1]

    def seen(self, who: str) -> dict[str, tuple[int, int, int]]:
        """Adapter → how many versions, the newest, and what its alias holds."""
        return {
            f"{space}/{word}": (len(line.contents), line.newest, line.held)
            for (space, word), line in self.lines.items()
            if self.may(who, "pull", space)
        }


class Pair:
    """The registry and the dictionary, taking the same steps in namespaces of their own."""

    def __init__(self, harness: Harness, contents: list[samples.Files], example: int) -> None:
        self.harness, self.contents, self.oracle = harness, contents, Oracle()
        self.spaces = (f"a{example}x", f"b{example}x")
        self.subjects = {name: f"{name}-{example}" for name in SUBJECTS}
        self.clients = {"admin": harness.admin} | {name: self.token(name) for name in SUBJECTS}
        for space in self.spaces:
            harness.admin.create_namespace(space)

    def token(self, name: str) -> Registry:
        return self.harness.client(of_subject(self.harness, self.subjects[name]))

    def step(self, act: str, who: str, location: int, word: str, number: int, other: str) -> tuple[str, str]:
        """What the registry and what the dictionary say."""
        space, client = self.spaces[location], self.clients[who]
        name = f"{space}/{word}"
        model, version = self.oracle, number + 1
        role, to = list(Role)[number], (self.spaces[number % 2], other)
        subject = SUBJECTS[number % 2]
        if act == "push":
            real = _code(lambda: self.harness.push(name, self.contents[number], by=client))
            return real, model.push(who, space, word, number)
        if act in ("promote", "stale"):
            line = model.lines.get((space, word), AdapterModel())
            at = len(line.moves) + (act == "stale")
            real = _code(lambda: client.promote(name, ALIAS, str(version), generation=at))
            return real, model.promote(who, space, word, version, stale=act == "stale")
        if act == "rollback":
            return _code(lambda: client.rollback(name, ALIAS)), model.rollback(who, space, word)
        if act == "yank":
            return _code(lambda: client.yank(f"{name}@{version}", "r")), model.yank(who, space, word, version)
        if act in ("drop", "undrop"):
            undo = act == "undrop"
            ask = client.undelete_version if undo else client.delete_version
            return _code(lambda: ask(f"{name}@{version}", "r")), model.drop(who, space, word, version, undo=undo)
        if act == "delete":
            return _code(lambda: client.delete_adapter(name)), model.delete(who, space, word)
        if act == "rename":
            return _code(lambda: client.rename(name, "/".join(to))), model.rename(who, space, word, to)
        if act == "grant":
            aliases = {"two": [], "one": [ALIAS], "0ne": ["other"]}[word] if role in FOR_ALIASES else []
            granted = GrantedRole(role, frozenset(aliases))
            real = _code(lambda: client.grant_role(space, self.subjects[subject], role, aliases=aliases))
            return real, model.change(who, space, lambda: model.roles[space, subject].update({role: granted}))
        if act == "revoke":
            real = _code(lambda: client.revoke_role(space, self.subjects[subject], role))
            return real, model.change(who, space, lambda: model.roles[space, subject].pop(role, None))
        if act in ("publish", "hide"):
            real = _code(lambda: client.change_namespace(space, NamespaceSet(public=act == "publish")))
            change = model.public.add if act == "publish" else model.public.discard
            return real, model.change(who, space, lambda: change(space))
        if act == "end_token" and who != "admin":
            client.revoke_token(client.whoami().token_id)
            refused = _code(client.whoami)
            self.clients[who] = self.token(who)
            return refused, "UNAUTHORIZED"
        return self.compared(who)

    def compared(self, who: str) -> tuple[str, str]:
        """What one actor sees of this example, in the registry and in the dictionary."""
        listed = [a for space in self.spaces for a in self.clients[who].adapters(namespace=space).items]
        real = {a.name: (a.versions, a.newest, a.aliases.get(ALIAS, 0)) for a in listed}
        return str(sorted(real.items())), str(sorted(self.oracle.seen(who).items()))


def _code(act: Callable[[], object]) -> str:
    try:
        act()
    except RegistryError as error:
        return error.code
    return DONE


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    """So many tokens end in a minute that their last words would be told to wait."""
    with Harness(database_url, failures_per_minute=0) as harness:
        yield harness


@pytest.mark.parametrize("part", range(PARTS))
def test_the_registry_and_the_model_never_disagree(harness: Harness, part: int) -> None:
    harness.add_base()
    contents = [harness.files() for _ in Role]
    examples = itertools.count(10)
    pick = strategies.sampled_from
    step = strategies.tuples(
        pick(ACTS),
        pick(("admin", *SUBJECTS)),
        strategies.integers(0, 1),
        pick(WORDS),
        strategies.integers(0, 3),
        pick(WORDS),
    )

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @hypothesis.seed(part)
    @hypothesis.given(strategies.lists(step, min_size=STEPS, max_size=STEPS))
    def agree(steps: list[tuple[str, str, int, str, int, str]]) -> None:
        pair = Pair(harness, contents, next(examples))
        for number, planned_step in enumerate(steps):
            real, expected = pair.step(*planned_step)
            assert real == expected, (number, planned_step)
        for who in pair.clients:
            real, expected = pair.compared(who)
            assert real == expected, who

    agree()
    assert next(examples) == 10 + EXAMPLES
