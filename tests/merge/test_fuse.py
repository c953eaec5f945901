"""Fusing against PEFT's own merge in double precision, rounded once: for every mergeable method."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import fixtures

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from registry.errors import Invalid, RegistryError, Unavailable
from registry.merging.recipes import MergeOperation, Recipe
from registry.worker.merge.adapters import Adapter
from registry.worker.merge.fuse import fuse
from registry.worker.merge.peft_methods import PeftMerger
from registry.worker.merge.request import MergeRequest
from tests.worker import models

FUSED = [
    "lora-r8-all", "lora-regex", "lora-layers-to-transform", "lora-rank-pattern", "lora-rslora", "lora-dora",
    "lora-bias-all", "lora-bias-only", "lora-modules-to-save", "lora-on-embedding", "lora-trainable-tokens",
    "lora-tied-modules-to-save", "lora-vocab520", "lora-pissa-converted", "lora-exclude", "lora-gpt2",
    "lora-fused-qkv", "lora-moe-attn", "lora-moe-target-parameters", "lora-moe-all-linear", "lora-bfloat16",
    "lora-float8_e4m3fn", "adalora", "ia3", "ln-tuning", "trainable-tokens", "loha", "lokr", "oft", "boft", "miss",
    "vera", "randlora", "shira",
]  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_the_fused_weights_are_the_double_precision_ones_rounded_once(name: str, tmp_path: Path) -> None:
    folder, base = _good_adapter(name)
    report = fuse(Adapter.open(folder), base, tmp_path / "fused", make_merger=PeftMerger)
    fused, expected, untouched = _loaded(tmp_path / "fused"), _merged(folder, base), _loaded(base)

    assert fused.keys() == expected.keys()
    changed = [key for key in fused if not torch.equal(expected[key], untouched[key].double())]
    assert changed
    assert report.changed_tensors > 0
    assert _share_equal([(fused[key], expected[key]) for key in changed]) >= 0.9999
    for key in fused.keys() - set(changed):
        assert torch.equal(fused[key], untouched[key]), key


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["lora-r8-all", "lora-dora", "lora-modules-to-save"])
def test_a_16_bit_base_is_rounded_once_from_32_bits(name: str, dtype: str, tmp_path: Path) -> None:
    base = fixtures.tiny_bases() / f"llama-a-{dtype}"
    fuse(Adapter.open(fixtures.good() / name), base, tmp_path / "fused")
    fused, expected = _loaded(tmp_path / "fused"), _merged(fixtures.good() / name, base)

    assert {tensor.dtype for tensor in fused.values()} == {torch.bfloat16 if dtype == "bf16" else torch.float16}
    assert _share_equal([(fused[key], expected[key]) for key in fused]) >= 0.9999


def test_shards_keep_their_headers_and_their_untouched_bytes(tmp_path: Path) -> None:
    base = fixtures.tiny_bases() / "llama-a-sharded"
    report = fuse(Adapter.open(fixtures.good() / "lora-regex"), base, tmp_path / "fused")

    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(path.name for path in (tmp_path / "fused").glob("*.safetensors")) == shards
    for name in ("model.safetensors.index.json", "config.json", "tokenizer.json"):
        assert (tmp_path / "fused" / name).read_bytes() == (base / name).read_bytes()
    for name in shards:
        old, new = (base / name).read_bytes(), (tmp_path / "fused" / name).read_bytes()
        end = 8 + int.from_bytes(old[:8], "little")
        assert (len(old), old[:end]) == (len(new), new[:end])
    assert report.changed_tensors == 4
    assert report.copied_bytes > 0


def test_replicated_layers_are_written_out_and_act_as_they_did_unmerged(tmp_path: Path) -> None:
    folder, base = _good_adapter("lora-layer-replication")
    report = fuse(Adapter.open(folder), base, tmp_path / "fused")

    assert transformers.AutoConfig.from_pretrained(tmp_path / "fused").num_hidden_layers == 6
    assert _distance(tmp_path / "fused", base, folder) < 1e-5
    assert "4 layers are written out as 6" in report.notes


def test_a_head_that_is_tied_is_untied_when_only_the_embedding_was_trained(tmp_path: Path) -> None:
    base = fixtures.tiny_bases() / "llama-tied"
    folder = _on(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    report = fuse(Adapter.open(folder), base, tmp_path / "fused")

    assert json.loads((tmp_path / "fused" / "config.json").read_text())["tie_word_embeddings"] is False
    fused = _loaded(tmp_path / "fused")
    old = _loaded(base)["model.embed_tokens.weight"]
    assert torch.equal(fused["lm_head.weight"], old)
    assert not torch.equal(fused["model.embed_tokens.weight"], old)
    assert any("are two now" in note for note in report.notes)


def test_a_pair_of_a_tied_embedding_acts_fused_as_it_did_unmerged(tmp_path: Path) -> None:
    """PEFT's own merge adds such an update twice to the one tensor."""
    folder, base = _good_adapter("lora-tied-embedding")
    fuse(Adapter.open(folder), base, tmp_path / "fused")
    assert _distance(tmp_path / "fused", base, folder) < 1e-5


def test_trained_tokens_of_a_tied_base_stay_tied(tmp_path: Path) -> None:
    base = fixtures.tiny_bases() / "llama-tied"
    folder = _on(base, tmp_path / "adapter", trainable_token_indices={"embed_tokens": [5, 6]})
    fuse(Adapter.open(folder), base, tmp_path / "fused")

    assert json.loads((tmp_path / "fused" / "config.json").read_text())["tie_word_embeddings"] is True
    fused, expected = _loaded(tmp_path / "fused"), _merged(folder, base)
    assert _share_equal([(fused[key], expected[key]) for key in fused]) == 1.0


def test_dora_on_a_conv1d_and_on_an_embedding_takes_the_norm_of_each_output(tmp_path: Path) -> None:
    bases = fixtures.tiny_bases()
    for base, targets in (("gpt2-conv1d", ["c_attn"]), ("llama-a", ["embed_tokens", "q_proj"])):
        folder = _on(bases / base, tmp_path / base, target_modules=targets, use_dora=True)
        fuse(Adapter.open(folder), bases / base, tmp_path / f"{base}-fused")
        fused, expected = _loaded(tmp_path / f"{base}-fused"), _merged(folder, bases / base)
        assert _share_equal([(fused[key], expected[key]) for key in fused]) >= 0.9999


def test_a_packed_base_is_refused_and_fused_unpacked_on_request(tmp_path: Path) -> None:
    base = fixtures.tiny_bases() / "llama-a-nf4"
    if not base.is_dir():
        pytest.skip("bitsandbytes is not installed")
    adapter = Adapter.open(fixtures.good() / "lora-r8-all")
    with pytest.raises(Invalid) as refused:
        fuse(adapter, base, tmp_path / "fused")
    assert refused.value.code == "RECIPE_INVALID"
    assert "--dequantize" in refused.value.next_step
    assert not (tmp_path / "fused").exists()

    report = fuse(adapter, base, tmp_path / "fused", dequantize=True)

    assert "quantization_config" not in json.loads((tmp_path / "fused" / "config.json").read_text())
    fused = _loaded(tmp_path / "fused")
    expected = _merged(fixtures.good() / "lora-r8-all", base, weights=_unpacked(base))
    assert _share_equal([(fused[key], expected[key]) for key in fused]) >= 0.9999
    assert any("unpacked" in note for note in report.notes)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("lora-alora", "aLoRA"), ("lora-pissa", "initialization"), ("lora-olora", "initialization"),
        ("prompt-tuning", "beside the weights"), ("lora-lora-bias", "bias"), ("boft", "BOFT"),
    ],
)  # fmt: skip
def test_what_no_weights_can_equal_is_refused_with_its_reason(name: str, word: str, tmp_path: Path) -> None:
    folder, base = _good_adapter(name)
    with pytest.raises(Invalid) as refused:
        fuse(Adapter.open(folder), base, tmp_path / "fused")
    assert refused.value.code == "RECIPE_INVALID"
    assert word in refused.value.detail
    assert list(tmp_path.iterdir()) == []


@pytest.mark.security
@pytest.mark.parametrize(
    ("owner", "file", "field"),
    [
        ("adapter", "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil/repo--code.Tokenizer", None]}}),
        ("adapter", "special_tokens_map.json", {"extra": [{"trust_remote_code": True}]}),
        ("adapter", "added_tokens.json", {"code_revision": "main"}),
        ("base", "generation_config.json", {"custom_generate": "evil/repo"}),
        ("base", "config.json", {"auto_map": {"AutoConfig": "evil/repo--code.Config"}}),
    ],
)
def test_a_code_reference_in_a_json_file_is_never_copied(
    owner: str, file: str, field: dict[str, Any], tmp_path: Path
) -> None:
    folders = {
        "adapter": shutil.copytree(fixtures.good() / "lora-r4", tmp_path / "adapter"),
        "base": shutil.copytree(fixtures.tiny_bases() / "llama-a", tmp_path / "base"),
    }
    path = folders[owner] / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | field))
    with pytest.raises(Invalid, match=f"{owner}/{file}: .*makes a loader import code") as refused:
        fuse(Adapter.open(folders["adapter"]), folders["base"], tmp_path / "fused")
    assert [reason.code for reason in refused.value.findings] == ["config.code_reference"]
    assert not (tmp_path / "fused").exists()


def test_an_order_finds_the_process_that_its_method_needs(tmp_path: Path) -> None:
    folder, base = _good_adapter("loha")
    recipe = Recipe(operation=MergeOperation.FUSE, sources=("acme/loha",))
    lines: list[str] = []
    report = MergeRequest(recipe=recipe, sources=(str(folder),), base=str(base), out=str(tmp_path / "fused")).run(
        lines.append
    )
    assert (report.method, report.changed_tensors) == ("LOHA", 8)
    assert (tmp_path / "fused" / "model.safetensors").is_file()


@pytest.mark.security
def test_a_merge_sees_its_folders_in_a_home_folder_and_nothing_else_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, base = _good_adapter("lora-r4")
    home = tmp_path / "home"
    shutil.copytree(folder, home / "adapter")
    (home / "models").mkdir()
    (home / "models" / "base").symlink_to(shutil.copytree(base, home / "store" / "base"))
    (home / "secret").mkdir()
    shutil.copytree(folder, home / "secret" / "adapter")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    recipe = Recipe(operation=MergeOperation.FUSE, sources=("acme/r4",))
    request = MergeRequest(recipe=recipe, sources=("adapter",), base="models/base", out="models/fused")
    assert request.run().changed_tensors > 0
    assert (home / "models" / "fused" / "model.safetensors").is_file()
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from registry.worker.sandbox import confine, namespaces\n"
        "visible = namespaces.visible_folders(Path(sys.argv[1]))\n"
        "layers = namespaces.isolate(confine.secret_places(os.environ), visible, read_only=False)\n"
        "print('no home folder' in layers, os.path.exists(sys.argv[1]), os.path.exists(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", script, str(home / "adapter"), str(home / "secret")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["True", "True", "False"], ["False", "True", "True"])


def test_an_order_that_is_given_up_leaves_nothing_half_done(tmp_path: Path) -> None:
    class GivenUp(Exception):
        """The lease was lost."""

    def give_up(_said: str) -> None:
        raise GivenUp

    folder, base = _good_adapter("lora-r4")
    recipe = Recipe(operation=MergeOperation.FUSE, sources=("acme/r4",))
    with pytest.raises(GivenUp):
        MergeRequest(recipe=recipe, sources=(str(folder),), base=str(base), out=str(tmp_path / "fused")).run(give_up)
    assert [path.name for path in tmp_path.iterdir() if path.name != "fused"] == []


def test_a_second_signal_does_not_break_off_the_clearing_up(tmp_path: Path) -> None:
    script = """
import os, shutil, signal, sys
from pathlib import Path
from registry.client.local.destination import Destination
from registry.worker.sandbox import program
clear = shutil.rmtree
def ended_again(*words, **how):
    os.kill(os.getpid(), signal.SIGTERM)
    clear(*words, **how)
shutil.rmtree = ended_again
program.exit_on_signals()
with Destination(Path(sys.argv[1])) as folder:
    print(folder)
    os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_order_that_takes_too_long_is_ended_with_the_reason(tmp_path: Path) -> None:
    folder, base = _good_adapter("lora-r4")
    recipe = Recipe(operation=MergeOperation.FUSE, sources=("acme/r4",))
    order = MergeRequest(recipe=recipe, sources=(str(folder),), base=str(base), out=str(tmp_path / "fused"))
    with pytest.raises(Unavailable, match=r"took over 0.01 seconds"):
        order.run(seconds=0.01)
    assert not (tmp_path / "fused").exists()


def test_nan_another_base_and_a_cut_file_leave_nothing_behind(tmp_path: Path) -> None:
    bases = fixtures.tiny_bases()
    nan = models.adapter(models.base(tmp_path / "base"), tmp_path / "nan", change=models.with_nan)
    cut = shutil.copytree(bases / "llama-a", tmp_path / "cut")
    with open(cut / "model.safetensors", "r+b") as file:
        file.truncate(50_000)
    good = fixtures.good() / "lora-r8-all"
    for folder, base in ((nan, tmp_path / "base"), (good, bases / "llama-wide"), (good, cut), (good, tmp_path)):
        with pytest.raises(RegistryError):
            fuse(Adapter.open(folder), base, tmp_path / "fused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "cut", "nan"]


def test_a_folder_with_something_in_it_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Invalid):
        fuse(Adapter.open(fixtures.good() / "lora-r4"), fixtures.tiny_bases() / "llama-a", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ------------------------------------------------------------------ the other side
def _good_adapter(name: str) -> tuple[Path, Path]:
    entry = fixtures.manifest(fixtures.good())[name]
    return fixtures.good() / name, fixtures.tiny_bases() / entry["base"]


def _on(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter for a base of any architecture, with random values."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    written = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**written))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
            if "magnitude" in name:
                parameter.abs_()
    wrapped.save_pretrained(folder)
    return folder


def _merged(folder: Path, base: Path, *, weights: dict[str, Any] | None = None) -> dict[str, Any]:
    """PEFT's merge with every number in 64 bits, into `weights` if they are given."""
    skeleton = base if weights is None else base.with_name("llama-a")
    model = transformers.AutoModelForCausalLM.from_pretrained(skeleton, dtype=torch.float64)
    model.load_state_dict(weights or {}, strict=weights is not None)
    wrapped = peft.PeftModel.from_pretrained(model, folder).double()
    return dict(wrapped.merge_and_unload().state_dict())


def _distance(fused: Path, base: Path, adapter: Path) -> float:
    """The largest difference of a logit between the fused base and the unmerged adapter."""
    models = [transformers.AutoModelForCausalLM.from_pretrained(folder) for folder in (fused, base)]
    tokens = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        merged, unmerged = models[0](tokens).logits, peft.PeftModel.from_pretrained(models[1], adapter)(tokens).logits
    return float((merged - unmerged).abs().max())


def _unpacked(base: Path) -> dict[str, Any]:
    """The weights of an NF4 base as bitsandbytes unpacks them."""
    functional = pytest.importorskip("bitsandbytes").functional
    model = transformers.AutoModelForCausalLM.from_pretrained(base, device_map="cpu")
    plain = {name: tensor.data for name, tensor in model.named_parameters()}
    packed = {name for name, tensor in plain.items() if tensor.dtype == torch.uint8}
    for name in packed:
        weight = model.get_parameter(name)
        plain[name] = functional.dequantize_4bit(weight.data, weight.quant_state)
    return {name: tensor.double() for name, tensor in plain.items()}


def _loaded(folder: Path) -> dict[str, Any]:
    return dict(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict())


def _share_equal(pairs: list[tuple[Any, Any]]) -> float:
    """The share of elements that are the wanted ones, rounded once to the type that was found."""
    equal = sum(int((tensor == expected.to(tensor.dtype)).sum()) for tensor, expected in pairs)
    return equal / sum(int(tensor.numel()) for tensor, _ in pairs)


@pytest.mark.security
def test_an_unsafe_template_is_never_copied(tmp_path: Path) -> None:
    folder, base = _good_adapter("lora-r8-all")
    shutil.copytree(folder, tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ messages.__class__ }}")
    with pytest.raises(Invalid, match="begins with an underscore"):
        fuse(Adapter.open(tmp_path / "adapter"), base, tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
