"""`adapter audit`, `verify` and `sign` on an embedded registry: a story, a proof, and what a change ends in."""

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
from registry.tlog.notes import Verifier
from tests.cli.desk import Desk


@pytest.fixture
def told(desk: Desk) -> Desk:
    """A desk on which something happened, whose log was seen once."""
    desk.base()
    desk.push("acme/support")
    desk.tried("acme/support")
    desk("promote", "acme/support@1", "prod", "--reason", "it is better")
    desk("audit", "log")
    return desk


def database(desk: Desk, *statements: str) -> None:
    with sqlite3.connect(desk.folder / "data" / "registry.db") as connection:
        for statement in statements:
            connection.execute(statement)


def test_the_log_of_an_adapter_reads_like_a_story(told: Desk) -> None:
    lines = told("audit", "log", "--object", "acme/support").stdout.splitlines()
    story = [line.split("  ", 3)[-1] for line in lines]
    assert any("owner created acme/support" in line for line in story)
    assert any("owner pushed acme/support@1" in line for line in story)
    assert any("owner checked acme/support@1: smoke pass" in line for line in story)
    assert any("owner pointed acme/support:prod at version 1: “it is better”" in line for line in story)
    actions = [item["action"] for item in told("audit", "log", "--action", "alias.move", "--json").json["items"]]
    assert actions == ["alias.move", "alias.move"]


def test_no_words_of_others_steer_the_terminal_or_look_like_an_entry(told: Desk) -> None:
    """New ones are refused; those that are there, or come from another registry, are written out."""
    for words in (["--reason", "good\x1b[2J"], ["--reason", "good\rnot"], ["--reason", "\u202edoog"]):
        assert "control character" in told("promote", "acme/support@1", "beta", *words, expect=2).stderr
    assert "control character" in told("token", "create", "ci\x1b[2K", "--scope", "pull", expect=2).stderr
    told("token", "create", "ci\n    99  root did it", "--scope", "pull", expect=2)
    told("promote", "acme/support@1", "beta", "--reason", "it is\n    99  2026-05-03 14:05 UTC  root did it")
    database(told, "UPDATE event SET actor = 'evil\x1b[2J' || char(10) || 'x' WHERE action = 'adapter.create'")
    database(told, "UPDATE alias_move SET reason = 'evil\x1b[2J'")
    lines = told("audit", "log", "--object", "acme/support").stdout.splitlines()
    assert all(line.split()[0].isdigit() for line in lines)
    assert not any(line.split()[0] == "99" for line in lines)
    shown = [*lines, *told("history", "acme/support").stdout.splitlines()]
    assert sum("\\x1b" in line for line in shown) >= 2
    assert all(line.isprintable() for line in shown)


def test_a_log_that_is_well_verifies_here_and_from_an_export(told: Desk, tmp_path: Path) -> None:
    key = told("audit", "key", "--json").json["keys"][0]
    assert told("audit", "verify", "--json").json["ok"]
    folder = tmp_path / "exported"
    size = told("audit", "export", folder, "--json").json["size"]
    found = told("audit", "verify", folder, "--key", key, "--json").json
    assert (found["ok"], found["size"], found["key_given"]) == (True, size, True)
    other = "x.example+" + key.split("+", 1)[1]
    told("audit", "verify", folder, "--key", other, expect=2)
    told("audit", "export", folder, expect=2)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "keys"):
        data = path.read_bytes()
        at = data.index(b"owner") if path.name == "events.jsonl" else 5
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert not told("audit", "verify", folder, "--json", expect=70).json["ok"], path
        path.write_bytes(data)


def test_a_row_that_was_changed_is_found_and_exits_70(told: Desk) -> None:
    database(told, "UPDATE event SET actor = 'somebody' WHERE action = 'alias.move'")
    problems = told("audit", "verify", "--json", expect=70).json["problems"]
    assert any("its row differs from its entry" in problem for problem in problems)


def test_history_that_was_rewritten_and_signed_again_is_refused_by_every_command(told: Desk) -> None:
    database(
        told,
        "DELETE FROM audit_checkpoint",
        "DELETE FROM audit_tile",
        "DELETE FROM event WHERE action = 'alias.move'",
        "UPDATE event SET position = NULL",
    )
    for words in (("audit", "log"), ("audit", "verify"), ("audit", "export", told.folder / "x")):
        assert told(*words, "--json", expect=70).problem["code"] == "LOG_INCONSISTENT"
    told("audit", "key", "--trust")
    told("audit", "log")


def test_verify_says_who_pushed_who_signed_and_that_the_log_knows(told: Desk, tmp_path: Path) -> None:
    made = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "id_ed25519"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    path.write_bytes(made.private_bytes(encoding, form, serialization.NoEncryption()))
    told.push("acme/signed", "--sign", path)
    found = told("verify", "acme/signed", "--json").json
    assert found["ok"]
    kinds = {line["kind"]: line for line in found["signatures"]}
    assert kinds["push"]["who"].startswith("owner, by the word of registry.local/")
    identity = kinds["signature"]["identity"]
    assert told("sign", "acme/support", "--key", path, "--json").json["identity"] == identity
    text = told("verify", "acme/support", "--signed-by", identity).stdout
    assert f"signature  {identity}" in text
    assert "records this push" in text
    assert " safe" not in text
    assert told("verify", "acme/support", "--signed-by", "key:0", "--json", expect=70).json["missing"] == ["key:0"]
    told("sign", "acme/support", expect=2)
    told("sign", "acme/support", "--key", tmp_path / "absent", expect=2)


def test_a_version_is_verified_from_a_file_without_its_registry(told: Desk, tmp_path: Path) -> None:
    key, saved, pulled = told("audit", "key", "--json").json["keys"][0], tmp_path / "support.bundle", tmp_path / "out"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    made = ed25519.Ed25519PrivateKey.generate().private_bytes(encoding, form, serialization.NoEncryption())
    (tmp_path / "signer.pem").write_bytes(made)
    signer = told("sign", "acme/support", "--key", tmp_path / "signer.pem", "--json").json["identity"]
    told("pull", "acme/support", pulled)
    told("verify", "acme/support", "--save", saved)
    away = "http://127.0.0.1:9"
    offline = ["verify", "--offline", saved, "--folder", pulled]
    found = told(*offline, "--key", key, "--signed-by", signer, "--json", ADAPTER_REGISTRY=away).json
    assert (found["ok"], found["key_given"], len(found["files"])) == (True, True, 4)
    assert {line["kind"] for line in found["signatures"]} == {"push", "verdict", "signature"}
    assert "the log's keys came with the file" in told(*offline, ADAPTER_REGISTRY=away).stdout
    assert "no file was read" in told("verify", "--offline", saved, "--key", key, ADAPTER_REGISTRY=away).stdout
    told(*offline, "--key", key, "--signed-by", "key:another", expect=70, ADAPTER_REGISTRY=away)
    document = json.loads(saved.read_text())
    held = PrivateKey.of_seed(b"\1" * 32).public.held
    assert isinstance(held, Ed25519PublicKey)
    other = held.public_bytes_raw()
    other_key = Verifier(key.partition("+")[0], other).text
    assert not told(*offline, "--key", other_key, "--json", expect=70, ADAPTER_REGISTRY=away).json["ok"]
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
        assert not told(*offline, "--key", key, "--json", expect=70, ADAPTER_REGISTRY=away).json["ok"]
    for text in ("{}", "[" * 100_000, json.dumps(document | {"keys": ["x"]})):
        saved.write_text(text)
        assert told("verify", "--offline", saved, "--json", expect=2, ADAPTER_REGISTRY=away).problem["code"] in (
            "FOLDER_INVALID", "REQUEST_INVALID", "SETTING_INVALID",
        )  # fmt: skip
    saved.write_text(json.dumps(document))
    (pulled / "adapter_config.json").write_text("{}")
    assert "differs" in told(*offline, "--key", key, expect=70, ADAPTER_REGISTRY=away).stdout
    told("verify", "acme/support", "--offline", saved, expect=2)
    told("verify", "acme/support", "--folder", pulled, expect=2)
