"""`adapter convert`, and adapters of other tools: pushed, shown, checked, converted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import non_peft_files, samples
from tests.cli.runner import CommandRunner


@pytest.fixture
def cli(cli: CommandRunner) -> CommandRunner:
    cli.add_base()
    cli("base", "add", "sd-tiny", non_peft_files.pipeline(cli.folder / "sd"))
    return cli


def style(cli: CommandRunner) -> Path:
    metadata = {"modelspec.trigger_phrase": "toy style", "ss_tag_frequency": "a photo of Ann",
                "note": "dots\x1b[2J"}  # fmt: skip
    return samples.write({"toy.safetensors": non_peft_files.kohya(metadata=metadata)}, cli.folder / "style")


def test_an_image_adapter_is_pushed_shown_listed_and_checked(cli: CommandRunner) -> None:
    cli("push", style(cli), "art/style", "--base", "sd-tiny")
    shown = cli("show", "art/style").stdout
    assert "LoRA in kohya format, sd, rank 4, alpha 2, scale 0.5" in shown
    assert "toy style" in shown
    assert "Ann" not in shown
    metadata_result = cli("show", "art/style", "--metadata")
    assert "a photo of Ann" in metadata_result.stdout
    assert r"dots\x1b[2J" in metadata_result.stdout
    assert cli("show", "art/style", "--metadata", "--json").json["metadata"]["note"] == "dots\x1b[2J"
    assert [a["name"] for a in cli("list", "--format", "kohya", "--json").json["items"]] == ["art/style"]
    assert "pass" in cli("check", style(cli), "--base", "sd-tiny").stdout
    assert "an image model" in cli("check", style(cli), "--base", "tiny-llama", expect=6).stdout


def test_names_are_repaired_locally(cli: CommandRunner) -> None:
    def raw(tensors: dict[str, samples.Tensor]) -> dict[str, samples.Tensor]:
        return {name.replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()}

    folder = samples.write(samples.lora(samples.llama(), change=raw), cli.folder / "raw")
    cli("push", folder, "acme/support")
    created = cli("convert", "acme/support", "--format", "peft", "--repair", "--json").json
    assert created["version"]["name"] == "acme/support-peft"
    assert "16 of 16 tensors renamed" in created["report"]["message"]
    assert "converted" in cli("lineage", "acme/support-peft").stdout


def test_conversions_of_values_are_queued_and_wrong_requests_refused(cli: CommandRunner) -> None:
    cli("push", samples.write(samples.lora(samples.llama()), cli.folder / "plain"), "acme/support")
    assert "adapter worker" in cli("convert", "acme/support", "--format", "canonical").stdout
    assert (
        "adapter job"
        in cli("convert", "acme/support", "--format", "canonical", "--wait-timeout", "0s", expect=75).stderr
    )
    refused = cli("convert", "acme/support", "--format", "plain", expect=2)
    assert "PiSSA and OLoRA" in refused.stderr
    assert "CONVERSION_INVALID" in cli("convert", "acme/support", "--format", "peft", "--json", expect=2).stderr


def test_push_all_accepts_adapters_of_other_tools(cli: CommandRunner) -> None:
    fleet = cli.folder / "fleet"
    samples.write({"toy.safetensors": non_peft_files.kohya()}, fleet / "one")
    samples.write({"toy.safetensors": non_peft_files.kohya()}, fleet / "two")
    (fleet / "notes").mkdir()
    assert len(cli("push-all", fleet, "art", "--base", "sd-tiny", "--json").json["items"]) == 2
