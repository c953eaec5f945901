"""Consistency checks: a healthy registry has no findings, all damage has one, and every flipped bit is found."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import delete, update
from sqlmodel import Session, SQLModel, col, select

from registry.api.maintenance import FsckRequest
from registry.digest import Digest
from registry.errors import Corrupt, Invalid
from registry.server.database import db
from registry.server.database.models import (
    AdapterRow,
    AliasMoveRow,
    AliasRow,
    BlobRow,
    EdgeRow,
    EventRow,
    VersionFileRow,
    VersionInputRow,
    VersionRow,
)
from registry.server.database.models.namespaces import BaseUsageRow, NamespaceUsageRow
from registry.server.storage.blobs import key_of, write_blob
from registry.server.storage.local import LocalBlobs
from tests import samples, usage
from tests.harness import Harness
from tests.maintenance import check, collect, findings, states

BLOBS = 100


@pytest.fixture
def local(database_url: str, tmp_path: Path) -> object:
    second = tmp_path / "second"
    with Harness(database_url, blobs=LocalBlobs(tmp_path / "blobs"), second_copy=second.as_uri()) as harness:
        harness.add_base()
        yield harness


def fill(harness: Harness) -> None:
    """Push, validate, promote, roll back and yank."""
    first = harness.push("acme/support", alias="canary")
    harness.validate("acme/support@1")
    harness.push("acme/support")
    harness.admin.promote("acme/support", "canary", "2", generation=1)
    harness.admin.rollback("acme/support", "canary")
    harness.push("acme/other")
    harness.admin.yank("acme/other@1", "for the test")
    assert first.created


def file_of(harness: Harness, digest: str) -> Path:
    assert isinstance(harness.blobs, LocalBlobs)
    path = harness.blobs.local_path(key_of(Digest(digest)))
    assert path is not None
    return path


def flip(path: Path, where: int) -> None:
    """Flip one bit, as a disk might."""
    data = bytearray(path.read_bytes())
    data[where // 8 % len(data)] ^= 1 << where % 8
    path.write_bytes(data)


def test_a_healthy_registry_has_no_findings(stored_harness: Harness) -> None:
    fill(stored_harness)
    collect(stored_harness)
    pages = check(stored_harness, deep=True)
    assert [f for page in pages for f in page.findings] == []
    counted: dict[str, int] = {}
    for page in pages:
        for kind, number in page.checked.items():
            counted[kind] = counted.get(kind, 0) + number
    assert (counted["adapters"], counted["versions"]) == (2, 3)
    assert counted["hashed"] == counted["blobs"] == len(states(stored_harness))
    assert sorted(page.share for page in pages)[-1] == 1.0


def test_a_renamed_adapter_has_no_findings(harness: Harness) -> None:
    harness.add_base()
    for _ in range(2):
        harness.push("acme/support", alias="canary")
    harness.admin.rollback("acme/support", "canary", reason="again")
    harness.admin.promote("acme/support", "prod", "1", generation=0, reason="it burns", break_glass=True)
    harness.admin.create_namespace("globex")
    for old, new in (("acme/support", "acme/helper"), ("acme/helper", "globex/helper")):
        harness.admin.rename(old, new)
        harness.push(new, alias="canary")
    collect(harness)
    assert findings(harness, deep=False) == []


@pytest.mark.parametrize(
    "edit",
    [{"reason": "all was well"}, {"at": datetime(2026, 1, 1, tzinfo=UTC)}, {"evidence": []}, {"actor": "mallory"}],
    ids=["reason", "at", "evidence", "actor"],
)
def test_an_edited_alias_history_differs_from_its_events(harness: Harness, edit: dict[str, object]) -> None:
    """`adapter history` reads rows that the audit log does not protect; it protects their events."""
    harness.add_base()
    harness.push("acme/support")
    harness.admin.promote("acme/support", "prod", "1", generation=0, reason="it burns", break_glass=True)
    collect(harness)
    with harness.session(write=True) as session:
        _change(AliasMoveRow, **edit)(session)
    assert "alias.event_differs" in {finding.partition(" ")[0] for finding in findings(harness, deep=False)}


def _change(table: type[SQLModel], **values: object) -> Callable[[Session], None]:
    def change(session: Session) -> None:
        session.connection().execute(update(table).values(**values))

    return change


DAMAGES: dict[str, Callable[[Session], object]] = {
    "version.numbers_broken": _change(AdapterRow, newest_number=0),
    "version.manifest_broken": _change(VersionRow, manifest="{}"),
    "version.size_differs": _change(VersionRow, size_bytes=1),
    "version.files_differ": _change(VersionFileRow, media_type="text/html"),
    "version.parents_differ": lambda s: s.add(
        EdgeRow(child_id=s.exec(select(VersionRow.id)).first() or 0, parent_digest=Digest.of(b"x"), relation="merged")
    ),
    "version.inputs_differ": lambda s: s.add(
        VersionInputRow(
            version_id=s.exec(select(VersionRow.id)).first() or 0,
            position=0,
            relation="run",
            node="run:x:1",
            name="",
            uri="",
        )
    ),
    "version.event_count": lambda s: s.connection().execute(
        delete(EventRow).where(col(EventRow.action) == "version.push")
    ),
    "alias.event_count": lambda s: s.connection().execute(delete(EventRow).where(col(EventRow.action) == "alias.move")),
    "alias.row_differs": _change(AliasRow, generation=9),
    "alias.chain_broken": lambda s: s.connection().execute(
        update(AliasMoveRow).where(col(AliasMoveRow.generation) == 2).values(from_version_id=None)
    ),
    "alias.event_differs": _change(AliasMoveRow, actor="somebody else"),
    "blob.row_missing": lambda s: s.connection().execute(delete(BlobRow)),
    "blob.state_invalid": _change(BlobRow, state="dead"),
    "blob.size_differs": _change(BlobRow, size_bytes=5),
}


@pytest.mark.parametrize(("code", "database_kind"), zip(DAMAGES, itertools.cycle(["sqlite", "postgres"]), strict=False))
def test_damaged_rows_are_found(harness: Harness, code: str) -> None:
    harness.add_base()
    harness.push("acme/support", alias="canary")
    harness.push("acme/support", alias="canary")
    collect(harness)
    with harness.session(write=True) as session:
        DAMAGES[code](session)
    assert code in {finding.partition(" ")[0] for finding in findings(harness, deep=False)}
    with harness.session(write=True) as session:  # so that Harness.check accepts the rest
        session.connection().execute(delete(BlobRow))
    for stat in list(harness.blobs.list("blobs/")):
        harness.blobs.delete(stat.key)


@pytest.mark.parametrize("damage", ["wrong", "lost", "of none"])
def test_wrong_counters_of_usage_are_found_and_corrected(harness: Harness, damage: str) -> None:
    harness.add_base()
    for name in ("acme/support", "acme/other", "globex/secret"):
        harness.push(name)
    collect(harness)
    with harness.session(write=True) as session:
        if damage == "wrong":
            _change(NamespaceUsageRow, versions=7, size_bytes=9)(session)
            _change(BaseUsageRow, adapters=5)(session)
        elif damage == "lost":
            session.connection().execute(delete(NamespaceUsageRow))
            session.connection().execute(delete(BaseUsageRow))
        else:
            session.add(NamespaceUsageRow(namespace="gone", shard=3, size_bytes=4, versions=2))
    damaged = [f"usage.counters_differ {name}" for name in (["gone"] if damage == "of none" else ["acme", "globex"])]
    assert findings(harness, deep=False) == damaged
    assert usage.find_differences(harness.engine) != [], "only --deep changes anything"
    assert findings(harness, deep=True) == damaged
    assert usage.find_differences(harness.engine) == []
    assert findings(harness, deep=False) == []


def test_a_version_whose_manifest_has_another_digest_is_found(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    with harness.session(write=True) as session:
        session.connection().execute(update(VersionRow).values(digest=Digest.of(b"another")))
    assert [f for f in findings(harness, deep=False) if f.startswith("version.manifest_differs acme/support@1")]


def test_missing_and_truncated_bytes_are_found_without_reading_them(local: Harness) -> None:
    local.push("acme/support")
    digests = sorted(states(local))
    file_of(local, digests[0]).unlink()
    file_of(local, digests[1]).write_bytes(b"")
    assert findings(local, deep=False) == [f"blob.bytes_missing {digests[0]}", f"blob.size_differs {digests[1]}"]
    with local.session(write=True) as session:
        session.connection().execute(delete(BlobRow).where(col(BlobRow.digest).in_(digests[:2])))
    file_of(local, digests[1]).unlink()


def test_a_hundred_flipped_bits_in_a_hundred_blobs_are_a_hundred_findings(local: Harness) -> None:
    dice = random.Random(24)
    expected = []
    with local.session(write=True) as session:
        for _ in range(BLOBS):
            data = dice.randbytes(dice.randrange(1, 5000))
            digest = Digest.of(data)
            write_blob(local.blobs, key_of(digest), [data], limit_bytes=len(data))
            session.add(BlobRow(digest=digest, size_bytes=len(data), created_at=db.now()))
            expected.append(digest)
            flip(file_of(local, digest), dice.randrange(len(data) * 8))
    assert sorted(findings(local)) == sorted(f"blob.damaged {digest}" for digest in expected)
    assert set(states(local).values()) == {"corrupt"}


def test_a_push_of_the_same_bytes_repairs_a_damaged_version(local: Harness) -> None:
    files = local.files()
    local.push("acme/support", files)
    weights = Digest.of(files[samples.WEIGHTS])
    flip(file_of(local, weights), 4000)
    assert findings(local) == [f"blob.damaged {weights}"]
    assert local.admin.version("acme/support").damaged == [samples.WEIGHTS]
    link = next(f for f in local.admin.resolve("acme/support").files if f.path == samples.WEIGHTS)
    with pytest.raises(Corrupt) as refusal, local.admin.read(link) as chunks:
        b"".join(chunks)
    assert refusal.value.code == "DIGEST_MISMATCH"
    other = next(f for f in local.admin.resolve("acme/support").files if f.path == samples.CONFIG)
    with local.admin.read(other) as chunks:
        assert b"".join(chunks) == files[samples.CONFIG]
    mended = local.push("acme/support", files)
    assert (mended.created, mended.version.number, mended.version.damaged) == (False, 1, [])
    with local.admin.read(link) as chunks:
        assert b"".join(chunks) == files[samples.WEIGHTS]
    assert findings(local) == []


def test_damaged_blobs_are_restored_from_the_second_copy(local: Harness, tmp_path: Path) -> None:
    files = local.files()
    local.push("acme/support", files)
    second = LocalBlobs(tmp_path / "second")
    for data in files.values():
        write_blob(second, key_of(Digest.of(data)), [data], limit_bytes=len(data))
    weights, config = Digest.of(files[samples.WEIGHTS]), Digest.of(files[samples.CONFIG])
    flip(file_of(local, weights), 1)
    file_of(local, config).unlink()
    second_config = second.local_path(key_of(config))
    assert second_config is not None
    flip(second_config, 9)
    assert sorted(findings(local)) == sorted([f"blob.restored {weights}", f"blob.damaged {config}"])
    assert file_of(local, weights).read_bytes() == files[samples.WEIGHTS]
    assert states(local)[weights] == "live"
    flip(second_config, 9)
    assert findings(local) == [f"blob.restored {config}"]
    assert findings(local) == []


def test_an_unreadable_blob_is_a_finding_and_the_check_continues(
    local: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = local.files()
    local.push("acme/support", files)
    bad, good = sorted(Digest.of(data) for data in files.values())[:2]
    flip(file_of(local, good), 3)
    bad_sectors = {os.stat(file_of(local, bad)).st_ino}
    pread = os.pread

    def reading(descriptor: int, length: int, start: int) -> bytes:
        if os.fstat(descriptor).st_ino in bad_sectors:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, length, start)

    monkeypatch.setattr(os, "pread", reading)
    assert findings(local) == [f"blob.unreadable {bad}", f"blob.damaged {good}"]
    assert states(local)[bad] == "live"
    second, data = LocalBlobs(tmp_path / "second"), next(d for d in files.values() if Digest.of(d) == bad)
    write_blob(second, key_of(bad), [data], limit_bytes=len(data))
    assert findings(local) == [f"blob.restored {bad}", f"blob.damaged {good}"]
    assert file_of(local, bad).read_bytes() == data


def test_a_deep_check_continues_at_its_cursor(local: Harness) -> None:
    local.push("acme/support")
    digests = sorted(states(local))
    page = local.admin.fsck(FsckRequest(deep=True, cursor=f"deep:{digests[0]}"))
    assert page.checked["hashed"] == len(digests) - 1
    for cursor in ("nonsense", "adapters:x", "blobs:zz"):
        with pytest.raises(Invalid):
            local.admin.fsck(FsckRequest(cursor=cursor))
