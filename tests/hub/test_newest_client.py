"""The newest huggingface_hub, its command, PEFT, transformers and diffusers, unchanged, against a live server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from registry.api.access import TokenCreate
from registry.api.bases import BaseAdd
from registry.client.local.base_folder import base_spec_from
from tests import fixtures, samples
from tests.hub import clients
from tests.hub.live import NAME, LiveServer

IMAGE_ADAPTER = "acme/images"


def test_the_newest_client_reads_everything_and_reports_denials(live: LiveServer, tmp_path: Path) -> None:
    clients.check_python(live, Path(sys.executable), tmp_path)


def test_the_command_hf_downloads_an_alias(live: LiveServer, tmp_path: Path) -> None:
    command: list[str | Path] = [Path(sys.executable).with_name("hf"), "download", NAME]
    command += ["--revision", "canary", "--local-dir", "here"]
    done = live.run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    downloaded = {path: (tmp_path / "here" / path).read_bytes() for path in live.files[0]}
    assert downloaded == live.files[0]


REFUSED = """
import json
from huggingface_hub import HfApi, ModelCard
api = HfApi()
def said(call):
    try:
        return str(list(call()))
    except Exception as e:
        return str(e)
print(json.dumps({
    "pull request": said(lambda: [api.create_pull_request(NAME, title="x")]),
    "discussion": said(lambda: api.get_repo_discussions(NAME)),
    "like": said(lambda: api.list_repo_likers(NAME)),
    "collection": said(lambda: [api.create_collection("x", namespace="acme")]),
    "webhook": said(lambda: [api.create_webhook(url="https://example.org", watched=[], domains=["repo"])]),
    "data sets": said(lambda: api.list_datasets()),
    "a data set": said(lambda: [api.repo_exists(NAME, repo_type="dataset")]),
    "profile": said(lambda: [api.get_user_overview("ada")]),
    "large files": said(lambda: api.list_lfs_files(NAME)),
    "revoked token": said(lambda: [HfApi(token=REVOKED).model_info(NAME)]),
    "card": said(lambda: [ModelCard("---\\nlicense: mit\\n---\\n# A card\\n").validate()]),
}))
"""


def test_what_only_the_hub_has_is_refused_with_what_to_do_instead(live: LiveServer, tmp_path: Path) -> None:
    """And a token that has ended is named; a card is checked without any."""
    token = live.registry.create_token(TokenCreate(name="ended", scopes=["pull"]))
    live.registry.revoke_token(token.token.id)
    said = live.python(f"NAME, REVOKED = {NAME!r}, {token.secret!r}\n{REFUSED}", tmp_path)
    assert (said.pop("card"), "revoked" in said.pop("revoked token")) == ("[None]", True)
    assert said.pop("a data set") == "[False]"
    unexplained = {key: text for key, text in said.items() if not ("501" in text and "this registry" in text)}
    assert unexplained == {}


TEXT = """
import json, torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

ids = torch.tensor([[5, 17, 42, 300, 7]])
def base():
    return AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
@torch.no_grad()
def answers(model):
    return model.eval()(input_ids=ids).logits[0].flatten().tolist()
def loaded(adapter, **how):
    model = base()
    model.load_adapter(adapter, **how)
    return answers(model)
found = {
    "base": answers(base()),
    "local": answers(PeftModel.from_pretrained(base(), "local")),
    "peft": answers(PeftModel.from_pretrained(base(), NAME, revision="canary")),
    "peft newest": answers(PeftModel.from_pretrained(base(), NAME)),
    "transformers": loaded(NAME, adapter_kwargs={"revision": "canary"}),
    "config": PeftConfig.from_pretrained(NAME, revision="v1").r,
}
"""
IMAGES = """
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

def weights(adapter, **how):
    unet = UNet2DConditionModel.from_pretrained("pipeline/unet")
    encoder = CLIPTextModel.from_pretrained("pipeline/text_encoder")
    absent = dict.fromkeys(["vae", "tokenizer", "feature_extractor", "safety_checker"])
    pipeline = StableDiffusionPipeline(text_encoder=encoder, unet=unet, scheduler=DDIMScheduler(),
                                       requires_safety_checker=False, **absent)
    pipeline.load_lora_weights(adapter, **how)
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return {f"{at}.{name}": float(value.double().abs().sum()) for at, part in parts.items()
            for name, value in part.named_parameters() if "lora" in name}
found["images local"] = weights("images", weight_name="kohya-sd.safetensors")
found["images"] = weights(IMAGE_ADAPTER, revision="canary")
found["images by name"] = weights(IMAGE_ADAPTER, revision="canary", weight_name="kohya-sd.safetensors")
"""


@pytest.mark.slow
def test_peft_transformers_and_diffusers_load_an_alias_like_a_folder(live: LiveServer, tmp_path: Path) -> None:
    samples.llama().write(tmp_path / "base")
    samples.write(live.files[0], tmp_path / "local")
    script = TEXT
    if fixtures.IMAGES_AVAILABLE:
        _push_images(live, tmp_path)
        script += IMAGES
    outputs = live.python(
        f"NAME, IMAGE_ADAPTER = {NAME!r}, {IMAGE_ADAPTER!r}\n{script}\nprint(json.dumps(found))", tmp_path
    )
    assert outputs["peft"] == outputs["transformers"] == outputs["local"] != outputs["base"]
    assert outputs["peft newest"] not in (outputs["peft"], outputs["base"])
    assert outputs["config"] == json.loads(live.files[0][samples.CONFIG])["r"]
    if fixtures.IMAGES_AVAILABLE:
        assert len(outputs["images local"]) > 0
        assert outputs["images"] == outputs["images by name"] == outputs["images local"]


def _push_images(live: LiveServer, folder: Path) -> None:
    pipeline, file = fixtures.image_bases() / "sd-tiny", fixtures.images() / "kohya-sd.safetensors"
    (folder / "pipeline").symlink_to(pipeline)
    samples.write({file.name: file.read_bytes()}, folder / "images")
    spec, _ = base_spec_from(pipeline, "sd-tiny")
    live.registry.add_base(BaseAdd(spec=spec))
    live.push(IMAGE_ADAPTER, {file.name: file.read_bytes()}, spec)
    live.registry.promote(IMAGE_ADAPTER, "canary", "1", generation=0)
