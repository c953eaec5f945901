"""The first page: what it lists, what waits for the visitor, and where a text leads that names something."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.evaluation.gates import Gate
from registry.findings import Finding
from registry.versions.provenance import Provenance, Run
from tests.harness import Harness
from tests.pages.conftest import ENGINES, Browser


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """`acme/support` with three versions, `prod` at the first and a gate that needs an approval of another person."""
    path: Path = tmp_path_factory.mktemp("home") / "registry.db"
    with Harness(f"sqlite:///{path}", engines=ENGINES) as harness:
        harness.add_base()
        harness.admin.create_namespace("acme", owner="alice")
        publisher = harness.actor("push", "pull", namespaces=["acme"])
        for number in (1, 2, 3):
            run = Run(tool="mlflow", id=f"run-60{number}")
            harness.push("acme/support", by=publisher, provenance=Provenance(run=run), message=str(number))
        harness.push("acme/broken")
        harness.validate("acme/support@1")
        harness.validate("acme/support@3")
        harness.validate("acme/broken@1", [Finding.of("error", "smoke.not_finite", "logits", "hold NaN")])
        harness.admin.promote("acme/support", "prod", "1", generation=0, reason="first")
        harness.admin.set_gate("acme", "prod", Gate(approvals=1))
        old = harness.admin.version("acme/support@2")
        slot = SlotReport(adapter="acme/support", digest=old.digest, served_name="support", state=SlotState.SERVING)
        harness.admin.report_node("gpu-7", "vllm", NodeReport(base="tiny-llama", alias="prod", slots=[slot]))
        yield harness


def test_the_first_page_says_what_there_is_what_serves_and_what_waits(signed_in: Browser) -> None:
    page = signed_in.get("/").text
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "2 adapters" in text
    assert re.search(r"acme 2\b", text), "the namespace, and how many adapters it has"
    assert re.search(r"prod 1 ✓ Ready → newest 3 ✓ Ready", text)
    assert "Approve acme/support@3 for prod" in text
    assert "acme/broken@1 failed a check" in text
    assert "gpu-7 serves acme/support@2, should be prod 1" in text
    assert "acme/support:prod – → 1" in text
    order = [page.index(f'href="/adapters/acme/{name}">acme') for name in ("broken", "support")]
    assert order == sorted(order), "pushed last comes first"
    failing = signed_in.get("/search?sort=failing").text
    assert "acme/<b>broken</b>" in failing
    assert "acme/<b>support</b>" not in failing


def test_a_text_that_names_something_leads_there(registry: Harness, signed_in: Browser) -> None:
    version = registry.admin.version("acme/support@2")
    leads = {
        "/search?text=acme/support": "/adapters/acme/support",
        "/search?text=acme/support@2": "/adapters/acme/support/versions/2",
        "/search?text=acme/support:prod": "/adapters/acme/support/aliases/prod",
        f"/search?text={version.digest}": "/adapters/acme/support/versions/2",
        f"/search?text={version.digest.hex[:12]}": "/adapters/acme/support/versions/2",
        "/search?text=run-602": "/adapters/acme/support/versions/2",
        "/search?text=job_0123": "/jobs/job_0123",
        "/adapters": "/", "/namespaces": "/", "/adapters/acme": "/namespaces/acme",
        "/adapters/acme/support@2": "/adapters/acme/support/versions/2",
        "/adapters/acme/support:prod": "/adapters/acme/support/aliases/prod",
    }  # fmt: skip
    assert {path: signed_in.get(path).headers.get("location") for path in leads} == leads
    assert signed_in.get("/adapters/acme/support@9").status_code == 404
    assert '<a href="/search?text=support">support</a>?' in signed_in.get("/search?text=suport").text


def test_nobody_finds_by_a_digest_or_a_run_what_they_may_not_see(registry: Harness, browser: Browser) -> None:
    digest = registry.admin.version("acme/support@2").digest
    for text in (digest, digest.hex[:12], "run-602", "acme/support@2", "suport"):
        page = browser.get(f"/search?text={text}")
        assert page.status_code == 200, text
        assert "/adapters/acme/support" not in page.text, text
        assert "Did you mean" not in page.text, text


def test_a_namespace_shows_where_each_alias_is_and_promotes_what_is_chosen(
    registry: Harness, signed_in: Browser
) -> None:
    registry.push("acme/chosen")
    registry.admin.set_gate("acme/chosen", "canary", Gate())
    registry.admin.promote("acme/chosen", "canary", "1", generation=0)
    registry.push("acme/chosen")
    page = signed_in.get("/namespaces/acme").text
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "Gate of prod :" in text
    assert re.search(r"support 1 ✓ Ready (– )?3 ✓ Ready \+2", text), "conclusions, and the distance"
    assert 'name="support:prod"' in page, "an approval is what it lacks"

    def send(**fields: str) -> int:
        return signed_in.submit("/namespaces/acme", "/namespaces/acme/releases", None, **fields).status_code

    both = {"chosen:canary": "2.1", "support:prod": "3.1"}
    assert send(change="promote") == 400, "nothing is chosen"
    assert send(change="promote", **{"chosen:canary": "2.0"}) == 412, "an old page moves nothing"
    assert send(change="promote", **both) == 422, "one whose gate is closed lets none move"
    assert registry.admin.alias("acme/chosen", "canary").number == 1
    assert send(change="approve", **{"support:prod": "3.1"}) == 303
    assert send(change="promote", reason="both", **both) == 303
    aliases = (("acme/chosen", "canary"), ("acme/support", "prod"))
    assert [registry.admin.alias(name, alias).number for name, alias in aliases] == [2, 3]
