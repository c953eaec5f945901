"""Converts a version into another form, as a new version: by renaming tensors here, or by a worker's job.

The request is checked here by header and facts before anything is fetched. Renaming writes a new header and copies
the rest.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from registry.adapters import read as contents
from registry.adapters.formats import Format
from registry.adapters.peft.targets import EMBEDDINGS, Targets
from registry.adapters.read import AdapterContents, PeftContents
from registry.api.bases import BaseView
from registry.api.catalog import Resolved
from registry.api.jobs import JobSubmit
from registry.api.transfer import PushResult
from registry.bases import BaseSpec
from registry.client.local.adapter_folder import read_adapter
from registry.client.registry import Registry
from registry.client.transfer import pull
from registry.client.transfer import push as pushing
from registry.jobs import Job, Kind
from registry.merging import conversions, renaming
from registry.merging.conversions import Conversion, Converted, RunsOn
from registry.names import AdapterName, Ref
from registry.versions.files import CONFIG
from registry.versions.manifest import Edge, Relation


@dataclass(frozen=True, slots=True)
class ConversionOutcome:
    """The new version with a report, or the job that will make it."""

    pushed: PushResult | None = None
    report: Converted | None = None
    job: Job | None = None


def convert(registry: Registry, ref: Ref, conversion: Conversion) -> ConversionOutcome:
    """Rename tensors now, or queue a job if values change. `Invalid` (CONVERSION_INVALID) says why it is impossible."""
    source = registry.resolve(ref)
    base = registry.base(source.manifest.base.name)
    contents = read(registry, source)
    location = conversions.runs_on(contents, conversion, base.spec)
    if location is not RunsOn.HERE:
        kind = Kind.CONVERT_ON_BASE if location is RunsOn.BASE else Kind.CONVERT
        exactly = str(Ref(AdapterName.parse(source.name), source.number))
        return ConversionOutcome(
            job=registry.submit(JobSubmit(kind=kind, ref=exactly, payload=conversion.model_dump(mode="json")))
        )
    with tempfile.TemporaryDirectory(prefix="adapter-convert-") as scratch:
        before, after = Path(scratch) / "before", Path(scratch) / "after"
        pull.pull(registry, Ref(AdapterName.parse(source.name), source.digest), before, cache=None)
        report = rename(before, after, conversion, base)
        return ConversionOutcome(push(registry, after, source, conversion, report, origin=contents.format), report)


def read(registry: Registry, source: Resolved) -> AdapterContents:
    """Read the version's configuration and header, by ranges."""
    links = {file.path: file for file in source.files}

    def part(path: str, start: int, length: int) -> bytes:
        length = min(length, links[path].size_bytes - start)
        if length <= 0:
            return b""
        with registry.read(links[path], start=start, length=length) as chunks:
            return b"".join(chunks)

    return contents.read_any(source.manifest.files, part)


def rename(before: Path, after: Path, conversion: Conversion, base: BaseView) -> Converted:
    """Write the adapter of one folder with renamed tensors to another."""
    folder = read_adapter(before)
    weights = contents.weights_of(folder.files)
    header = folder.contents.header
    metadata = dict(header.metadata)
    if isinstance(folder.contents, PeftContents):
        names = renaming.find_repairs(header, base.spec)
        target = weights.path
    else:
        names = renaming.image_repairs(header, base.spec) if conversion.repair else renaming.to_diffusers(header)
        target = "pytorch_lora_weights.safetensors"
    after.mkdir()
    with open(before / weights.path, "rb") as old, open(after / target, "wb") as new:
        new.write(renaming.head_of(header, names, metadata))
        old.seek(header.data_start)
        shutil.copyfileobj(old, new)
    for file in folder.files:
        if file.path != weights.path:
            (after / file.path).write_bytes((before / file.path).read_bytes())
    if isinstance(folder.contents, PeftContents):
        _write_targets(after / CONFIG, folder.contents, names, base.spec)
    first = next(iter(names.items()))
    message = f"{len(names)} of {len(header)} tensors renamed, such as {first[0]} to {first[1]}"
    return Converted(message=message, tensors=len(header), renamed=len(names))


def _write_targets(file: Path, contents: PeftContents, names: Mapping[str, str], base: BaseSpec) -> None:
    """Name the renamed modules as targets, where the configuration does not: `all-linear` means no head."""
    paths = {path for info in contents.header if (path := renaming.path_of(names.get(info.name, info.name)))}
    targets = Targets(contents.config)
    without_head = targets.all_linear and not paths.isdisjoint(EMBEDDINGS)
    if paths and (not targets.has_targets or without_head or not all(map(targets.covers, paths))):
        config = json.loads(file.read_bytes()) | {"target_modules": renaming.targets_of(paths, base)}
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def push(
    registry: Registry, folder: Path, source: Resolved, conversion: Conversion, report: Converted, *, origin: Format
) -> PushResult:
    """Push the converted folder as the newest version of `conversion.into`."""
    parent = Edge(relation=Relation.CONVERTED, digest=source.digest, name=f"{source.name}@{source.number}")
    return pushing.push_folder(
        registry, folder, AdapterName.parse(conversion.into), base=source.manifest.base.name, edges=[parent],
        annotations=conversion.annotations(origin, report),
        message=conversion.message or f"{conversion.to} form of {source.name}@{source.number}",
    )  # fmt: skip
