"""`gc`, `fsck` and `reindex`: their output and exit codes."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cli.runner import CommandRunner


def blobs(cli: CommandRunner) -> list[Path]:
    return sorted(path for path in cli.folder.rglob("blobs/sha256/*/*") if path.is_file())


def test_a_healthy_registry_has_no_findings_and_nothing_to_collect(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support")
    cli("gc")
    assert "Nothing to collect" in cli("gc", "--dry-run").stdout
    result = cli("fsck", "--deep")
    assert "No problems found." in result.stdout
    assert "checked: 1 version, 1 move, " in result.stdout


def test_damage_exits_70_and_is_repaired_by_a_push(cli: CommandRunner) -> None:
    cli.add_base()
    folder = cli.make_adapter("first")
    cli("push", folder, "acme/support", "--base", "tiny-llama")
    largest = max(blobs(cli), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[-1] ^= 1
    largest.write_bytes(data)
    cli("fsck")
    result = cli("fsck", "--deep", "--json", expect=70).json
    assert [f["code"] for f in result["findings"]] == ["blob.damaged"]
    assert result["bytes_hashed"] > 0
    assert "damaged in the store: adapter_model.safetensors" in cli("show", "acme/support").stdout
    cli("pull", "acme/support", cli.folder / "out", expect=70)
    output = cli("push", folder, "acme/support", "--base", "tiny-llama").stdout
    assert re.search(r"exists already, [1-9].* sent", output)
    cli("pull", "acme/support", cli.folder / "out")
    cli("fsck", "--deep", "--max-rate", "1000000")


def test_gc_counts_before_it_deletes(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support")
    report = cli("gc", "--dry-run", "--grace", "0s", "--json").json
    assert (report["dry_run"], report["blobs_deleted"], report["next_cursor"]) == (True, 0, "")
    litter = cli.folder / "data/blobs/blobs/sha256/00" / ("00" + "f" * 62)
    litter.parent.mkdir(exist_ok=True)
    litter.write_bytes(b"x")
    assert "1  blob without a row deleted" in cli("gc", "--dry-run", "--grace", "0s").stdout
    assert litter.exists()
    cli("gc", "--grace", "0s")
    assert not litter.exists()


def test_a_lost_database_is_rebuilt_from_the_bucket(cli: CommandRunner) -> None:
    cli.add_base()
    first = cli.push("acme/support")
    cli("gc")
    for path in cli.folder.rglob("registry.db*"):
        path.unlink()
    assert "ref.version_unknown" in cli("fsck", expect=70).stdout
    assert "Would import 1 base and 1 version" in cli("reindex", "--dry-run").stdout
    assert "Imported 1 base and 1 version" in cli("reindex").stdout
    assert cli("show", "acme/support", "--json").json["digest"] == first["version"]["digest"]
    assert "Imported 0 bases and 0 versions" in cli("reindex").stdout
    assert "No problems found." in cli("fsck", "--deep").stdout
