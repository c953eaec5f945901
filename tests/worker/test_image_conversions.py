"""Image adapters under today's diffusers names, by diffusers' converters: all of it arrives, or it is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.client.local.base_folder import base_spec_from
from registry.client.local.folder import read_folder
from registry.engines.version_facts import facts_of
from registry.errors import Invalid
from registry.merging import conversions
from registry.merging.conversions import Conversion, Converted
from registry.worker.conversions.request import ConversionRequest
from tests import fixtures

pytest.importorskip("diffusers", reason="the images extra (diffusers) is not installed")
from registry.worker.conversions import images

pytestmark = pytest.mark.slow


def converted(source: Path, base: Path, out: Path) -> Converted:
    """One of them in a process of its own, as a worker does it; a process costs seconds of imports."""
    spec, _ = base_spec_from(base, base.name)
    asked = Conversion(to="diffusers", into="acme/made")
    conversions.runs_on(read_folder(source).contents, asked, spec)
    order = ConversionRequest(conversion=asked, source=str(source), out=str(out), base=spec)
    return order.run(threads=1) if source.name == "kohya-sd" else images.convert(order)


def test_what_diffusers_can_convert_arrives_whole_and_what_it_loses_is_refused(tmp_path: Path) -> None:
    made, refused = {}, {}
    for name, entry in fixtures.manifest(fixtures.images()).items():
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(fixtures.images() / entry["file"], folder)
        base = fixtures.image_bases() / f"{entry['family']}-tiny"
        if name in ("kohya-sd-stripped-metadata", "lycoris-lokr", "diffusers-peft-no-metadata"):
            continue  # the same names as another entry
        try:
            made[name] = converted(folder, base, tmp_path / f"{name}-made")
        except Invalid as e:
            refused[name] = e.detail
            continue
        facts = facts_of(read_folder(tmp_path / f"{name}-made").contents)
        assert (facts["format"], facts["scales"]) == ("diffusers", [1.0])
    assert set(made) == {"diffusers-old", "kohya-sd", "flux-kohya", "flux-xlabs", "flux-comfy", "qwen-image-diffsynth",
                         "qwen-image-lightning"}  # fmt: skip
    assert all(report.error is not None and report.error < 1e-6 for report in made.values())
    assert "it has diffusers' names already" in refused["qwen-image-diffusers"]
    assert "diffusers cannot convert it" in refused["flux-bfl-control"]
    assert "no converter for lycoris" in refused["lycoris-loha"]
