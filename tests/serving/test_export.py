"""Exports: a desired state laid out in a folder and in a real S3 store, whole, true, and never rewritten."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest

from registry.digest import Digest
from registry.errors import Invalid
from registry.evaluation.verdicts import Outcome
from registry.names import Ref
from registry.serving.export import export, s3
from registry.serving.export.export import Exported, ExportTarget
from registry.serving.export.folder import FolderTarget
from registry.serving.export.s3 import BucketTarget
from tests.harness import Harness

BASE = "tiny-llama"


@pytest.fixture(params=["folder", "bucket"])
def location(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], ExportTarget]:
    """Opens the same place anew, as each run of the command does."""
    if request.param == "folder":
        return lambda: FolderTarget(tmp_path / "models")
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("object_store"))
    url = request.getfixturevalue("s3_url")
    return lambda: BucketTarget(url)


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    """Two adapters that canary points at."""
    harness.add_base()
    for name in ("acme/support", "bolt/sales"):
        harness.push(name)
        harness.admin.promote(name, "canary", "1", generation=0)
    return harness


def run(harness: Harness, location: ExportTarget, **how: object) -> Exported:
    desired = harness.admin.desired_state(BASE, "canary", engine=str(how.pop("engine", "")))
    return export.run(harness.admin, desired, location, cache=None, **how)  # type: ignore[arg-type]


@pytest.fixture
def planned(filled_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many versions each request for download plans was about."""
    counts: list[int] = []
    plan_pulls = filled_harness.admin.plan_pulls

    def count(refs: Sequence[Ref | str], **options: Any) -> Any:
        counts.append(len(refs))
        return plan_pulls(refs, **options)

    monkeypatch.setattr(filled_harness.admin, "plan_pulls", count)
    return counts


def states(done: Exported) -> dict[str, str]:
    return {item.served_name: item.state for item in done.items}


def read(location: ExportTarget, key: str) -> bytes:
    if isinstance(location, FolderTarget):
        return (location.root / key).read_bytes()
    assert isinstance(location, BucketTarget)
    data = location._read(key)
    assert data is not None, key
    return data


def test_every_file_is_there_with_its_bytes_and_the_index_names_it(
    filled_harness: Harness, location: Callable[[], ExportTarget]
) -> None:
    assert states(run(filled_harness, location())) == {"acme-support-v1": "new", "bolt-sales-v1": "new"}
    index = json.loads(read(location(), "index.json"))
    assert [(a["served_name"], a["name"], a["number"]) for a in index["adapters"]] == [
        ("acme-support-v1", "acme/support", 1),
        ("bolt-sales-v1", "bolt/sales", 1),
    ]
    for adapter in index["adapters"]:
        paths = [file["path"] for file in adapter["files"]]
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(paths)
        assert set(location().sizes(adapter["served_name"])) == {*paths, ".adapter.json"}
        for file in adapter["files"]:
            data = read(location(), f"{adapter['served_name']}/{file['path']}")
            assert (Digest.of(data), len(data)) == (file["digest"], file["size_bytes"])
    assert sorted(location().names()) == ["acme-support-v1", "bolt-sales-v1"]


def test_a_second_export_changes_nothing_and_a_promotion_adds_a_folder(
    filled_harness: Harness, location: Callable[[], ExportTarget]
) -> None:
    run(filled_harness, location())
    index = read(location(), "index.json")
    assert set(states(run(filled_harness, location())).values()) == {"unchanged"}
    assert read(location(), "index.json") == index
    filled_harness.push("acme/support")
    filled_harness.admin.promote("acme/support", "canary", "2", generation=1)
    assert states(run(filled_harness, location())) == {"acme-support-v2": "new", "bolt-sales-v1": "unchanged"}
    assert location().names() == ["acme-support-v1", "acme-support-v2", "bolt-sales-v1"]


def test_pruning_removes_what_is_off_the_desired_state_and_only_what_an_export_made(
    filled_harness: Harness, location: Callable[[], ExportTarget], tmp_path: Path
) -> None:
    run(filled_harness, location())
    own_folder = tmp_path / "mine"
    own_folder.mkdir()
    (own_folder / ".adapter.json").write_text('{"name": "somebody/else"}')
    location().put("mine", own_folder, {})
    filled_harness.admin.yank("bolt/sales@1", "bad data")
    assert states(run(filled_harness, location())) == {"acme-support-v1": "unchanged"}
    assert "bolt-sales-v1" in location().names()
    assert states(run(filled_harness, location(), prune=True)) == {
        "acme-support-v1": "unchanged",
        "bolt-sales-v1": "removed",
    }
    assert location().names() == ["acme-support-v1", "mine"]


def test_the_model_is_written_into_the_configuration_and_the_original_is_remembered(
    filled_harness: Harness, location: Callable[[], ExportTarget]
) -> None:
    run(filled_harness, location(), model="/models/tiny")
    config = json.loads(read(location(), "acme-support-v1/adapter_config.json"))
    assert config["base_model_name_or_path"] == "/models/tiny"
    stored = {file.path: file for file in filled_harness.admin.version("acme/support@1").files}
    indexed = {f["path"]: f for f in json.loads(read(location(), "index.json"))["adapters"][0]["files"]}
    assert indexed["adapter_config.json"]["original"] == stored["adapter_config.json"].digest
    assert indexed["adapter_config.json"]["digest"] != stored["adapter_config.json"].digest
    assert indexed["adapter_model.safetensors"]["digest"] == stored["adapter_model.safetensors"].digest
    assert set(states(run(filled_harness, location(), model="/models/tiny")).values()) == {"unchanged"}


def test_another_model_or_another_base_never_rewrites_what_is_there(
    filled_harness: Harness, location: Callable[[], ExportTarget]
) -> None:
    run(filled_harness, location())
    before = read(location(), "acme-support-v1/adapter_config.json")
    refused = run(filled_harness, location(), model="other", prune=True)
    assert set(states(refused).values()) == {"failed"}
    assert "already exists and holds acme/support@1" in refused.items[0].reason
    assert read(location(), "acme-support-v1/adapter_config.json") == before
    filled_harness.admin.promote("acme/support", "beta", "1", generation=0)
    with pytest.raises(Invalid, match="alias 'canary' of base 'tiny-llama'"):
        export.run(filled_harness.admin, filled_harness.admin.desired_state(BASE, "beta"), location(), cache=None)


def test_a_lost_file_is_named_and_not_restored_in_place(filled_harness: Harness, tmp_path: Path) -> None:
    location = FolderTarget(tmp_path / "models")
    run(filled_harness, location)
    (location.root / "acme-support-v1" / "adapter_model.safetensors").write_bytes(b"short")
    done = run(filled_harness, location)
    assert states(done) == {"acme-support-v1": "failed", "bolt-sales-v1": "unchanged"}
    assert "adapter_model.safetensors is missing or its size has changed" in done.items[0].reason
    assert [a["name"] for a in json.loads(read(location, "index.json"))["adapters"]] == ["bolt/sales"]


def test_an_upload_that_was_cut_short_is_completed(
    filled_harness: Harness, object_store: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store)
    run(filled_harness, BucketTarget(s3_url))
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    client = boto3.session.Session().client("s3", endpoint_url=object_store)
    for path in (".adapter.json", "adapter_config.json"):
        client.delete_object(Bucket=bucket, Key=f"{prefix}/acme-support-v1/{path}")
    assert states(run(filled_harness, BucketTarget(s3_url))) == {"acme-support-v1": "new", "bolt-sales-v1": "unchanged"}
    client.put_object(Bucket=bucket, Key=f"{prefix}/bolt-sales-v1/adapter_model.safetensors", Body=b"other")
    client.delete_object(Bucket=bucket, Key=f"{prefix}/bolt-sales-v1/.adapter.json")
    done = run(filled_harness, BucketTarget(s3_url))
    assert states(done) == {"acme-support-v1": "unchanged", "bolt-sales-v1": "failed"}
    assert "already exists with other bytes" in done.items[1].reason


def test_what_fails_for_the_engine_or_a_check_is_left_out_and_named(filled_harness: Harness, tmp_path: Path) -> None:
    desired = filled_harness.admin.desired_state(BASE, "canary", engine="vllm==0.33.0,max_lora_rank=1")
    serve, reasons = export.select_entries(desired)
    assert (serve, sorted(reasons)) == ([], ["acme-support-v1", "bolt-sales-v1"])
    assert all("would not serve it as trained" in reason for reason in reasons.values())
    good = filled_harness.admin.desired_state(BASE, "canary")
    bad = good.adapters[0].model_copy(update={"verdicts": {"smoke": Outcome.FAIL}, "engine_outcome": None})
    other = good.adapters[1].model_copy(update={"verdicts": {"engine sglang==0.5.23": Outcome.FAIL}})
    serve, reasons = export.select_entries(good.model_copy(update={"adapters": [bad, other]}))
    assert ([e.name for e in serve], reasons) == (["bolt/sales"], {"acme-support-v1": "its check 'smoke' says fail"})
    done = run(filled_harness, FolderTarget(tmp_path / "m"), engine="vllm==0.33.0,max_lora_rank=1")
    assert set(states(done).values()) == {"left out"}
    assert set(json.loads((tmp_path / "m" / "index.json").read_text())["left_out"]) == set(states(done))


def test_look_ups_of_lorax_lead_to_what_is_there_and_to_nothing_else(
    filled_harness: Harness, location: Callable[[], ExportTarget], tmp_path: Path
) -> None:
    folder = tmp_path / "lorax"
    if isinstance(location(), FolderTarget):
        with pytest.raises(Invalid, match="buckets only"):
            export.write_lorax_lookups(folder, run(filled_harness, location()))
        return
    done = run(filled_harness, location())
    assert export.write_lorax_lookups(folder, done) == 2
    version = json.loads((folder / "v2/repos/acme-support/version/1").read_bytes())
    assert (version["adapterPath"], version["status"]) == (f"{done.location}acme-support-v1/", "completed")
    bucket, _, prefix = version["adapterPath"].removeprefix("s3://").partition("/")
    listed = boto3.session.Session().client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert {row["Key"].removeprefix(prefix) for row in listed} >= {"adapter_config.json", "adapter_model.safetensors"}
    filled_harness.admin.yank("acme/support@1", "bad data")
    assert export.write_lorax_lookups(folder, run(filled_harness, location(), prune=True)) == 1
    assert not (folder / "v2/repos/acme-support/version/1").exists()
    assert (folder / "v2/repos/bolt-sales/version/1").exists()


def test_new_adapters_are_planned_with_one_request(
    filled_harness: Harness, location: Callable[[], ExportTarget], planned: list[int]
) -> None:
    run(filled_harness, location())
    assert planned == [2]
    filled_harness.push("acme/third")
    filled_harness.admin.promote("acme/third", "canary", "1", generation=0)
    assert sorted(states(run(filled_harness, location())).values()) == ["new", "unchanged", "unchanged"]
    assert planned == [2, 1]


def test_a_note_or_an_index_has_a_limit(
    filled_harness: Harness, object_store: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may write to the bucket: what they put there fills no memory."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store)
    run(filled_harness, BucketTarget(s3_url))
    monkeypatch.setattr(s3, "NOTE_LIMIT_BYTES", 100)
    with pytest.raises(Invalid, match=r"index\.json is over the limit of 100 bytes"):
        run(filled_harness, BucketTarget(s3_url))
