"""The jobs `convert` and `convert-on-base`: pull the original, check it again, convert it, push the result.

A refusal ends the job for good. The result has the original as its parent; the same job done twice is the same version.
"""

import tempfile
from pathlib import Path

from registry.adapters.read import read_by_names
from registry.client import convert as client_convert
from registry.client.local.adapter_folder import read_adapter
from registry.errors import Invalid, TooLarge
from registry.merging import conversions
from registry.merging.conversions import Conversion, RunsOn
from registry.worker.conversions.request import ConversionRequest
from registry.worker.task import Done, Failed, Task


def convert(task: Task) -> Done:
    """Convert the claimed version."""
    conversion = Conversion.model_validate(task.job.payload)
    base = task.base
    with tempfile.TemporaryDirectory(prefix="adapter-job-") as scratch:
        task.lease.say(f"pulling {task.subject.name}@{task.subject.number}")
        folder, out = task.pull(Path(scratch) / "before"), Path(scratch) / "after"
        try:
            contents = read_by_names(read_adapter(folder).contents)
            location = conversions.runs_on(contents, conversion, base.spec)
            weights = str(task.ready_source().folder) if location is RunsOn.BASE else ""
            task.lease.say(f"converting to {conversion.to}")
            if location is RunsOn.HERE:
                report = client_convert.rename(folder, out, conversion, base)
            else:
                request = ConversionRequest(
                    conversion=conversion, source=str(folder), out=str(out), base=base.spec, base_folder=weights
                )
                limits = task.limits
                report = request.run(task.lease.check, threads=limits.threads, seconds=limits.deadline_seconds)
                if weights:
                    task.demand_unchanged_base()
        except (Invalid, TooLarge) as e:
            raise Failed(e.detail, final=True) from e
        task.lease.say(f"pushing {conversion.into}")
        pushed = client_convert.push(task.registry, out, task.subject, conversion, report, origin=contents.format)
    version = f"{pushed.version.name}@{pushed.version.number}"
    result = {"version": version, "digest": str(pushed.version.digest), "report": report.model_dump(mode="json")}
    return Done(f"{conversion.to} → {version}: {report.message}", result=result)
