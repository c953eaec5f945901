"""The flow of a merge and of a fuse: asked for, checked by rows, done by a worker, pushed or registered."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from registry.evaluation.verdicts import Check

pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file

from registry.api.jobs import Claimed, ClaimRequest, JobSubmit
from registry.client.core import Versions
from registry.client.transfer import pull
from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.jobs import Job, Kind, State
from registry.merging.recipes import ANNOTATION, MergeOperation, Method, Recipe
from registry.worker.loop import Worker
from registry.worker.model.sources import Sources
from registry.worker.model_process.client import Pool, ProcessLimits
from tests import fixtures
from tests.harness import Harness
from tests.worker import models
from tests.worker.setup import WorkerSetup

pytestmark = pytest.mark.usefixtures("forked_programs")


@pytest.fixture
def database_kind() -> str:
    """A merge is committed as every push, which is tested on both databases."""
    return "sqlite"


@pytest.fixture(scope="module")
def adapters(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "one": models.adapter(base_folder, folder / "one", seed=1),
        "other": models.adapter(base_folder, folder / "other", seed=2, r=8, use_rslora=True),
        "dora": models.adapter(base_folder, folder / "dora", seed=3, use_dora=True),
    }


@pytest.fixture
def setup(harness: Harness, base_folder: Path, adapters: dict[str, Path]) -> Iterator[WorkerSetup]:
    setup = WorkerSetup(harness, base_folder)
    for name, folder in adapters.items():
        setup.push(folder, f"acme/{name}")
    yield setup
    for job in harness.admin.jobs(state="queued").items:
        harness.admin.cancel(job.id)


def test_a_merge_is_a_version_whose_parents_are_its_sources(
    setup: WorkerSetup, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = setup.harness.admin
    job = _submit(setup, weights=(0.7, 0.3), rank=6)
    assert (job.state, job.kind, job.payload["sources"]) == (State.QUEUED, Kind.MERGE, ["acme/one@1", "acme/other@1"])
    planned: list[list[str]] = []
    plan_pulls = Versions.plan_pulls

    def count(registry: Versions, refs: Sequence[Any], **options: Any) -> Any:
        planned.append([str(ref) for ref in refs])
        return plan_pulls(registry, refs, **options)

    monkeypatch.setattr(Versions, "plan_pulls", count)
    _work(setup, pool)
    assert planned[0] == ["acme/one@1", "acme/other@1"], "one request for all sources"
    assert all(refs[0].startswith("acme/both@") for refs in planned[1:]), planned

    done = admin.job(job.id)
    assert done.state is State.DONE, done.error
    assert done.result["version"] == "acme/both@1"
    merged = admin.version("acme/both")
    assert {(edge.relation, edge.name) for edge in merged.parents} == {
        ("merged", "acme/one@1"), ("merged", "acme/other@1"),
    }  # fmt: skip
    assert {edge.relation for edge in admin.lineage("acme/both").edges} >= {"merged"}
    assert {v.check: v.outcome for v in merged.verdicts}[Check.COMPAT] == "pass"
    recipe = json.loads(admin.resolve("acme/both").manifest.annotations[ANNOTATION])
    assert (recipe["weights"], recipe["rank"]) == ([0.7, 0.3], 6)
    report = done.result["report"]
    assert report["rank"] == 6
    assert 0 < report["relative_error"] < 1
    assert len(report["modules"]) == 4

    pull.pull(admin, "acme/both", tmp_path / "both", cache=None)
    assert _error(tmp_path / "both", setup, tmp_path) == pytest.approx(report["relative_error"], abs=1e-4)

    again = _submit(setup, weights=(0.7, 0.3), rank=6)
    _work(setup, pool)
    assert admin.job(again.id).result["version"] == "acme/both@1"


def test_a_fuse_is_a_new_base_whose_weights_hold_the_adapter(
    setup: WorkerSetup, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_folder: Path
) -> None:
    monkeypatch.setenv("ADAPTER_BASES", str(tmp_path / "bases"))
    admin = setup.harness.admin
    setup.add_base("tiny-second", base_folder)
    job = _submit(setup, operation=MergeOperation.FUSE, sources=("acme/dora",), into="tiny-dora")
    onto = _submit(setup, operation=MergeOperation.FUSE, sources=("acme/dora",), into="second-dora", onto="tiny-second")
    half = tmp_path / "bases" / "tiny-dora" / f".{job.id}.e021e3d44212"
    half.mkdir(parents=True)  # of an attempt whose machine lost its power

    _work(setup, pool)

    done = admin.job(job.id)
    assert done.state is State.DONE, done.error
    view = admin.base("tiny-dora")
    assert view.source == done.result["folder"]
    assert not half.exists()
    assert view.fingerprint == admin.base("tiny").fingerprint
    assert [(edge.relation, edge.name) for edge in view.parents] == [("fused", "acme/dora@1")]
    down = admin.lineage("acme/dora", down=True)
    assert ("base:tiny-dora", admin.version("acme/dora").digest, "fused") in {
        (edge.child, edge.parent, edge.relation) for edge in down.edges
    }
    outsider = setup.harness.actor("pull", namespaces=["other"])
    assert [edge.name for edge in outsider.base("tiny-dora").parents] == [""]
    old, new = load_file(base_folder / "model.safetensors"), load_file(Path(view.source) / "model.safetensors")
    assert {name for name in old if not old[name].equal(new[name])} == {
        f"model.layers.{layer}.self_attn.{leaf}.weight" for layer in (0, 1) for leaf in ("q_proj", "v_proj")
    }
    assert "not what was trained" in admin.job(onto.id).result["report"]["notes"][-1]
    same = (Path(admin.base(name).source) / "model.safetensors" for name in ("tiny-dora", "second-dora"))
    assert len({path.read_bytes() for path in same}) == 1
    with pytest.raises(Conflict):
        _submit(setup, operation=MergeOperation.FUSE, sources=("acme/dora",), into="tiny-dora")


@pytest.mark.security
@pytest.mark.parametrize("outside", ["absolute", "relative", "link"])
def test_a_lying_registry_cannot_name_a_folder_to_delete(
    outside: str, setup: WorkerSetup, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTER_BASES", str(tmp_path / "bases"))
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("x")
    for smoke_test in setup.harness.admin.jobs(state="queued", kind="smoke-test").items:
        setup.harness.admin.cancel(smoke_test.id)
    job = _submit(setup, operation=MergeOperation.FUSE, sources=("acme/one",), into="fused")
    registry = setup.harness.actor("work", "pull", name="gpu-1")
    claim_job = registry.claim
    lie = {"absolute": str(victim), "relative": "../../victim", "link": job.id}[outside]
    if outside == "link":
        (tmp_path / "bases" / "fused").mkdir(parents=True)
        (tmp_path / "bases" / "fused" / job.id).symlink_to(victim)
    else:
        with pytest.raises(ValidationError):
            Job.model_validate(job.model_dump() | {"id": lie})

    def claim(request: ClaimRequest) -> Claimed | None:
        claimed = claim_job(request)
        return claimed and claimed.model_copy(update={"job": claimed.job.model_copy(update={"id": lie})})

    monkeypatch.setattr(registry, "claim", claim)
    lines: list[str] = []
    Worker(registry, Sources(), say=lines.append, limits=ProcessLimits(threads=1), pool=pool).run(once=True)
    assert any("is not the id of a job" in line or "is a link out of" in line for line in lines), lines
    assert (victim / "file").read_text() == "x"
    if setup.harness.admin.job(job.id).state is State.RUNNING:
        setup.harness.admin.cancel(job.id)


def test_a_merge_whose_source_was_deleted_fails_with_the_reason(setup: WorkerSetup, pool: Pool) -> None:
    job = _submit(setup)
    setup.harness.admin.delete_adapter("acme/other")
    _work(setup, pool, done=0)
    failed = setup.harness.admin.job(job.id)
    assert (failed.state, failed.attempt) == (State.FAILED, 1)
    assert "version 1 of 'acme/other' was deleted" in failed.error


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"weights": (1.0,)}, "recipe.weight_invalid"),
    ({"weights": (0.0, 1.0)}, "recipe.weight_invalid"),
    ({"weights": (1e9, 1.0)}, "recipe.weight_invalid"),
    ({"rank": 10**9}, "recipe.rank_invalid"),
    ({"rank": -1}, "recipe.rank_invalid"),
    ({"operation": MergeOperation.RESIZE, "sources": ("acme/one",), "rank": 0}, "recipe.rank_invalid"),
    ({"sources": ("acme/one",)}, "recipe.sources"),
    ({"sources": ()}, "recipe.sources"),
    ({"sources": ("acme/one", "acme/one@1")}, "recipe.source_duplicate"),
    ({"sources": ("acme/one", "acme/dora")}, "recipe.dora"),
    ({"sources": ("acme/one", "acme/elsewhere")}, "recipe.bases_differ"),
    ({"method": Method.TIES, "density": 0.0}, "recipe.density_invalid"),
    ({"density": 0.5}, "recipe.density_invalid"),
    ({"method": Method.CAT, "rank": 4}, "recipe.rank_invalid"),
    ({"onto": "tiny"}, "recipe.fuse_only"),
]


def test_an_invalid_recipe_is_refused_before_a_job_is_queued(
    setup: WorkerSetup, tmp_path: Path, base_folder: Path
) -> None:
    setup.add_base("wide", models.base(tmp_path / "base", hidden=96))
    setup.push(models.adapter(tmp_path / "base", tmp_path / "adapter"), "acme/elsewhere", base="wide")
    for changes, code in WRONG:
        with pytest.raises(Invalid) as refused:
            _submit(setup, **changes)
        assert refused.value.code == "RECIPE_INVALID", changes
        assert code in {reason.code for reason in refused.value.findings}, changes
    setup.push(models.adapter(base_folder, tmp_path / "nan", change=models.with_nan), "acme/nan")
    with pytest.raises(Invalid, match="acme/nan@1 holds NaN"):
        _submit(setup, sources=("acme/one", "acme/nan"))
    for payload in ({"operation": "combine", "weights": ["NaN", 1]}, {"operation": "melt"}, {"sources": "acme/one"}):
        with pytest.raises(Invalid):
            setup.harness.admin.submit(JobSubmit(kind=Kind.MERGE, payload=payload))
    assert setup.harness.admin.jobs(kind="merge").items == []


def test_fusing_into_a_quantized_base_is_refused_before_a_job_is_queued(setup: WorkerSetup) -> None:
    setup.add_base("packed", fixtures.tiny_bases() / "llama-a-nf4")
    setup.push(fixtures.good() / "lora-r4", "acme/r4", base="packed")
    fuse = {"operation": MergeOperation.FUSE, "sources": ("acme/r4",), "into": "fused"}
    with pytest.raises(Invalid, match="rounded away") as refused:
        _submit(setup, **fuse)
    assert "--dequantize" in refused.value.next_step
    assert _submit(setup, **fuse, dequantize=True).state is State.QUEUED


def test_a_merge_needs_visible_sources_and_a_target_that_one_may_push(setup: WorkerSetup) -> None:
    with pytest.raises(NotFound):
        _submit(setup, sources=("acme/one", "acme/missing"))
    outsider = setup.harness.actor("push", "pull", namespaces=["other"])
    with pytest.raises(NotFound):
        _submit(setup, by=outsider, into="other/both")
    reader = setup.harness.actor("pull", namespaces=["acme"])
    with pytest.raises(Denied):
        _submit(setup, by=reader)


# ------------------------------------------------------------------ means
def _submit(setup: WorkerSetup, *, by: Any = None, **changes: Any) -> Job:
    values = {"operation": MergeOperation.COMBINE, "sources": ("acme/one", "acme/other"), "into": "acme/both"} | changes
    recipe = Recipe(**values)
    kind = Kind.FUSE if recipe.operation is MergeOperation.FUSE else Kind.MERGE
    request = JobSubmit(kind=kind, payload=recipe.model_dump(mode="json"))
    job: Job = (by or setup.harness.admin).submit(request)
    return job


def _work(setup: WorkerSetup, pool: Pool, *, done: int = 1) -> None:
    """Let a worker do what is queued; the validations of the sources wait for somebody else."""
    for job in setup.harness.admin.jobs(state="queued", kind="smoke-test").items:
        setup.harness.admin.cancel(job.id)
    registry = setup.harness.actor("work", "pull", "push", name="gpu-1")
    limits = ProcessLimits(deadline_seconds=120, threads=1)
    worker = Worker(registry, Sources(), say=setup.lines.append, pool=pool, name="gpu-1", limits=limits)
    assert worker.run(once=True).done >= done, setup.lines
    for job in setup.harness.admin.jobs(state="queued", kind="smoke-test").items:
        setup.harness.admin.cancel(job.id)


def _error(folder: Path, setup: WorkerSetup, scratch: Path) -> float:
    """The relative error of what was pushed against 0.7 * one + 0.3 * other, with dense matrices."""
    deltas = []
    for name in ("one", "other"):
        pull.pull(setup.harness.admin, f"acme/{name}", scratch / name, cache=None)
        deltas.append(_deltas(scratch / name))
    lost = total = 0.0
    for path, delta in _deltas(folder).items():
        exact = 0.7 * deltas[0][path] + 0.3 * deltas[1][path]
        lost += float((delta - exact).square().sum())
        total += float(exact.square().sum())
    return math.sqrt(lost / total)


def _deltas(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        name: scale * tensors[name.replace("lora_A", "lora_B")].double() @ tensors[name].double()
        for name in tensors
        if "lora_A" in name
    }
