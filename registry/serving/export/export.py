"""Exports: the desired state of a base as folders or objects, for engines that do not know the registry.

    DEST/acme-support-v3/adapter_config.json    one folder for each version, with its served name
    DEST/acme-support-v3/.adapter.json          a note, written after the files: what this is, and every digest
    DEST/index.json                             the index, written after everything it names

- An exported file is never rewritten, because engines read files at any time. With `model`, the configuration names
  that as its base, and note and index hold the original's digest as well.
- What fails a check is left out and listed; an adapter that cannot be exported does not stop the others.
- Only folders with our note are ever removed, and none while an adapter of the desired state is missing.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from registry.api.models import Response
from registry.api.serving import DesiredAdapter, DesiredState
from registry.client import response_checks
from registry.client.local.cache import Cache
from registry.client.registry import Registry
from registry.client.transfer import pull
from registry.client.transport import invalid_response
from registry.digest import Digest
from registry.errors import Invalid, RegistryError, Unavailable
from registry.filesystem import replace_file
from registry.names import AdapterName, Ref
from registry.versions.files import CONFIG, NOTE
from registry.versions.manifest import Manifest

INDEX = "index.json"
ADAPTERS_AT_ONCE = 4
Document = dict[str, Any]


class ExportTarget(Protocol):
    """The destination of an export. Names are served names; paths are relative to their folder."""

    title: str

    def scratch(self) -> AbstractContextManager[Path]:
        """A temporary folder for one adapter."""

    def note(self, name: str) -> bytes | None:
        """Our note in this folder; None without one."""

    def sizes(self, name: str) -> dict[str, int]:
        """Path → bytes of what is in this folder."""

    def put(self, name: str, staged: Path, digests: dict[str, Digest]) -> None:
        """Make `staged` the folder `name`. `Invalid` if that holds something else."""

    def names(self) -> list[str]:
        """All folders that are there."""

    def remove(self, name: str) -> None:
        """Delete an exported version."""

    def index(self) -> bytes | None:
        """The bytes of the index; None without one."""

    def write_index(self, data: bytes) -> None:
        """Replace the index."""


class Item(Response):
    """The result for one adapter. `state`: new, unchanged, left out, failed or removed."""

    served_name: str
    name: str = ""
    number: int = 0
    digest: str = ""
    state: str
    reason: str = ""
    error: Document | None = None


class Exported(Response):
    """The result: each adapter in the order of the desired state, then what was removed."""

    location: str
    base: str
    alias: str
    cursor: str
    items: list[Item]


def select_entries(desired: DesiredState) -> tuple[list[DesiredAdapter], dict[str, str]]:
    """The adapters to export, and served name → reason for the others: a check or the engine fails."""
    reasons = {entry.served_name: reason for entry in desired.adapters if (reason := response_checks.refusal_of(entry))}
    return [entry for entry in desired.adapters if entry.served_name not in reasons], reasons


def run(
    registry: Registry, desired: DesiredState, location: ExportTarget, *, model: str = "", prune: bool = False,
    cache: Cache | Callable[[], Cache] | None = pull.USER_CACHE, on_item: Callable[[Item], None] = lambda _item: None,
) -> Exported:  # fmt: skip
    """Export the desired state, then its index; with `prune`, remove what is no longer desired.

    `model` replaces the base that configurations name. `on_item` is called with each item.
    """
    _check_index(location, desired)
    serve, reasons = select_entries(desired)
    notes: dict[str, Document] = {}
    telling = threading.Lock()

    def look_up(entry: DesiredAdapter) -> Document | None:
        with contextlib.suppress(RegistryError, OSError):  # it is reported by the export of this adapter
            return _existing_note(location, entry, model)
        return {}

    def export_one(entry: DesiredAdapter) -> Item:
        reason = "" if response_checks.problem_of(entry) else reasons.get(entry.served_name, "")
        item = (
            _item(entry, "left out", reason)
            if reason
            else _exported(pulls, desired, entry, location, model, cache, notes)
        )
        with telling:
            on_item(item)
        return item

    with ThreadPoolExecutor(ADAPTERS_AT_ONCE, thread_name_prefix="export") as pool:
        new = [entry for entry, note in zip(serve, pool.map(look_up, serve), strict=True) if note is None]
        pulls = pull.PlannedPulls(registry, (_ref_of(entry) for entry in new))
        items = list(pool.map(export_one, desired.adapters))
    _write_index(location, desired, model, [notes[e.served_name] for e in serve if e.served_name in notes], reasons)
    if prune and not any(item.state == "failed" for item in items):
        for item in _prune(location, desired, {entry.served_name for entry in serve}):
            on_item(item)
            items.append(item)
    return Exported(location=location.title, base=desired.base, alias=desired.alias, cursor=desired.cursor, items=items)


def _ref_of(entry: DesiredAdapter) -> Ref:
    return Ref(AdapterName.parse(entry.name), entry.digest)


def _exported(
    pulls: pull.PlannedPulls, desired: DesiredState, entry: DesiredAdapter, location: ExportTarget, model: str,
    cache: Cache | Callable[[], Cache] | None, notes: dict[str, Document],
) -> Item:  # fmt: skip
    try:
        if problem := response_checks.problem_of(entry):
            raise invalid_response(problem)
        note = _existing_note(location, entry, model)
        state = "unchanged" if note else "new"
        if note is None:
            with location.scratch() as folder:
                staged = folder / entry.served_name
                version = pulls.pull(_ref_of(entry), staged, cache=cache, number=entry.number)
                note = _write_note(staged, desired, entry, model, version.manifest)
                location.put(entry.served_name, staged, {f["path"]: Digest(f["digest"]) for f in note["files"]})
        notes[entry.served_name] = note
        return _item(entry, state)
    except RegistryError as e:
        return _item(entry, "failed", e.detail, e)
    except OSError as e:
        error = Invalid("FOLDER_INVALID", f"{location.title}: {entry.served_name} cannot be written: {e.strerror or e}")
        return _item(entry, "failed", error.detail, error)


def _item(entry: DesiredAdapter, state: str, reason: str = "", error: RegistryError | None = None) -> Item:
    return Item(
        served_name=entry.served_name, name=entry.name, number=entry.number, digest=entry.digest, state=state,
        reason=reason, error=error.to_problem() if error else None,
    )  # fmt: skip


def _existing_note(location: ExportTarget, entry: DesiredAdapter, model: str) -> Document | None:
    """The note of an earlier export of this version for this model; None if there is none. `Invalid` for others."""
    note = _parsed(location.note(entry.served_name))
    if not note:
        return None
    if (note.get("digest"), note.get("model")) != (entry.digest, model):
        was = f"{note.get('name')}@{note.get('number')}" + (f" for {note['model']!r}" if note.get("model") else "")
        raise Invalid(
            "FOLDER_INVALID",
            f"{location.title}: {entry.served_name} already exists and holds {was}; an export never rewrites a folder",
            next_step="export to another location, and remove this one when no engine reads it",
        )
    sizes = location.sizes(entry.served_name)
    wrong = [file["path"] for file in note["files"] if sizes.get(file["path"]) != file["size_bytes"]]
    if wrong:
        raise Invalid(
            "FOLDER_INVALID",
            f"{location.title}: {entry.served_name}/{wrong[0]} is missing or its size has changed",
            next_step=f"remove {entry.served_name} there when no engine reads it, and export again",
        )
    return note


def _write_note(staged: Path, desired: DesiredState, entry: DesiredAdapter, model: str, manifest: Manifest) -> Document:
    """Write the note into the folder, and `model` into the configuration; the note."""
    files: list[Document] = [{"path": f.path, "digest": f.digest, "size_bytes": f.size_bytes} for f in manifest.files]
    for file in files:
        if model and file["path"] == CONFIG:
            config = _parsed((staged / CONFIG).read_bytes())
            if config.get("base_model_name_or_path") != model:
                config["base_model_name_or_path"] = model
                data = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
                replace_file(staged / CONFIG, data)  # a new file: the old one may be a link into the cache
                file.update(original=file["digest"], digest=Digest.of(data), size_bytes=len(data))
    note: Document = {
        "name": entry.name, "number": entry.number, "digest": entry.digest,
        "exported": {"base": desired.base, "served_name": entry.served_name}, "model": model, "rank": entry.rank,
        "files": files,
    }  # fmt: skip
    replace_file(staged / NOTE, _json(note))
    return note


def _check_index(location: ExportTarget, desired: DesiredState) -> None:
    index = _parsed(location.index())
    was = (index.get("base"), index.get("alias"))
    if index and was != (desired.base, desired.alias):
        raise Invalid(
            "FOLDER_INVALID",
            f"{location.title} holds alias {was[1]!r} of base {was[0]!r}, not {desired.alias!r} of {desired.base!r}",
            next_step="export each base and alias to its own location",
        )


def _write_index(
    location: ExportTarget, desired: DesiredState, model: str, notes: Sequence[Document], reasons: dict[str, str]
) -> None:
    adapters = [
        {"served_name": note["exported"]["served_name"]} | {key: note[key] for key in note if key != "exported"}
        for note in notes
    ]
    data = _json(
        {
            "base": desired.base,
            "base_fingerprint": desired.base_fingerprint,
            "alias": desired.alias,
            "cursor": desired.cursor,
            "model": model,
            "adapters": adapters,
            "left_out": reasons,
        }
    )
    if data != location.index():
        location.write_index(data)


def _prune(location: ExportTarget, desired: DesiredState, names: set[str]) -> list[Item]:
    removed = []
    for name in sorted(set(location.names()) - names):
        note = _parsed(location.note(name))
        if note.get("exported") == {"base": desired.base, "served_name": name}:
            location.remove(name)
            summary = {key: note[key] for key in ("name", "number", "digest")}
            removed.append(
                Item(served_name=name, state="removed", reason="it is no longer in the desired state", **summary)
            )
    return removed


def _parsed(data: bytes | None) -> Document:
    try:
        document = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _json(value: Document) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


LORAX_READY = "completed"
"""LoRAX's status of a version that may be loaded."""


def write_lorax_lookups(folder: Path, exported: Exported) -> int:
    """Write the files that LoRAX's source `pbase` requests, for any web server; how many versions are in them.

        FOLDER/v2/repos/acme-support/version/3      {"adapterPath": "s3://models/prod/acme-support-v3/", …}

    LoRAX turns `acme-support/3` into that path below PREDIBASE_GATEWAY_ENDPOINT (map_pbase_model_id_to_s3 in
    lorax_server/utils/sources/__init__.py) and lists by raw prefix, so `adapterPath` ends in a slash.
    `Invalid` (URL_REFUSED) unless the export is in a bucket.
    """
    if not exported.location.startswith("s3://"):
        raise Invalid("URL_REFUSED", f"{exported.location}: LoRAX's source pbase supports buckets only")
    count = 0
    try:
        for item in exported.items:
            path = _lorax_path(folder, item)
            if path is not None and item.state in ("new", "unchanged"):
                location = f"{exported.location}{item.served_name}/"
                document = {"adapterPath": location, "digest": item.digest, "status": LORAX_READY}
                replace_file(path, json.dumps(document).encode())
                count += 1
            elif path is not None and item.state == "removed":
                path.unlink(missing_ok=True)
    except OSError as e:
        raise Unavailable("STORE_UNAVAILABLE", f"{folder} cannot be written: {e.strerror or e}") from e
    return count


def _lorax_path(folder: Path, item: Item) -> Path | None:
    """None for a served name with a digest at its end: LoRAX has no name for it."""
    name, mark, number = item.served_name.rpartition("-v")
    if not mark or not number.isdigit():
        return None
    return folder / "v2" / "repos" / name / "version" / number
