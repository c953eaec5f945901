"""`--reason` and `--dry-run` of the commands that change something: one mechanism, tried on each of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests import samples
from tests.cli.runner import CommandRunner

WIDE = samples.llama("wide", hidden=128)
BOTH = (
    "namespace grant acme bob reader",
    "namespace revoke acme alice --yes",
    "namespace set acme --public",
    "namespace delete globex --yes",
    "gate set acme prod --approvals 1",
    "gate delete acme stage --yes",
    "retention delete acme --yes",
    "token revoke ci --yes",
    "alias delete acme/support canary --yes",
    "rename acme/support acme/help --yes",
)
REASON_ONLY = (
    "base alias add tiny-llama other",
    "base delete wide --yes",
)


@pytest.fixture
def registry(cli: CommandRunner) -> CommandRunner:
    """A registry with one of everything that the commands change."""
    for words in (
        "namespace create acme --owner alice", "namespace create globex", "gate set acme stage --approvals 1",
        "retention set acme --keep-newest 3", "token create ci --scope pull",
    ):  # fmt: skip
        cli(*words.split())
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    return cli


def events_of(cli: CommandRunner) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = cli("audit", "log", "--json").json["items"]
    return items


@pytest.mark.parametrize("words", BOTH)
def test_a_dry_run_checks_and_changes_nothing_and_a_reason_is_in_the_event(registry: CommandRunner, words: str) -> None:
    before = events_of(registry)
    tried = registry(*words.replace("--yes", "--dry-run").split(), *(() if "--yes" in words else ["--dry-run"]))
    assert tried.stderr == "Dry run: nothing is changed. The result would be:\n"
    assert events_of(registry) == before
    done = registry(*words.split(), "--reason", "why not")
    assert done.stdout == tried.stdout
    assert {event["detail"]["reason"] for event in events_of(registry)[len(before) :]} == {"why not"}


@pytest.mark.parametrize("words", REASON_ONLY)
def test_a_reason_is_in_the_event(registry: CommandRunner, words: str) -> None:
    registry.add_base(WIDE)
    registry(*words.split(), "--reason", "why not")
    assert events_of(registry)[-1]["detail"]["reason"] == "why not"


def test_a_dry_run_finds_what_stands_in_the_way(registry: CommandRunner) -> None:
    assert "acme" in registry("namespace", "delete", "acme", "--dry-run", expect=5).stderr
    assert "prd" in registry("token", "revoke", "prd", "--dry-run", expect=4).stderr
