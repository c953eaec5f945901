"""Namespaces, trusted publishers, tokens of subjects, removal and transfer, by command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.access.identity import ISSUER, Provider
from tests.cli.desk import Desk


def test_a_namespace_is_made_opened_limited_and_ended(desk: Desk) -> None:
    desk("namespace", "create", "acme", "--owner", "alice@example.org")
    assert "alice@example.org" in desk("namespace", "show", "acme").stdout
    desk("namespace", "grant", "acme", "bob@example.org", "pusher")
    shown = desk("namespace", "set", "acme", "--public", "--quota-versions", 5, "--json").json
    assert (shown["public"], shown["quota_versions"]) == (True, 5)
    assert shown["roles"] == {"alice@example.org": "owner", "bob@example.org": "pusher"}
    desk("namespace", "revoke", "acme", "bob@example.org")
    assert [item["name"] for item in desk("namespace", "list", "--json").json["items"]] == ["acme"]
    desk("namespace", "delete", "acme", "--yes")
    assert desk("namespace", "create", "acme", "--json", expect=5).problem["code"] == "NAME_TOMBSTONED"


def test_what_cannot_be_taken_back_asks_first(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support")
    desk("delete", "acme/support", expect=2, stdin="n\n")
    desk("rename", "acme/support", "acme/helpdesk", stdin="y\n")
    assert desk("show", "acme/helpdesk", "--json").json["number"] == 1
    desk("delete", "acme/helpdesk", "--yes")
    desk("show", "acme/helpdesk", expect=4)


def test_where_nobody_is_there_to_ask_it_is_bad_usage_and_not_a_bug(desk: Desk) -> None:
    desk("namespace", "create", "empty")
    said = desk("namespace", "delete", "empty", stdin="", expect=2)
    assert "pass --yes" in said.stderr


def test_a_job_exchanges_its_identity_token_from_a_pipe(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(tmp_path)
    monkeypatch.setenv("REGISTRY_ISSUERS", provider.settings)
    rule = ("--issuer", ISSUER, "--claim", "repository=acme/train", "--claim", "ref=refs/heads/*")
    made = desk("publisher", "add", "acme/support", *rule, "--json").json
    assert made["claims"] == {"repository": "acme/train", "ref": "refs/heads/*"}
    said = desk("token", "exchange", "--adapter", "acme/support", "--json", stdin=provider.sign() + "\n").json
    assert said["token"]["adapters"] == ["acme/support"]
    assert said["secret"].startswith("lra_")
    desk("publisher", "remove", "acme/support", made["id"])
    desk("token", "exchange", expect=3, ADAPTER_IDENTITY_TOKEN=provider.sign())
    assert "No trusted publishers" in desk("publisher", "list", "acme/support").stdout


def test_a_token_of_a_subject_is_made_and_rotated(desk: Desk) -> None:
    made = desk("token", "create", "alice", "--scope", "push", "--subject", "alice@example.org", "--json").json
    assert made["token"]["subject"] == "alice@example.org"
    rotated = desk("token", "rotate", made["token"]["id"], "--keep-minutes", 5, "--json").json
    assert rotated["secret"] != made["secret"]
    listed = desk("token", "list", "--json").json["items"]
    assert [(item["id"], item["subject"]) for item in listed] == [(made["token"]["id"], "alice@example.org")]
    assert made["secret"] not in json.dumps(listed)
    desk("token", "revoke", made["token"]["id"])
    said = desk("token", "list")
    assert ("No tokens." in said.stdout, "1 token that ended" in said.stderr) == (True, True)
    assert [item["id"] for item in desk("token", "list", "--ended", "--json").json["items"]] == [made["token"]["id"]]
    for command in ("revoke", "rotate"):
        assert "secret of a token, not its id" in desk("token", command, made["secret"], expect=2).stderr
