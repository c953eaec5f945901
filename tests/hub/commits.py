"""Commits of our own making, as no client would always send them, to a server in this process."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import httpx

from registry.digest import Digest
from registry.server.database.models.hub import DraftFileRow, DraftRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.storage.states import PushState
from tests.access.tenants import send
from tests.harness import Harness, rows

Line = dict[str, Any]
CARD = "README.md"


def header(summary: str = "A commit", **fields: Any) -> Line:
    return {"key": "header", "value": {"summary": summary, "description": "", **fields}}


def add(path: str, data: bytes = b"x") -> Line:
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"content": content, "path": path, "encoding": "base64"}}


def add_large(path: str, oid: str, size: int) -> Line:
    return {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid, "size": size}}


def delete(path: str) -> Line:
    return {"key": "deletedFile", "value": {"path": path}}


class Pusher:
    """Somebody who pushes to one repository with one token."""

    def __init__(self, harness: Harness, secret: str, name: str = "acme/support") -> None:
        self.harness, self.secret, self.name = harness, secret, name

    def send(self, method: str, path: str, **rest: Any) -> httpx.Response:
        return send(self.harness, method, path, self.secret, **rest)

    def create(self) -> httpx.Response:
        organization, name = self.name.split("/")
        return self.send("POST", "/api/repos/create", json={"name": name, "organization": organization})

    def commit(self, *lines: Line, revision: str = "main", **fields: Any) -> httpx.Response:
        body = "".join(json.dumps(line) + "\n" for line in (header(**fields), *lines))
        return self.post(body.encode(), revision)

    def post(self, body: bytes, revision: str = "main", query: str = "") -> httpx.Response:
        return self.send("POST", f"/api/models/{self.name}/commit/{revision}{query}", content=body)

    def push(self, files: Mapping[str, bytes], revision: str = "main", **fields: Any) -> httpx.Response:
        return self.commit(*(add(path, data) for path, data in files.items()), revision=revision, **fields)

    def info(self, revision: str = "main") -> httpx.Response:
        return self.send("GET", f"/api/models/{self.name}/revision/{revision}")

    def files(self, revision: str = "main") -> list[str]:
        return [entry["path"] for entry in self.send("GET", f"/api/models/{self.name}/tree/{revision}").json()]


def warning(response: httpx.Response) -> str:
    """What the client prints."""
    return str(response.headers["x-hf-warning"])


def drafts_of(harness: Harness) -> tuple[int, int]:
    """How many drafts there are, and files of drafts."""
    with harness.session() as session:
        return len(rows(session, DraftRow)), len(rows(session, DraftFileRow))


def staged(harness: Harness) -> list[str]:
    """What open pushes have sent and no version has yet: `PUSH/HEX` of each blob."""
    harness.transport.settle()
    with harness.session() as session:
        open_ids = {row.id for row in rows(session, PushRow) if row.state == PushState.OPEN}
        sent = [row for row in rows(session, PushBlobRow) if row.is_requested and row.is_stored]
    return sorted(f"{row.push_id}/{Digest(row.digest).hex}" for row in sent if row.push_id in open_ids)
