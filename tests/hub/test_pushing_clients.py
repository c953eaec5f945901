"""Pushes of Hub clients of other generations and languages, of PEFT and of the Trainer. `make test-hub-push`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.api.access import TokenCreate
from registry.api.bases import BaseAdd
from registry.client.local.base_folder import base_spec_from
from registry.client.registry import Registry
from registry.hub import commit_id
from registry.names import AdapterName, Ref
from tests import fixtures, samples
from tests.base_specs import spec_of
from tests.faults.servers import Server
from tests.hub import live as lives
from tests.hub import pushes, venvs
from tests.hub.live import LiveServer
from tests.import_table import ROOT
from tests.recording_proxy import RecordingProxy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not venvs.are_wanted(), reason="runs other clients: make test-hub-push does it"),
]
SCRIPT = Path(__file__).with_name("_javascript_push.mjs")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, object_store: str) -> Iterator[LiveServer]:
    """A server whose store is a folder. Nothing is sent through the proxy."""
    folder = tmp_path_factory.mktemp("local")
    server = Server({"REGISTRY_DATA": str(folder)}, folder / "server.log")
    with RecordingProxy(object_store) as proxy, server.running(), Registry(server.url, server.token) as registry:
        live = LiveServer(server, proxy, registry, spec_of(samples.llama()))
        registry.add_base(BaseAdd(spec=live.base))
        yield live


@pytest.fixture(scope="module")
def other_host(object_store: str, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose store has another host name: clients redirect to it by other rules."""
    with lives.running(object_store, bucket, tmp_path_factory.mktemp("other"), store_host="localhost") as live:
        yield live


@pytest.fixture(params=["live", "other_host", "local"])
def store(request: pytest.FixtureRequest) -> LiveServer:
    served: LiveServer = request.getfixturevalue(request.param)
    return served


def _python(version: str) -> Path:
    python = venvs.hub_python(version)
    if python is None:
        pytest.skip(f"huggingface_hub {version} is not installed")
    return python


@pytest.mark.parametrize("version", venvs.HUBS)
def test_each_generation_of_huggingface_hub_pushes(store: LiveServer, tmp_path: Path, version: str) -> None:
    pushes.check_python(store, _python(version), tmp_path, f"acme/hub-{version}")


def test_the_newest_pushes_to_a_folder(local: LiveServer, tmp_path: Path) -> None:
    pushes.check_python(local, Path(sys.executable), tmp_path, "acme/newest")


LARGE = """
import hashlib, json, os, pathlib, sys
from huggingface_hub import HfApi, hf_hub_download
name, size = json.loads(sys.argv[1])
folder = pathlib.Path("large"); folder.mkdir()
with open(folder / "adapter_model.safetensors", "wb") as file:
    header = json.dumps({"x": {"data_offsets": [0, size], "dtype": "U8", "shape": [size]}}).encode()
    file.write(len(header).to_bytes(8, "little") + header)
    for _ in range(size // 10**6):
        file.write(os.urandom(10**6))
api = HfApi()
api.create_repo(name)
api.upload_folder(repo_id=name, folder_path=folder)
def sum_of(path):
    return hashlib.file_digest(open(path, "rb"), "sha256").hexdigest()
pulled = hf_hub_download(name, "adapter_model.safetensors", local_dir="pulled")
print(json.dumps([sum_of(folder / "adapter_model.safetensors"), sum_of(pulled)]))
"""


def test_the_newest_sends_a_large_file_by_xet(store: LiveServer, tmp_path: Path) -> None:
    """No variable is set; before, 256 MiB were the limit of these clients."""
    before = store.xet_uploads()
    pushed, pulled = lives.last_line(
        store.run([sys.executable, "-c", LARGE, json.dumps(["acme/large-xet", 300 * 10**6])], tmp_path)
    )
    assert pushed == pulled
    assert store.xet_uploads() > before


KILLED = """
import json, os, pathlib, signal, sys
from huggingface_hub import CommitOperationAdd, HfApi
order, api = json.loads(sys.argv[1]), HfApi()
api.create_repo(order["name"], exist_ok=True)
weights = "adapter_model.safetensors"
addition = CommitOperationAdd(weights, pathlib.Path(order["folder"], weights))
api.preupload_lfs_files(order["name"], [addition])
assert not order["dies"] or os.kill(os.getpid(), signal.SIGKILL)
print(json.dumps(api.upload_folder(repo_id=order["name"], folder_path=order["folder"]).oid))
"""


@pytest.mark.parametrize("version", ["0.34.4", "1.10.1", ""])
def test_a_client_killed_between_upload_and_commit_pushes_again(live: LiveServer, tmp_path: Path, version: str) -> None:
    """By Git LFS the bytes that have arrived are not sent again. By Xet they are: a session ends with its client."""
    name = f"acme/killed-{version or 'newest'}"
    python = _python(version) if version else Path(sys.executable)
    folder = pushes.adapter_folder(tmp_path, seed=930 + len(version))  # bytes that no version has
    request = {"name": name, "folder": str(folder), "dies": True}
    died = live.run([python, "-c", KILLED, json.dumps(request)], tmp_path)
    assert died.returncode == -signal.SIGKILL, died.stderr
    links, shards = len(live.proxy.targets("PUT")), live.xet_uploads()
    commit = lives.last_line(live.run([python, "-c", KILLED, json.dumps(request | {"dies": False})], tmp_path))
    assert (len(live.proxy.targets("PUT")) - links, live.xet_uploads() > shards) == (0, not version)
    assert commit == commit_id(live.registry.version(Ref(AdapterName.parse(name), 1)).digest)


MANY = """
import json, pathlib, sys
from huggingface_hub import CommitScheduler, HfApi
api, order = HfApi(), json.loads(sys.argv[1])
if hasattr(api, "upload_large_folder"):
    api.upload_large_folder(order["name"], order["folder"], repo_type="model", print_report=False)
else:
    api.create_repo(order["name"])
    api.upload_folder(repo_id=order["name"], folder_path=order["folder"])
scheduler = CommitScheduler(repo_id=order["name"], repo_type="model", folder_path=order["folder"], every=60)
scheduler.trigger().result()  # runs start one after another; the first begins by itself and reads the folder as it is
with scheduler.lock:
    pathlib.Path(order["folder"], "README.md").write_text("# Scheduled")
scheduler.trigger().result()
scheduler.stop()
print(json.dumps([commit.commit_id for commit in api.list_repo_commits(order["name"])]))
"""


@pytest.mark.parametrize("version", ["0.34.4", "1.33.0", ""])
def test_large_folders_and_scheduled_commits(live: LiveServer, tmp_path: Path, version: str) -> None:
    name = f"acme/many-{version or 'newest'}"
    client_request = json.dumps({"name": name, "folder": str(pushes.adapter_folder(tmp_path))})
    python = _python(version) if version else Path(sys.executable)
    commits = lives.last_line(live.run([python, "-c", MANY, client_request], tmp_path))
    adapter = live.registry.adapter(AdapterName.parse(name))
    assert commits[0] == commit_id(adapter.digest)
    assert live.registry.version(Ref(AdapterName.parse(name), adapter.newest)).parents[0].name == f"{name}@1"


COMMANDS = {
    "hf repos create acme/commands --private --exist-ok": 0,
    "hf upload acme/commands adapter": 0,
    "hf repos branch create acme/commands canary --revision v1": 0,
    "hf repos settings acme/commands --private": 0,
    "hf repos delete-files acme/commands README.md": 0,
    "hf repos move acme/commands acme/commands-moved": 0,
    "hf download acme/commands-moved --revision canary": 0,
    "hf repos tag create acme/commands-moved best": 1,
    "hf repos branch delete acme/commands-moved canary": 1,
    "hf repos delete acme/commands-moved --yes": 1,  # the alias canary points at it
    "hf models info acme/commands-moved": 0,
    "hf upload acme/unneeded adapter": 0,
    "hf repos delete acme/unneeded --yes": 0,
    "hf models info acme/unneeded": 1,
}
"""The words of each command, and how it ends."""


def test_the_command_hf_manages_a_repository(live: LiveServer, tmp_path: Path) -> None:
    pushes.adapter_folder(tmp_path)
    for command, status in COMMANDS.items():
        program, *words = command.split()
        done = live.run([Path(sys.executable).with_name(program), *words], tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stdout + done.stderr


def test_the_javascript_client_pushes(store: LiveServer, tmp_path: Path) -> None:
    folder = venvs.javascript()
    if folder is None:
        pytest.skip("there is no node and npm here")
    (tmp_path / "node_modules").symlink_to(folder / "node_modules")
    script = tmp_path / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    client_request = json.dumps({"name": "acme/javascript", "folder": str(pushes.adapter_folder(tmp_path))})
    responses = lives.last_line(store.run(["node", script, client_request], tmp_path))
    digests = [store.registry.version(Ref(AdapterName("acme", "javascript"), number)).digest for number in (1, 2)]
    assert [responses["pushed"], responses["deleted"]] == [commit_id(digest) for digest in digests]
    assert (responses["url"], responses["drafted"]) == (f"{store.server.url}/acme/javascript", [pushes.CARD])
    assert (responses["files"], responses["pulled"]) == ([samples.CONFIG, samples.WEIGHTS], True)
    assert (responses["pickle"][0], "may be a pickle" in responses["pickle"][1]) == ("415", True)
    assert (responses["model"][0], "a whole model" in responses["model"][1]) == ("415", True)


TRAIN = """
import json, sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

order = json.loads(sys.argv[1])
def model():
    base = AutoModelForCausalLM.from_pretrained(order["base"], dtype=torch.float32)
    base.name_or_path = base.config._name_or_path = "tiny-llama"
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], base_model_name_or_path="tiny-llama")
    return get_peft_model(base, config)
model().push_to_hub(order["name"] + "-peft")
rows = [{"input_ids": torch.tensor([5, 17, 42, 7]), "labels": torch.tensor([5, 17, 42, 7])}] * 4
arguments = TrainingArguments(
    output_dir="out", push_to_hub=True, hub_model_id=order["name"] + "-trainer", hub_strategy="every_save",
    save_steps=1, max_steps=2, per_device_train_batch_size=1, use_cpu=True, report_to=[], hub_always_push=True,
)
trainer = Trainer(model=model(), args=arguments, train_dataset=rows)
trainer.train()
trainer.push_to_hub()
print(json.dumps("done"))
"""


def test_peft_and_the_trainer_push_versions(live: LiveServer, tmp_path: Path) -> None:
    samples.llama().write(tmp_path / "tiny-llama")
    client_request = json.dumps({"name": "acme/trained", "base": str(tmp_path / "tiny-llama")})
    done = live.run([sys.executable, "-c", TRAIN, client_request], tmp_path)
    assert lives.last_line(done) == "done"
    assert live.registry.adapter(AdapterName("acme", "trained-peft")).versions == 1
    newest = live.registry.adapter(AdapterName("acme", "trained-trainer")).newest
    assert newest >= 2, done.stderr[-2000:]
    version = live.registry.version(Ref(AdapterName("acme", "trained-trainer"), newest))
    assert (version.base, version.parents[0].name) == (live.base.name, f"acme/trained-trainer@{newest - 1}")
    assert {file.path for file in version.files} >= {samples.CONFIG, samples.WEIGHTS, pushes.CARD}


FINE_TUNE = """
import json, sys
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from registry.training import RegistryCallback

order = json.loads(sys.argv[1])
base = AutoModelForCausalLM.from_pretrained(order["base"])
base.name_or_path = base.config._name_or_path = "tiny-llama"
trainer = SFTTrainer(
    model=base, train_dataset=Dataset.from_dict({"text": ["a b c d"] * 4}),
    args=SFTConfig(
        "support-sft", push_to_hub=True, hub_strategy="every_save", save_steps=1, max_steps=2, use_cpu=True, bf16=False,
        per_device_train_batch_size=1, report_to=[], hub_always_push=True, max_length=16, dataset_num_proc=None,
    ),
    processing_class=AutoTokenizer.from_pretrained(order["base"]),
    peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    callbacks=[RegistryCallback("acme/callback-sft")],
)
trainer.train()
trainer.push_to_hub(dataset_name="tickets")
print(json.dumps("done"))
"""


def test_trl_pushes_versions_to_the_namespace_of_its_token(live: LiveServer, tmp_path: Path) -> None:
    """Its Hub push names no namespace: the repository is called like the folder of its output. And by the callback."""
    python = venvs.python_of(f"trl-{venvs.TRL}")
    if python is None:
        pytest.skip("TRL is not installed")
    samples.llama().write(tmp_path / "tiny-llama")
    token = live.registry.create_token(TokenCreate(name="trainer", scopes=["push"], namespaces=["acme"]))
    client_request = json.dumps({"base": str(tmp_path / "tiny-llama")})
    tokens = {"HF_TOKEN": token.secret, "ADAPTER_TOKEN": token.secret, "ADAPTER_REGISTRY": live.server.url}
    tokens |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = live.run([python, "-c", FINE_TUNE, client_request], tmp_path, **tokens)
    assert lives.last_line(done) == "done"
    name = AdapterName("acme", "support-sft")
    newest = live.registry.adapter(name).newest
    assert newest >= 2, done.stderr[-2000:]
    version = live.registry.version(Ref(name, newest))
    assert (version.base, version.parents[0].name) == (live.base.name, f"{name}@{newest - 1}")
    assert {file.path for file in version.files} >= {samples.CONFIG, samples.WEIGHTS, pushes.CARD, "tokenizer.json"}
    assert f"acme/support-sft@{newest} on {live.base.name}: compat pass" in done.stderr
    checkpoint = live.registry.version(Ref(AdapterName("acme", "callback-sft"), 2))
    assert (checkpoint.message, checkpoint.parents[0].name) == ("checkpoint 2", "acme/callback-sft@1")
    assert checkpoint.provenance is not None
    assert checkpoint.provenance.datasets[0].uri.startswith("hf-datasets:")


SAVE_IMAGES = """
import json, pathlib, sys, torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from huggingface_hub import create_repo, upload_folder
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

order = json.loads(sys.argv[1])
unet = UNet2DConditionModel.from_pretrained(order["base"], subfolder="unet")
unet.add_adapter(LoraConfig(r=4, init_lora_weights="gaussian", target_modules=["to_q", "to_v"]))
parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=1e-3)
config = unet.config
noise = torch.randn(1, config.in_channels, config.sample_size, config.sample_size)
for step in range(2):
    hidden = torch.randn(1, 4, config.cross_attention_dim)
    loss = (unet(noise, torch.tensor([step]), hidden).sample - noise).pow(2).mean()
    loss.backward()
    optimizer.step()
    for folder in (f"out/checkpoint-{step}", "out"):
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
        torch.save(optimizer.state_dict(), folder + "/optimizer.bin")
pathlib.Path("out/README.md").write_text("---\\nbase_model: sd-tiny\\n---\\n# Sketch")
pathlib.Path("out/image_0.png").write_bytes(b"an image")
name = create_repo("sketch", exist_ok=True).repo_id
upload_folder(repo_id=name, folder_path="out", commit_message="End of training", ignore_patterns=["step_*", "epoch_*"])
print(json.dumps(name))
"""


@pytest.mark.skipif(not fixtures.IMAGES_AVAILABLE, reason="the libraries of image models are not installed")
def test_what_diffusers_saves_is_pushed_without_its_checkpoints(live: LiveServer, tmp_path: Path) -> None:
    """The steps that diffusers' training scripts end with."""
    pipeline = fixtures.image_bases() / "sd-tiny"
    live.registry.add_base(BaseAdd(spec=base_spec_from(pipeline, "sd-tiny")[0]))
    token = live.registry.create_token(TokenCreate(name="images", scopes=["push"], namespaces=["acme"]))
    done = live.run(
        [sys.executable, "-c", SAVE_IMAGES, json.dumps({"base": str(pipeline)})], tmp_path, HF_TOKEN=token.secret
    )
    assert lives.last_line(done) == "acme/sketch"
    version = live.registry.version(Ref(AdapterName("acme", "sketch"), 1))
    assert (version.base, version.message) == ("sd-tiny", "End of training")
    assert [file.path for file in version.files] == [pushes.CARD, "pytorch_lora_weights.safetensors"]
    assert "acme/sketch@1 on sd-tiny: compat pass; weights pass" in done.stderr
    assert "left out:" in done.stderr
