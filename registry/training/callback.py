"""`RegistryCallback`: pushes each checkpoint of a `transformers.Trainer` as a version.

The Trainer may delete a checkpoint (`save_total_limit`) while it is pushed, so its files are linked beside it first.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from registry.client.core import AnyRef, Name
from registry.errors import RegistryError
from registry.sdk.registry import AdapterRegistry
from registry.training.provenance import describe_training, find_code, merge_declared
from registry.training.uploads import LOG, SavedCheckpoint, Uploads, reason_of
from registry.versions.files import kind_of
from registry.versions.provenance import Provenance
from registry.versions.retention import RetentionRule

FLUSH_SECONDS = 300.0
STAGING = ".registry"
"""Folder in the training's output, with links to the files of checkpoints that wait."""


class RegistryCallback(TrainerCallback):
    """Pushes checkpoints as versions of `name`, each the child of the one before, in a thread of its own.

    `registry`: default, that of the command `adapter`. `base`: default, the one that the configuration names.
    `keep_newest`: set this retention rule on the adapter after the first push. `provenance` adds to what the training
    says about itself, `parameters` name by name, and wins over it; `Invalid` (PROVENANCE_INVALID) names a field that
    breaks a rule. `flush_seconds`: how long the end of the training waits for uploads.

    A failure of the registry never stops a training. It is logged. While the registry is unavailable, checkpoints wait
    and are tried again at the next save and at the end.
    """

    def __init__(
        self, name: Name, *, registry: AdapterRegistry | None = None, base: str = "", keep_newest: int | None = None,
        parents: Sequence[AnyRef] = (), provenance: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None, flush_seconds: float = FLUSH_SECONDS,
    ) -> None:  # fmt: skip
        self.name, self.base, self.tags = str(name), base, dict(tags or {})
        self.registry = registry or AdapterRegistry()
        self._parents = list(parents)
        self._rule = RetentionRule(keep_newest=keep_newest) if keep_newest else None
        self._declared = dict(provenance or {})
        Provenance.read(self._declared)  # now, or every checkpoint would be pushed without any
        self._code = find_code(Path(sys.argv[0]).absolute().parent)
        self._flush_seconds = flush_seconds
        self._uploads = Uploads(self._push)

    def resume_from(self, ref: AnyRef, folder: str | Path) -> str:
        """Pull a version into `folder` and return it, for `trainer.train(resume_from_checkpoint=…)`.

        The next checkpoint has the version as its parent. A version holds the adapter and the trainer's state, not the
        optimizer's state, which starts from zero.
        """
        pulled = self.registry.pull(ref, folder)
        self._parents = [f"{pulled.name}@{pulled.digest}"]
        return str(folder)

    def on_save(self, args: Any, state: Any, _control: Any, **objects: Any) -> None:
        """Queue the checkpoint that was just written."""
        if not state.is_world_process_zero:
            return
        with _logged("checkpoint %d was not queued", state.global_step):
            saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            folder = link_files(saved, Path(args.output_dir) / STAGING / saved.name)
            dataset = getattr(objects.get("train_dataloader"), "dataset", None)
            described = merge_declared(describe_training(args, state, dataset, self._code), self._declared)
            discard = partial(shutil.rmtree, folder, ignore_errors=True)
            self._uploads.add(SavedCheckpoint(folder, state.global_step, described, discard))

    def on_train_end(self, args: Any, state: Any, _control: Any, **_objects: Any) -> None:
        """Wait for what is still to be pushed."""
        if state.is_world_process_zero and (remaining := self._uploads.flush(self._flush_seconds)):
            staging = (Path(args.output_dir) / STAGING).absolute()
            step = f"adapter push {staging}/checkpoint-N {self.name}" + (f" --base {self.base}" if self.base else "")
            LOG.warning("%d checkpoints were not pushed; push those in %s, N by N: %s", remaining, staging, step)

    def _push(self, checkpoint: SavedCheckpoint) -> None:
        version = self.registry.push(
            checkpoint.folder, self.name, base=self.base, parents=self._parents, tags=self.tags,
            provenance=_declarable(checkpoint), message=f"checkpoint {checkpoint.step}",
        ).version  # fmt: skip
        self._parents = [f"{version.name}@{version.digest}"]
        LOG.info("pushed checkpoint %d as %s@%d", checkpoint.step, version.name, version.number)
        if self._rule is not None:
            with _logged("the retention of %s was not set", self.name):
                self.registry.client.set_retention(self.name, self._rule)
            self._rule = None


def link_files(checkpoint: Path, target: Path) -> Path:
    """Link the files of a checkpoint that a version may hold into a new folder; returns the folder."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.is_file() and kind_of(file.name) is not None:
            try:
                os.link(file, target / file.name)
            except OSError:  # a file system without links
                shutil.copy2(file, target / file.name)
    return target


def _declarable(checkpoint: SavedCheckpoint) -> Provenance | None:
    """The provenance, or without it a warning: what a training says about itself must not keep it from being pushed."""
    try:
        return Provenance.read(checkpoint.provenance)
    except RegistryError as e:
        LOG.warning("checkpoint %d is pushed without provenance: %s", checkpoint.step, reason_of(e))
        return None


@contextlib.contextmanager
def _logged(message: str, subject: object) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # a training goes on whatever the registry does
        LOG.warning(f"{message}: %s", subject, reason_of(e))
