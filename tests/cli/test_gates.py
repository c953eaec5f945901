"""Gates, approvals, break-glass and quarantine by command."""

from __future__ import annotations

import pytest

from cli import aliases
from registry.api.aliases import AliasMove
from registry.server.database import db
from tests.cli.runner import CommandRunner


def test_a_gate_is_set_shown_met_and_removed(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support")
    words = ["gate", "set", "acme", "prod", "--require", "compat", "--approvals", "1", "--approver", "ann"]
    assert "1 approval of ann" in cli(*words).stdout
    assert cli("gate", "list", "acme", "--json").json["items"][0]["gate"]["approvals"] == 1
    shown = cli("gate", "show", "acme/support@1", "prod").stdout
    assert "closed for @1:" in shown
    assert cli("promote", "acme/support@1", "prod", "--json", expect=6).problem["code"] == "GATE_CLOSED"
    own = cli("approve", "acme/support@1", "prod", "--reason", "mine").stdout
    assert "The gate does not count this approval: you pushed the version, or are not one of its approvers." in own
    closed = cli("promote", "acme/support@1", "prod", expect=6).stderr
    assert "Next: ask ann to run `adapter approve acme/support@1 prod`" in closed
    cli("gate", "delete", "--yes", "acme:prod")
    cli("gate", "set", "acme/support", "prod", "--require", "compat")
    assert "open for @1" in cli("gate", "show", "acme/support@1", "prod").stdout
    cli("promote", "acme/support@1", "prod")


def test_a_gate_that_can_never_open_is_refused(cli: CommandRunner) -> None:
    result = cli("gate", "set", "acme", "prod", "--approvals", "2", "--approver", "ann", expect=2)
    assert "can never open: approvals: 2 are required, and the number of approvers is 1" in result.stderr
    assert "everything would pass" in cli("gate", "set", "acme:prod", "--approver", "ann", expect=2).stderr
    words = ["--soak-in", "prod", "--soak", "60s"]
    assert "before it is 'prod'" in cli("gate", "set", "acme:prod", *words, expect=2).stderr
    assert "No gate is set on acme" in cli("gate", "list", "acme").stdout


def test_break_glass_needs_a_reason_and_stays_in_the_history(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support")
    cli("promote", "acme/support", "prod", expect=6)
    cli("promote", "acme/support", "prod", "--break-glass", expect=2)
    cli("promote", "acme/support", "prod", "--break-glass", "--reason", "the shop is down")
    assert "break-glass" in cli("history", "acme/support:prod").stdout
    assert ", through a closed gate: “the shop is down”" in cli("audit", "log", "--object", "acme/support:prod").stdout
    for words in (
        ["gate", "show", "acme/support"],
        ["rollback", "acme/support", "--reason", "slow"],
        ["gate", "show", "acme/a:b:c"],
    ):
        assert "NAME:ALIAS" in cli(*words, expect=2).stderr
    assert cli("gate", "show", "acme/support:prod").stdout == cli("gate", "show", "acme/support", "prod").stdout


def test_a_quarantined_version_does_not_resolve_until_the_quarantine_is_lifted(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support")
    assert "is in quarantine: an alarm" in cli("quarantine", "acme/support@1", "--reason", "an alarm").stdout
    assert cli("pull", "acme/support", cli.folder / "out", "--json", expect=6).problem["code"] == "QUARANTINED"
    assert "in quarantine since" in cli("show", "acme/support@1").stdout
    cli("quarantine", "--undo", "acme/support@1", "--reason", "a false alarm")
    cli("pull", "acme/support", cli.folder / "out")


def test_history_shows_approvals_signatures_and_soak(capsys: pytest.CaptureFixture[str]) -> None:
    evidence = [
        {"check": "compat", "outcome": "pass"}, {"check": "approval", "by": "ann", "at": "2026-11-25T03:00:00+00:00"},
        {"check": "soak", "alias": "canary", "seconds": 90}, {"check": "signature", "by": "key:5f"},
    ]  # fmt: skip
    output = {"alias": "prod", "number": 2, "from_number": 1, "generation": 2, "digest": None, "actor": "pat"}
    move = AliasMove(**output, reason="", at=db.now(), evidence=evidence)
    aliases.MOVES.print([move], details=aliases.evidence_lines)
    shown = capsys.readouterr().out
    assert "on compat pass, approval by ann, signature by key:5f, 90 s in canary" in shown
