"""What the registry says about an adapter, stage by stage.

    check    the domain alone: reading the folder and `registry.compat.check`
    compat   stored with the version: after the push, and again after the worker asked PEFT
    weights  stored with the version
    engine   stored with the version: the rules about PEFT itself
    smoke    the worker's

A stage's word is pass, warn, fail or unknown; `refused`, if the push is an error; `crash`, if something broke.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, Self

import peft

from registry.api.bases import BaseAdd
from registry.client.local.adapter_folder import read_adapter
from registry.client.transfer import push as pushing
from registry.compat import check
from registry.errors import RegistryError
from registry.evaluation.verdicts import add_up, summarize
from registry.server.database import schema
from registry.server.database.engine import open_database
from registry.server.settings import Settings
from registry.server.storage.local import LocalBlobs
from registry.worker.loop import Worker
from registry.worker.model import fingerprints
from registry.worker.model.sources import Sources
from registry.worker.model.weights import Weights
from registry.worker.model_process.client import Pool, ProcessLimits
from tests.harness import Harness
from tests.truth.cases import Base

Said = dict[str, tuple[str, str]]
"""Stage → (word, message)."""
YES, NO = frozenset({"pass", "warn"}), frozenset({"fail", "refused"})
LIMITS = ProcessLimits(deadline_seconds=120, threads=1, memory_bytes=4 * 2**30)
TEXT = 300


def check_alone(folder: Path, base: Base) -> Said:
    """The stage `check`."""
    try:
        findings = check(read_adapter(folder).contents, base.spec)
    except RegistryError as e:
        return {"check": ("refused", str(e)[:TEXT])}
    except Exception as e:
        return {"check": ("crash", f"{type(e).__name__}: {e}"[:TEXT])}
    return {"check": (str(add_up(findings)), summarize(findings)[:TEXT])}


def _migrate(path: Path) -> None:
    engine = open_database(Settings(database_url=f"sqlite:///{path}").with_defaults())
    schema.prepare(engine)
    engine.dispose()


class Product:
    """A registry in this process, with SQLite, a folder of blobs, one base, and a real worker with a warm process.

    `empty`: an empty database, made by the first product and copied by the next ones, which saves the migrations.
    """

    def __init__(self, folder: Path, base: Base, empty: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        blobs = LocalBlobs(folder / "blobs")
        if not empty.exists():
            _migrate(empty)
        shutil.copyfile(empty, folder / "registry.db")
        self._base = base.spec.name
        self._harness = Harness(f"sqlite:///{folder}/registry.db", blobs=blobs, engines=f"peft=={peft.__version__}")
        identity = fingerprints.identify(Weights.of(base.folder))
        self._harness.admin.add_base(BaseAdd(spec=base.spec, identity=identity, source=str(base.folder)))
        self._pool = Pool()
        self._worker = Worker(self._harness.admin, Sources(), say=lambda _line: None, limits=LIMITS, pool=self._pool)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.close()
        self._harness.__exit__(*error)

    def evaluate(self, folders: dict[str, Path]) -> dict[str, Said]:
        """The stages after `check` of these adapters (id → folder): all are pushed, then the worker runs."""
        cases = {folder: case for case, folder in folders.items()}
        names = [(folder, f"truth/{hashlib.sha256(case.encode()).hexdigest()}") for folder, case in cases.items()]
        answers: dict[str, Said] = {}
        refs: dict[str, str] = {}
        for result in pushing.push_all(self._harness.admin, names, base=self._base):
            case = cases[result.folder]
            if result.value is not None:
                refs[case] = f"{result.name}@{result.value.version.number}"
            elif result.error is not None:
                word = "crash" if result.error.code == "INTERNAL" else "refused"
                answers[case] = {"compat": (word, str(result.error)[:TEXT])}
        self._worker.run(once=True)
        return answers | {case: self._stored(ref) for case, ref in refs.items()}

    def _stored(self, ref: str) -> Said:
        version = self._harness.admin.version(ref)
        verdicts = {str(v.check): (str(v.outcome), v.summary[:TEXT]) for v in version.verdicts}
        if "smoke" not in verdicts:
            errors = [f"{job.state}: {job.error}" for job in self._harness.admin.jobs(ref=ref).items if job.error]
            if errors:
                verdicts["smoke"] = ("crash", errors[0][:TEXT])
        return verdicts
