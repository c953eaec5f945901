"""`adapter export`: its output and exit codes."""

from __future__ import annotations

import json

from tests.cli.runner import CommandRunner


def test_an_export_lists_each_adapter_and_the_next_step_for_failures(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    cli.push("acme/large", "--alias", "canary", rank=32)
    location = cli.folder / "served"
    words = ["export", "tiny-llama", location, "--alias", "canary", "--engine", "vllm==0.33.0,max_lora_rank=16"]
    result = cli(*words).stdout
    assert "acme-support-v1  new  acme/support@1" in result
    assert "acme-large-v1  left out" in result
    assert f"1 adapter in {location} (1 new, 1 left out)" in result
    cli(*words, "--strict", expect=6)
    output = cli(*words, "--model", "org/tiny", expect=2)
    assert "an export never rewrites a folder" in output.stdout
    assert "Next: export to another location" in output.stderr
    assert {item["state"] for item in cli(*words, "--json").json["items"]} == {"unchanged", "left out"}


def test_an_export_of_an_unused_alias_says_so(cli: CommandRunner) -> None:
    cli.add_base()
    cli.push("acme/support", "--alias", "canary")
    none = "no adapter of 'tiny-llama' that you can see has the alias 'prod'"
    assert none in cli("export", "tiny-llama", cli.folder / "served").stdout
    objects = cli("export", "tiny-llama", "--kubernetes", "modeladapter", "--location", "s3://models/prod/")
    assert json.loads(objects.stdout)["items"] == []
    assert none in objects.stderr
