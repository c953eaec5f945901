"""Pushes by the Hub API as its clients send them, by Git LFS and Xet, each step repeated until the server responds."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import httpx

from tests import samples
from tests.faults.servers import Server
from tests.hub import xet

CARD = "README.md"
PAUSE_SECONDS = 0.1
Result = TypeVar("Result")


def push(server: Server, name: str, folder: Path) -> str:
    """Push a folder by two commits, a draft and a version; return the commit id of the version.

    The weights are sent by Git LFS, the configuration by Xet.
    """
    organization, word = name.split("/")
    weights = (folder / samples.WEIGHTS).read_bytes()
    oid = sha256(weights).hexdigest()
    config = (folder / samples.CONFIG).read_bytes()
    config_oid = sha256(config).hexdigest()
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:

        def create() -> None:
            response = client.post("/api/repos/create", json={"name": word, "organization": organization})
            assert response.status_code in (200, 409), response.text

        def upload() -> None:
            order = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": len(weights)}]}
            response = client.post(f"/{name}.git/info/lfs/objects/batch", json=order)
            for item in response.json()["objects"]:
                if "actions" in item:
                    sent = httpx.put(item["actions"]["upload"]["href"], content=weights)
                    assert sent.status_code < 300, sent.text

        def upload_by_xet() -> None:
            response = client.get(f"/api/models/{name}/xet-write-token/main").json()
            xorb = xet.xorb_of(xet.split(config, 100))
            xet_headers = {"Authorization": f"Bearer {response['accessToken']}"}
            shard = xet.shard_of((config_oid, [xorb.segment()]))
            for path, body in ((f"xorbs/default/{xorb.hash}", xorb.body), ("shards", shard)):
                sent = client.post(f"{response['casUrl']}/v1/{path}", content=body, headers=xet_headers)
                assert sent.status_code == 200, sent.text

        def commit(*lines: Mapping[str, object]) -> str:
            header = {"key": "header", "value": {"summary": "A push"}}
            body = "".join(json.dumps(line) + "\n" for line in (header, *lines))
            response = client.post(f"/api/models/{name}/commit/main", content=body)
            assert response.status_code == 200, response.text
            return str(response.json()["commitOid"])

        large = {"key": "lfsFile", "value": {"path": samples.WEIGHTS, "oid": oid, "size": len(weights)}}
        by_xet = {"key": "lfsFile", "value": {"path": samples.CONFIG, "oid": config_oid, "size": len(config)}}
        _repeat(server, create)
        _repeat(server, lambda: commit(_file(folder, CARD)))
        _repeat(server, upload)
        _repeat(server, upload_by_xet)
        return _repeat(server, lambda: commit(by_xet, large))


def _file(folder: Path, path: str) -> dict[str, object]:
    content = base64.b64encode((folder / path).read_bytes()).decode()
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}


def _repeat(server: Server, step: Callable[[], Result]) -> Result:
    while True:
        try:
            return step()
        except httpx.TransportError:
            server.pause(PAUSE_SECONDS)
