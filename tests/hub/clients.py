"""What every Hub client must get from a live server, whatever its generation; and how it is asked."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from registry import hub
from registry.digest import Digest
from registry.versions.manifest import Descriptor
from tests import samples
from tests.harness import media_type
from tests.hub import live as lives
from tests.hub.live import NAME, NESTED, LiveServer

PYTHON = Path(__file__).with_name("_python_client.py")


def client_request(live: LiveServer) -> str:
    """What a client is to ask for."""
    request = {
        "name": NAME,
        "weights": samples.WEIGHTS,
        "commit": live.commits[0],
        "nested": NESTED,
        "base": live.base.name,
    }
    return json.dumps(request)


def checksums(files: dict[str, bytes]) -> dict[str, str]:
    return {path: sha256(data).hexdigest() for path, data in files.items()}


def blob_ids(files: dict[str, bytes]) -> dict[str, str]:
    """Path → what git would call the file: its own id, or that of the pointer that stands for a large one."""
    ids = {}
    for path, data in files.items():
        file = Descriptor(path=path, media_type=media_type(path), digest=Digest.of(data), size_bytes=len(data))
        ids[path] = hub.git_id(hub.pointer(file) if hub.is_large(file) else data)
    return ids


def check_python(live: LiveServer, python: Path, folder: Path, **environment: str) -> None:
    """All that a huggingface_hub reads and is refused, by the Python that has it."""
    results = lives.last_line(live.run([python, PYTHON, client_request(live)], folder, **environment))
    first, second = live.files
    weights = sha256(first[samples.WEIGHTS]).hexdigest()
    assert results["snapshot"] == checksums(first)
    assert results["plain"] == checksums(second)
    assert results["commits"] == [live.commits[0]] * 3
    assert results["branch is cached under its commit"] is True
    assert (results["nested"], results["etag"]) == (sha256(first[NESTED]).hexdigest(), weights)
    _check_words(live, results["words"], weights)
    _check_responses(results["responses"])
    live.no_token_left_home()


def _check_words(live: LiveServer, words: dict[str, Any], weights: str) -> None:
    first, base = live.files[0], live.base.name
    name, sha, tags, sizes = words["info"]
    assert (name, sha, sizes) == (NAME, live.commits[0], {path: len(data) for path, data in first.items()})
    assert {f"base_model:{base}", f"base_model:adapter:{base}", "peft", "safetensors", "lora"} <= set(tags)
    assert words["lfs"] == {samples.WEIGHTS: weights}
    assert words["branches"] == {"main": live.commits[1], "canary": live.commits[0]}
    assert words["tags"] == {"v1": live.commits[0], "v2": live.commits[1]}
    assert (words["files"], words["folders"]) == (sorted(first), ["part", "part/one"])
    assert (words["blob ids"], words["below"]) == (blob_ids(first), [NESTED])
    assert words["paths"] == sorted(["README.md", NESTED])
    assert words["commits"] == live.commits[::-1]
    assert NAME in words["of base"]
    assert (words["of other"], words["of author"]) == ([], [NAME])
    assert words["who"][0] == "user"


def _check_responses(responses: dict[str, Any]) -> None:
    assert (responses["exists"], responses["absent"]) == ([True] * 3, [False] * 3)
    assert {responses[case][0] for case in ("no repository", "base model", "no token")} == {"RepositoryNotFoundError"}
    assert "only adapters" in responses["base model"][1]
    assert responses["no revision"][0] == "RevisionNotFoundError"
    assert responses["no file"][0] in ("EntryNotFoundError", "RemoteEntryNotFoundError")
    assert "token" in responses["wrong token"][1].lower()
