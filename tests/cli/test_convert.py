"""`adapter convert`, and other tools' adapters at the command: pushed, shown, checked, converted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import forge, forge_foreign
from tests.cli.desk import Desk


@pytest.fixture
def studio(desk: Desk) -> Desk:
    desk.base()
    desk("base", "add", "sd-tiny", forge_foreign.pipeline(desk.folder / "sd"))
    return desk


def style(desk: Desk) -> Path:
    metadata = {"modelspec.trigger_phrase": "toy style", "ss_tag_frequency": "a photo of Ann",
                "note": "dots\x1b[2J"}  # fmt: skip
    return forge.write({"toy.safetensors": forge_foreign.kohya(metadata=metadata)}, desk.folder / "style")


def test_an_image_adapter_is_pushed_shown_listed_and_checked(studio: Desk) -> None:
    studio("push", style(studio), "art/style", "--base", "sd-tiny")
    shown = studio("show", "art/style").stdout
    assert "LoRA in kohya format, sd, rank 4, alpha 2, scale 0.5" in shown
    assert "toy style" in shown
    assert "Ann" not in shown
    asked = studio("show", "art/style", "--metadata")
    assert "a photo of Ann" in asked.stdout
    assert r"dots\x1b[2J" in asked.stdout
    assert studio("show", "art/style", "--metadata", "--json").json["metadata"]["note"] == "dots\x1b[2J"
    assert [a["name"] for a in studio("list", "--format", "kohya", "--json").json["items"]] == ["art/style"]
    assert "pass" in studio("check", style(studio), "--base", "sd-tiny").stdout
    assert "an image model" in studio("check", style(studio), "--base", "tiny-llama", expect=6).stdout


def test_names_are_mended_at_once_and_the_version_is_said(studio: Desk) -> None:
    def raw(tensors: dict[str, forge.Tensor]) -> dict[str, forge.Tensor]:
        return {name.replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()}

    folder = forge.write(forge.lora(forge.llama(), change=raw), studio.folder / "raw")
    studio("push", folder, "acme/support")
    made = studio("convert", "acme/support", "--to", "peft", "--repair", "--json").json
    assert made["version"]["name"] == "acme/support-peft"
    assert "16 of 16 tensors renamed" in made["report"]["message"]
    assert "converted" in studio("lineage", "acme/support-peft").stdout


def test_values_are_left_to_a_worker_and_wrong_requests_are_bad_input(studio: Desk) -> None:
    studio("push", forge.write(forge.lora(forge.llama()), studio.folder / "plain"), "acme/support")
    assert "adapter worker" in studio("convert", "acme/support", "--to", "canonical").stdout
    refused = studio("convert", "acme/support", "--to", "plain", expect=2)
    assert "PiSSA and OLoRA" in refused.stderr
    assert "CONVERSION_INVALID" in studio("convert", "acme/support", "--to", "peft", "--json", expect=2).stderr


def test_a_folder_of_folders_may_hold_adapters_of_any_tool(studio: Desk) -> None:
    fleet = studio.folder / "fleet"
    forge.write({"toy.safetensors": forge_foreign.kohya()}, fleet / "one")
    forge.write({"toy.safetensors": forge_foreign.kohya()}, fleet / "two")
    (fleet / "notes").mkdir()
    assert len(studio("push-all", fleet, "art", "--base", "sd-tiny", "--json").json["items"]) == 2
