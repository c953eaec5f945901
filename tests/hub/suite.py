"""Run huggingface_hub's own tests of model repositories against a live server: `make test-hub-suite HF_HUB_SOURCE=DIR`.

    HF_HUB_SOURCE    a checkout of huggingface_hub; its client is the one that is tested
    make nightly HF_HUB_SOURCE=DIR ARGS=test-hub-suite    records the run in tests/RUNS.md, too

Their repositories hold any file, so this server holds any file, too: as drafts. What they say of the protocol stays:
operations of a commit, modes, Git LFS, Xet, identities, errors, downloads, caches. `EXCLUDED` says what does not apply.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from registry import hub
from registry.api.access import TokenCreate
from registry.client.registry import Registry
from registry.versions import files
from tests.faults import servers
from tests.faults.servers import Server
from tests.hub import venvs

PLUGIN = Path(__file__).with_name("_suite_plugin.py")
MORE_LARGE_ENDINGS = (".bin", ".png")
"""Of files that the Hub keeps by Git LFS, and these tests send."""
TEST_SECONDS = 60
FILES = (
    "commit_api", "commit_scheduler", "file_download", "hf_api", "hub_mixin", "lfs", "repocard", "snapshot_download",
    "tree_cache", "upload_large_folder", "upload_pipeline", "utils_errors", "utils_http", "verification", "xet_upload",
    "xet_utils",
)  # fmt: skip
EXCLUDED = {
    "data sets, spaces and buckets, which are refused":
        "dataset|_space|DuplicateSpace|[Bb]ucket|test_auth_check_success|TestHfApiPrivate"
        "|already_exists_but_no_write_permission",
    "pull requests, which are refused": "Discussions|create_pr|_on_pr|TestListGitCommits|from_pr",
    "tags other than numbers of versions, and squashing, which are refused": "TagEndpoint|existing_tag|[sS]quash",
    "gated repositories and visibility, which a namespace has": "gated|repo_settings|private",
    "reads without a token, which there are none of": "token_false_is_respected",
    "other services of the Hub":
        "Webhook|Collection|Activity|AccessRequest|InferenceCatalog|DeleteLFSFiles|test_whoami_with_passing_token",
    "the first commit of a repository, with .gitattributes, and .gitignore files":
        "TestHfApiDeleteFiles|test_upload_folder_git|TestHfApiListRepoTree|test_download_model$",
    "earlier commits, which a draft does not have":
        "test_continue_commit|CommitInBackground|create_branch_from_revision|test_sync_local_folder"
        "|test_download_model_local_only$|metadata_not_ok_and_revision_is_a_commit_hash",
    "moves of what is a draft": "test_move_repo",
    "file names that not every system can have": "AwfulFilenames|RelativePath|relative_path",
    "the words of an error, not its kind":
        "test_create_commit_conflict|existing_branch_fails|delete_branch_on_missing|repo_does_not_exist",
    "downloads by Xet: files are downloaded whole": "TestXetE2E|test_xet_file_skips|TestXetUpload::test_upload_file$",
    "weights files that are none, which are refused":
        "TestXetUpload::test_upload_folder$|LargeUpload::test_upload_large_folder",
    "requests to huggingface.co itself":
        "test_validate_repocard|RepocardMetadata|MissingCard|RepoCard::test_push_to_hub$|client_get_request",
    "the address of the Hub, which is another one here": "test_fix_hf_endpoint_in_url",
    "front matter that stops a push": "test_commit_modelcard_invalid",
    "the client alone, for longer than a busy machine allows": "test_warns_too_many_total_files",
}  # fmt: skip
"""What tests are about that this registry does not have → a pattern of their ids."""


class AnyFileServer(Server):
    """A server whose drafts hold files of any name."""

    @staticmethod
    def serve(*args: Any) -> None:
        files.KINDS = (*files.KINDS, files.FileKind("*", "application/octet-stream", files.FILE_LIMIT_BYTES))
        hub._LARGE_ENDINGS = (*hub._LARGE_ENDINGS, *MORE_LARGE_ENDINGS)
        servers.serve(*args)


def main(source: Path, arguments: list[str]) -> int:
    """Run the tests; return the exit code of their pytest."""
    python = venvs.python_of("suite")
    if python is None:
        sys.exit("run `python -m tests.hub.venvs` first")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(PLUGIN, folder / "suite_plugin.py")
        (folder / "pytest.ini").write_text("[pytest]\n")
        server = AnyFileServer({"REGISTRY_DATA": str(folder / "data")}, folder / "server.log")
        with server.running(), Registry(server.url, server.token) as registry:
            environment = _environment(registry, server, source, folder)
            command = [
                python, "-m", "pytest", "-q", "-c", folder / "pytest.ini", "--rootdir", source, "-p", "suite_plugin",
                "-p", "no:cacheprovider", "-p", "no:warnings", "--timeout", str(TEST_SECONDS), "--tb=short",
                "--show-capture=no", "-rfE",
                "-m", "not production and not inference", *(f"tests/test_{name}.py" for name in FILES), *arguments,
            ]  # fmt: skip
            return subprocess.run([str(word) for word in command], cwd=source, env=environment).returncode


def _environment(registry: Registry, server: Server, source: Path, folder: Path) -> dict[str, str]:
    secrets = {
        user: registry.create_token(TokenCreate(name=user, scopes=["push", "promote"], namespaces=[user])).secret
        for user in ("ci", "other")
    }
    constants = {
        "USER": "ci", "TOKEN": secrets["ci"], "OTHER_USER": "other", "OTHER_TOKEN": secrets["other"],
        "ENDPOINT_STAGING": server.url,
    }  # fmt: skip
    return {
        "PATH": os.environ["PATH"], "HOME": str(folder), "HF_ENDPOINT": server.url, "HF_TOKEN": secrets["ci"],
        "PYTHONPATH": os.pathsep.join(map(str, (source / "src", source, folder))),
        "SUITE_ORDER": json.dumps({"constants": constants, "excluded": list(EXCLUDED.values())}),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(Path(os.environ["HF_HUB_SOURCE"]).resolve(), sys.argv[1:]))
