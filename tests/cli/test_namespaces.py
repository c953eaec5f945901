"""Namespaces, trusted publishers, tokens of subjects, deletion and renaming, by command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import samples
from tests.access.identity import ISSUER, Provider
from tests.cli.runner import CommandRunner


def test_a_namespace_is_created_opened_limited_and_deleted(cli: CommandRunner) -> None:
    cli("namespace", "create", "acme", "--owner", "alice@example.org")
    assert "alice@example.org" in cli("namespace", "show", "acme").stdout
    grant = ("namespace", "grant", "acme", "bob@example.org")
    assert cli(*grant, "reader").stdout == "bob@example.org is reader in acme.\n"
    said = cli(*grant, "pusher", "--alias", "canary").stdout
    assert said == "bob@example.org was reader in acme; is pusher (moves canary) and reader now.\n"
    said = cli("namespace", "revoke", "--yes", "acme", "bob@example.org", "reader").stdout
    assert said.endswith("was pusher (moves canary) and reader in acme; is pusher (moves canary) now.\n")
    shown = cli("namespace", "set", "acme", "--public", "--quota-versions", 5, "--json").json
    assert (shown["public"], shown["quota_versions"]) == (True, 5)
    owner, pusher = {"role": "owner", "aliases": []}, {"role": "pusher", "aliases": ["canary"]}
    assert shown["roles"] == {"alice@example.org": [owner], "bob@example.org": [pusher]}
    for text, size_bytes in (("1500", 1500), (str(2**40), 2**40), ("2GiB", 2**31), ("500MB", 500_000_000), ("0", None)):
        assert cli("namespace", "set", "acme", "--quota-bytes", text, "--json").json["quota_bytes"] == size_bytes
    limited = cli("audit", "log", "--action", "namespace.limit", "--json").json["items"]
    assert (limited[-1]["actor"], limited[-1]["object"]) == ("owner", "acme")
    assert limited[-1]["detail"] == {"before": {"quota_bytes": 500_000_000}, "after": {"quota_bytes": None}}
    assert "500MB" in cli("namespace", "set", "acme", "--quota-bytes", "1 MB", expect=2).stderr
    assert "not registered" in cli("namespace", "set", "acme", "--unregistered-bases").stdout
    folder = cli.make_adapter("other", samples.llama("nobody/unknown"))
    assert "smoke   not tested: no base to load" in cli("push", folder, "acme/other").stdout
    cli("delete", "acme/other", "--yes")
    assert cli("namespace", "revoke", "--yes", "acme", "bob@example.org").stdout.endswith("; has no role now.\n")
    assert [item["name"] for item in cli("namespace", "list", "--json").json["items"]] == ["acme"]
    cli("namespace", "delete", "acme", "--yes", expect=5)
    cli("gc", REGISTRY_DELETE_GRACE_SECONDS="0")
    cli("namespace", "delete", "acme", "--yes")
    again = cli("namespace", "create", "acme", "--json", expect=5, REGISTRY_DELETE_GRACE_SECONDS="0")
    assert again.problem["code"] == "NAME_TOMBSTONED"
    assert cli("namespace", "create", "acme", "--rehearsal").stdout.startswith("acme  rehearsal\n"), "it is restored"


def test_the_name_of_a_deleted_adapter_is_released_on_purpose(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/suport")
    reason = ("--reason", "a typo")
    assert "delete it first" in cli("delete", "acme/suport", "--release-name", "--yes", expect=5).stderr
    cli("delete", "acme/suport", "--yes")
    freed = cli("delete", "acme/suport", "--release-name", "--yes", *reason)
    assert freed.stdout == "acme/suport is free. The next push continues its numbers.\n"
    cli.push("acme/suport")
    cli("rename", "acme/suport", "acme/support", "--yes", *reason)
    cli("retention", "set", "acme", "--keep-newest", "3", *reason)
    cli("gate", "set", "acme", "prod", "--approvals", "1", *reason)
    cli("gate", "delete", "acme", "prod", "--yes", *reason)
    log = cli("audit", "log", "--namespace", "acme", "--json").json["items"]
    with_reason = {item["action"] for item in log if item["detail"].get("reason") == "a typo"}
    assert with_reason == {
        "adapter.release", "adapter.rename", "adapter.rename_from", "retention.set", "gate.set", "gate.delete",
    }  # fmt: skip


def test_irreversible_commands_ask_first(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support")
    cli("delete", "acme/support", expect=2, stdin="n\n")
    cli("rename", "acme/support", "acme/helpdesk", stdin="y\n")
    assert cli("show", "acme/helpdesk", "--json").json["number"] == 1
    cli("delete", "acme/helpdesk", "--yes")
    cli("show", "acme/helpdesk", expect=4)


def test_a_closed_standard_input_is_bad_usage(cli: CommandRunner) -> None:
    cli("namespace", "create", "empty")
    result = cli("namespace", "delete", "empty", stdin="", expect=2)
    assert "pass --yes" in result.stderr
    assert "Error: not done: the answer is missing" in result.stderr.splitlines()


def test_a_job_exchanges_its_identity_token_from_a_pipe(
    cli: CommandRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(tmp_path)
    monkeypatch.setenv("REGISTRY_ISSUERS", provider.settings)
    rule = ("--issuer", ISSUER, "--claim", "repository=acme/train", "--claim", "ref=refs/heads/*")
    created = cli("publisher", "add", "acme/support", *rule, "--json").json
    assert created["claims"] == {"repository": "acme/train", "ref": "refs/heads/*"}
    result = cli("token", "exchange", "--adapter", "acme/support", "--json", stdin=provider.sign() + "\n").json
    assert result["token"]["adapters"] == ["acme/support"]
    assert result["secret"].startswith("lra_")
    other = cli("publisher", "add", "acme/support", "--issuer", "https://other.example", "--claim", "sub=x").stderr
    assert "the server rejects tokens of https://other.example until REGISTRY_ISSUERS lists it" in other
    for rule_id in (item["id"] for item in cli("publisher", "list", "acme/support", "--json").json["items"]):
        cli("publisher", "delete", "--yes", "acme/support", rule_id)
    cli("token", "exchange", "--adapter", "acme/support", expect=3, ADAPTER_IDENTITY_TOKEN=provider.sign())
    assert "No trusted publishers" in cli("publisher", "list", "acme/support").stdout


def test_a_token_of_a_subject_is_created_and_rotated(cli: CommandRunner) -> None:
    created = cli("token", "create", "alice", "--scope", "push", "--subject", "alice@example.org", "--json").json
    assert created["token"]["subject"] == "alice@example.org"
    ids = {created["token"]["id"]}
    for token in (created["token"]["id"], "alice"):
        rotated = cli("token", "rotate", token, "--keep-old", "5m", "--json").json
        assert rotated["secret"] != created["secret"]
        assert {rotated["token"]["id"]} == ids
    listed = cli("token", "list", "--json").json["items"]
    assert [(item["id"], item["subject"]) for item in listed] == [(created["token"]["id"], "alice@example.org")]
    assert created["secret"] not in json.dumps(listed)
    cli("token", "revoke", "--yes", created["token"]["id"])
    result = cli("token", "list")
    assert ("No tokens." in result.stdout, "1 ended token" in result.stderr) == (True, True)
    assert [item["id"] for item in cli("token", "list", "--ended", "--json").json["items"]] == [created["token"]["id"]]
    for command in ("revoke", "rotate"):
        assert "token's secret, not its id" in cli("token", command, created["secret"], expect=2).stderr
    cli("token", "create", "alice-2", "--scope", "pull")
    assert "(alice-2) is revoked" in cli("token", "revoke", "--yes", "alice-2").stdout
    for _ in range(2):
        cli("token", "create", "shared", "--scope", "pull")
    for words in (["revoke", "--yes"], ["rotate"]):
        assert "2 tokens are named 'shared'" in cli("token", *words, "shared", expect=2).stderr


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["delete", "acme/cust-05:prod"], "delete needs NAME without ':': 'acme/cust-05:prod' names an alias"),
        (["delete", "acme/cust-00:prod@2"], "delete needs NAME without ':'"),
        (["delete", "Acme/x"], "namespace 'Acme' must be lower-case"),
        (["rename", "acme/x", "acme/y:prod"], "rename needs NAME without ':'"),
        (["namespace", "delete", "Acme"], "namespace 'Acme' must be lower-case"),
        (["yank", "acme/x@latest", "--reason", "r"], "after '@' comes a version number"),
        (["quarantine", "Acme/x@1", "--reason", "r"], "namespace 'Acme' must be lower-case"),
    ],
)
def test_a_command_that_cannot_be_undone_suggests_no_other_name(
    cli: CommandRunner, words: list[str], error: str
) -> None:
    result = cli(*words, expect=2)
    assert error in result.stderr
    assert "Next" not in result.stderr


def test_other_commands_suggest_a_name_that_differs_in_case(cli: CommandRunner) -> None:
    assert "Next: use 'acme'" in cli("show", "Acme/x", expect=2).stderr
    assert "push needs NAME without '@'" in cli("push", ".", "acme/x@2", expect=2).stderr


def test_commands_name_the_present_name_of_a_renamed_adapter(cli: CommandRunner, tmp_path: Path) -> None:
    cli.add_base()
    cli.push("acme/old")
    cli("rename", "acme/old", "acme/new", "--yes")
    for words in (("show", "acme/old"), ("pull", "acme/old:prod", tmp_path / "x"), ("tag", "add", "acme/old", "a=b")):
        said = cli(*words, expect=4).stderr.splitlines()
        assert said == ["Error: adapter 'acme/old' was renamed to 'acme/new'", "Next: use its new name, acme/new"]
    cli("delete", "acme/new", "--yes")
    assert "acme/new --undo" in cli("pull", "acme/new", tmp_path / "x", expect=4).stderr
