"""Gates, approvals, broken glass and quarantine by command."""

from __future__ import annotations

import click
import pytest

from cli import aliases
from registry.api.aliases import AliasMove
from registry.server.database import db
from tests.cli.desk import Desk


def test_a_gate_is_set_shown_met_and_taken_away(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support")
    words = ["gate", "set", "acme", "prod", "--require", "compat", "--approvals", "1", "--approver", "ann"]
    assert "1 of ann" in desk(*words).stdout
    assert desk("gate", "list", "acme", "--json").json["items"][0]["gate"]["approvals"] == 1
    shown = desk("gate", "show", "acme/support@1", "prod").stdout
    assert "closed for @1:" in shown
    assert desk("promote", "acme/support@1", "prod", "--json", expect=6).problem["code"] == "GATE_CLOSED"
    own = desk("approve", "acme/support@1", "prod", "--comment", "mine").stdout
    assert "which does not count" in own
    desk("gate", "remove", "acme:prod")
    desk("gate", "set", "acme/support", "prod", "--require", "compat")
    assert "open for @1" in desk("gate", "show", "acme/support@1", "prod").stdout
    desk("promote", "acme/support@1", "prod")


def test_a_gate_that_can_never_open_is_refused_in_a_sentence(desk: Desk) -> None:
    said = desk("gate", "set", "acme", "prod", "--approvals", "2", "--approver", "ann", expect=2)
    assert "can never" in said.stderr
    assert "everything would pass" in desk("gate", "set", "acme:prod", "--approver", "ann", expect=2).stderr
    words = ["--soak-in", "prod", "--soak", "60"]
    assert "before it is 'prod'" in desk("gate", "set", "acme:prod", *words, expect=2).stderr
    assert "No gate was set on acme" in desk("gate", "list", "acme").stdout


def test_broken_glass_needs_a_reason_and_is_told_for_ever(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support")
    desk("promote", "acme/support", "prod", expect=6)
    desk("promote", "acme/support", "prod", "--break-glass", expect=2)
    desk("promote", "acme/support", "prod", "--break-glass", "--reason", "the shop is down")
    assert "break-glass" in desk("history", "acme/support:prod").stdout
    assert ", through a closed gate: “the shop is down”" in desk("audit", "log", "--object", "acme/support:prod").stdout
    for words in (["gate", "show", "acme/support"], ["rollback", "acme/support"], ["gate", "show", "acme/a:b:c"]):
        assert "NAME:ALIAS" in desk(*words, expect=2).stderr
    assert desk("gate", "show", "acme/support:prod").stdout == desk("gate", "show", "acme/support", "prod").stdout


def test_a_version_in_quarantine_is_led_to_by_no_name_until_it_is_released(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support")
    assert "is in quarantine: an alarm" in desk("quarantine", "acme/support@1", "--reason", "an alarm").stdout
    assert desk("pull", "acme/support", desk.folder / "out", "--json", expect=6).problem["code"] == "QUARANTINED"
    assert "in quarantine since" in desk("show", "acme/support@1").stdout
    desk("quarantine", "--undo", "acme/support@1", "--reason", "a false alarm")
    desk("pull", "acme/support", desk.folder / "out")


def test_a_history_names_who_approved_who_signed_and_how_long_it_was_tried(capsys: pytest.CaptureFixture[str]) -> None:
    evidence = [
        {"check": "compat", "outcome": "pass"}, {"check": "approval", "by": "ann", "at": "2026-11-25T03:00:00+00:00"},
        {"check": "soak", "alias": "canary", "seconds": 90}, {"check": "signature", "by": "key:5f"},
    ]  # fmt: skip
    told = {"alias": "prod", "number": 2, "from_number": 1, "generation": 2, "digest": None, "actor": "pat"}
    aliases._print_move(AliasMove(**told, reason="", at=db.now(), evidence=evidence), 4)
    shown = click.unstyle(capsys.readouterr().out)
    assert "on compat pass, approval by ann, signature by key:5f, 90 s in canary" in shown
