"""`NextStep`: what helps after an error or at a closed gate, as data. Each surface words it: commands here, pages in
`registry/server/pages/rendering.py`.
"""

from dataclasses import dataclass
from enum import StrEnum


class StepKind(StrEnum):
    """What to do."""

    APPROVE = "approve"
    SIGN = "sign"
    SOAK = "soak"
    SMOKE_TEST = "smoke-test"
    SMOKE_TEST_AND_WORK = "smoke-test-and-work"
    """In a registry without workers that wait for jobs."""
    SHOW_VERSION = "show-version"
    SHOW_HISTORY = "show-history"
    CHOOSE_VERSION = "choose-version"
    CREATE_ALIAS = "create-alias"
    """The alias is the one that resembles the new one."""
    DELETE_ALIAS = "delete-alias"
    RELEASE_ALIAS = "release-alias"
    """Nodes serve by it."""
    FREE_ALIASES = "free-aliases"
    """The subject is the first of those that point at the version."""
    DELETE_ADAPTER = "delete-adapter"
    FORCE = "force"
    DIAGNOSE = "diagnose"
    """The registry is unreachable."""


_COMMANDS = {
    StepKind.APPROVE: "{ask}run `adapter approve {subject} {alias}`",
    StepKind.SIGN: "run `adapter sign {subject} --signing-key KEY`",
    StepKind.SOAK: "promote it there and wait, then look at `adapter gate show {subject} {alias}`",
    StepKind.SMOKE_TEST: "run `adapter smoke-test {subject} --wait`",
    StepKind.SMOKE_TEST_AND_WORK: "run `adapter smoke-test {subject}`, then `adapter worker --once`",
    StepKind.SHOW_VERSION: "look at `adapter show {subject}`",
    StepKind.SHOW_HISTORY: "look at it again with `adapter history {subject}:{alias}`",
    StepKind.CHOOSE_VERSION: "name one with --version",
    StepKind.CREATE_ALIAS: "did you mean '{alias}'? For a new alias pass --create-alias to `adapter promote`",
    StepKind.DELETE_ALIAS: "delete one: `adapter alias delete`",
    StepKind.FREE_ALIASES: "promote another version to each alias, or delete it: adapter alias delete {subject}",
    StepKind.DELETE_ADAPTER: "delete the adapter: adapter delete {subject}",
    StepKind.FORCE: "pass --force with a --reason to delete it all the same",
    StepKind.DIAGNOSE: "is it running, and is ADAPTER_REGISTRY right? `adapter doctor` diagnoses it",
    StepKind.RELEASE_ALIAS: "let them follow another alias, or pass --force with a --reason",
}


@dataclass(frozen=True, slots=True)
class NextStep:
    """`subject` is an adapter or a version of it. `ask`: people who can do it, if the caller cannot."""

    kind: StepKind
    """What to do, such as `approve` or `smoke-test`."""
    subject: str = ""
    """The adapter or the version that it is about."""
    alias: str = ""
    """The alias that it is about. Empty if it is about none."""
    ask: tuple[str, ...] = ()
    """People who can do it, if the caller cannot."""

    def as_command(self) -> str:
        """For people at a command line."""
        return _COMMANDS[self.kind].format(subject=self.subject, alias=self.alias, ask=self.whom())

    def whom(self) -> str:
        """The beginning of a sentence: whom to ask."""
        return f"ask {' or '.join(self.ask)} to " if self.ask else ""
