"""The responses for one tenant do not depend on another tenant's data: 400 requests are compared byte by byte.

The other tenant has the same bytes, the same names, similar names and the same base.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.digest import Digest
from tests import conftest, samples
from tests.access.tenants import send
from tests.bulk import commit_body, push_body, response_about
from tests.harness import Harness
from tests.hub.commits import add_large, header
from tests.hub.xet import shard_of, split, xorb_of

pytestmark = pytest.mark.security

REQUESTS_MINIMUM = 400
# The place of an event in the log of all is told on purpose, for its proof: it says how much happened, and not what.
VARIES = (
    (rb'"(seq|last|next_cursor)":"?\d+"?', b'"PLACE":0'),
    (rb"(tok|psh|job|pub)_[0-9a-f]+", b"ID"),
    (rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", b"TIME"),
    (rb'"request_id":\s*"[^"]*"', b'"request_id": "R"'),
    (rb'"token":"[0-9a-f]{32}"', b'"token":"LEASE"'),
    (rb"lra_[0-9A-Za-z]{38}", b"SECRET"),
    (rb"until=\d+&owner=ID[^&]*&signature=[0-9a-f]{64}", b"SIGNED"),
    (rb"xet_\d+_[0-9a-f]{64}_[0-9a-f]{64}", b"XET"),
    (rb"/xet/[0-9a-f]{24}", b"/xet/WORD"),
    (rb'"exp":\d+', b'"exp":0'),
    (rb"/hub_[0-9a-f]{24}_[0-9a-f]{12}/", b"/HUB/"),
)
UNSTEADY_HEADERS = frozenset({"x-request-id", "etag", "content-length", "x-xet-token-expiration", "audit-checkpoint"})


def steady(data: bytes) -> bytes:
    """These bytes without what differs from run to run."""
    for pattern, instead in VARIES:
        data = re.sub(pattern, instead, data)
    return data


def files(seed: int) -> samples.Files:
    return samples.lora(samples.llama(), seed=seed)


class Tenant:
    """Tenant B: asks everything that one can ask, and keeps the responses without what differs from run to run."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.secret = harness.issue("admin", namespaces=["globex"], name="tenant-b")[1]
        self.heard: list[tuple[str, int, tuple[tuple[str, str], ...], bytes]] = []

    def ask(self, method: str, path: str, *, prefix: str = "/api/v1", secret: str = "", **rest: Any) -> httpx.Response:
        response = send(self.harness, method, prefix + path, secret or self.secret, **rest)
        headers = {k: steady(v.encode()).decode() for k, v in response.headers.items() if k not in UNSTEADY_HEADERS}
        shown = steady(path.partition("&until=")[0].encode()).decode()
        status = (response_about(response) if path.startswith("/pushes") and method == "POST" else response).status_code
        self.heard.append((f"{method} {shown}", status, tuple(sorted(headers.items())), steady(response.content)))
        return response

    def push(self, name: str, content: samples.Files) -> None:
        manifest = self.harness.manifest(content)
        body = push_body(name, manifest.model_dump(mode="json"))
        plan = response_about(self.ask("POST", "/pushes", json=body))
        if plan.status_code != 200:
            return
        by_digest = {Digest.of(data): data for data in content.values()}
        for upload in plan.json()["uploads"]:
            self.ask("PUT", upload["url"].removeprefix("/api/v1"), content=by_digest[Digest(upload["digest"])])
        self.ask("POST", "/pushes/commit", json=commit_body(plan.json()["push_id"]))

    def script(self) -> None:
        for seed in range(6):
            self.push("globex/support", files(seed))
        self.push("globex/supp0rt", files(7))
        self.push("acme/support", files(8))
        self.uncommitted(files(9))
        digests = [self.harness.manifest(files(seed)).digest for seed in range(6)]
        for adapter in ("globex/support", "acme/support", "acme/nothing", "globex/nothing"):
            self.look(adapter, digests)
        for path in (
            "/adapters",
            "/bases",
            "/bases/tiny-llama",
            "/jobs",
            "/namespaces",
            "/tokens",
            "/events",
            "/whoami",
        ):
            self.ask("GET", path)
            self.ask("GET", path, params={"limit": 1})
        self.ask("GET", "/lineage", params={"base": "tiny-llama"})
        self.ask("GET", "/lineage", params={"dataset": "s3://data/tickets"})
        self.ask("GET", "/engine-settings", params={"base": "tiny-llama", "engine": "vllm==0.33.0"})
        self.use_hub_clients()
        self.decide()
        for name in ("acme", "globex", "acne", "nowhere"):
            self.ask("GET", f"/namespaces/{name}")
            self.ask("PATCH", f"/namespaces/{name}", json={"public": False})
            self.ask("PUT", f"/namespaces/{name}/roles/bob", json={"role": "reader"})
            self.ask("POST", "/tokens", json={"name": "x", "scopes": ["pull"], "namespaces": [name]})
        for _ in range(3):
            self.ask("POST", "/jobs/claim", json={"worker": "b"})
        for reference in ("acme/support@1", "globex/support@1", "acme/nothing@1"):
            self.ask("GET", "/jobs", params={"ref": reference})
            self.ask("POST", "/jobs", json={"kind": "smoke-test", "ref": reference})
        self.ask("DELETE", "/adapters/acme/support")
        self.ask("DELETE", "/adapters/globex/support")
        self.ask("GET", "/namespaces/globex")

    def look(self, adapter: str, digests: list[Digest]) -> None:
        for selector in ("main", "prod", "1", "2", "9", *digests):
            self.ask("GET", f"/resolve/{adapter}/{selector}")
            version = f"/adapters/{adapter}/versions/{selector}"
            self.ask("GET", version)
            self.ask("GET", version + "/lineage", params={"direction": "down"})
            for path in ("adapter_config.json", "adapter_model.safetensors"):
                self.ask("HEAD", f"{version}/files/{path}")
                self.ask("GET", f"{version}/files/{path}", headers={"Range": "bytes=0-9"})
        for part in ("", "/versions", "/aliases", "/history", "/publishers"):
            self.ask("GET", f"/adapters/{adapter}{part}")

    def use_hub_clients(self) -> None:
        """What Hub clients ask, and their pushes of bytes that the other tenant has: by Git LFS and by Xet."""
        for name in ("globex/support", "acme/support", "acme/nothing"):
            model = f"/api/models/{name}"
            for path in ("", "/revision/v1", "/tree/main", "/refs", "/commits/main", "/auth-check/write"):
                self.ask("GET", model + path, prefix="")
            for path in ("adapter_config.json", "adapter_model.safetensors", "absent"):
                self.ask("HEAD", f"/{name}/resolve/main/{path}", prefix="")
            self.push_large(name, [files(0)[samples.WEIGHTS], files(20)[samples.WEIGHTS]])
        self.ask("GET", "/api/models", prefix="", params={"filter": "base_model:adapter:tiny-llama"})
        self.ask("GET", "/api/whoami-v2", prefix="")

    def push_large(self, name: str, contents: list[bytes]) -> None:
        """To a repository: files that were not sent, then xorbs of theirs, half a shard, and a commit."""
        organization, word = name.split("/")
        self.ask("POST", "/api/repos/create", prefix="", json={"organization": organization, "name": word})
        objects: list[dict[str, Any]] = [{"oid": sha256(data).hexdigest(), "size": len(data)} for data in contents]
        batch = {"operation": "upload", "objects": objects}
        self.ask("POST", f"/{name}.git/info/lfs/objects/batch", prefix="", json=batch)
        lines = [header(), *(add_large("adapter_model.safetensors", item["oid"], item["size"]) for item in objects)]
        commit = "".join(json.dumps(line) + "\n" for line in lines)
        self.ask("POST", f"/api/models/{name}/commit/main", prefix="", content=commit)
        token = self.ask("GET", f"/api/models/{name}/xet-write-token/main", prefix="")
        if token.status_code == 200:
            url, secret = httpx.URL(token.json()["casUrl"]).path, token.json()["accessToken"]
            xorbs = [xorb_of(split(data)) for data in contents]
            shard = shard_of(*((item["oid"], [xorb.segment()]) for item, xorb in zip(objects, xorbs, strict=True)))
            for xorb in xorbs:
                self.ask("GET", f"{url}/v1/chunks/default/{xorb.hash}", prefix="", secret=secret)
                self.ask("POST", f"{url}/v1/shards", prefix="", secret=secret, content=shard)
                self.ask("POST", f"{url}/v1/xorbs/default/{xorb.hash}", prefix="", secret=secret, content=xorb.body)
            self.ask("POST", f"{url}/v1/shards", prefix="", secret=secret, content=shard)
        self.ask("POST", f"/api/models/{name}/commit/main", prefix="", content=commit)

    def decide(self) -> None:
        for adapter in ("globex/support", "acme/support"):
            for number in ("1", "2"):
                body = {"version": number, "reason": "r"}
                self.ask("PUT", f"/adapters/{adapter}/aliases/canary", json=body, headers={"If-Match": '"0"'})
            self.ask("POST", f"/adapters/{adapter}/aliases/canary/rollback", json={"to": "1"})
            self.ask("POST", f"/adapters/{adapter}/versions/2/yank", json={"reason": "r"})

    def uncommitted(self, content: samples.Files) -> None:
        """A commit that names digests whose bytes were never sent."""
        manifest = self.harness.manifest(content)
        body = push_body("globex/support", manifest.model_dump(mode="json"))
        plan = response_about(self.ask("POST", "/pushes", json=body)).json()
        self.ask("POST", "/pushes/commit", json=commit_body(plan["push_id"]))
        for item in sorted(plan["uploads"], key=lambda item: str(item["digest"])):
            link = item["url"].removeprefix("/api/v1")
            self.ask("PUT", link, content=b"x")
            self.ask("PUT", link.replace(plan["push_id"], f"psh_{'0' * 24}"), content=b"x")
            self.ask("PUT", link, content=b"x" * item["size_bytes"])


def other_tenant(harness: Harness) -> None:
    """Tenant A: the same bytes under the same and other names, promoted, yanked, with roles and tokens."""
    harness.admin.create_namespace("acme", owner="alice")
    for seed in range(4):
        harness.push("acme/support", files(seed))
        harness.push(f"acme/other-{seed}", files(seed))
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    harness.admin.yank("acme/support@2", "no good")
    harness.issue("push", namespaces=["acme"])


def run_script(url: str, *, with_other: bool) -> Tenant:
    with Harness(url) as harness:
        harness.add_base()
        if with_other:
            other_tenant(harness)
        tenant = Tenant(harness)
        tenant.script()
        harness.give_back([job.id for job in harness.admin.jobs(state="running").items])
    return tenant


@pytest.fixture
def two_urls(database_kind: str, database_url: str, tmp_path: Path, migrated_sqlite: Path) -> Iterator[Any]:
    """A database for each of the two runs; the second one on PostgreSQL is the first one, emptied."""

    def second() -> str:
        if database_kind == "sqlite":
            (tmp_path / "second.db").write_bytes(migrated_sqlite.read_bytes())
            return f"sqlite:///{tmp_path}/second.db"
        conftest._empty(database_url)
        return database_url

    return iter([lambda: database_url, second])


def test_a_tenants_responses_are_byte_equal_with_and_without_another_tenants_data(two_urls: Any) -> None:
    alone = run_script(next(two_urls)(), with_other=False)
    beside = run_script(next(two_urls)(), with_other=True)
    assert len(alone.heard) >= REQUESTS_MINIMUM
    assert [response[0] for response in alone.heard] == [other[0] for other in beside.heard]
    different = [
        (response, other) for response, other in zip(alone.heard, beside.heard, strict=True) if response != other
    ]
    assert different[:3] == []
    assert {status for _, status, _, _ in alone.heard} >= {200, 201, 204, 206, 403, 404, 409}
