"""The jobs `merge` and `fuse`: pull the sources, do the recipe in a program of its own, push or register the result.

- A merged adapter is pushed like any other, with every source as a parent and the recipe in its manifest; the same job
  done twice is the same version.
- A fused base is a folder on this machine and a name in the registry; a base never changes under its name.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from registry import names
from registry.api.bases import BaseAdd
from registry.api.catalog import Resolved
from registry.client.local.base_folder import base_spec_from
from registry.client.transfer import push
from registry.client.transfer.pull import PlannedPulls
from registry.errors import Invalid, NotFound
from registry.filesystem import user_folder
from registry.jobs import JOB_ID_PATTERN
from registry.merging.recipes import MergeReport, Recipe
from registry.names import AdapterName, BaseName, Ref
from registry.versions.manifest import Edge, Relation
from registry.worker.merge.request import MergeRequest
from registry.worker.task import Done, Failed, Task

MERGE_FACTOR, SLOW_BYTES_A_SECOND = 10, 10e6


def bases_folder() -> Path:
    """The folder of fused bases: $ADAPTER_BASES, else `adapter-registry/bases` in the user's data folder."""
    folder_setting = os.environ.get("ADAPTER_BASES")
    return Path(folder_setting).expanduser() if folder_setting else user_folder("data") / "bases"


def merge(task: Task) -> Done:
    """Merge adapters into one, or resize one; the result is the newest version of the recipe's target."""
    recipe = Recipe.model_validate(task.job.payload)
    with tempfile.TemporaryDirectory(prefix="adapter-job-") as scratch:
        refs = [Ref.parse(source) for source in recipe.sources]
        pulls = PlannedPulls(task.registry, refs)
        sources = [_source(pulls, ref) for ref in refs]
        folders = []
        for index, (ref, source) in enumerate(zip(refs, sources, strict=True)):
            label = f"{source.name}@{source.number}"
            task.lease.say(f"pulling {label}")
            folders.append(str(task.pull(Path(scratch) / str(index) / label, ref, pulls)))
        out = Path(scratch) / "result"
        report = _run(task, MergeRequest(recipe=recipe, sources=tuple(folders), out=str(out)))
        task.lease.say(f"pushing {recipe.into}")
        pushed = push.push_folder(
            task.registry, out, AdapterName.parse(recipe.into), base=sources[0].manifest.base.name,
            edges=[_edge(source, Relation.MERGED) for source in sources], annotations=recipe.annotations,
            message=f"{recipe.operation}: {', '.join(recipe.sources)}"[:2000],
        )  # fmt: skip
    task.lease.check()
    version = f"{pushed.version.name}@{pushed.version.number}"
    result = {"version": version, "digest": pushed.version.digest, "report": report.model_dump(mode="json")}
    lost = f", relative error {report.relative_error:.3g}" if report.relative_error > 1e-6 else ", exact"
    return Done(f"{recipe.operation} → {version}: rank {report.rank}{lost}", result=result)


def fuse(task: Task) -> Done:
    """Fuse the adapter into its base (or `onto`): a new base of the recipe's name, in a folder of this machine."""
    recipe = Recipe.model_validate(task.job.payload)
    source, name = task.ready_source(), names.base_name(recipe.into)
    out = _result_folder(name, task.job.id)
    _demand_new(task, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in (out, *out.parent.glob(f".{out.name}.*")):  # by an earlier attempt of this job, or half of one
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="adapter-job-") as scratch:
        task.lease.say(f"pulling {task.job.subject}")
        folder = task.pull(Path(scratch) / "adapter")
        request = MergeRequest(recipe=recipe, sources=(str(folder),), base=str(source.folder), out=str(out))
        report = _run(task, request)
    task.demand_unchanged_base()
    if recipe.onto:
        report = report.onto(recipe.onto, task.subject.manifest.base.name)
    task.lease.check()
    spec, _ = base_spec_from(out, name)
    parents = [_edge(task.subject, Relation.FUSED)]
    view = task.registry.add_base(BaseAdd(spec=spec, source=str(out), parents=parents))
    result = {"base": view.name, "folder": str(out), "report": report.model_dump(mode="json")}
    return Done(f"fuse → {name}: {report.changed_tensors} tensors changed", result=result)


def _result_folder(name: BaseName, job_id: str) -> Path:
    """The folder of this job's result, which an attempt may delete: always below the folder of fused bases."""
    if not re.fullmatch(JOB_ID_PATTERN, job_id):
        raise Failed(f"the registry responded with {job_id[:100]!r}, which is not the id of a job", final=True)
    root = bases_folder().resolve()
    folder = (root / name / job_id).resolve()
    if not folder.is_relative_to(root / name):
        raise Failed(f"{folder} is a link out of {root}, the folder of fused bases", final=True)
    return folder


def _source(pulls: PlannedPulls, ref: Ref) -> Resolved:
    try:
        return pulls.resolve(ref)
    except NotFound as e:  # deleted since the job was submitted, for good
        raise Failed(e.detail, final=True) from e


def _edge(source: Resolved, relation: Relation) -> Edge:
    """The edge from the result to a parent, by the parent's digest and its name of now."""
    return Edge(relation=relation, digest=source.digest, name=f"{source.name}@{source.number}")


def _demand_new(task: Task, name: str) -> None:
    try:
        task.registry.base(name)
    except NotFound:
        return
    raise Failed(f"the base {name} exists; a base never changes under its name", final=True)


def _run(task: Task, request: MergeRequest) -> MergeReport:
    """Merge within ten times the deadline of a smoke test, and the time that a slow disk takes for the base."""
    base_bytes = sum(file.stat().st_size for file in Path(request.base).glob("*.safetensors")) if request.base else 0
    seconds = MERGE_FACTOR * task.limits.deadline_seconds + base_bytes / SLOW_BYTES_A_SECOND
    try:
        return request.run(task.lease.say, threads=task.limits.threads, seconds=seconds)
    except Invalid as e:
        raise Failed(e.detail, final=True) from e
