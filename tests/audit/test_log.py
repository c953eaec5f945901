"""The audit log in the server: numbering, tiles, checkpoints, proofs, keys, and detection of changes."""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import Session, col, select

from registry.api.maintenance import FsckRequest
from registry.client.audit import Audit
from registry.client.trusted_checkpoints import TrustedCheckpoints
from registry.errors import Corrupt, Invalid, NotFound, Unavailable
from registry.events import EventType
from registry.server import audit
from registry.server.actors import TRUSTED
from registry.server.audit import keys
from registry.server.audit.audit_log import AuditLog, LatestCheckpoint
from registry.server.database.models import AuditCheckpointRow, AuditTileRow, EventRow
from registry.server.maintenance.fsck.check import check_consistency
from registry.server.settings import Settings
from registry.tlog import notes, tiles
from registry.tlog.notes import Checkpoint, Signer
from registry.tlog.replay import replay
from tests.audit import logs
from tests.bulk import plan_pull
from tests.cli.runner import CommandRunner
from tests.harness import Harness, rows
from tests.memory_blobs import MemoryBlobs


@pytest.fixture(params=["sqlite", "postgres"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_events_are_numbered_without_a_gap_whatever_the_order_of_commits(harness: Harness) -> None:
    def write(number: int) -> None:
        for at in range(10):
            with harness.session(write=True) as session:
                audit.append(session, TRUSTED, EventType.ALIAS_MOVE, f"acme/w{number}:prod", {"to": at})
            if at % 3 == 0:
                harness.app.state.audit_log.step()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    harness.app.state.audit_log.step()
    with harness.session() as session:
        positions = sorted(row.position for row in rows(session, EventRow))
    assert positions == list(range(1, 42)), "the first token's event, and forty more"
    assert logs.replayed(harness).problems == []


def test_the_store_holds_c2sp_tiles_and_no_partial_one_of_a_full_one(harness: Harness) -> None:
    logs.append(harness, 200)
    logs.append(harness, 400, start=200)
    paths = {key.key.removeprefix("audit/").rpartition("/")[0] for key in harness.blobs.list("audit/")}
    expected = {tiles.tile_path(*tile) for tile in tiles.widths(601)}
    expected |= {tiles.tile_path("entries", index, width) for level, index, width in tiles.widths(601) if level == 0}
    assert paths == expected


def test_every_event_has_a_proof_that_verifies_without_the_server(harness: Harness) -> None:
    logs.append(harness, 270)
    log, verifier = Audit(harness.admin), harness.app.state.audit_log.keys.signer.verifier
    for seq in (1, 2, 255, 256, 257, 271):
        shown = log.proof(seq)
        checked = notes.verify_proof(shown.proof, shown.entry.encode(), verifier)
        assert checked is not None
        assert checked.size == 271
        assert notes.verify_proof(shown.proof, shown.entry.replace("acme", "acne").encode() + b" ", verifier) is None
    with pytest.raises(NotFound):
        log.proof(272)


def test_one_changed_byte_in_any_column_of_the_database_or_in_the_store_is_found(harness: Harness) -> None:
    logs.append(harness, 300)
    changes = [
        "UPDATE event SET actor = actor || 'x' WHERE position = 17",
        "UPDATE event SET token_id = 'tok_x' WHERE position = 18",
        "UPDATE event SET action = 'alias.moved' WHERE position = 19",
        "UPDATE event SET object = 'acme/b:prod' WHERE position = 20",
        "UPDATE event SET detail = '{\"to\": 3}' WHERE position = 21",
        "UPDATE event SET request_id = 'r' WHERE position = 22",
        "UPDATE event SET namespace = 'acne' WHERE position = 23",
        "UPDATE event SET at = '2026-01-01 00:00:00' WHERE position = 24",
        "UPDATE event SET position = 400 WHERE position = 25",
        "DELETE FROM event WHERE position = 300",
    ]
    copy = logs.LogCopy(harness)
    for change in changes:
        with pytest.raises(RuntimeError, match="back again"), harness.session(write=True) as session:
            assert _after(harness, copy, session, change), change
            raise RuntimeError("back again")
    assert logs.replayed(harness).problems == []
    with harness.session(write=True) as session:
        row = session.get_one(AuditTileRow, (0, 0))
        row.hashes = row.hashes[:40] + bytes([row.hashes[40] ^ 1]) + row.hashes[41:]
        session.add(row)
    assert "tile/0/000: differs from the rows, first at 1 (event 2)" in logs.replayed(harness).problems


def _after(harness: Harness, copy: logs.LogCopy, session: Session, change: str) -> list[str]:
    """What a replay of the rows finds after this change."""
    session.connection().execute(text(change))
    views = [audit.to_view(row) for row in session.exec(select(EventRow).order_by(col(EventRow.position))).all()]
    copy.lines = [view.entry() for view in views]
    return replay(copy, *harness.app.state.audit_log.keys.verifiers).problems


def test_a_tile_that_was_changed_in_the_store_is_found(harness: Harness) -> None:
    logs.append(harness, 300)
    blobs = harness.blobs
    assert isinstance(blobs, MemoryBlobs)
    for stat_ in list(blobs.list("audit/tile/")):
        data = blobs.read(stat_.key, 0, stat_.size_bytes)
        blobs._blobs[stat_.key] = (bytes([data[0] ^ 1]) + data[1:], *blobs._blobs[stat_.key][1:])
        assert logs.replayed(harness).problems, stat_.key
        blobs._blobs[stat_.key] = (data, *blobs._blobs[stat_.key][1:])
    assert logs.replayed(harness).problems == []


def test_a_truncated_log_that_is_signed_again_is_refused_by_its_clients(harness: Harness, tmp_path: Path) -> None:
    logs.append(harness, 300)
    heads = TrustedCheckpoints(tmp_path / "heads")
    assert heads.check(harness.admin, Audit(harness.admin).checkpoint()).size == 301
    with harness.session(write=True) as session:
        for statement in (
            "DELETE FROM audit_checkpoint", "DELETE FROM audit_tile", "DELETE FROM event WHERE position > 280",
            "UPDATE event SET position = NULL",
        ):  # fmt: skip
            session.connection().execute(text(statement))
    harness.app.state.audit_log.latest = LatestCheckpoint()
    harness.app.state.audit_log.step()
    assert logs.replayed(harness).problems == [], "whoever sees it for the first time sees a log that is well"
    with pytest.raises(Corrupt) as caught:
        heads.check(harness.admin, Audit(harness.admin).checkpoint())
    assert caught.value.code == "LOG_INCONSISTENT"
    logs.append(harness, 100, start=900)
    with pytest.raises(Corrupt):
        heads.check(harness.admin, Audit(harness.admin).checkpoint())
    with pytest.raises(Corrupt):
        heads.check(harness.admin, Audit(harness.admin).checkpoint())
    assert TrustedCheckpoints(tmp_path / "new").check(harness.admin, Audit(harness.admin).checkpoint()).size == 380


def test_a_client_follows_a_log_that_grows_and_accepts_an_older_checkpoint_of_it(
    harness: Harness, tmp_path: Path
) -> None:
    heads = TrustedCheckpoints(tmp_path)
    checkpoints = []
    for count in (1, 5, 250, 300):
        logs.append(harness, count)
        checkpoints.append(Audit(harness.admin).checkpoint())
        assert heads.check(harness.admin, checkpoints[-1]).size == sum((1, 5, 250, 300)[: len(checkpoints)]) + 1
    assert heads.check(harness.admin, checkpoints[0]).size == 2, "another server of the registry may be behind"
    trusted = heads.find(harness.admin, "")
    newest = Checkpoint.of_text(trusted.note.partition("\n\n")[0] + "\n")
    assert newest is not None
    assert newest.size == 557


def test_a_forked_log_and_another_key_are_refused(harness: Harness, tmp_path: Path) -> None:
    logs.append(harness, 10)
    heads, log = TrustedCheckpoints(tmp_path), harness.app.state.audit_log
    heads.check(harness.admin, Audit(harness.admin).checkpoint())
    forged = notes.sign_note(Checkpoint(log.keys.signer.name, 11, b"\7" * 32).text, log.keys.signer)
    with pytest.raises(Corrupt, match="does not agree"):
        heads.check(harness.admin, forged)
    foreign = notes.sign_note(Checkpoint(log.keys.signer.name, 11, b"\7" * 32).text, Signer.make(log.keys.signer.name))
    with pytest.raises(Corrupt, match="not signed by the key"):
        heads.check(harness.admin, foreign)


def test_a_response_with_a_wrong_checkpoint_is_rejected(harness: Harness, tmp_path: Path) -> None:
    harness.add_base()
    harness.push("acme/support")
    logs.append(harness, 3)
    heads = TrustedCheckpoints(tmp_path)
    reader = harness.actor("pull")
    heads.watch(reader)
    assert reader.resolve("acme/support").number == 1
    log = harness.app.state.audit_log
    log.latest = LatestCheckpoint(
        3, notes.sign_note(Checkpoint(log.keys.signer.name, 3, b"\7" * 32).text, log.keys.signer)
    )
    for ask in (reader.resolve, partial(plan_pull, reader)):
        with pytest.raises(Corrupt) as caught:
            ask("acme/support")
        assert caught.value.code == "LOG_INCONSISTENT"


def test_a_client_requests_a_checkpoint_that_a_response_lacks(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header is what a dishonest one would leave out."""
    harness.add_base()
    harness.push("acme/support")
    reader = harness.actor("pull")
    logs.append(harness, 3)
    TrustedCheckpoints(tmp_path).watch(reader)
    reader.resolve("acme/support")
    monkeypatch.setattr(AuditLog, "checkpoint_header", {})
    TrustedCheckpoints(tmp_path).watch(reader)
    assert reader.resolve("acme/support").number == 1, "one that has just begun is not suspected"
    with harness.session(write=True) as session:
        for table in ("audit_checkpoint", "audit_tile", "event"):
            session.connection().execute(text(f"DELETE FROM {table}"))
    harness.app.state.audit_log.latest = LatestCheckpoint()
    logs.append(harness, 2)
    for heads in (TrustedCheckpoints(tmp_path), TrustedCheckpoints(tmp_path)):
        heads.watch(reader)
        for ask in (reader.resolve, partial(plan_pull, reader)):
            with pytest.raises(Corrupt) as caught:
                ask("acme/support")
            assert caught.value.code == "LOG_INCONSISTENT"
    TrustedCheckpoints(tmp_path / "new").watch(reader)
    assert reader.resolve("acme/support").number == 1, "who remembers nothing demands nothing"


def test_the_key_file_is_private_and_created_once(harness: Harness) -> None:
    created = keys.load_keys(harness.settings)
    path = keys.key_path(harness.settings)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.load_keys(harness.settings) == created
    assert os.listdir(path.parent).count(path.name) == 1


def test_a_log_is_not_continued_with_another_key_unless_the_old_one_is_kept(harness: Harness) -> None:
    logs.append(harness, 5)
    path = keys.key_path(harness.settings)
    old = path.read_text()
    path.write_text(Signer.make("registry.local/other").text)
    with harness.session(write=True) as session:
        audit.append(session, TRUSTED, EventType.ALIAS_MOVE, "acme/a:prod")
    second = AuditLog(harness.settings, harness.engine, harness.blobs)
    with pytest.raises(Invalid, match="none of its keys"):
        second.step()
    path.write_text(Signer.make("registry.local/other").text + "\n" + old)
    third = AuditLog(harness.settings, harness.engine, harness.blobs)
    third.step()
    with harness.session() as session:
        signed = rows(session, AuditCheckpointRow)
    verifiers = third.keys.verifiers
    assert [notes.open_note(row.note, *verifiers) is not None for row in signed] == [True, True]


def test_a_configured_key_file_that_is_absent_is_refused(harness: Harness, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        keys.load_keys(replace(harness.settings, audit_key=str(tmp_path / "absent")))
    assert not (tmp_path / "absent").exists()
    (tmp_path / "wrong").write_text("PRIVATE+KEY+x+00000000+c2VjcmV0")
    with pytest.raises(Invalid) as caught:
        keys.load_keys(replace(harness.settings, audit_key=str(tmp_path / "wrong")))
    assert "c2VjcmV0" not in caught.value.detail


@pytest.mark.security
def test_a_log_with_events_gets_no_second_key(harness: Harness, tmp_path: Path) -> None:
    logs.append(harness, 3)
    elsewhere = replace(harness.settings, data=str(tmp_path / "elsewhere"))
    replica = AuditLog(elsewhere, harness.engine, harness.blobs)
    for use in (replica.check_keys, lambda: replica.keys):
        with pytest.raises(Invalid, match="REGISTRY_AUDIT_KEY") as caught:
            use()
        assert caught.value.code == "SETTING_INVALID"
    assert not keys.key_path(elsewhere).exists()
    other = tmp_path / "other.key"
    other.write_text(Signer.make("registry.local/other").text)
    replica = AuditLog(replace(harness.settings, audit_key=str(other)), harness.engine, harness.blobs)
    with pytest.raises(Invalid, match="REGISTRY_AUDIT_KEY: none of its keys signed"):
        replica.check_keys()
    with pytest.raises(Unavailable, match="REGISTRY_AUDIT_KEY"):
        replica.describe_keys()
    harness.app.state.audit_log.check_keys()


@pytest.mark.security
@pytest.mark.parametrize("key", ["absent", "other"])
def test_a_server_with_a_wrong_or_missing_key_does_not_start(tmp_path: Path, key: str) -> None:
    with Harness(f"sqlite:///{tmp_path}/registry.db") as harness:
        logs.append(harness, 3)
    (tmp_path / "other").write_text(Signer.make("registry.local/other").text)
    environment = {
        "REGISTRY_DATA": str(tmp_path), "REGISTRY_DATABASE_URL": f"sqlite:///{tmp_path}/registry.db",
        "REGISTRY_AUDIT_KEY": str(tmp_path / key),
    }  # fmt: skip
    done = CommandRunner(tmp_path)("serve", "--port", "0", expect=2, **environment)
    assert "REGISTRY_AUDIT_KEY" in done.stderr


def test_the_first_server_of_a_registry_says_where_its_key_comes_from(tmp_path: Path) -> None:
    environment = {"REGISTRY_DATA": str(tmp_path), "REGISTRY_AUDIT_KEY": str(tmp_path / "absent")}
    done = CommandRunner(tmp_path)("serve", "--port", "0", expect=2, **environment)
    assert "without REGISTRY_AUDIT_KEY: it creates audit.key in its data folder" in done.stderr


def test_fsck_reports_a_key_of_another_log(harness: Harness, tmp_path: Path) -> None:
    def found(settings: Settings) -> list[str]:
        page = check_consistency(harness.engine, harness.blobs, settings, TRUSTED, FsckRequest(cursor="refs:"))
        return [finding.code for finding in page.findings]

    logs.append(harness, 3)
    assert found(harness.settings) == []
    assert found(replace(harness.settings, audit_key="", data=str(tmp_path / "elsewhere"))) == ["audit.key_unknown"]
