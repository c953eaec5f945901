"""The matrix: how each route responds to each kind of actor, about its own, another's and an absent object.

    python -m tests.access.matrix > tests/access/matrix.txt        after a route was added or changed on purpose

Invariants
- Every route of the application has a line. A column is an actor: nobody, a subject without a role, one in each role
  but auditor (`test_auditors.py` has those), a pusher who moves the alias `canary` alone (`mover`), and an
  administrator of all. A cell is the status about an object in `acme` (where the roles are), in `globex` and nowhere;
  one status where they are equal, or where the route is about no object.
- Nothing that one request changes may change the response to a later one: objects that go are made for each actor.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import httpx

from registry.api import PREFIX
from registry.api.access import TokenCreate
from registry.api.operations.table import OPERATIONS
from registry.server import app
from registry.server.database.models.jobs import JobRow
from tests.access.tenants import Tenants, send
from tests.bulk import push_body, response_about
from tests.harness import Harness, rows

ACTORS = ("nobody", "outsider", "reader", "pusher", "mover", "promoter", "owner", "admin")
PLACES = {"acme": "support", "globex": "secret", "nowhere": "nothing"}
ZERO = "sha256:" + "0" * 64
QUERIES = {
    "/api/v1/lineage": {"base": "tiny-llama"},
    "/api/v1/engine-settings": {"base": "tiny-llama", "engine": "vllm==0.33.0"},
    "/api/v1/moves": {"group_id": "grp_0123456789abcdef"},
    "/api/v1/events/stream": {"after": "x"},  # refused before the look at who asks: it would never end
}
GROUPS = frozenset({"/api/v1/moves", "/api/v1/approvals", "/api/v1/metadata"})
BULK = frozenset({"/api/v1/pushes", "/api/v1/pushes/commit", "/api/v1/pulls"}) | GROUPS
LONG = frozenset({"/api/v1/fsck", "/api/v1/gc", "/api/v1/reindex"})


class Matrix:
    def __init__(self, harness: Harness) -> None:
        self.harness, self.tenants = harness, Tenants(harness)
        with harness.session() as session:
            self.jobs = {row.namespace: row.id for row in rows(session, JobRow)}
        for location in ("acme", "globex"):
            harness.push(f"{location}/going-away")
        self.bodies = self._bodies()

    def _bodies(self) -> dict[str, Any]:
        """Route → the example of its row, or what is not there and changes nothing. Words in braces are filled in."""
        of_rest = {f"{row.method} {PREFIX}{row.path}": _about_place(row.example) for row in OPERATIONS.values()}
        manifest = self.harness.manifest(self.tenants.files).model_dump(mode="json")
        return of_rest | {
            f"POST {PREFIX}/pushes": push_body("{namespace}/{name}", manifest),
            f"POST {PREFIX}/adapters/{{namespace}}/{{name}}/rename": {"to": "{namespace}/{name}"},
            f"POST {PREFIX}/bases": {"spec": self.harness.bases["tiny-llama"].model_dump(mode="json")},
            f"PUT {PREFIX}/bases/{{base:path}}/identity": {},
            f"POST {PREFIX}/jobs/claim": {"worker": "w", "bases": ["none"]},
            f"POST {PREFIX}/namespaces": {"name": "fresh-{actor}"},
            f"POST {PREFIX}/tokens/exchange": {},
            f"PATCH {PREFIX}/namespaces/{{namespace}}": {"public": False},
            "POST /api/repos/create": {"organization": "{namespace}", "name": "fresh-{actor}"},
            "POST /api/repos/move": {"fromRepo": "{namespace}/{name}", "toRepo": "{namespace}/{name}"},
            "POST /api/models/{namespace}/{name}/preupload/{revision}": {"files": [{"path": "README.md", "size": 1}]},
            "POST /api/models/{namespace}/{name}/branch/{branch}": {"startingPoint": "absent"},
            "POST /{namespace}/{name}/info/lfs/objects/batch": {"operation": "upload", "objects": []},
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
        query = QUERIES.get(path) if method == "GET" else None
        response = send(self.harness, method, url, self._secret(actor), json=body, params=query, headers=headers)
        return response_about(response) if path in BULK and method == "POST" else response

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
        if path.endswith(("yank", "quarantine")):
            words["name"] = "going-away" if location != "nowhere" else words["name"]
        if method == "DELETE" and path.endswith("{name}") and location != "nowhere":
            words["name"] = f"going-{actor}"
            self.harness.push(f"{location}/going-{actor}")
        return words


def _about_place(example: Any) -> Any:
    """The example of a row, about the adapter, the versions, the alias and the base that are there."""
    text = json.dumps(example or {})
    text = re.sub("acme/(support|billing)", "{namespace}/{name}", text).replace('"acme"', '"{namespace}"')
    text = text.replace(":prod", "@1")
    text = re.sub('([@"])[234]"', r'\g<1>1"', text).replace('"prod"', '"canary"').replace("llama-3.1-8b", "tiny-llama")
    return json.loads(text)


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
