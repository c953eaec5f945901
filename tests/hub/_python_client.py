"""Runs with a huggingface_hub of some generation: reads all that the dialect says, prints it as one JSON line."""

import hashlib
import json
import pathlib
import sys
from typing import Any, Callable  # noqa: UP035 - also runs with old Pythons

import huggingface_hub
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

ORDER = json.loads(sys.argv[1])
NAME, WEIGHTS, COMMIT, NESTED = ORDER["name"], ORDER["weights"], ORDER["commit"], ORDER["nested"]


def bytes_of(folder: str) -> "dict[str, str]":
    """Path → SHA-256 of every file below a snapshot."""
    root = pathlib.Path(folder)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and ".cache" not in path.parts]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def error_of(call: "Callable[[], Any]") -> "list[str]":
    """The class and the text of what this call raises."""
    try:
        return ["", str(call())]
    except Exception as e:  # what it is, is what we want to know
        return [type(e).__name__, str(e)]


def downloads() -> "dict[str, Any]":
    snapshot = snapshot_download(NAME, revision="canary")
    by_tag = hf_hub_download(NAME, WEIGHTS, revision="v1")
    by_commit = hf_hub_download(NAME, NESTED, revision=COMMIT)
    by_branch = hf_hub_download(NAME, WEIGHTS, revision="refs/heads/canary")
    offline = hf_hub_download(NAME, WEIGHTS, revision=COMMIT, local_files_only=True)
    plain = snapshot_download(NAME, revision="v2", local_dir="plain")
    return {
        "snapshot": bytes_of(snapshot),
        "plain": bytes_of(plain),
        "commits": [pathlib.Path(snapshot).name, pathlib.Path(by_tag).parent.name, pathlib.Path(offline).parent.name],
        "branch is cached under its commit": pathlib.Path(by_branch).resolve() == pathlib.Path(by_tag).resolve(),
        "nested": hashlib.sha256(pathlib.Path(by_commit).read_bytes()).hexdigest(),
        "etag": pathlib.Path(by_tag).resolve().name,
    }


def words(api: Any) -> "dict[str, Any]":
    info = api.model_info(NAME, revision="v1", files_metadata=True)
    refs = api.list_repo_refs(NAME)
    tree = {entry.path: entry for entry in api.list_repo_tree(NAME, revision="canary", recursive=True)}
    return {
        "info": [info.id, info.sha, sorted(info.tags), {file.rfilename: file.size for file in info.siblings}],
        "lfs": {file.rfilename: file.lfs["sha256"] for file in info.siblings if file.lfs},
        "branches": {branch.name: branch.target_commit for branch in refs.branches},
        "tags": {tag.name: tag.target_commit for tag in refs.tags},
        "files": sorted(api.list_repo_files(NAME, revision="canary")),
        "folders": sorted(path for path, entry in tree.items() if not hasattr(entry, "blob_id")),
        "blob ids": {path: entry.blob_id for path, entry in tree.items() if hasattr(entry, "blob_id")},
        "below": [entry.path for entry in api.list_repo_tree(NAME, "part/one", revision="canary")],
        "paths": sorted(p.path for p in api.get_paths_info(NAME, ["README.md", NESTED, "nothing"], revision="v1")),
        "commits": [commit.commit_id for commit in api.list_repo_commits(NAME)],
        "of base": [model.id for model in api.list_models(filter=f"base_model:adapter:{ORDER['base']}")],
        "of other": [model.id for model in api.list_models(filter="base_model:adapter:other")],
        "of author": [model.id for model in api.list_models(author=NAME.split("/")[0], search=NAME.split("/")[1])],
        "who": [api.whoami()["type"], api.whoami()["name"]],
    }


def responses(api: HfApi) -> "dict[str, Any]":
    return {
        "exists": [api.repo_exists(NAME), api.revision_exists(NAME, "canary"), api.file_exists(NAME, WEIGHTS)],
        "absent": [
            api.repo_exists("acme/nothing"), api.revision_exists(NAME, "nothing"), api.file_exists(NAME, "nothing"),
        ],
        "no repository": error_of(lambda: hf_hub_download("acme/nothing", WEIGHTS)),
        "no revision": error_of(lambda: hf_hub_download(NAME, WEIGHTS, revision="nothing")),
        "no file": error_of(lambda: hf_hub_download(NAME, "nothing.json")),
        "base model": error_of(lambda: hf_hub_download("gpt2", "config.json")),
        "wrong token": error_of(lambda: HfApi(token="hf_wrong").whoami()),
        "no token": error_of(lambda: HfApi(token=False).model_info(NAME)),
    }  # fmt: skip


def main() -> None:
    api = HfApi()
    results = {"version": huggingface_hub.__version__, **downloads(), "words": words(api), "responses": responses(api)}
    print(json.dumps(results))


main()
