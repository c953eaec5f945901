"""Commands about many adapters: a plan first, one report, an exit code that tells whether all succeeded."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from registry.client.adapters_file import read_adapters_file
from registry.errors import Invalid
from tests import samples
from tests.cli.runner import CommandRunner

ADAPTERS = ("cust-1", "cust-2", "other")


@pytest.fixture
def acme_cli(cli: CommandRunner) -> CommandRunner:
    """Three adapters of acme, pushed with one command."""
    cli.add_base()
    for name in ("cust-1", "cust-2", "other"):
        cli.make_adapter(name)
    pushed = cli(
        "push-all", cli.folder / "adapters", "acme", "--base", "tiny-llama", "--alias", "canary", "--tag", "team=nlp",
        "--param", "lr=2e-4", "--json",
    ).json  # fmt: skip
    for item in pushed["items"]:
        version = item["pushed"]["version"]
        assert (version["aliases"], version["tags"]) == (["canary", "main"], {"team": "nlp"})
        assert version["provenance"]["parameters"] == {"lr": "2e-4"}
    return cli


def test_one_question_tells_what_a_namespace_served_and_who_moved_it(acme_cli: CommandRunner) -> None:
    before = acme_cli("history", "acme", "--json").json["moves"][0]["at"]
    acme_cli("alias", "delete", "acme/other:canary", "--yes")
    then = acme_cli("history", "acme", "--at", before, "--alias", "canary")
    rows = [line.split() for line in then.stdout.splitlines() if ":canary" in line]
    shown = [(row[3], row[4]) for row in rows]
    assert shown == [(f"acme/{name}:canary", "@1") for name in ("cust-1", "cust-2", "other")]
    moves = acme_cli("history", "acme", "--alias", "canary", "--json").json["moves"]
    assert (moves[0]["name"], moves[0]["number"], len(moves)) == ("acme/other", None, 4)
    assert acme_cli("history", "acmee", expect=4).stderr.startswith("Error: there is no namespace 'acmee'")


def test_a_group_is_promoted_by_a_plan_that_is_shown_first(acme_cli: CommandRunner) -> None:
    group = ("--yes", "--namespace", "acme", "--from", "canary", "--to", "staging")
    planned = acme_cli("promote", *group, "--select", "cust-*", "--dry-run").stdout
    assert planned.splitlines()[-1] == "2 planned, 0 unchanged, 0 refused"
    assert acme_cli("promote", *group, "--dry-run", "--json").json["changed"] == 3, "nothing has moved"
    refused = acme_cli("promote", *group[1:], expect=2).stderr
    assert "Change 3 of 3 aliases?" in refused
    assert "Error: not done: the answer is missing\nNext: answer yes, or pass --yes" in refused
    done = acme_cli("promote", *group, "--select", "cust-*", "--select", "tag=team=nlp", "--reason", "nightly").stdout
    assert [line.split()[:3] for line in done.splitlines()][:3] == [
        ["NAME", "CHANGE", "OUTCOME"],
        ["acme/cust-1:staging", "@1", "planned"],
        ["acme/cust-2:staging", "@1", "planned"],
    ]
    assert done.splitlines()[-1].startswith("2 moved, 0 unchanged, 0 refused")
    assert done.count("OUTCOME") == 1, "the report does not repeat the plan"
    report = acme_cli("promote", *group, "--json").json
    assert [item["state"] for item in report["items"]] == ["unchanged", "unchanged", "moved"]
    assert acme_cli("history", "acme/cust-1:staging", "--json").json["moves"][0]["reason"] == "nightly"


def test_one_refusal_gives_the_exit_code_and_atomic_moves_nothing(acme_cli: CommandRunner) -> None:
    acme_cli("yank", "acme/cust-2@1", "--reason", "wrong")
    group = ("promote", "--yes", "--namespace", "acme", "--from", "canary", "--to", "staging")
    report = acme_cli(*group, "--atomic", "--json", expect=6).json
    assert [(item["state"], (item["error"] or {}).get("code")) for item in report["items"]] == [
        ("refused", "COMMIT_INCOMPLETE"), ("refused", "YANKED"), ("refused", "COMMIT_INCOMPLETE"),
    ]  # fmt: skip
    assert (report["changed"], report["refused"]) == (0, 3)
    result = acme_cli(*group, "--atomic", expect=6)
    assert "Next: " in result.stderr
    assert result.stdout.count("OUTCOME") == 1, "nothing is planned, so the report is all there is"
    report = acme_cli(*group, "--json", expect=6).json
    assert (report["changed"], report["refused"]) == (2, 1)


def test_approvals_rollbacks_and_tags_of_a_group(acme_cli: CommandRunner) -> None:
    group = ("--yes", "--namespace", "acme", "--select", "cust-*", "--json")
    assert acme_cli("approve", "--from", "canary", "--to", "prod", *group).json["changed"] == 2
    assert acme_cli("approve", "--from", "canary", "--to", "prod", *group).json["unchanged"] == 2
    acme_cli("promote", "--from", "canary", "--to", "staging", *group)
    assert acme_cli("rollback", "--alias", "staging", "--reason", "slow", *group, expect=4).json["refused"] == 2, (
        "they held nothing before"
    )
    assert acme_cli("tag", "add", *group, "wave=1").json["changed"] == 2
    tagged = acme_cli("tag", "add", *group, "--alias", "staging", "reviewed").json
    assert [item["result"]["subject"] for item in tagged["items"]] == ["acme/cust-1@1", "acme/cust-2@1"]
    assert acme_cli("list", "--tag", "wave=1", "--json").json["items"][0]["tags"] == {"wave": "1"}
    assert acme_cli("tag", "delete", *group, "wave").json["changed"] == 2
    assert (
        "no adapter in 'acme' is selected"
        in acme_cli("tag", "add", "--namespace", "acme", "--select", "x", "y", expect=4).stderr
    )
    misspelt = acme_cli("tag", "add", "--namespace", "acme", "--alias", "stagin", "y", expect=4).stderr
    assert "did you mean 'staging'?" in misspelt


@pytest.mark.parametrize(
    "words",
    [
        ("promote", "acme/cust-1@1"),
        ("promote", "acme/cust-1@1", "prod", "--atomic"),
        ("approve", "acme/cust-1@1", "prod", "--dry-run"),
        ("promote", "acme/cust-1", "--namespace", "acme", "--from", "a", "--to", "b"),
        ("rollback", "--namespace", "acme", "--reason", "slow"),
        ("approve", "--namespace", "acme", "--to", "prod"),
        ("tag", "add", "acme/cust-1"),
    ],
)
def test_half_of_both_forms_is_a_usage_error(cli: CommandRunner, words: tuple[str, ...]) -> None:
    assert "Usage: " in cli(*words, expect=2).stderr


def test_a_adapters_file_is_applied_once(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    cli.make_adapter("support")
    cli.push("acme/billing")
    file = tmp_path / "adapters.toml"
    file.write_text(
        f"""
namespace = "acme"
base = "tiny-llama"
[adapters.support]
folder = "{os.path.relpath(cli.folder / "adapters" / "support", tmp_path)}"
tags = {{team = "nlp"}}
aliases = ["canary"]
[adapters.billing]
description = "Responses about bills"
aliases = {{staging = 1}}
"""
    )
    planned = cli("apply", "-f", file, "--dry-run", "--json").json
    assert [(i["name"], i["step"], i["state"]) for i in planned["items"]] == [
        ("acme/support", "push", "planned"),
        ("acme/support", "describe", "planned"),
        ("acme/billing", "describe", "planned"),
        ("acme/support", "alias", "planned"),
        ("acme/billing", "alias", "planned"),
    ]
    assert cli("versions", "acme/support", expect=4).stderr, "nothing was pushed"
    applied = cli("apply", "-f", file, "--atomic", "--yes").stdout
    assert re.fullmatch(r"5 done, 0 unchanged, 0 refused  group grp_[0-9a-f]{16}", applied.splitlines()[-1])
    assert applied.count("OUTCOME") == 1, "the report does not repeat the plan"
    assert cli("apply", "-f", file).stdout == "0 done, 5 unchanged, 0 refused\n", "rows are for what changes"
    again = cli("apply", "-f", file, "--json").json
    assert (again["done"], again["unchanged"]) == (0, 5)
    assert cli("show", "acme/support:canary", "--json").json["number"] == 1
    cli.push("acme/support")
    cli("promote", "acme/support@2", "canary")
    back = cli("apply", "-f", file, "--dry-run", "--json").json["items"]
    assert [item["change"] for item in back if item["state"] == "planned"] == ["canary → @1, instead of @2"]
    cli.make_adapter("fresh")
    folder = os.path.relpath(cli.folder / "adapters" / "fresh", tmp_path)
    closed = tmp_path / "closed.toml"
    closed.write_text(
        f'namespace = "acme"\nbase = "tiny-llama"\n[adapters.fresh]\nfolder = "{folder}"\naliases = ["prod"]\n'
        '[adapters.billing]\ndescription = "Changed"\n'
    )
    outcomes = cli("apply", "-f", closed, "--yes", "--atomic", "--json", expect=6).json["items"]
    assert [(i["step"], i["state"]) for i in outcomes] == [
        ("push", "done"), ("describe", "refused"), ("alias", "refused")
    ]  # fmt: skip
    assert cli("describe", "acme/billing", "--json").json["description"] == "Responses about bills"
    closed.write_text(closed.read_text().replace("fresh", "fresher"))
    cli.make_adapter("fresher")
    shown = cli("apply", "-f", closed, "--yes", "--atomic", expect=6).stdout
    assert "--atomic: keeps the 1 version to push; " in shown
    assert shown.splitlines()[-1] == "1 done, 0 unchanged, 2 refused; kept 1 pushed version, changed no tag or alias"
    report = shown.splitlines()[-3:-1]
    assert [line.split()[0] for line in report] == ["NAME", "acme/fresher"], "what failed, and not what waits for it"
    file.write_text(file.read_text() + 'colour = "red"\n')
    refused = cli("apply", "-f", file, expect=2).stderr
    assert "adapters.toml: adapters.billing.colour: is not a field here" in refused


def test_the_help_of_apply_shows_a_file(cli: CommandRunner, tmp_path: Path) -> None:
    shown = cli("apply", "--help").stdout
    block = shown[shown.index("namespace = ") : shown.index("An adapter may")]
    file = tmp_path / "adapters.toml"
    file.write_text("\n".join(line.strip() for line in block.splitlines()))
    entries = {str(name): entry.versions for name, entry in read_adapters_file(file).items()}
    assert entries == {"acme/support": {"canary": ""}, "acme/billing": {"prod": "3", "canary": "main"}}


@pytest.mark.security
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('folder = "a\\u0000"', "adapters.a: folder: holds the character U+0000"),
        ('description = "\\u001b[2J"', "adapters.a.description: holds the control character U+001B"),
        ('tags = {"a\\n" = ""}', "adapters.a.tags: a key has 1 to 63 letters, digits and . _ / -"),
        ("aliases = {prod = true}", "adapters.a.aliases: a version is a whole number or text, not true or false"),
        (f"aliases = {{prod = {'9' * 5000}}}", "adapters.toml holds an integer of too many digits"),
        ("aliases = {x = 0}", "adapters.toml: adapters.a.aliases.x: '0' is not a version; versions start at 1"),
        ('aliases = {Prod = "1"}', "adapters.toml: adapters.a.aliases.Prod: "),
        (
            "aliases = {x = 0}\n[adapters.B]",
            "adapters.a.aliases.x: '0' is not a version; versions start at 1; adapters.B: ",
        ),
    ],
)
def test_a_adapters_file_with_a_wrong_value_is_refused_by_its_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "adapters.toml"
    file.write_text(f'namespace = "acme"\n[adapters.a]\n{text}\n')
    with pytest.raises(Invalid, match=re.escape(message)):
        read_adapters_file(file)
    with pytest.raises(Invalid, match="over the limit of 1048576 bytes"):
        read_adapters_file(Path("/dev/zero"))  # read no further than that


def test_a_wave_is_undone_by_its_id_or_its_time_and_what_moved_since_is_listed(acme_cli: CommandRunner) -> None:
    def move(names: str, target: str) -> str:
        group = ("--namespace", "acme", "--from", target, "--to", "staging", "--select", names, "--yes", "--json")
        return str(acme_cli("promote", *group).json["group_id"])

    def pointed() -> list[int]:
        return [acme_cli("alias", "list", f"acme/{name}", "--json").json["items"][-1]["number"] for name in ADAPTERS]

    move("*", "canary")
    for name in ADAPTERS[:2]:
        acme_cli.push(f"acme/{name}")
    wave = move("cust-*", "main")
    acme_cli("tag", "add", "--namespace", "acme", "--select", "other", "unrelated", "--yes")
    assert pointed() == [2, 2, 1]
    moves = acme_cli("history", "acme", "--alias", "staging", "--json").json["moves"]
    assert [item["group_id"] == wave for item in moves] == [True, True, False, False, False]
    events = acme_cli("audit", "log", "--group", wave, "--json").json["items"]
    assert [event["object"] for event in events] == ["acme/cust-1:staging", "acme/cust-2:staging"]
    acme_cli.push("acme/cust-2")
    acme_cli("promote", "acme/cust-2@3", "staging")
    undo = ("rollback", "--group", wave, "--reason", "slow")
    planned = acme_cli(*undo, "--dry-run", expect=5)
    assert "it is at generation 3, not 2" in planned.stdout
    for states in (["moved", "refused"], ["unchanged", "refused"]):
        undone = acme_cli(*undo, "--yes", "--json", expect=5).json
        assert [item["state"] for item in undone["items"]] == states
    assert pointed() == [1, 3, 1]
    move("cust-1", "main")
    later = acme_cli("history", "acme", "--alias", "staging", "--json").json["moves"][0]["at"]
    since = ("rollback", "--yes", "--reason", "slow", "--since", later, "--namespace", "acme", "--alias", "staging")
    assert "no alias was moved" in acme_cli(*since, "--actor", "nobody@acme", expect=4).stderr
    last = acme_cli(*since).stdout.splitlines()[-1]
    assert re.fullmatch(r"1 moved, 0 unchanged, 0 refused  group grp_[0-9a-f]{16}", last)
    assert pointed() == [1, 3, 1]
    assert "no alias was moved in grp_0" in acme_cli(*undo[:2], "grp_0000000000000000", *undo[3:], expect=4).stderr


def test_tags_are_those_of_the_selected_version_and_who_is_left_out_is_said(acme_cli: CommandRunner) -> None:
    acme_cli("tag", "add", "--namespace", "acme", "--alias", "canary", "--select", "cust-*", "wave=1", "--yes")
    acme_cli.push("acme/cust-1")
    group = ("promote", "--namespace", "acme", "--from", "canary", "--to", "staging", "--dry-run")
    result = acme_cli(*group, "--select", "tag=wave=1")
    assert re.findall("acme/.*:staging", result.stdout) == ["acme/cust-1:staging", "acme/cust-2:staging"]
    assert "left out, not with the alias 'canary' and the tags wave=1: acme/other" in result.stderr
    assert "left out" not in acme_cli(*group, "--select", "tag=wave=1", "--select", "cust-*").stderr
    assert "left out, not with the tags wave=1: acme/cust-1, acme/other" in acme_cli(
        "tag", "add", "--namespace", "acme", "--select", "tag=wave=1", "seen", "--yes"
    ).stderr.replace("\n", " ")


def test_the_retention_of_a_namespace_is_tried_before_it_is_set(acme_cli: CommandRunner) -> None:
    for name in ("acme/cust-1", "acme/other"):
        acme_cli.push(name)
        acme_cli("promote", name, "canary")
    acme_cli("alias", "delete", "acme/cust-1:canary", "--yes")
    acme_cli("retention", "set", "acme/other", "--keep-newest", 5)
    tried = acme_cli("retention", "set", "acme", "--keep-newest", 1, "--dry-run").stdout.splitlines()
    assert re.fullmatch(r"1 version of 5 of 3 adapters would be deleted, .* kB\.", tried[0])
    assert tried[3].split()[:2] == ["acme/cust-1@1", "delete"], "what goes comes first"
    assert acme_cli("retention", "show", "acme", "--plan", "--json").json["deletes"] == 0, "nothing was set"
    acme_cli("retention", "set", "acme", "--keep-newest", 1)
    assert acme_cli("retention", "show", "acme", "--plan", "--json").json["deletes"] == 1
    assert "Deleted by retention: acme/cust-1@1." in acme_cli("gc", "--dry-run").stdout


def test_a_plan_says_which_folders_would_fail_compat(acme_cli: CommandRunner, tmp_path: Path) -> None:
    samples.write(samples.lora(samples.llama(hidden=128)), tmp_path / "wide")
    file = tmp_path / "adapters.toml"
    file.write_text('namespace = "acme"\nbase = "tiny-llama"\n[adapters.cust-1]\nfolder = "wide"\n')
    [step] = acme_cli("apply", "-f", file, "--dry-run", "--json").json["items"]
    assert (step["state"], "(compat would fail: " in step["change"]) == ("planned", True)
