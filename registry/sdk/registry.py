"""`AdapterRegistry`: push, evaluate, promote, pull and find adapters from Python.

Each method does what the command of its name does, with the same errors (`registry.errors`). Pushes, pulls and
waits are repeated while the registry restarts; `on_wait` gets a line for people meanwhile.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from registry import lazy, names
from registry.api import PAGE_LIMIT
from registry.api.aliases import AliasMove, AliasView
from registry.api.catalog import AdapterView, Resolved, VersionMetadataChange, VersionView
from registry.api.lineage import Lineage
from registry.api.transfer import PushResult
from registry.client import checks, registries, response_checks, waiting
from registry.client.core import AnyRef, Name, parsed_name, parsed_ref
from registry.client.local import folder as folders
from registry.client.local.adapter_folder import read_adapter, read_contents
from registry.client.local.folder import Folder
from registry.client.registry import Registry
from registry.client.transfer import pull, push
from registry.client.transfer.bulk import Result
from registry.client.transfer.file_transfer import Progress
from registry.durations import expiry
from registry.engines import profile
from registry.errors import Corrupt, Invalid, Unavailable
from registry.evaluation.verdicts import Verdict
from registry.jobs import Job, State
from registry.sdk import models
from registry.sdk.models import DEFAULT_ADAPTER, TrainedModel
from registry.versions.provenance import Provenance

Source = str | Path | TrainedModel
"""What is pushed: a folder, or a PeftModel."""


class FailedCheckWarning(UserWarning):
    """A version that was pushed or pulled failed a check."""


class NotTested(Unavailable):
    """A version was pushed, and the verdict that `wait` is for is not there yet. `pushed`: the version."""

    def __init__(self, pushed: PushResult, reason: Unavailable) -> None:
        stored = f"{pushed.version.name}@{pushed.version.number} is stored, but {reason.detail}"
        super().__init__(reason.code, stored, next_step=reason.next_step)
        self.pushed = pushed


def _open(url: str, token: str, insecure: bool) -> AbstractContextManager[Registry]:
    location = registries.named(url) if url else registries.target()
    if not location.is_set:
        raise Invalid(
            "SETTING_INVALID",
            "no registry is set",
            next_step="run `adapter login URL`, set ADAPTER_REGISTRY, or pass a URL, a context or 'embedded'",
        )
    if location.embedded:
        opened: AbstractContextManager[Registry] = lazy.load("registry.client.embedded:open_client")(Registry)
        return opened
    return Registry(location.url, token or location.token, insecure=insecure or location.insecure)


class AdapterRegistry:
    """A registry at a URL. Thread-safe; close it or use it in `with`.

    `url`: the registry's URL, the name of a context of `adapter context`, or `embedded`. Without it and without `token`
    those of the command `adapter` are used: ADAPTER_REGISTRY and ADAPTER_TOKEN, a context, or the last login. `client`
    is used instead, if given; it has every route of the REST API. `Invalid` (SETTING_INVALID) if no registry is set:
    the embedded one is used only where it is named.
    """

    def __init__(
        self, url: str = "", token: str = "", *, client: Registry | None = None,
        on_wait: Callable[[str], None] | None = None, insecure: bool = False,
    ) -> None:  # fmt: skip
        self._exit = ExitStack()
        self.client = self._exit.enter_context(client or _open(url, token, insecure))
        if on_wait is not None:
            self.client.connection.on_wait = on_wait

    def close(self) -> None:
        """Close idle connections, and the embedded registry."""
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------ push and pull
    def push(
        self, source: Source, name: Name, *, base: str = "", alias: str = "", parents: Sequence[AnyRef] = (),
        provenance: Provenance | Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None, message: str = "", golden: str | Path | None = None,
        expires: timedelta | None = None, wait: bool = False, timeout: float | None = None,
        progress: Progress | None = None, adapter: str = DEFAULT_ADAPTER,
    ) -> PushResult:  # fmt: skip
        """Push a folder or a PeftModel as the newest version of `name`.

        A PeftModel is serialized in memory; `adapter` names which of its adapters. `base`: default, the one that the
        configuration names. `wait`: until there is the verdict of a smoke test or one that makes it needless, at most
        `timeout` seconds, after which `NotTested` is raised, an `Unavailable` whose `pushed` is this result. Then
        `alias` moves, unless a verdict is fail. That raises nothing: read `version.verdicts` and `alias_refused`.
        """
        alias = names.alias(alias) if alias else ""
        declared = provenance if isinstance(provenance, Provenance | None) else Provenance.read(provenance)
        options: dict[str, Any] = {
            "base": base, "parents": [parsed_ref(parent) for parent in parents], "message": message,
            "alias": "" if wait else alias,
            "annotations": dict(annotations or {}), "provenance": declared, "progress": progress,
        }  # fmt: skip
        golden_file = Path(golden) if golden is not None else None
        started = time.monotonic()
        if isinstance(source, str | Path):
            folder: Path | Folder = Path(source)
            pushed = push.push_folder(self.client, folder, parsed_name(name), golden=golden_file, **options)
        else:
            with models.read_model(source, adapter=adapter, golden=golden_file) as folder:
                pushed = push.push_folder(self.client, folder, parsed_name(name), **options)
        if tags or expires:
            expires_at = expiry(expires.total_seconds() if expires else None)
            change = VersionMetadataChange(tags=dict(tags or {}), expires_at=expires_at)
            version = self.client.describe(waiting.ref_of(pushed.version), change)
            pushed = pushed.model_copy(update={"version": version})
        if 0 < pushed.main_number < pushed.version.number:
            message = f"{pushed.version.name}@{pushed.version.number} is stored, but {pushed.main}"
            warnings.warn(message, FailedCheckWarning, stacklevel=2)
        if wait:
            try:
                pushed = self._wait(pushed, started, timeout)
            except Unavailable as e:
                raise NotTested(pushed, e) from e
            pushed = waiting.move_alias(self.client, pushed, alias, message)
        return pushed

    def push_all(
        self, folders: Mapping[str, str | Path], *, base: str = "", message: str = "", progress: Progress | None = None
    ) -> list[Result[PushResult]]:
        """Push each name's folder as its newest version, up to 100 with one request. One error stops no other."""
        items = [(Path(folder), name) for name, folder in folders.items()]
        return push.push_all(self.client, items, base=base, message=message, progress=progress)

    def _wait(self, pushed: PushResult, started: float, timeout: float | None) -> PushResult:
        until = started + (waiting.PENDING_SECONDS if timeout is None else timeout)
        version = waiting.wait_for_weights(self.client, pushed.version, until)
        if waiting.is_pending(version.verdicts):
            raise waiting.pending_error(version)
        pushed = waiting.request_smoke_test(self.client, pushed.model_copy(update={"version": version}))
        if not pushed.job_id or waiting.has_decided(version.verdicts):
            return pushed
        self._wait_for_job(pushed.job_id, None if timeout is None else max(0.0, until - time.monotonic()))
        return pushed.model_copy(update={"version": self.client.version(waiting.ref_of(version))})

    def pull(
        self, ref: AnyRef, folder: str | Path, *, include: Sequence[str] = (), progress: Progress | None = None
    ) -> Resolved:
        """Put a version into `folder`, every byte verified, as a whole or not at all. `include`: patterns of paths.

        A `FailedCheckWarning` names the checks that it failed.
        """
        resolved = pull.pull(self.client, ref, Path(folder), include=include, progress=progress)
        if resolved.failed_checks:
            message = f"{resolved.name}@{resolved.number} failed its check: {', '.join(resolved.failed_checks)}"
            warnings.warn(message, FailedCheckWarning, stacklevel=2)
        return resolved

    def pull_all(
        self, folders: Mapping[AnyRef, str | Path], *, progress: Progress | None = None
    ) -> list[Result[Resolved]]:
        """Put each version into its folder, up to 100 with one request. One error stops no other."""
        items = [(parsed_ref(ref), Path(folder)) for ref, folder in folders.items()]
        return pull.pull_all(self.client, items, progress=progress)

    def load(self, ref: AnyRef, model: Any, *, adapter: str = DEFAULT_ADAPTER, progress: Progress | None = None) -> Any:
        """Load a version onto a PeftModel, a PyTorch model or a diffusers pipeline, and activate it as `adapter`.

        Returns the model that has it: of a plain PyTorch model, a PeftModel around it. Every byte is verified before
        the model reads it. `Corrupt` (RESPONSE_INVALID) for a version that no registry may store, such as one whose
        configuration names code to import.
        """
        with tempfile.TemporaryDirectory(prefix="adapter-") as parent:
            folder = Path(parent) / "version"
            self.pull(ref, folder, progress=progress)
            try:
                read_contents(folder)
            except Invalid as e:
                raise Corrupt("RESPONSE_INVALID", f"{ref} is no adapter: {e.detail}", findings=e.findings) from e
            return models.load_folder(folder, model, adapter)

    # ------------------------------------------------------------ evaluate
    def check(self, target: AnyRef | Path, *, base: str = "", engines: Sequence[str] = ()) -> list[Verdict]:
        """The verdicts `compat` and, for each profile of `engines`, `engine` of a folder or a version.

        Nothing is pushed. Text with a leading `.`, `/` or `~`, or the path of something that exists, is a folder.
        """
        profiles = [profile(text) for text in engines]
        if isinstance(target, Path) or (isinstance(target, str) and folders.is_meant(target)):
            return checks.check_folder(self.client, read_adapter(Path(target)), base, profiles)
        return checks.check_version(self.client, parsed_ref(target), base, profiles)

    def smoke_test(self, ref: AnyRef, *, wait: bool = False, timeout: float | None = None) -> Job:
        """Have a worker test a version on its base. `wait`: until it has, at most `timeout` seconds (TRY_LATER)."""
        job = self.client.submit_smoke_test(ref)
        return self._wait_for_job(job.id, timeout) if wait else job

    def _wait_for_job(self, job_id: str, timeout: float | None) -> Job:
        job = waiting.wait_for_job(self.client, job_id, timeout)
        if job.state is not State.DONE:
            reason = job.error or "no reason was given"
            raise Unavailable("TRY_LATER", f"job {job.id} is {job.state}: {reason}", next_step="request it again")
        return job

    # ------------------------------------------------------------ release
    def promote(
        self, ref: AnyRef, alias: str, *, reason: str = "", generation: int | None = None, break_glass: bool = False,
        create_alias: bool = False,
    ) -> AliasView:  # fmt: skip
        """Point an alias at a version, through its gate. `Refused` (GATE_CLOSED) lists what is missing.

        `NotFound` (ALIAS_UNKNOWN) for a new alias whose name looks like another one, unless `create_alias`.
        `generation`: the state of the alias that you saw, 0 for none; default: it is read first.
        """
        version = self.client.version(ref)
        used_generation = self.client.generation(version.name, alias) if generation is None else generation
        return self.client.promote(
            version.name, alias, str(version.number), generation=used_generation, reason=reason,
            break_glass=break_glass, create_alias=create_alias,
        )  # fmt: skip

    def rollback(self, name: Name, alias: str, *, to: str = "", reason: str = "") -> AliasView:
        """Point an alias back at the version before, or at the version `to`."""
        return self.client.rollback(name, alias, to=to, reason=reason)

    def delete_alias(self, name: Name, alias: str, *, reason: str = "", force: bool = False) -> AliasMove:
        """Delete an alias; its history stays. `Conflict` (ALIAS_IN_USE) while nodes serve by it, unless `force`."""
        generation = self.client.generation(name, alias)
        return self.client.delete_alias(name, alias, generation=generation, reason=reason, force=force)

    # ------------------------------------------------------------ look up
    def resolve(self, ref: AnyRef) -> Resolved:
        """What a ref names now, with its manifest and a link to each file."""
        return self.client.resolve(ref)

    def version(self, ref: AnyRef) -> VersionView:
        """One version with its verdicts."""
        return self.client.version(ref)

    def versions(self, name: Name, *, include_deleted: bool = False) -> Iterator[VersionView]:
        """The versions of an adapter, newest first."""
        for page in response_checks.all_pages(
            lambda cursor: self.client.versions(name, include_deleted=include_deleted, cursor=cursor, limit=PAGE_LIMIT)
        ):
            yield from page.items

    def search(
        self, text: str = "", *, namespace: str = "", base: str = "", base_match: str = "", method: str = "",
        alias: str = "", owner: str = "", format: str = "", targets: Sequence[str] = (), tags: Sequence[str] = (),
        annotations: Sequence[str] = (), rank_min: int | None = None, rank_max: int | None = None, engine: str = "",
        outcome: str = "", prefix: str = "",
    ) -> Iterator[AdapterView]:  # fmt: skip
        """The adapters that match every argument, each with its newest version. They mean what `adapter list` says."""
        query: dict[str, Any] = {
            "text": text, "namespace": namespace, "base": base, "base_match": base_match, "method": method,
            "alias": alias, "owner": owner, "format": format, "target": list(targets), "tag": list(tags),
            "annotation": list(annotations), "rank_min": rank_min, "rank_max": rank_max, "engine": engine,
            "outcome": outcome, "prefix": prefix,
        }  # fmt: skip
        for page in response_checks.all_pages(
            lambda cursor: self.client.adapters(**query, cursor=cursor, limit=PAGE_LIMIT)
        ):
            yield from page.items

    def lineage(self, ref: AnyRef, *, down: bool = False) -> Lineage:
        """What a version was made from; with `down`, what was made from it."""
        return self.client.lineage(ref, down=down)
