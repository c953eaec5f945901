"""Pushes by the Hub API to a live server: the newest client, its command, and links that no honest client misuses."""

from __future__ import annotations

import json
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.names import AdapterName, Ref
from tests import samples
from tests.hub import pushes
from tests.hub.commits import add, add_large, header
from tests.hub.live import LiveServer
from tests.import_table import ROOT

BLOCK = re.compile(r"^    (hf upload .*)$", re.MULTILINE)


def test_the_newest_client_pushes_drafts_and_versions(live: LiveServer, tmp_path: Path) -> None:
    pushes.check_python(live, Path(sys.executable), tmp_path, "acme/newest")
    assert live.xet_uploads() > 0, "it sends weights by Xet"


def test_the_command_of_the_page_pushes_a_folder(live: LiveServer, tmp_path: Path) -> None:
    pushes.adapter_folder(tmp_path)
    [command] = BLOCK.findall((ROOT / "docs" / "hub.md").read_text())
    words = command.replace("acme/support", "acme/typed").split()
    done = live.run([Path(sys.executable).with_name(words[0]), *words[1:]], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"acme/typed@1 on {live.base.name}: compat pass; weights pass; smoke test queued" in done.stderr
    version = live.registry.version(Ref(AdapterName("acme", "typed"), 1))
    assert [file.path for file in version.files] == pushes.WHOLE


class Uploader:
    """Requests of one push to `name`, as older clients send them."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self.client, self.name = client, name
        organization, word = name.split("/")
        client.post("/api/repos/create", json={"organization": organization, "name": word})

    def actions(self, data: bytes) -> dict[str, Any]:
        client_request = {"operation": "upload", "objects": [{"oid": sha256(data).hexdigest(), "size": len(data)}]}
        [item] = self.client.post(f"/{self.name}.git/info/lfs/objects/batch", json=client_request).json()["objects"]
        actions: dict[str, Any] = item.get("actions", {})
        return actions

    def commit(self, files: samples.Files) -> httpx.Response:
        weights = files[samples.WEIGHTS]
        lines = [header(), add(samples.CONFIG, files[samples.CONFIG])]
        lines += [add_large(samples.WEIGHTS, sha256(weights).hexdigest(), len(weights))]
        body = "".join(json.dumps(line) + "\n" for line in lines)
        return self.client.post(f"/api/models/{self.name}/commit/main", content=body)


def test_a_large_file_comes_by_a_link_without_headers(live: LiveServer) -> None:
    files = samples.lora(samples.llama(), seed=910)
    with live.http("unknown; hf_hub/0.34.4") as client:
        uploader = Uploader(client, "acme/large-file")
        actions = uploader.actions(files[samples.WEIGHTS])
        verify = {"oid": sha256(files[samples.WEIGHTS]).hexdigest(), "size": len(files[samples.WEIGHTS])}
        early = client.post(actions["verify"]["href"], json=verify)
        assert (early.status_code, "was not uploaded" in early.headers["x-error-message"]) == (422, True)
        assert httpx.put(actions["upload"]["href"], content=files[samples.WEIGHTS]).status_code == 204
        assert client.post(actions["verify"]["href"], json=verify).status_code == 200
        assert uploader.actions(files[samples.WEIGHTS]) == {}, "it has arrived"
        assert uploader.commit(files).status_code == 200
        assert uploader.actions(files[samples.WEIGHTS]) == {}, "a version has it"
        assert (
            client.get(f"/{uploader.name}/resolve/main/{samples.WEIGHTS}", follow_redirects=True).content
            == files[samples.WEIGHTS]
        )
    live.no_token_left_home()


@pytest.mark.security
def test_wrong_bytes_by_a_link_are_never_committed(live: LiveServer) -> None:
    files = samples.lora(samples.llama(), seed=911)
    weights = files[samples.WEIGHTS]
    wrong = weights[:-1] + bytes([weights[-1] ^ 1])
    with live.http("unknown; hf_hub/0.34.4") as client:
        uploader = Uploader(client, "acme/wrong-bytes")
        link = uploader.actions(weights)["upload"]["href"]
        assert httpx.put(link, content=weights + b"x").status_code == 422, "the size is bound"
        assert httpx.put(link, content=wrong).status_code == 422, "and so are the bytes"
        refused = uploader.commit(files)
        assert (refused.status_code, "was not uploaded" in refused.headers["x-error-message"]) == (422, True)
        assert client.get(f"/api/models/{uploader.name}").json()["siblings"] == []
        link = uploader.actions(weights)["upload"]["href"]
        assert httpx.put(link, content=weights).status_code == 204
        assert uploader.commit(files).status_code == 200
        httpx.put(link, content=wrong)
        assert client.get(f"/{uploader.name}/resolve/main/{samples.WEIGHTS}", follow_redirects=True).content == weights
