"""`gc`, `fsck` and `reindex` as commands: what they say, and how they end."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cli.desk import Desk


def blobs(desk: Desk) -> list[Path]:
    return sorted(path for path in desk.folder.rglob("blobs/sha256/*/*") if path.is_file())


def test_a_healthy_registry_is_well_and_has_nothing_to_collect(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support")
    desk("gc")
    assert "nothing to collect" in desk("gc", "--dry-run").stdout
    said = desk("fsck", "--deep")
    assert "All is well." in said.stdout
    assert "1 versions" in said.stdout


def test_damage_is_told_with_exit_code_70_and_mended_by_a_push(desk: Desk) -> None:
    desk.base()
    folder = desk.adapter("first")
    desk("push", folder, "acme/support", "--base", "tiny-llama")
    largest = max(blobs(desk), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[-1] ^= 1
    largest.write_bytes(data)
    desk("fsck")
    found = desk("fsck", "--deep", "--json", expect=70).json
    assert [f["code"] for f in found["findings"]] == ["blob.damaged"]
    assert found["bytes_hashed"] > 0
    assert "damaged in the store: adapter_model.safetensors" in desk("show", "acme/support").stdout
    desk("pull", "acme/support", desk.folder / "out", expect=70)
    told = desk("push", folder, "acme/support", "--base", "tiny-llama").stdout
    assert re.search(r"was there already, [1-9].* sent", told)
    desk("pull", "acme/support", desk.folder / "out")
    desk("fsck", "--deep", "--max-rate", "1000000")


def test_gc_counts_before_it_deletes(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support")
    report = desk("gc", "--dry-run", "--grace", "0", "--json").json
    assert (report["dry_run"], report["blobs_deleted"], report["next_cursor"]) == (True, 0, "")
    litter = desk.folder / "data/blobs/blobs/sha256/00" / ("00" + "f" * 62)
    litter.parent.mkdir(exist_ok=True)
    litter.write_bytes(b"x")
    assert "1  blobs without a row deleted" in desk("gc", "--dry-run", "--grace", "0").stdout
    assert litter.exists()
    desk("gc", "--grace", "0")
    assert not litter.exists()


def test_a_lost_database_comes_back_from_the_bucket(desk: Desk) -> None:
    desk.base()
    first = desk.push("acme/support")
    desk("gc")
    for path in desk.folder.rglob("registry.db*"):
        path.unlink()
    assert "record.version_unknown" in desk("fsck", expect=70).stdout
    assert "1 version would come back" in desk("reindex", "--dry-run").stdout
    assert "1 base and 1 version came back" in desk("reindex").stdout
    assert desk("show", "acme/support", "--json").json["digest"] == first["version"]["digest"]
    assert "0 bases and 0 versions came back" in desk("reindex").stdout
    assert "All is well." in desk("fsck", "--deep").stdout
