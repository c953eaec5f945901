"""Runs with a huggingface_hub of some generation: pushes in all ways, prints the responses as one JSON line."""

import io
import json
import logging
import pathlib
import sys
from typing import Any, Callable  # noqa: UP035 - also runs with old Pythons

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_download

ORDER = json.loads(sys.argv[1])
NAME, FOLDER = ORDER["name"], pathlib.Path(ORDER["folder"])
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
WARNINGS: "list[str]" = []


class Recorder(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        WARNINGS.append(record.getMessage())


def error_of(call: "Callable[[], Any]") -> "list[str]":
    """The class and the text of what this call raises."""
    try:
        return ["", str(call())]
    except Exception as e:
        return [type(e).__name__, str(e)]


def push(api: HfApi) -> "dict[str, Any]":
    created = api.create_repo(NAME, private=True)
    again = api.create_repo(NAME, exist_ok=True)
    responses: dict[str, Any] = {"urls": [str(created), str(again)], "empty": api.list_repo_files(NAME)}
    card = api.upload_file(path_or_fileobj=b"# Draft\n", path_in_repo="README.md", repo_id=NAME)
    responses["draft"] = [card.oid, api.model_info(NAME).sha, api.list_repo_files(NAME)]
    first = api.upload_folder(repo_id=NAME, folder_path=FOLDER, commit_message="Train\n\nFor long.")
    responses["first"] = [first.oid, api.model_info(NAME).sha, sorted(api.list_repo_files(NAME))]
    with open(hf_hub_download(NAME, WEIGHTS), "rb") as pulled:
        responses["pulled"] = pulled.read() == (FOLDER / WEIGHTS).read_bytes()
    responses["unchanged"] = api.upload_folder(repo_id=NAME, folder_path=FOLDER).oid
    second = api.create_commit(
        repo_id=NAME,
        operations=[
            CommitOperationAdd("README.md", io.BytesIO(b"# Second\n")),
            CommitOperationCopy(WEIGHTS, "copy/" + WEIGHTS),
            CommitOperationAdd("LICENSE", b"MIT\n"),
        ],
        commit_message="Second",
        parent_commit=first.oid,
    )
    responses["second"] = [second.oid, second.commit_url, sorted(api.list_repo_files(NAME))]
    responses["stale"] = error_of(
        lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="LICENSE", repo_id=NAME, parent_commit=first.oid)
    )
    third = api.create_commit(NAME, [CommitOperationDelete("copy/")], commit_message="Third")
    responses["third"] = [third.oid, sorted(api.list_repo_files(NAME))]
    responses["commits"] = [[commit.commit_id, commit.title] for commit in api.list_repo_commits(NAME)]
    return responses


def branches(api: HfApi) -> "dict[str, Any]":
    api.create_branch(NAME, branch="canary", revision="v1")
    api.create_branch(NAME, branch="canary", revision="v1", exist_ok=True)
    on_branch = api.upload_file(
        path_or_fileobj=b"# Canary\n", path_in_repo="README.md", repo_id=NAME, revision="canary"
    )
    refs = api.list_repo_refs(NAME)
    return {
        "on branch": on_branch.oid,
        "branches": {branch.name: branch.target_commit for branch in refs.branches},
        "tags": {tag.name: tag.target_commit for tag in refs.tags},
    }


def refusals(api: HfApi) -> "dict[str, list[str]]":
    def add(path: str, **options: Any) -> "list[str]":
        return error_of(lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo=path, repo_id=NAME, **options))

    api.create_tag(NAME, tag="v1", revision="v1", exist_ok=True)
    return {
        "pull request": add("LICENSE", create_pr=True),
        "model": add("model.safetensors"),
        "no repository": error_of(
            lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="LICENSE", repo_id="acme/absent")
        ),
        "no branch": add("LICENSE", revision="absent"),
        "version": add("LICENSE", revision="v1"),
        "tag": error_of(lambda: api.create_tag(NAME, tag="best", revision="v1")),
        "data set": error_of(lambda: api.create_repo("acme/data", repo_type="dataset")),
        "squash": error_of(lambda: api.super_squash_history(NAME)),
        "alias": error_of(lambda: api.delete_branch(NAME, branch="canary")),
        "absent file": error_of(lambda: api.delete_file("absent.txt", NAME)),
        "malformed": add(WEIGHTS),
    }


def drafts(api: HfApi) -> "dict[str, Any]":
    name = NAME + "-draft"
    api.create_repo(name)
    api.upload_file(path_or_fileobj=FOLDER / WEIGHTS, path_in_repo=WEIGHTS, repo_id=name)
    parts = [api.repo_exists(name), api.list_repo_files(name), api.file_exists(name, WEIGHTS)]
    whole = api.upload_file(path_or_fileobj=FOLDER / CONFIG, path_in_repo=CONFIG, repo_id=name)
    refs = api.list_repo_refs(name)
    api.delete_repo(name)
    return {
        "parts": parts,
        "whole": [whole.oid, [tag.target_commit for tag in refs.tags]],
        "gone": api.repo_exists(name),
    }


def main() -> None:
    logging.getLogger("huggingface_hub").addHandler(Recorder())
    api = HfApi()
    responses = {"version": huggingface_hub.__version__, **push(api), **branches(api)}
    responses.update({"refusals": refusals(api), "drafts": drafts(api), "warnings": WARNINGS})
    print(json.dumps(responses))


main()
