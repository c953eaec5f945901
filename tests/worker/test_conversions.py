"""Conversions that need values: what comes out computes what went in, by PEFT and by the arithmetic of each format."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from registry.adapters.peft.names import PREFIX
from registry.api.catalog import VersionView
from registry.api.jobs import JobSubmit
from registry.client import convert as client_convert
from registry.client.local.adapter_folder import read_adapter
from registry.client.local.base_folder import base_spec_from
from registry.client.transfer.pull import pull
from registry.engines.version_facts import facts_of
from registry.errors import NotFound, RegistryError
from registry.evaluation.verdicts import Outcome
from registry.jobs import Job, Kind, State
from registry.merging import conversions
from registry.merging.conversions import Conversion
from registry.merging.recipes import MergeOperation, Recipe
from registry.names import Ref
from registry.versions.files import CONFIG, WEIGHTS
from registry.worker.conversions import to_canonical, to_gguf, to_peft, to_plain
from registry.worker.conversions.request import ConversionRequest
from registry.worker.loop import Worker
from registry.worker.merge.request import MergeRequest
from registry.worker.model.sources import Sources
from registry.worker.model_process.client import Pool, ProcessLimits
from tests import fixtures
from tests.truth import architectures, methods
from tests.worker import models
from tests.worker.setup import WorkerSetup

pytestmark = pytest.mark.usefixtures("forked_programs")
IDS = torch.arange(1, 24).reshape(1, -1)


def logits(base: Path, adapter: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    with torch.no_grad():
        output: torch.Tensor = model.eval()(IDS).logits
    return output


def conversion_request(to: str, base: Path, source: Path, out: Path) -> ConversionRequest:
    """The request that a worker would send, after the checks that it would make."""
    spec, _ = base_spec_from(base, base.name)
    conversion = Conversion(to=to, into="acme/made")
    conversions.runs_on(read_adapter(source).contents, conversion, spec)
    return ConversionRequest(conversion=conversion, source=str(source), out=str(out), base=spec, base_folder=str(base))


def difference(base: Path, first: Path, other: Path) -> float:
    return float((logits(base, first) - logits(base, other)).abs().max())


# ------------------------------------------------------------------ canonical
@pytest.mark.slow
def test_the_canonical_form_of_every_mergeable_lora_gives_the_same_logits(tmp_path: Path) -> None:
    good, bases, wrong, refused = fixtures.good(), fixtures.tiny_bases(), {}, {}
    for name, entry in fixtures.manifest(good).items():
        if not name.startswith("lora-"):
            continue
        base, out = bases / entry["base"], tmp_path / name
        try:
            to_canonical.convert(conversion_request("canonical", base, good / name, out))
        except RegistryError as e:
            refused[name] = e.detail
            continue
        config = json.loads((out / CONFIG).read_bytes())
        spec = read_adapter(out).peft.lora
        if (far := difference(base, good / name, out)) > 1e-6:
            wrong[name] = f"logits differ by {far}"
        if config["use_rslora"] or config["rank_pattern"] or config["alpha_pattern"]:
            wrong[name] = "it still has rsLoRA or patterns"
        if {m.scale for m in spec.modules} != {1.0} or {m.rank for m in spec.modules} != {config["r"]}:
            wrong[name] = "a module is scaled or has a rank of its own"
    assert wrong == {}
    assert set(refused) == {"lora-r64", "lora-dora", "lora-pissa", "lora-olora", "lora-pickle-bin"}, refused


def test_a_convolution_in_groups_is_padded_within_each_group(tmp_path: Path) -> None:
    base, source, out = tmp_path / "base", tmp_path / "source", tmp_path / "made"
    model = architectures.build("squeezebert", "SqueezeBertForMaskedLM", base)
    config = LoraConfig(r=6, lora_alpha=3, target_modules=["query", "post_attention.conv1d"], rank_pattern={"query": 4})
    methods.make_from(model, config, source)
    tensors = {name: t.double() for name, t in load_file(source / WEIGHTS).items()}  # 32 bits would round them
    save_file({name: t + 1e-12 for name, t in tensors.items()}, source / WEIGHTS)
    assert to_canonical.convert(conversion_request("canonical", base, source, out)).rank == 8  # four groups divide it
    answers = []
    for folder in (source, out):
        bare = AutoModelForMaskedLM.from_pretrained(base, dtype=torch.float32)
        with torch.no_grad():
            answers.append(PeftModel.from_pretrained(bare, str(folder)).eval()(IDS).logits)
    assert float((answers[0] - answers[1]).abs().max()) < 1e-6
    padded = load_file(out / WEIGHTS)
    name = next(name for name in tensors if name.endswith("query.lora_A.weight"))
    assert torch.equal(padded[name].reshape(4, 2, -1)[:, 0], tensors[name].reshape(4, -1) + 1e-12)


def test_a_scale_that_bfloat16_cannot_hold_is_kept_exactly_in_32_bits() -> None:
    b = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    exact = b.to(torch.float64) * 5.5
    scaled = to_canonical.scale_tensor(b, 5.5)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled.to(torch.float64), exact)
    assert to_canonical.scale_tensor(b, 2.0).dtype == torch.bfloat16


# ------------------------------------------------------------------ PiSSA, OLoRA
@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora-pissa", "lora-olora"])
def test_pissa_and_olora_become_plain_loras_of_twice_the_rank_that_fit_the_unchanged_base(
    name: str, tmp_path: Path
) -> None:
    base, source = fixtures.tiny_bases() / "llama-a", fixtures.good() / name
    report = to_plain.convert(conversion_request("plain", base, source, tmp_path / "made"))
    assert report.rank == 16
    assert difference(base, source, tmp_path / "made") < 1e-5
    converted = read_adapter(tmp_path / "made").peft
    assert (converted.config.initialization, converted.config.base.name) == ("", "llama-a")


# ------------------------------------------------------------------ torchtune, mlx
def as_mlx(folder: Path, out: Path) -> Path:
    config = json.loads((folder / CONFIG).read_bytes())
    tensors = {
        name.removeprefix(PREFIX).replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b"): t.T
        for name, t in load_file(folder / WEIGHTS).items()
    }
    out.mkdir()
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / "adapters.safetensors")
    settings = {"rank": config["r"], "scale": config["lora_alpha"] / config["r"], "dropout": 0.0}
    (out / CONFIG).write_text(json.dumps({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": settings}))
    return out


def as_torchtune(folder: Path, out: Path, heads: dict[str, int]) -> Path:
    """By torchtune's own rule for weights that come from transformers (hf_to_tune): halves of a head to pairs."""
    config = json.loads((folder / CONFIG).read_bytes())
    tensors = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        leaf = name.split(".")[-3]
        if "lora_B" in name and leaf in heads:
            rows, rank = tensor.shape
            half = rows // heads[leaf] // 2
            tensor = tensor.view(heads[leaf], 2, half, rank).transpose(1, 2).reshape(rows, rank)
        short = name.removeprefix(f"{PREFIX}model.").replace("self_attn", "attn").replace("o_proj", "output_proj")
        tensors[short.replace("lora_A", "lora_a").replace("lora_B", "lora_b")] = tensor.contiguous()
    out.mkdir()
    save_file(tensors, out / "adapter_0.safetensors")
    fields = {"r": config["r"], "lora_alpha": config["lora_alpha"], "target_modules": ["q_proj", "output_proj"]}
    (out / CONFIG).write_text(json.dumps(fields))
    return out


@pytest.fixture(scope="module")
def attention(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained-looking adapter of all four projections, with a scale of 2."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return models.adapter(
        base_folder, tmp_path_factory.mktemp("a") / "attention", target_modules=targets, lora_alpha=16
    )


@pytest.mark.parametrize("tool", ["mlx", "torchtune", "torchtune under PEFT's names of files"])
def test_what_another_trainer_wrote_gives_the_same_logits_as_pefts(
    tool: str, base_folder: Path, attention: Path, tmp_path: Path
) -> None:
    spec, _ = base_spec_from(base_folder, "tiny")
    heads = {"q_proj": spec.heads, "k_proj": spec.kv_heads}
    written = tmp_path / tool
    source = as_mlx(attention, written) if tool == "mlx" else as_torchtune(attention, written, heads)
    if "PEFT" in tool:
        (source / "adapter_0.safetensors").rename(source / WEIGHTS)
        (source / CONFIG).write_bytes((attention / CONFIG).read_bytes())
    report = to_peft.convert(conversion_request("peft", base_folder, source, tmp_path / "made"))
    assert difference(base_folder, attention, tmp_path / "made") == 0
    assert report.error == 0
    converted, original = load_file(tmp_path / "made" / WEIGHTS), load_file(attention / WEIGHTS)
    assert set(converted) == set(original)
    assert all(torch.equal(converted[name], original[name]) for name in original)


def test_layers_that_were_not_trained_are_not_announced(base_folder: Path, attention: Path, tmp_path: Path) -> None:
    source = as_mlx(attention, tmp_path / "mlx")
    tensors = load_file(source / "adapters.safetensors")
    trained = {name: t for name, t in tensors.items() if ".layers.0." not in name}
    save_file(trained, source / "adapters.safetensors")
    to_peft.convert(conversion_request("peft", base_folder, source, tmp_path / "made"))
    targets = json.loads((tmp_path / "made" / CONFIG).read_bytes())["target_modules"]
    assert targets
    assert not [path for path in targets if ".layers.0." in path or "." not in path]


# ------------------------------------------------------------------ GGUF
def test_a_gguf_adapter_holds_the_scaled_factors_under_llama_cpps_names_and_row_order(
    base_folder: Path, attention: Path, tmp_path: Path
) -> None:
    to_gguf.convert(conversion_request("gguf", base_folder, attention, tmp_path / "made"))
    reader = GGUFReader(tmp_path / "made" / to_gguf.FILE)
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    original = load_file(attention / WEIGHTS)
    spec, _ = base_spec_from(base_folder, "tiny")
    scale = read_adapter(attention).peft.lora.modules[0].scale
    assert reader.get_field("adapter.lora.alpha").contents() == reader.tensors[0].shape[-1]
    at = f"{PREFIX}model.layers.1.self_attn"
    assert torch.equal(tensors["blk.1.attn_output.weight.lora_b"], original[f"{at}.o_proj.lora_B.weight"] * scale)
    assert torch.equal(tensors["blk.1.attn_k.weight.lora_a"], original[f"{at}.k_proj.lora_A.weight"])
    b = original[f"{at}.k_proj.lora_B.weight"] * scale
    heads, size = spec.kv_heads, b.shape[0] // spec.kv_heads
    order_of_rows = [head * size + half * (size // 2) + i for head in range(heads) for i in range(size // 2)
                     for half in (0, 1)]  # fmt: skip
    assert torch.equal(tensors["blk.1.attn_k.weight.lora_b"], b[order_of_rows])
    facts = facts_of(read_adapter(tmp_path / "made").contents)
    assert (facts["format"], facts["scales"], facts["modules"]) == ("gguf", [1.0], 8)


# ------------------------------------------------------------------ the job
@pytest.fixture
def converter(setup: WorkerSetup, pool: Pool) -> Worker:
    """A worker whose token may push, with nothing else to do."""
    registry = setup.harness.actor("work", "pull", "push", name="gpu-1")
    return Worker(registry, Sources(), say=setup.lines.append, limits=ProcessLimits(threads=1), pool=pool)


def pushed(setup: WorkerSetup, folder: Path) -> VersionView:
    """The version, with its smoke test cancelled if there is one."""
    result = setup.push(folder)
    if result.job_id:
        setup.harness.admin.cancel(result.job_id)
    return result.version


def test_a_worker_converts_and_pushes_with_the_original_as_the_parent(
    setup: WorkerSetup, converter: Worker, good: Path
) -> None:
    registry, first = setup.harness.admin, pushed(setup, good)
    conversion = Conversion(to="canonical", into="acme/plain")
    job = client_convert.convert(registry, Ref.parse("acme/support@1"), conversion).job
    assert job is not None
    converter.run(once=True)
    assert str(registry.job(job.id).state) == "done", setup.lines
    converted = registry.version("acme/plain@1")
    assert [(str(e.relation), e.digest) for e in converted.parents] == [("converted", first.digest)]
    assert converted.verdicts[0].outcome is Outcome.PASS
    assert converted.facts["scales"] == [1.0]
    assert registry.job(job.id).result["version"] == "acme/plain@1"
    assert registry.version("acme/support@1").digest == first.digest


def test_a_worker_converts_what_another_trainer_wrote(
    setup: WorkerSetup, converter: Worker, base_folder: Path, attention: Path, tmp_path: Path
) -> None:
    registry, first = setup.harness.admin, pushed(setup, as_mlx(attention, tmp_path / "mlx"))
    conversion = Conversion(to="peft", into="acme/made")
    job = client_convert.convert(registry, Ref.parse("acme/support@1"), conversion).job
    assert job is not None
    converter.run(once=True)
    assert str(registry.job(job.id).state) == "done", setup.lines
    converted = registry.version("acme/made@1")
    assert [(str(e.relation), e.digest) for e in converted.parents] == [("converted", first.digest)]
    pull(registry, Ref.parse("acme/made@1"), tmp_path / "pulled")
    assert difference(base_folder, attention, tmp_path / "pulled") == 0


def test_a_conversion_that_the_bytes_do_not_allow_fails_with_the_reason(
    setup: WorkerSetup, converter: Worker, good: Path
) -> None:
    registry, _ = setup.harness.admin, pushed(setup, good)
    payload = Conversion(to="plain", into="acme/plain").model_dump(mode="json")
    job = registry.submit(JobSubmit(kind="convert-on-base", ref="acme/support@1", payload=payload))
    converter.run(once=True)
    ended = registry.job(job.id)
    assert (str(ended.state), "PiSSA and OLoRA" in ended.error) == ("failed", True)


@pytest.mark.parametrize("kind", [Kind.FUSE, Kind.CONVERT_ON_BASE])
def test_what_was_computed_from_a_base_whose_files_changed_meanwhile_is_dropped(
    kind: Kind, setup: WorkerSetup, base_folder: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.jobs.BACKOFF_SECONDS", (600,))
    monkeypatch.setenv("ADAPTER_BASES", str(tmp_path / "bases"))
    folder = shutil.copytree(base_folder, tmp_path / "copy")
    other = models.base(tmp_path / "other", seed=5) / "model.safetensors"
    registry, init = setup.harness.admin, "pissa" if kind is Kind.CONVERT_ON_BASE else True
    setup.add_base("copy", folder)
    result = setup.push(models.adapter(folder, tmp_path / "adapter", init_lora_weights=init), base="copy")
    if result.job_id:
        registry.cancel(result.job_id)
    if kind is Kind.FUSE:
        recipe = Recipe(operation=MergeOperation.FUSE, sources=("acme/support",), into="made")
        job: Job | None = registry.submit(JobSubmit(kind=kind, payload=recipe.model_dump(mode="json")))
    else:
        job = client_convert.convert(
            registry, Ref.parse("acme/support@1"), Conversion(to="plain", into="acme/made")
        ).job
    assert job is not None
    assert job.kind is kind
    request: Any = MergeRequest if kind is Kind.FUSE else ConversionRequest
    run = request.run

    def run_and_exchange(self: Any, *arguments: Any, **options: Any) -> Any:
        report = run(self, *arguments, **options)
        os.replace(other, folder / "model.safetensors")
        return report

    monkeypatch.setattr(request, "run", run_and_exchange)
    actor, sources = setup.harness.actor("work", "pull", "push", name="gpu-1"), Sources({"copy": folder})
    summary = Worker(actor, sources, say=setup.lines.append, limits=ProcessLimits(threads=1), pool=pool).run(once=True)
    assert (summary.done, summary.failed, summary.unfinished) == (0, 1, 1), setup.lines
    waiting = registry.job(job.id)
    assert (waiting.state, waiting.error) == (State.QUEUED, f"the files of the base copy in {folder} changed meanwhile")
    assert [view.name for view in registry.bases().items if view.name == "made"] == []
    with pytest.raises(NotFound):
        registry.adapter("acme/made")
