"""Responses of the Hub's API: the JSON of repositories, files, references and commits.

`xetEnabled` is false and nothing says `xetHash`, or clients would download another way. Downloads and likes are 0,
because older clients require them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from registry import hub
from registry.versions.manifest import Descriptor

Json = dict[str, Any]
LIBRARY = "peft"


@dataclass(frozen=True, slots=True)
class File:
    """A file and its git id: of its bytes if it is small, of its pointer if it is large."""

    descriptor: Descriptor
    git_id: str = ""

    @property
    def etag(self) -> str:
        """The identity that the dialect sends as ETag."""
        return self.descriptor.digest.hex if hub.is_large(self.descriptor) else self.git_id

    def lfs(self, key: str) -> Json | None:
        """Its identity as a large file; the tree calls the SHA-256 `oid`, the sibling `sha256`."""
        if not hub.is_large(self.descriptor):
            return None
        size_bytes = self.descriptor.size_bytes
        return {key: self.descriptor.digest.hex, "size": size_bytes, "pointerSize": len(hub.pointer(self.descriptor))}


@dataclass(frozen=True, slots=True)
class Repository:
    """An adapter at one of its versions, as the dialect describes it."""

    name: str
    digest: str
    base: str
    created_at: datetime
    updated_at: datetime
    private: bool
    size_bytes: int
    library: str = LIBRARY
    method: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    card: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What README.md claims under `registry.adapters.card.LABELS`."""
    labels: Sequence[str] = ()
    """These claims as tags."""
    dtypes: Sequence[str] = ()
    parameters: int = 0
    files: Sequence[File] = ()


def tags(repository: Repository) -> list[str]:
    """By what a list can be filtered. The base is the registered one, whatever a card says."""
    base = repository.base
    names = [repository.library, "safetensors"]
    names += [f"base_model:{base}", f"base_model:adapter:{base}"] if base else []
    names += [repository.method.lower()] if repository.method else []
    names += [f"{key}:{value}" if value else key for key, value in sorted(repository.annotations.items())]
    return list(dict.fromkeys([*names, *repository.labels]))


def _card_data(repository: Repository) -> Json:
    """The claims of the card, under the base and the library that the registry found."""
    claims = {
        key: values[0] if len(values) == 1 and key != "tags" else values for key, values in repository.card.items()
    }
    return claims | {
        "base_model": repository.base or None, "library_name": repository.library, "tags": tags(repository)
    }  # fmt: skip


def info(repository: Repository, *, siblings: bool = True, blobs: bool = False, expand: Sequence[str] = ()) -> Json:
    """The response about one repository. With `expand`, only its ids and what was asked for."""
    document: Json = {
        "_id": hashlib.sha256(repository.name.encode()).hexdigest()[:24],
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.name.split("/")[0],
        "sha": hub.commit_id(repository.digest),
        "createdAt": moment(repository.created_at),
        "lastModified": moment(repository.updated_at),
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags(repository),
        "library_name": repository.library,
        "cardData": _card_data(repository),
        "baseModels": {"relation": "adapter", "models": [{"id": repository.base}]} if repository.base else None,
        "usedStorage": repository.size_bytes,
        "xetEnabled": False,
    }
    if pipeline := repository.card.get("pipeline_tag"):
        document["pipeline_tag"] = pipeline[0]
    if repository.parameters and len(repository.dtypes) == 1:  # else the number of each type is not stored
        document["safetensors"] = {
            "parameters": {repository.dtypes[0]: repository.parameters}, "total": repository.parameters
        }  # fmt: skip
    if siblings:
        document["siblings"] = [_sibling(file, blobs) for file in repository.files]
    if expand:
        return {key: value for key, value in document.items() if key in ("_id", "id", *expand)}
    return document


def _sibling(file: File, blobs: bool) -> Json:
    entry: Json = {"rfilename": file.descriptor.path}
    if blobs:
        entry |= {"size": file.descriptor.size_bytes, "blobId": file.git_id}
        entry |= {"lfs": lfs} if (lfs := file.lfs("sha256")) else {}
    return entry


def file_entry(file: File, last: Json | None = None) -> Json:
    """A file of a tree."""
    entry: Json = {"type": "file", "path": file.descriptor.path, "oid": file.git_id, "size": file.descriptor.size_bytes}
    entry |= {"lfs": lfs} if (lfs := file.lfs("oid")) else {}
    return entry | ({"lastCommit": last} if last else {})


def folder_entry(path: str, commit: str, last: Json | None = None) -> Json:
    """A folder. Git has an id for it; no one asks what it stands for, so it is made of its path and the commit."""
    oid = hashlib.sha1(f"{commit}/{path}".encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "path": path, "oid": oid, "size": 0} | ({"lastCommit": last} if last else {})


def tree(files: Iterable[File], below: str, *, recursive: bool, commit: str, last: Json | None = None) -> list[Json]:
    """The entries of the folder `below` ("" is the root). Empty for a folder that is not there."""
    prefix = f"{below}/" if below else ""
    entries: dict[str, Json] = {}
    for file in files:
        path = file.descriptor.path
        if not path.startswith(prefix):
            continue
        for folder in _folders(path, prefix, recursive):
            entries.setdefault(folder, folder_entry(folder, commit, last))
        if recursive or "/" not in path[len(prefix) :]:
            entries[path] = file_entry(file, last)
    return [entries[path] for path in sorted(entries)]


def _folders(path: str, prefix: str, recursive: bool) -> Iterator[str]:
    """The folders on the way from `prefix` down to the file: all of them, or only the first."""
    parts = path[len(prefix) :].split("/")[:-1]
    for depth in range(1, len(parts) + 1 if recursive else min(2, len(parts) + 1)):
        yield prefix + "/".join(parts[:depth])


def refs(aliases: Mapping[str, str], numbers: Mapping[int, str]) -> Json:
    """Alias → digest, and number → digest, as branches and tags."""
    return {
        "branches": [_ref("heads", alias, digest) for alias, digest in sorted(aliases.items())],
        "tags": [_ref("tags", f"v{number}", digest) for number, digest in sorted(numbers.items())],
        "converts": [],
        "pullRequests": [],
    }


def _ref(kind: str, name: str, digest: str) -> Json:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": hub.commit_id(digest)}


def commit(digest: str, number: int, message: str, at: datetime, by: str) -> Json:
    """A version as a commit."""
    title = message.splitlines()[0] if message.strip() else f"Version {number}"
    return {
        "id": hub.commit_id(digest), "title": title, "message": "\n".join(message.splitlines()[1:]).strip(),
        "date": moment(at), "authors": [{"user": by}],
    }  # fmt: skip


def moment(at: datetime) -> str:
    """A time as the dialect writes it, to the millisecond."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"
