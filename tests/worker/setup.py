"""`WorkerSetup`: a Harness with a real tiny base, into which real folders are pushed, and what its workers said."""

from __future__ import annotations

from pathlib import Path

from registry.api.bases import BaseAdd
from registry.api.transfer import PushResult
from registry.client.local.base_folder import base_spec_from
from registry.client.transfer import push as pushing
from registry.evaluation.verdicts import Check, Verdict
from registry.names import AdapterName
from registry.worker.model import fingerprints, library
from registry.worker.model.weights import Weights
from tests.harness import Harness

BASE = "tiny"


class WorkerSetup:
    def __init__(self, harness: Harness, base_folder: Path) -> None:
        self.harness = harness
        self.lines: list[str] = []
        self.add_base(BASE, base_folder)

    def add_base(self, name: str, folder: Path, *, source: str | None = None) -> None:
        spec, _ = base_spec_from(folder, name)
        identity = fingerprints.identify(Weights.of(folder))
        self.harness.bases[name] = spec
        where = str(folder) if source is None else source
        self.harness.admin.add_base(BaseAdd(spec=spec, identity=identity, source=where))
        self.harness.admin.set_base_modules(name, library.modules_of(folder))

    def push(self, folder: Path, name: str = "acme/support", base: str = BASE) -> PushResult:
        return pushing.push_folder(self.harness.admin, folder, AdapterName.parse(name), base=base)

    def smoke(self, ref: str = "acme/support") -> Verdict | None:
        """The verdict of the check *smoke* on this version, if there is one."""
        verdicts = [v for v in self.harness.admin.version(ref).verdicts if v.check is Check.SMOKE]
        return verdicts[-1] if verdicts else None
