"""The matrix: how each route responds to each kind of actor, about its own, another's and an absent object.

    python -m tests.access.matrix > tests/access/matrix.txt        after a route was added or changed on purpose

Invariants
- Every route of the application has a line. A column is an actor: nobody, a subject without a role, one in each role,
  and an administrator of all. A cell is the status about an object in `acme` (where the roles are), in `globex` and
  nowhere; one status where they are equal, or where the route is about no object.
- Nothing that one request changes may change the response to a later one: objects that go are made for each actor.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from typing import Any

import httpx

from registry.api.access import TokenCreate
from registry.server import app
from registry.server.database.models.jobs import JobRow
from tests.access.tenants import Tenants, send
from tests.bulk import commit_body, push_body, response_about
from tests.harness import Harness, rows

ACTORS = ("nobody", "outsider", "reader", "pusher", "promoter", "owner", "admin")
PLACES = {"acme": "support", "globex": "secret", "nowhere": "nothing"}
ZERO = "sha256:" + "0" * 64
QUERIES = {
    "/api/v1/lineage": {"base": "tiny-llama"},
    "/api/v1/engine-settings": {"base": "tiny-llama", "engine": "vllm==0.33.0"},
    "/api/v1/events/stream": {"after": "x"},  # refused after the look at who asks: it would never end
}
GROUPS = frozenset({"/api/v1/moves", "/api/v1/approvals", "/api/v1/metadata"})
BULK = frozenset({"/api/v1/pushes", "/api/v1/pushes/commit", "/api/v1/pulls"}) | GROUPS
LONG = frozenset({"/api/v1/fsck", "/api/v1/gc", "/api/v1/reindex"})


class Matrix:
    def __init__(self, harness: Harness) -> None:
        self.harness, self.tenants = harness, Tenants(harness)
        with harness.session() as session:
            self.jobs = {row.namespace: row.id for row in rows(session, JobRow)}
        self.bodies = self._bodies()

    def _bodies(self) -> dict[str, Any]:
        """Route → a body that passes its first look. The words in braces are filled in."""
        manifest = self.harness.manifest(self.tenants.files).model_dump(mode="json")
        identity: dict[str, Any] = {}
        return {
            "POST /api/v1/pushes": push_body("{namespace}/{name}", manifest),
            "POST /api/v1/pushes/commit": commit_body("psh_none"),
            "POST /api/v1/pulls": {"refs": ["{namespace}/{name}@1"]},
            "POST /api/v1/moves": {"items": [{"name": "{namespace}/{name}", "alias": "canary", "version": "1"}]},
            "POST /api/v1/approvals": {"items": [{"ref": "{namespace}/{name}@1", "alias": "canary"}]},
            "POST /api/v1/metadata": {"items": [{"subject": "{namespace}/{name}", "tags": {"team": None}}]},
            "POST /api/v1/adapters/{namespace}/{name}/rename": {"to": "{namespace}/{name}"},
            "POST /api/v1/adapters/{namespace}/{name}/versions/{selector}/undelete": {"reason": "r"},
            "PATCH /api/v1/adapters/{namespace}/{name}/metadata": {"tags": {"team": None}},
            "PATCH /api/v1/adapters/{namespace}/{name}/versions/{selector}/metadata": {"tags": {"team": None}},
            "POST /api/v1/adapters/{namespace}/{name}/publishers": {"issuer": "https://ci", "claims": {"sub": "x"}},
            "POST /api/v1/adapters/{namespace}/{name}/versions/{selector}/yank": {"reason": ""},
            "POST /api/v1/adapters/{namespace}/{name}/versions/{selector}/unyank": {"reason": ""},
            "PUT /api/v1/adapters/{namespace}/{name}/aliases/{alias}": {"version": "1"},
            "POST /api/v1/adapters/{namespace}/{name}/aliases/{alias}/rollback": {"to": "1"},
            "POST /api/v1/bases": {"spec": self.harness.bases["tiny-llama"].model_dump(mode="json")},
            "PUT /api/v1/bases/{base:path}/identity": identity,
            "PUT /api/v1/bases/{base:path}/modules": {"modules": {"library": "transformers 5.24.0"}},
            "PUT /api/v1/fleet/nodes/{node}/{engine}": {"base": "tiny-llama", "alias": "prod", "slots": []},
            "POST /api/v1/jobs": {"kind": "smoke-test", "ref": "{namespace}/{name}@1"},
            "POST /api/v1/jobs/claim": {"worker": "w", "bases": ["none"]},
            "POST /api/v1/jobs/{job_id}/renew": {"lease_token": "x"},
            "POST /api/v1/jobs/{job_id}/finish": {"lease_token": "x"},
            "POST /api/v1/jobs/{job_id}/fail": {"lease_token": "x", "error": "e"},
            "POST /api/v1/tokens": {"name": "t", "scopes": ["pull"], "namespaces": ["{namespace}"]},
            "POST /api/v1/namespaces": {"name": "fresh-{actor}"},
            "PATCH /api/v1/namespaces/{namespace}": {"public": False},
            "POST /api/repos/create": {"organization": "{namespace}", "name": "fresh-{actor}"},
            "POST /api/repos/move": {"fromRepo": "{namespace}/{name}", "toRepo": "{namespace}/{name}"},
            "POST /api/models/{namespace}/{name}/preupload/{revision}": {"files": [{"path": "README.md", "size": 1}]},
            "POST /api/models/{namespace}/{name}/branch/{branch}": {"startingPoint": "absent"},
            "POST /{namespace}/{name}/info/lfs/objects/batch": {"operation": "upload", "objects": []},
            "PUT /api/v1/namespaces/{namespace}/roles/{subject:path}": {"role": "reader"},
            "PUT /api/v1/namespaces/{namespace}/retention": {"rule": {"keep_newest": 9}},
            "PUT /api/v1/adapters/{namespace}/{name}/retention": {"rule": {"keep_newest": 9}},
        }

    def responses(self) -> Iterator[tuple[str, str, str, httpx.Response]]:
        """(route, actor, place or "", response) of all, in an order of its own."""
        for method, path in sorted(app.declared_scopes(), key=lambda route: (route[1], route[0])):
            if path in LONG:
                continue
            for actor in ACTORS:
                for location in self._places(method, path):
                    yield f"{method} {path}", actor, location, self._ask(method, path, actor, location)

    def _places(self, method: str, path: str) -> list[str]:
        about = str(self.bodies.get(f"{method} {path}", "")) + path
        return list(PLACES) if any(word in about for word in ("{namespace}", "{job_id}", "{token_id}")) else [""]

    def _ask(self, method: str, path: str, actor: str, location: str) -> httpx.Response:
        words = self._words(method, path, actor, location or "acme")
        url = path.replace(":path}", "}")
        for word, value in words.items():
            url = url.replace("{" + word + "}", value)
        url = re.sub(r"\{[a-z_]+\}", "none", url)
        headers = {"If-Match": '"9"'} if method == "PUT" else {}
        body = _filled(self.bodies.get(f"{method} {path}", {}), words) if method in ("POST", "PUT", "PATCH") else None
        response = send(
            self.harness, method, url, self._secret(actor), json=body, params=QUERIES.get(path), headers=headers
        )
        return response_about(response) if path in BULK else response

    def _secret(self, actor: str) -> str:
        if actor == "nobody":
            return ""
        if actor == "admin":
            return self.harness.secret
        return self.tenants.secret("outsider@elsewhere" if actor == "outsider" else actor)

    def _words(self, method: str, path: str, actor: str, location: str) -> dict[str, str]:
        words = {
            "namespace": location, "name": PLACES[location], "selector": "1", "alias": "canary", "digest": ZERO,
            "path": "adapter_config.json", "base": "tiny-llama", "subject": "somebody", "push_id": "psh_none",
            "publisher_id": "pub_none", "job_id": self.jobs.get(location, "job_none"), "actor": actor,
            "token_id": "tok_none",
        }  # fmt: skip
        if "{token_id}" in path and location != "nowhere":
            request = TokenCreate(name="victim", scopes=["pull"], namespaces=[location])
            words["token_id"] = self.harness.admin.create_token(request).token.id
        if method == "DELETE" and path.endswith("{name}") and location != "nowhere":
            words["name"] = f"going-{actor}"
            self.harness.push(f"{location}/going-{actor}")
        return words


def _filled(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, words) for key, item in value.items()}
    if isinstance(value, str) and value.count("{") and not value.startswith('{"'):
        for word, text in words.items():
            value = value.replace("{" + word + "}", text)
    return [_filled(item, words) for item in value] if isinstance(value, list) else value


def table(responses: Iterator[tuple[str, str, str, httpx.Response]]) -> str:
    """The responses as the committed text."""
    cells: dict[str, dict[str, list[str]]] = {}
    for route, actor, _, response in responses:
        cells.setdefault(route, {name: [] for name in ACTORS})[actor].append(str(response.status_code))
    head = "status about one's own / another's / an absent object, by actor".ljust(96)
    lines = [head + "  ".join(actor.ljust(11) for actor in ACTORS).rstrip()]
    for route, by_actor in cells.items():
        shown = ["/".join(dict.fromkeys(c) if len(set(c)) == 1 else c) for c in by_actor.values()]
        lines.append(route.ljust(96) + "  ".join(cell.ljust(11) for cell in shown).rstrip())
    return "\n".join(lines) + "\n"


def without_ids(response: httpx.Response, location: str) -> tuple[int, bytes]:
    """Status and body without the names that were asked for, and without the request's id."""
    body = response.content.replace(response.headers["x-request-id"].encode(), b"ID")
    for name in (PLACES[location], location):
        body = body.replace(name.encode(), b"NAME")
    return response.status_code, body


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, Harness(f"sqlite:///{folder}/registry.db") as harness:
        print(table(Matrix(harness).responses()), end="")
