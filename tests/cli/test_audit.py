"""`adapter audit`, `verify` and `sign` on an embedded registry."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from registry.attestations.keys import PrivateKey
from registry.client.audit import Audit
from registry.tlog.notes import Verifier
from tests.cli.runner import CommandRunner


@pytest.fixture
def cli(cli: CommandRunner) -> CommandRunner:
    """An adapter was pushed, tested and promoted; the log was read once."""
    cli.add_base()
    cli.push("acme/support")
    cli.finish_smoke_test("acme/support")
    cli("promote", "acme/support@1", "prod", "--reason", "it is better")
    cli("audit", "log")
    return cli


def database(cli: CommandRunner, *statements: str) -> None:
    with sqlite3.connect(cli.folder / "data" / "registry.db") as connection:
        for statement in statements:
            connection.execute(statement)


def test_the_log_shows_the_events_of_an_adapter(cli: CommandRunner) -> None:
    lines = cli("audit", "log", "--object", "acme/support").stdout.splitlines()
    messages = [line.split("  ", 3)[-1] for line in lines]
    assert lines[0].split() == ["SEQ", "TIME", "ACTOR", "EVENT"]
    assert any("created acme/support" in line for line in messages)
    assert any("pushed acme/support@1" in line for line in messages)
    assert any("checked acme/support@1: smoke pass" in line for line in messages)
    assert any("pointed acme/support:prod at version 1: “it is better”" in line for line in messages)
    rows = cli("audit", "log", "--action", "alias.move", "--sort", "-seq", "--columns", "actor,object", "-o", "csv")
    assert rows.stdout.splitlines() == ["actor,object", "owner,acme/support:prod", "owner,acme/support:main"]
    actions = [item["action"] for item in cli("audit", "log", "--action", "alias.move", "--json").json["items"]]
    assert actions == ["alias.move", "alias.move"]


def test_an_entry_is_proved_with_the_keys_that_this_machine_trusts(
    cli: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = cli("audit", "prove", "2", "--json").json
    assert shown["entry"]["seq"] == 2
    assert shown["size"] >= 2
    assert "entry 2 is in" in cli("audit", "prove", "2").stderr
    assert "no event 999" in cli("audit", "prove", "999", expect=4).stderr
    real = Audit.proof
    monkeypatch.setattr(Audit, "proof", lambda audit, seq: real(audit, seq - 1))
    assert "does not show entry 3" in cli("audit", "prove", "3", expect=70).stderr


def test_the_log_is_filtered_by_actor_and_time_and_a_date_is_a_day(cli: CommandRunner) -> None:
    events = cli("audit", "log", "--json").json["items"]
    today = events[0]["at"][:10]
    assert len(cli("audit", "log", "--since", today, "--until", today, "--json").json["items"]) == len(events)
    middle = events[3]["at"]
    later = cli("audit", "log", "--since", middle, "--json").json["items"]
    assert [event["seq"] for event in later] == [event["seq"] for event in events if event["at"] >= middle]
    earlier = cli("audit", "log", "--until", middle, "--json").json["items"]
    assert [event["seq"] for event in earlier] == [event["seq"] for event in events if event["at"] <= middle]
    assert cli("audit", "log", "--actor", "somebody", "--json").json["items"] == []
    assert cli("audit", "log", "--until", "2020-01-02").stdout == "No events that you may see.\n"
    assert len(cli("audit", "log", "--since", "1w", "--json").json["items"]) == len(events)
    assert cli("audit", "log", "--until", "1w", "--json").json["items"] == []
    assert "is not a time" in cli("audit", "log", "--since", "yesterday", expect=2).stderr
    assert "without --until" in cli("audit", "log", "--until", today, "--follow", expect=2).stderr


def test_texts_of_others_neither_steer_the_terminal_nor_look_like_an_entry(cli: CommandRunner) -> None:
    """Control characters are refused in requests, and escaped where they are stored already."""
    for words in (["--reason", "good\x1b[2J"], ["--reason", "good\rnot"], ["--reason", "\u202edoog"]):
        assert "control character" in cli("promote", "acme/support@1", "beta", *words, expect=2).stderr
    assert "control character" in cli("token", "create", "ci\x1b[2K", "--scope", "pull", expect=2).stderr
    cli("token", "create", "ci\n    99  root did it", "--scope", "pull", expect=2)
    cli("promote", "acme/support@1", "beta", "--reason", "it is\n    99  2026-05-03 14:05 UTC  root did it")
    database(cli, "UPDATE event SET actor = 'evil\x1b[2J' || char(10) || 'x' WHERE action = 'adapter.create'")
    database(cli, "UPDATE alias_move SET reason = 'evil\x1b[2J'")
    _, *lines = cli("audit", "log", "--object", "acme/support").stdout.splitlines()
    assert all(line.split()[0].isdigit() for line in lines)
    assert not any(line.split()[0] == "99" for line in lines)
    shown = [*lines, *cli("history", "acme/support").stdout.splitlines()]
    assert sum("\\x1b" in line for line in shown) >= 2
    assert all(line.isprintable() for line in shown)


def test_an_intact_log_verifies_online_and_from_an_export(cli: CommandRunner, tmp_path: Path) -> None:
    key = cli("audit", "key", "--json").json["keys"][0]
    assert cli("audit", "verify", "--json").json["ok"]
    folder = tmp_path / "exported"
    size = cli("audit", "export", folder, "--json").json["size"]
    result = cli("audit", "verify", folder, "--log-key", key, "--json").json
    assert (result["ok"], result["size"], result["key_given"]) == (True, size, True)
    other = "x.example+" + key.split("+", 1)[1]
    cli("audit", "verify", folder, "--log-key", other, expect=2)
    cli("audit", "export", folder, expect=2)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "keys"):
        data = path.read_bytes()
        at = data.index(b"owner") if path.name == "events.jsonl" else 5
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert not cli("audit", "verify", folder, "--json", expect=70).json["ok"], path
        path.write_bytes(data)


def test_a_changed_row_is_found_and_exits_70(cli: CommandRunner) -> None:
    database(cli, "UPDATE event SET actor = 'somebody' WHERE action = 'alias.move'")
    problems = cli("audit", "verify", "--json", expect=70).json["problems"]
    assert any("its row differs from its entry" in problem for problem in problems)


def test_every_command_refuses_a_rewritten_log(cli: CommandRunner) -> None:
    database(
        cli,
        "DELETE FROM audit_checkpoint",
        "DELETE FROM audit_tile",
        "DELETE FROM event WHERE action = 'alias.move'",
        "UPDATE event SET position = NULL",
    )
    for words in (("audit", "log"), ("audit", "verify"), ("audit", "export", cli.folder / "x")):
        assert cli(*words, "--json", expect=70).problem["code"] == "LOG_INCONSISTENT"
    cli("audit", "key", "--trust")
    cli("audit", "log")


def test_a_log_that_lost_its_end_is_refused_until_a_person_accepts_it(cli: CommandRunner) -> None:
    live = cli.folder / "data" / "registry.db"
    with sqlite3.connect(live) as source, sqlite3.connect(cli.folder / "backup.db") as backup:
        source.backup(backup)
    cli.push("acme/sales")
    cli("audit", "log")
    for path in live.parent.glob("registry.db*"):
        path.unlink()
    (cli.folder / "backup.db").rename(live)
    problem = cli("audit", "log", "--json", expect=70).problem
    assert "if the registry was restored from an older backup" in problem["detail"]
    assert "audit key --trust" in problem["next_step"]
    cli("audit", "key", "--trust")
    assert "acme/sales" not in cli("audit", "log").stdout


def test_the_log_shows_tags_and_gates_as_words(cli: CommandRunner) -> None:
    cli("tag", "add", "acme/support@1", "team=nlp", "reviewed")
    cli("gate", "set", "acme", "prod", "--require", "compat", "--approvals", "2")
    printed = cli("audit", "log", "--columns", "event").stdout
    assert ", tags reviewed team=nlp)" in printed
    assert "after approvals=2 requires=compat)" in printed


def test_a_rotated_key_is_followed_by_every_command(cli: CommandRunner) -> None:
    new = cli("audit-key", "rotate", "--json").json["key"]
    cli("promote", "acme/support@1", "beta")
    assert cli("audit", "verify", "--json").json["ok"]
    assert cli("audit", "key", "--json").json["keys"][0] == new
    actions = [item["action"] for item in cli("audit", "log", "--json").json["items"]]
    assert "audit.key_rotate" in actions
    assert cli("audit-key", "replace", "--reason", "no need", "--json", expect=5).problem["code"] == "KEY_NOT_LOST"


def test_a_lost_key_is_replaced_and_trusted_by_a_person(cli: CommandRunner, tmp_path: Path) -> None:
    cli.push("acme/before")
    assert cli("verify", "acme/before", "--json").json["ok"]
    lost = cli("audit", "key", "--json").json["keys"][0]
    (cli.folder / "data" / "audit.key").unlink()
    assert "audit-key replace" in cli("audit", "log", expect=2).stderr
    new = cli("audit-key", "replace", "--reason", "the disk is gone", "--json").json["key"]
    problem = cli("audit", "log", "--json", expect=70).problem
    assert (problem["code"], "the disk is gone" in problem["detail"]) == ("LOG_KEY_REPLACED", True)
    cli("audit", "key", "--former", lost, expect=2)
    trusted = cli("audit", "key", "--trust", "--json").json
    assert (trusted["keys"], trusted["remembered"]) == ([new], [lost])
    assert cli("audit", "verify", "--json").json["ok"]
    assert cli("verify", "acme/before", "--json").json["ok"]
    other = str(tmp_path / "other" / "profile.json")  # a machine that never saw the lost key
    assert "--former" in cli("verify", "acme/before", expect=70, ADAPTER_CONFIG=other).stdout
    cli("audit", "key", "--trust", "--former", lost, ADAPTER_CONFIG=other)
    assert cli("verify", "acme/before", "--json", ADAPTER_CONFIG=other).json["ok"]
    replaced = cli("audit", "log", "--action", "audit.key_replace", "--json").json["items"]
    assert [item["detail"]["reason"] for item in replaced] == ["the disk is gone"]


def test_verify_shows_pusher_signer_and_log_entry(cli: CommandRunner, tmp_path: Path) -> None:
    created = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "id_ed25519"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    path.write_bytes(created.private_bytes(encoding, form, serialization.NoEncryption()))
    cli.push("acme/signed", "--signing-key", path)
    result = cli("verify", "acme/signed", "--json").json
    assert result["ok"]
    kinds = {line["kind"]: line for line in result["signatures"]}
    assert kinds["push"]["who"].startswith("owner, according to registry.local/")
    identity = kinds["signature"]["identity"]
    assert cli("sign", "acme/support", "--signing-key", path, "--json").json["identity"] == identity
    digest = cli("show", "acme/support", "--json").json["digest"]
    signed = cli("sign", "acme/support", "--signing-key", path).stdout
    assert signed == f"acme/support@{digest} is signed by {identity}\n", "a registry can lie about the number"
    text = cli("verify", "acme/support", "--signed-by", identity).stdout
    assert f"signature  {identity}" in text
    assert "records this push" in text
    assert " safe" not in text
    assert cli("verify", "acme/support", "--signed-by", "key:0", "--json", expect=6).json["missing"] == ["key:0"]
    path.with_suffix(".pub").write_bytes(
        created.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    cli("verify", "acme/support", "--signed-by", path.with_suffix(".pub"))
    cli("gate", "set", "acme/support", "canary", "--signed-by", path.with_suffix(".pub"))
    assert f"signed by {identity}" in cli("gate", "show", "acme/support", "canary").stdout
    mistaken = cli("gate", "set", "acme/support", "canary", "--signed-by", "id_absent.pub", expect=2)
    assert "neither a file with a public key nor an identity" in mistaken.stderr
    cli("sign", "acme/support", expect=2)
    cli("sign", "acme/support", "--signing-key", tmp_path / "absent", expect=2)


def test_a_bundle_is_verified_offline(cli: CommandRunner, tmp_path: Path) -> None:
    key, saved, pulled = cli("audit", "key", "--json").json["keys"][0], tmp_path / "support.bundle", tmp_path / "out"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    created = ed25519.Ed25519PrivateKey.generate().private_bytes(encoding, form, serialization.NoEncryption())
    (tmp_path / "signer.pem").write_bytes(created)
    signer = cli("sign", "acme/support", "--signing-key", tmp_path / "signer.pem", "--json").json["identity"]
    cli("pull", "acme/support", pulled)
    cli("verify", "acme/support", "--out", saved)
    away = "http://127.0.0.1:9"
    offline = ["verify", "--offline", saved, "--folder", pulled]
    result = cli(*offline, "--log-key", key, "--signed-by", signer, "--json", ADAPTER_REGISTRY=away).json
    assert (result["ok"], result["key_given"], len(result["files"])) == (True, True, 4)
    assert {line["kind"] for line in result["signatures"]} == {"push", "verdict", "signature"}
    assert "the log's keys came with the file" in cli(*offline, ADAPTER_REGISTRY=away).stdout
    assert "no file was read" in cli("verify", "--offline", saved, "--log-key", key, ADAPTER_REGISTRY=away).stdout
    cli(*offline, "--log-key", key, "--signed-by", "key:another", expect=6, ADAPTER_REGISTRY=away)
    document = json.loads(saved.read_text())
    public = PrivateKey.of_seed(b"\1" * 32).public.key
    assert isinstance(public, Ed25519PublicKey)
    other = public.public_bytes_raw()
    other_key = Verifier(key.partition("+")[0], other).text
    assert not cli(*offline, "--log-key", other_key, "--json", expect=70, ADAPTER_REGISTRY=away).json["ok"]
    changes: tuple[Callable[[dict[str, Any]], None], ...] = (
        lambda d: d.update(number=2),
        lambda d: d["manifest"]["files"][0].update(size_bytes=7),
        lambda d: d["proof"].update(entry=d["proof"]["entry"].replace("owner", "other")),
        lambda d: d.update(proof=None),
        lambda d: d["attestations"][0].update(bundle=d["attestations"][-1]["bundle"]),
    )
    for change in changes:
        changed = json.loads(json.dumps(document))
        change(changed)
        saved.write_text(json.dumps(changed))
        assert not cli(*offline, "--log-key", key, "--json", expect=70, ADAPTER_REGISTRY=away).json["ok"]
    for text in ("{}", "[" * 100_000, json.dumps(document | {"keys": ["x"]})):
        saved.write_text(text)
        assert cli("verify", "--offline", saved, "--json", expect=2, ADAPTER_REGISTRY=away).problem["code"] in (
            "FOLDER_INVALID", "REQUEST_INVALID", "SETTING_INVALID",
        )  # fmt: skip
    saved.write_text(json.dumps(document))
    (pulled / "adapter_config.json").write_text("{}")
    assert "differs" in cli(*offline, "--log-key", key, expect=70, ADAPTER_REGISTRY=away).stdout
    cli("verify", "acme/support", "--offline", saved, expect=2)
    cli("verify", "acme/support", "--folder", pulled, expect=2)
