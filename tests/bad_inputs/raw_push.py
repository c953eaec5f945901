"""A push by hand, request by request, so that nothing of our client stands between bad input and the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from registry.digest import Digest
from registry.server.database.models import AdapterRow, BlobRow, EdgeRow, VersionFileRow, VersionRow
from registry.server.storage.states import BlobState
from tests.bulk import COMMITS, PUSHES, commit_body, push_body, response_about
from tests.harness import URL, Harness, media_type, rows

NAME = "acme/support"


class RawClient:
    """Requests with the administrator's token; paths go out as they are written."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        headers = {"Authorization": f"Bearer {harness.secret}"}
        self._http = httpx.Client(transport=harness.transport, base_url=URL, headers=headers)

    def ask(self, method: str, path: str, **rest: Any) -> httpx.Response:
        return self._http.request(method, path, **rest)

    def manifest(self, files: Mapping[str, bytes], **change: Any) -> dict[str, Any]:
        base = self.harness.bases["tiny-llama"]
        described = [
            {"path": path, "media_type": media_type(path), "digest": Digest.of(data), "size_bytes": len(data)}
            for path, data in sorted(files.items())
        ]
        return {"base": {"name": base.name, "fingerprint": base.fingerprint}, "files": described, **change}

    def plan(self, files: Mapping[str, bytes], **change: Any) -> httpx.Response:
        return self.plan_manifest(self.manifest(files, **change))

    def plan_manifest(self, manifest: dict[str, Any], name: str = NAME, **more: Any) -> httpx.Response:
        """The response about the only item of the request."""
        return response_about(self.ask("POST", PUSHES, json=push_body(name, manifest, **more)))

    def commit(self, planned: httpx.Response, **more: Any) -> httpx.Response:
        """The response about the only item of the request."""
        return response_about(self.ask("POST", COMMITS, json=commit_body(planned.json()["push_id"], **more)))

    def push(self, files: Mapping[str, bytes], **change: Any) -> httpx.Response:
        """The first response that is not a success, or the commit's."""
        planned = self.plan(files, **change)
        if planned.is_error:
            return planned
        by_digest = {Digest.of(data): data for data in files.values()}
        for upload in planned.json()["uploads"]:
            sent = self.ask("PUT", upload["url"], content=by_digest[upload["digest"]])
            if sent.is_error:
                return sent
        return self.commit(planned)


def reasons(response: httpx.Response) -> set[str]:
    return {finding["code"] for finding in response.json()["findings"]}


def assert_refused(
    harness: Harness, response: httpx.Response, status: int, codes: Sequence[str], reason: str = ""
) -> None:
    """A whole problem document with this status, one of these codes and this reason; and nothing was stored."""
    problem = response.json()
    assert (response.status_code, problem["code"] in codes) == (status, True), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert all(problem[field] for field in ("detail", "title"))
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["status"] == status
    if reason:
        assert reason in reasons(response), response.text
    with harness.session() as session:
        for table in (AdapterRow, VersionRow, VersionFileRow, EdgeRow):
            assert rows(session, table) == [], table
        # A pending row is the plan's: it stands before its bytes and promises nothing.
        assert [row.digest for row in rows(session, BlobRow) if row.state != BlobState.PENDING] == []
    assert list(harness.blobs.list("blobs/")) == []
