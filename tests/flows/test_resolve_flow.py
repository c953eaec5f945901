"""The flow of a look-up: one statement, a response with all that a serving node asks, revalidated with an ETag."""

from __future__ import annotations

import httpx

from registry.api.catalog import Resolved
from registry.digest import Digest
from tests.harness import URL, Harness

NAME = "acme/support"


def client(harness: Harness) -> httpx.Client:
    return httpx.Client(
        transport=harness.transport, base_url=URL, headers={"Authorization": f"Bearer {harness.secret}"}
    )


def test_a_look_up_is_one_statement_whatever_selects_the_version(harness: Harness) -> None:
    harness.add_base()
    pushed = harness.push(NAME).version
    harness.validate(f"{NAME}@1")
    http = client(harness)
    http.get("/api/v1/whoami")  # the token is remembered for a second
    for selector in ("main", "1", pushed.digest):
        with harness.statements() as sent:
            response = http.get(f"/api/v1/resolve/{NAME}/{selector}")
        assert response.status_code == 200
        resolved = Resolved.model_validate_json(response.content)
        assert (resolved.number, resolved.digest, resolved.manifest.digest) == (1, pushed.digest, pushed.digest)
        assert resolved.verdicts == {"compat": "pass", "weights": "pass", "smoke": "pass"}
        assert [s for s in sent if "FROM token" not in s] == sent[-1:], sent
        assert len(sent) <= 2


def test_a_response_is_revalidated_without_a_body_until_it_changes(harness: Harness) -> None:
    harness.add_base()
    harness.push(NAME)
    http = client(harness)
    path = f"/api/v1/resolve/{NAME}/main"
    first = http.get(path)
    assert first.headers["cache-control"] == "private, no-cache"
    again = http.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    harness.validate(f"{NAME}@1")
    changed = http.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200
    assert changed.json()["verdicts"]["smoke"] == "pass"
    harness.push(NAME)
    assert http.get(path, headers={"If-None-Match": changed.headers["etag"]}).json()["number"] == 2


def test_responses_by_number_or_digest_may_be_cached_without_limit(harness: Harness) -> None:
    harness.add_base()
    digest = harness.push(NAME).version.digest
    http = client(harness)
    for selector in ("1", digest):
        assert "immutable" in http.get(f"/api/v1/resolve/{NAME}/{selector}").headers["cache-control"]


def test_every_file_of_the_response_can_be_fetched_from_its_url(harness: Harness) -> None:
    harness.add_base()
    files = harness.files()
    harness.push(NAME, files)
    http = client(harness)
    resolved = Resolved.model_validate_json(http.get(f"/api/v1/resolve/{NAME}/main").content)
    assert {f.path for f in resolved.files} == set(files)
    for file in resolved.files:
        data = http.get(file.url).content
        assert data == files[file.path]
        assert Digest.of(data) == file.digest


def test_a_moved_alias_is_resolved_with_its_generation(harness: Harness) -> None:
    harness.add_base()
    for _ in range(2):
        harness.push(NAME)
    harness.admin.promote(NAME, "canary", "1", generation=0)
    assert harness.admin.resolve(f"{NAME}:canary").generation == 1
    harness.admin.promote(NAME, "canary", "2", generation=1)
    resolved = harness.admin.resolve(f"{NAME}:canary")
    assert (resolved.number, resolved.generation, resolved.selector) == (2, 2, "canary")
