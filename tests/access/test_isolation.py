"""The answers for one tenant do not depend on another tenant's data: 300 requests are compared byte by byte.

The other tenant has the same bytes, the same names, similar names and the same base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.digest import Digest
from tests import conftest, samples
from tests.access.tenants import send
from tests.bulk import answer_about, commit_body, push_body
from tests.harness import Harness

pytestmark = pytest.mark.security

REQUESTS_MINIMUM = 300
LISTS = ("/adapters", "/bases", "/bases/tiny-llama", "/jobs", "/namespaces", "/tokens", "/events", "/whoami")
# The place of an event in the log of all is told on purpose, for its proof: it says how much happened, and not what.
VARIES = (
    (rb'"(seq|last|next_cursor)":"?\d+"?', b'"PLACE":0'),
    (rb"(tok|psh|job|pub)_[0-9a-f]+", b"ID"),
    (rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", b"TIME"),
    (rb'"request_id":\s*"[^"]*"', b'"request_id": "R"'),
    (rb'"token":"[0-9a-f]{32}"', b'"token":"LEASE"'),
    (rb"lra_[0-9A-Za-z]{38}", b"SECRET"),
    (rb"until=\d+&owner=ID[^&]*&signature=[0-9a-f]{64}", b"SIGNED"),
)


def files(seed: int) -> samples.Files:
    return samples.lora(samples.llama(), seed=seed)


class Tenant:
    """Tenant B: asks everything that one can ask, and keeps the answers without what differs from run to run."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.secret = harness.issue("admin", namespaces=["globex"], name="tenant-b")[1]
        self.heard: list[tuple[str, int, tuple[tuple[str, str], ...], bytes]] = []

    def ask(self, method: str, path: str, **rest: Any) -> httpx.Response:
        answer = send(self.harness, method, "/api/v1" + path, self.secret, **rest)
        body = answer.content
        for pattern, instead in VARIES:
            body = re.sub(pattern, instead, body)
        headers = {k: v for k, v in answer.headers.items() if k not in ("x-request-id", "etag", "content-length")}
        shown = re.sub(r"(tok|psh|job|pub)_[0-9a-f]+", "ID", path.partition("&until=")[0])
        status = (answer_about(answer) if path.startswith("/pushes") and method == "POST" else answer).status_code
        self.heard.append((f"{method} {shown}", status, tuple(sorted(headers.items())), body))
        return answer

    def push(self, name: str, content: samples.Files) -> None:
        manifest = self.harness.manifest(content)
        body = push_body(name, manifest.model_dump(mode="json"))
        plan = answer_about(self.ask("POST", "/pushes", json=body))
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
        plan = answer_about(self.ask("POST", "/pushes", json=body)).json()
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


def test_a_tenants_answers_are_byte_equal_with_and_without_another_tenants_data(two_urls: Any) -> None:
    alone = run_script(next(two_urls)(), with_other=False)
    beside = run_script(next(two_urls)(), with_other=True)
    assert len(alone.heard) >= REQUESTS_MINIMUM
    assert [answer[0] for answer in alone.heard] == [other[0] for other in beside.heard]
    different = [(answer, other) for answer, other in zip(alone.heard, beside.heard, strict=True) if answer != other]
    assert different[:3] == []
    assert {status for _, status, _, _ in alone.heard} >= {200, 201, 204, 206, 403, 404, 409}
