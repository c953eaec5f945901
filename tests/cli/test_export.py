"""`adapter export`: what it says of each adapter, its exit codes, and what it says where there is nothing to do."""

from __future__ import annotations

import json

from tests.cli.desk import Desk


def test_an_export_names_each_adapter_and_says_what_to_do_about_what_failed(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support", "--alias", "canary")
    desk.push("acme/large", "--alias", "canary", rank=32)
    location = desk.folder / "served"
    words = ["export", "tiny-llama", location, "--alias", "canary", "--engine", "vllm==0.33.0,max_lora_rank=16"]
    said = desk(*words).stdout
    assert "acme-support-v1  new  acme/support@1" in said
    assert "acme-large-v1  left out" in said
    assert f"1 adapter in {location} (1 new, 1 left out)" in said
    desk(*words, "--strict", expect=6)
    told = desk(*words, "--model", "org/tiny", expect=2)
    assert "an export never rewrites a folder" in told.stdout
    assert "Next: export to another location" in told.stderr
    assert {item["state"] for item in desk(*words, "--json").json["items"]} == {"unchanged", "left out"}


def test_an_alias_that_no_adapter_has_is_said_and_not_taken_for_a_whole_export(desk: Desk) -> None:
    desk.base()
    desk.push("acme/support", "--alias", "canary")
    none = "no adapter of 'tiny-llama' that you may see has the alias 'prod'"
    assert none in desk("export", "tiny-llama", desk.folder / "served").stdout
    objects = desk("export", "tiny-llama", "--kubernetes", "modeladapter", "--from", "s3://models/prod/")
    assert json.loads(objects.stdout)["items"] == []
    assert none in objects.stderr
