"""The newest huggingface_hub and PEFT, unchanged, against a live server whose S3 store is on the same host name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.client.api import Registry
from registry.digest import Digest
from registry.manifest import BaseRef, Descriptor, Manifest
from registry.wire import BaseAdd
from registry.wire.push import PushRequest
from tests import forge
from tests.faults.servers import Server
from tests.relay import Relay
from tests.world import media_type, spec_of

NAME = "acme/support"
CARD = b"# An adapter\n"


@dataclass
class Live:
    """A server in a process of its own, its store behind a relay that remembers every head, and what was pushed."""

    server: Server
    relay: Relay
    registry: Registry
    files: list[dict[str, bytes]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def push(self) -> None:
        base = forge.llama()
        files = {**forge.lora(base, seed=len(self.files) + 70), "README.md": CARD}
        described = [
            Descriptor(path=path, media_type=media_type(path), digest=Digest.of(data), size_bytes=len(data))
            for path, data in files.items()
        ]
        manifest = Manifest.build(BaseRef(name=base.name, fingerprint=spec_of(base).fingerprint), described)
        plan = self.registry.plan_push(NAME, PushRequest(manifest=manifest))
        by_digest = {Digest.of(data): data for data in files.values()}
        for upload in plan.uploads:
            self.registry.upload(upload, lambda data=by_digest[upload.digest]: iter([data]))  # type: ignore[misc]
        self.digests.append(self.registry.commit_push(plan.push_id).version.digest)
        self.files.append(files)

    def run(self, script: str, folder: Path) -> Any:
        """What a fresh Python with only HF_ENDPOINT and HF_TOKEN set prints as JSON."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "AWS_"))}
        environment |= {"HF_ENDPOINT": self.server.url, "HF_TOKEN": self.server.token, "HF_HOME": str(folder / "home")}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    def http(self, agent: str = "x") -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.server.token}", "User-Agent": agent}
        return httpx.Client(base_url=self.server.url, headers=headers)


@pytest.fixture(scope="module")
def live(object_store: str, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Relay(object_store) as relay:
        environment = {
            "REGISTRY_DATA": str(tmp_path_factory.mktemp("hub")), "REGISTRY_S3_ENDPOINT": object_store,
            "REGISTRY_BLOBS": f"s3://{bucket}/{uuid.uuid4().hex}", "REGISTRY_S3_PUBLIC_ENDPOINT": relay.endpoint,
            **{key: os.environ[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")},
        }  # fmt: skip
        with Server(environment).running() as server:
            made = Live(server, relay, Registry(server.url, server.token))
            made.registry.add_base(BaseAdd(spec=spec_of(forge.llama())))
            made.push()
            made.push()
            made.registry.promote(NAME, "canary", "1", generation=0)
            yield made
            assert not [head for head in relay.heads if "authorization:" in head.lower() or server.token in head]


def test_a_snapshot_of_an_alias_has_the_very_bytes_and_its_commit(live: Live, tmp_path: Path) -> None:
    script = (
        "import json; from huggingface_hub import HfApi, snapshot_download\n"
        f"at = snapshot_download('{NAME}', revision='canary'); api = HfApi()\n"
        f"refs = api.list_repo_refs('{NAME}')\n"
        f"info = api.model_info('{NAME}', revision='v1', files_metadata=True)\n"
        "found = [m.id for m in api.list_models(filter='base_model:adapter:tiny-llama')]\n"
        "none = [m.id for m in api.list_models(filter='base_model:adapter:other')]\n"
        f"missing = api.file_exists('{NAME}', 'nothing.json'), api.repo_exists('acme/nothing')\n"
        f"paths = [p.path for p in api.get_paths_info('{NAME}', ['README.md', 'nothing'])]\n"
        "print(json.dumps([at, {b.name: b.target_commit for b in refs.branches}, [t.name for t in refs.tags], info.sha,"
        " found, none, missing, paths, api.whoami()['type']]))"
    )
    at, branches, tags, sha, found, none, missing, paths, kind = live.run(script, tmp_path)
    commits = [digest.removeprefix("sha256:")[:40] for digest in live.digests]
    assert Path(at).name == commits[0] == sha
    assert {p.name: p.read_bytes() for p in Path(at).iterdir()} == live.files[0]
    assert (branches, sorted(tags)) == ({"main": commits[1], "canary": commits[0]}, ["v1", "v2"])
    assert (found, none, missing, paths, kind) == ([NAME], [], [False, False], ["README.md"], "user")
    assert live.relay.asked("GET")


def test_heads_say_what_each_generation_of_clients_needs(live: Live) -> None:
    path = f"/{NAME}/resolve/refs%2Fheads%2Fcanary/{forge.WEIGHTS}"
    digest = Digest.of(live.files[0][forge.WEIGHTS])
    with live.http("unknown; hf_hub/0.34.4; python/3.11") as old, live.http("unknown; hf_hub/1.33.0") as new:
        assert (old.head(path).status_code, new.head(path).status_code) == (302, 200)
        head = new.head(path)
        assert head.headers["etag"] == head.headers["x-linked-etag"] == f'"{digest.hex}"'
        assert head.headers["x-repo-commit"] == live.digests[0][7:47]
        assert new.get(path).status_code == 302
        card = new.get(f"/{NAME}/resolve/v1/README.md", headers={"Range": "bytes=2-3"})
        assert (card.status_code, card.content, len(card.headers["etag"])) == (206, CARD[2:4], 42)
        absent = new.get(f"/{NAME}/resolve/main/nothing.json")
        assert (absent.status_code, absent.headers["x-error-code"]) == (404, "EntryNotFound")
        assert absent.headers["x-repo-commit"] == live.digests[1][7:47]
        assert new.get(f"/{NAME}/resolve/nowhere/README.md").headers["x-error-code"] == "RevisionNotFound"
        assert "REGISTRY_HUB_UPSTREAM" in new.get("/api/models/gpt2").headers["x-error-message"]
        assert new.post(f"/api/models/{NAME}/commit/main").status_code == 501
    with live.http("unknown/None; hf-hub/0.4.3; rust/unknown") as rust:
        assert rust.get(path).content == live.files[0][forge.WEIGHTS]
    assert httpx.get(f"{live.server.url}/api/models/{NAME}").headers["x-error-code"] == "RepoNotFound"


def test_peft_loads_an_alias_by_name(live: Live, tmp_path: Path) -> None:
    forge.llama().write(tmp_path / "base")
    script = (
        "import json; from peft import PeftModel; from transformers import AutoModelForCausalLM\n"
        "base = AutoModelForCausalLM.from_pretrained('base')\n"
        f"model = PeftModel.from_pretrained(base, '{NAME}', revision='canary')\n"
        "print(json.dumps(sum(float(p.abs().sum()) > 0 for n, p in model.named_parameters() if 'lora_B' in n)))"
    )
    assert live.run(script, tmp_path)
