"""However much there is, a page stays below 150 KB, and says how much more there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from registry.findings import Finding
from registry.server.database.models import AliasRow, VerdictRow, VersionRow
from registry.versions.manifest import Edge, Relation
from registry.versions.provenance import Dataset, Provenance
from tests.harness import Harness
from tests.pages.conftest import ENGINES, Browser

LIMIT_BYTES = 150_000
CHILDREN, ALIASES, PEOPLE = 110, 150, 120
README = b"# Long\n\n" + b"<b>word</b> & another one. " * 3000
PATHS = (
    "/search", "/adapters/acme/parent", "/adapters/acme/parent/versions/1", "/adapters/acme/parent/versions/1/lineage",
    "/compare?first=acme/parent@1&second=acme/child-0@1", "/namespaces/acme", "/adapters/acme/parent/aliases/a-0",
    "/bases/tiny-llama", "/settings/namespaces/acme", "/settings/adapters/acme/parent", "/settings/tokens", "/jobs",
    "/audit", "/audit?object=acme/parent",
)  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    path: Path = tmp_path_factory.mktemp("large") / "registry.db"
    with Harness(f"sqlite:///{path}", engines=ENGINES) as harness:
        harness.add_base()
        harness.admin.create_namespace("acme", owner="alice")
        for number in range(PEOPLE):
            harness.admin.grant_role("acme", f"somebody-with-a-long-name-{number:04}@acme.example", "pusher")
        _fill(harness)
        yield harness


def _fill(harness: Harness) -> None:
    """A parent of many, with many aliases, findings and declared inputs; each text needs escaping."""
    datasets = tuple(Dataset(name=f"<data & {number}>", uri=f"s3://d/{number}/" + "&" * 400) for number in range(64))
    provenance = Provenance(datasets=datasets, parameters={f"p{number}": "<" * 500 for number in range(40)})
    parent = harness.push(
        "acme/parent", dict(harness.files()) | {"README.md": README}, provenance=provenance, message="&" * 2000
    ).version
    edge = Edge(relation=Relation.MERGED, digest=parent.digest, name="acme/parent@1")
    for number in range(CHILDREN):
        harness.push(f"acme/child-{number}", parents=[edge], message="<" * 300)
    with harness.session(write=True) as session:
        version = session.exec(select(VersionRow).where(VersionRow.digest == str(parent.digest))).one()
        alias = session.exec(select(AliasRow).where(AliasRow.adapter_id == version.adapter_id)).first()
        assert alias is not None
        for number in range(ALIASES):
            session.add(AliasRow(**alias.model_dump() | {"alias": f"a-{number}", "reason": "<" * 2000}))
        finding = Finding.of("error", "lora.shape_mismatch", "&" * 600, "<" * 2000).to_dict()
        for row in session.exec(select(VerdictRow).where(VerdictRow.version_id == version.id)):
            row.findings, row.outcome = [finding] * 200, "fail"
            session.add(row)


@pytest.mark.parametrize("path", PATHS)
def test_a_page_stays_small(large: Harness, path: str) -> None:
    with Browser(large) as browser:
        browser.sign_in(large.secret)
        response = browser.get(path)
    assert response.status_code == 200
    assert len(response.content) < LIMIT_BYTES


def test_what_is_left_out_is_counted(large: Harness) -> None:
    expected: dict[str, Any] = {
        "/adapters/acme/parent": f"and {ALIASES + 1 - 40} more",
        "/adapters/acme/parent/versions/1": "and 184 more",
        "/adapters/acme/parent/versions/1/lineage": f"and {CHILDREN - 50} more",
        "/settings/namespaces/acme": f"and {PEOPLE + 1 - 80} more",
    }
    with Browser(large) as browser:
        browser.sign_in(large.secret)
        pages = {path: browser.get(path).text for path in expected}
    counts = {path: re.findall(r"and \d+ more", page) for path, page in pages.items()}
    assert {path: counts[path] for path, text in expected.items() if text not in counts[path]} == {}
