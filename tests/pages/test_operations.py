"""The pages of operators: the fleet, jobs and campaigns, and the proof of an entry of the audit log."""

from __future__ import annotations

import html
import json
import re
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlencode

import pytest

from registry.api.jobs import CampaignRequest, ClaimRequest, FinishRequest
from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.errors import Unavailable
from registry.evaluation.gates import Gate
from registry.server import audit as events
from registry.server.database import db
from registry.server.pages.operations import audit
from registry.server.pages.operations.audit import VIEWS
from registry.server.storage.local import LocalBlobs
from registry.tlog import notes
from registry.tlog.notes import Verifier
from tests.access.tenants import send
from tests.harness import Harness
from tests.pages.conftest import Browser


@pytest.fixture(scope="module", autouse=True)
def filled(registry: Harness) -> Harness:
    for name in ("acme/fleet", "library/other"):
        registry.push(name, alias="canary")
        registry.push(name)
        version = registry.admin.version(f"{name}@1")
        slot = SlotReport(
            adapter=name, digest=version.digest, served_name=f"{name}@1", state=SlotState.SERVING,
            reason="<i>loaded</i>",
        )  # fmt: skip
        report = NodeReport(base="tiny-llama", alias="canary", slots=[slot])
        registry.admin.report_node(f"node-of-{name.partition('/')[0]}", "vllm", report)
    send(registry, "GET", "/api/v1/events", registry.secret)  # numbers and signs the events
    return registry


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_the_fleet_says_at_once_whether_all_is_well(signed_in: Browser) -> None:
    page = signed_in.get("/fleet?adapter=acme/fleet").text
    assert "2 nodes 0 lost 1 problem 0 of 1 alias converged" in text_of(page)
    assert "node-of-library acme/fleet:canary does not serve 1" in text_of(page)
    assert 'href="/fleet/node-of-acme"' in page
    assert "&lt;i&gt;loaded&lt;/i&gt;" in signed_in.get("/fleet/node-of-acme").text
    assert "No nodes" in signed_in.get("/fleet?base=nothing").text
    assert signed_in.get("/fleet/nothing").status_code == 404


def test_a_node_that_serves_another_version_than_it_should_is_a_problem(registry: Harness, signed_in: Browser) -> None:
    registry.push("acme/drift", alias="canary")
    first = registry.admin.version("acme/drift@1").digest
    report = NodeReport(
        base="tiny-llama", alias="canary",
        slots=[SlotReport(adapter="acme/drift", digest=first, served_name="drift", state=SlotState.SERVING)],
    )  # fmt: skip
    registry.admin.report_node("drifting", "vllm", report)
    assert "drifting serves" not in text_of(signed_in.get("/fleet?adapter=acme/drift").text)
    registry.push("acme/drift", alias="canary")
    page = signed_in.get("/fleet?adapter=acme/drift").text
    assert "drifting acme/drift:canary serves 1, should be 2" in text_of(page)
    assert 'title="serves 1, should be 2">!1' in page
    assert "0 of 1 alias converged" in text_of(page)
    assert 'class="badge fail">serves another version' in signed_in.get("/fleet/drifting").text


def test_a_lost_node_serves_nothing(signed_in: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    later = db.now() + timedelta(minutes=30)
    monkeypatch.setattr(db, "now", lambda: later)
    page = signed_in.get("/fleet?adapter=acme/fleet").text
    assert re.search("([0-9]+) nodes \\1 lost \\1 problems", text_of(page))
    assert "acme/fleet – was serving" in text_of(signed_in.get("/fleet/node-of-acme").text)
    assert 'class="badge pass"' not in page


def test_a_job_and_a_campaign_show_their_progress_and_a_job_can_be_cancelled(
    filled: Harness, signed_in: Browser
) -> None:
    campaign = filled.admin.start_campaign(CampaignRequest(base="tiny-llama"))
    page = signed_in.get("/jobs").text
    assert campaign.id in page
    assert "acme/fleet@1" in page
    shown = text_of(signed_in.get(f"/campaigns/{campaign.id}").text)
    assert f"0 of {campaign.total} jobs have ended" in shown
    assert f'href="/campaigns/{campaign.id}"' in signed_in.get("/bases/tiny-llama").text
    job = re.findall(r"/jobs/(job_\w+)", signed_in.get("/jobs?ref=acme/fleet@1&state=queued").text)[0]
    assert signed_in.submit(f"/jobs/{job}", f"/jobs/{job}/cancel").status_code == 303
    page = signed_in.get(f"/jobs/{job}").text
    assert "cancelled" in page
    assert f"/jobs/{job}/cancel" not in page, "what has ended has no form"
    assert 'href="/adapters/acme/fleet/versions/1"' in page
    assert 'href="/bases/tiny-llama"' in page
    assert f"1 of {campaign.total} jobs have ended" in text_of(signed_in.get(f"/campaigns/{campaign.id}").text)
    assert signed_in.get("/jobs?state=none").status_code == 400


def test_a_job_that_has_ended_shows_its_result(filled: Harness, signed_in: Browser) -> None:
    filled.push("acme/tested")
    claimed = filled.admin.claim(ClaimRequest(worker="w"))
    assert claimed is not None
    assert claimed.subject is not None
    report = filled.report(claimed.subject.digest, claimed.job.base)
    request = FinishRequest(lease_token=claimed.lease.token, report=report, result={"message": "<b>smoke</b>: pass"})
    filled.admin.finish(claimed.job.id, request)
    page = signed_in.get(f"/jobs/{claimed.job.id}").text
    assert "<dd>&lt;b&gt;smoke&lt;/b&gt;: pass</dd>" in page
    assert "<dt>Ended</dt>" in page


def test_waiting_jobs_are_one_row_and_cancelled_together(filled: Harness, signed_in: Browser) -> None:
    for number in range(5):
        filled.push(f"acme/many-{number}")
    page = text_of(signed_in.get("/jobs").text)
    assert re.search(r"[0-9]+ wait [0-9]+ run", page)
    assert re.search(r"[0-9]+ × smoke-test acme/many-4@1 and [0-9]+ more", page)
    assert signed_in.submit("/jobs?ref=acme/many-1", "/jobs/cancel").status_code == 303
    page = signed_in.get("/jobs?ref=acme/many-1").text
    assert "The jobs that still waited are cancelled." in page
    cancelled = re.findall(r'href="/jobs/(job_[^"]+)"', page)[0]
    again = signed_in.submit(f"/jobs/{cancelled}", f"/jobs/{cancelled}/repeat").headers["location"]
    assert again != f"/jobs/{cancelled}"
    assert "queued" in signed_in.get(again).text
    assert "queued" in signed_in.get("/jobs?kind=smoke-test&ref=acme/many-2").text


@pytest.mark.security
def test_operators_see_their_own_namespace_only_and_cancel_nothing_of_others(filled: Harness, browser: Browser) -> None:
    job = next(job for job in filled.admin.jobs().items if job.subject.startswith("acme/"))
    campaign = filled.admin.start_campaign(CampaignRequest(base="tiny-llama"))
    for path in ("/fleet", "/jobs", f"/jobs/{job.id}", "/audit/1"):
        assert browser.get(path).status_code == 401
    browser.sign_in(filled.issue("push", namespaces=["library"])[1])
    assert "acme/fleet" not in browser.get("/fleet").text
    assert "node-of-library" in browser.get("/fleet").text
    page = browser.get("/jobs").text
    assert "acme/fleet@" not in page
    assert campaign.id not in page
    absent = browser.get("/jobs/job_" + "0" * 20)
    private = browser.get(f"/jobs/{job.id}")
    assert private.status_code == absent.status_code == 404
    assert private.text.replace(job.id, "") == absent.text.replace("job_" + "0" * 20, "")
    token = browser.get("/").text.partition('name="form_token" value="')[2].partition('"')[0]
    assert browser.post(f"/jobs/{job.id}/cancel", data={"form_token": token}).status_code == 404
    with Browser(filled) as admin:
        admin.sign_in(filled.secret)
        evil = {"Origin": "https://evil.example"}
        form = admin.get("/").text.partition('name="form_token" value="')[2].partition('"')[0]
        assert admin.post(f"/jobs/{job.id}/cancel", data={"form_token": form}, headers=evil).status_code == 403


@pytest.mark.security
def test_the_export_has_the_events_of_the_rest_api_and_none_of_others(
    filled: Harness, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert browser.get("/audit/export").status_code == 401
    _, secret = filled.issue("pull", namespaces=["library"])
    browser.sign_in(secret)
    assert browser.get("/audit/export?first_at=2026-05-03").status_code == 400, "a typo does not export everything"
    monkeypatch.setattr(audit, "EXPORT_PAGE_EVENTS", 2)
    for filters in ({}, {"object": "library/other"}, {"action": "alias.move"}, {"object": "acme/fleet"}):
        items = send(filled, "GET", "/api/v1/events", secret, params=filters | {"limit": "1000"}).json()["items"]
        page = browser.get("/audit", params=filters | {"view": "all"}).text
        link = html.unescape(re.findall(r'href="(/audit/export[^"]*)"', page)[0])
        response = browser.get(link)
        assert response.headers["content-disposition"] == 'attachment; filename="events.jsonl"'
        assert [json.loads(line) for line in response.text.splitlines()] == items
        assert bool(items) == ("acme/fleet" not in filters.values())


def test_the_events_of_a_person_and_a_time_are_those_of_the_rest_api(filled: Harness, signed_in: Browser) -> None:
    filled.push("library/later", by=filled.actor("push", namespaces=["library"], name="late"))
    items = send(filled, "GET", "/api/v1/events", filled.secret, params={"by": "token:late"}).json()["items"]
    assert items
    at = datetime.fromisoformat(items[-1]["at"])
    day, second, local = f"{at:%Y-%m-%d}", f"{at:%Y-%m-%dT%H:%M:%S}", at.astimezone(timezone(timedelta(hours=-9)))
    for filters, is_shown in (
        ({"actor": "token:late"}, True),
        ({"actor": "token:nobody"}, False),
        ({"actor": "token:late", "since": second, "until": second}, True),
        ({"actor": "token:late", "since": local.isoformat(), "until": day}, True),
        ({"actor": "token:late", "until": f"{at - timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}"}, False),
        ({"actor": "token:late", "since": f"{at + timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}"}, False),
    ):
        page = signed_in.get("/audit", params=filters)
        assert page.status_code == 200
        assert (f'href="/audit/{items[-1]["seq"]}"' in page.text) == is_shown, filters
        link = html.unescape(re.findall(r'href="(/audit/export[^"]*)"', page.text)[0])
        exported = [json.loads(line)["seq"] for line in signed_in.get(link).text.splitlines()]
        assert (items[-1]["seq"] in exported) == is_shown, filters


def test_the_saved_views_of_the_log_answer_what_auditors_ask(filled: Harness, signed_in: Browser) -> None:
    filled.push("acme/gated")
    filled.admin.set_gate("acme/gated", "prod", Gate(approvals=1))
    filled.admin.promote("acme/gated", "prod", "1", generation=0, reason="incident 902", break_glass=True)
    filled.admin.promote("acme/gated", "stage", "1", generation=0, reason='"break_glass": no')
    filled.admin.grant_role("acme", "dave@acme.example", "pusher")
    signed_in.get("/adapters/acme/gated/versions/1")
    filled.transport.settle()
    send(filled, "GET", "/api/v1/events", filled.secret)
    views = {view: text_of(signed_in.get("/audit", params={"view": view}).text) for view in VIEWS}
    for words, shown in (
        (
            "pointed acme/gated:prod at version 1, through a closed gate: “incident 902”",
            {"changes", "past-gates", "all"},
        ),
        ("pointed acme/gated:stage at version 1", {"changes", "all"}),
        ("granted dave@acme.example the role pusher in acme", {"changes", "rights", "all"}),
    ):
        assert {view for view, text in views.items() if words in text} == shown, words
    assert "saw files of acme" not in views["changes"]
    page = signed_in.get("/audit?view=past-gates").text
    link = re.findall(r'href="(/audit/[0-9]+)"', page)[0]
    entry = text_of(signed_in.get(link).text)
    assert "token:admin pointed acme/gated:prod at version 1, through a closed gate “incident 902”" in entry
    assert re.search(r"by the token [^ ]+ About", entry)


def test_events_are_shown_newest_first_with_and_without_a_filter(
    filled: Harness, signed_in: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PAGE_EVENTS", 3)
    monkeypatch.setattr(events, "SCAN_LIMIT", 5)
    for filters in ({}, {"action": "version.push"}):
        items = send(filled, "GET", "/api/v1/events", filled.secret, params=filters | {"limit": "1000"}).json()["items"]
        numbers, link, pages = list[int](), f"/audit?{urlencode(filters | {'view': 'all'})}", 0
        while link:
            page = signed_in.get(link).text
            numbers += [int(number) for number in re.findall(r'href="/audit/([0-9]+)"', page)]
            link = html.unescape((re.findall(r'rel="next" href="([^"]*)"', page) or [""])[0])
            pages += 1
        assert pages > 1
        assert numbers == sorted(set(numbers), reverse=True)
        assert {item["seq"] for item in items} <= set(numbers), "each is on one of the pages"


def test_a_filter_of_events_that_finds_nothing_or_is_wrong_says_why(signed_in: Browser) -> None:
    for query, status, words in (
        ("object=no/such@thing", 200, "No event that you may see is about “no/such@thing”."),
        ("actor=nobody", 200, "No event that you may see was caused by “nobody”."),
        ("since=2999-01-01", 200, "No event that you may see is of this type and time."),
        ("since=yesterday", 422, "Since: &#39;yesterday&#39; is not a time such as 2026-05-03T14:05."),
        ("until=0001-01-01T00:00%2B14:00", 422, "Until: &#39;0001-01-01T00:00+14:00&#39; is not a time"),
        ("until=0500-01-01", 422, "Until: the year 500 is not between 1970 and 9000."),
        ("action=nonsense", 422, "Event: &#39;nonsense&#39; is no type of event"),
    ):
        page = signed_in.get(f"/audit?{query}")
        assert (page.status_code, words in page.text) == (status, True), (query, text_of(page.text))
        assert signed_in.get(f"/audit/export?{query}").status_code == (200 if status == 200 else 400)
        assert "<tbody>" not in page.text
    assert "<tbody>" in signed_in.get("/audit?until=2999-01-01").text


def test_the_status_shows_workers_the_queue_and_whether_the_store_responds(
    filled: Harness, signed_in: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = filled.admin.claim(ClaimRequest(worker="gpu-<7>"))
    assert claimed is not None
    page = signed_in.get("/status").text
    assert "gpu-&lt;7&gt;" in page
    assert f'href="/jobs/{claimed.job.id}"' in page
    assert re.search(r"[0-9]+ jobs wait, [1-9][0-9]* run", page)
    assert "does not respond" not in page

    def fail(_key: str) -> None:
        raise Unavailable("STORE_UNAVAILABLE", "the bucket is away")

    monkeypatch.setattr(filled.app.state.blobs, "stat", fail)
    response = signed_in.get("/status")
    assert response.status_code == 200
    assert "Blob store : fail Does not respond: the bucket is away" in text_of(response.text)
    monkeypatch.undo()
    filled.give_back([claimed.job.id])


def test_the_status_is_red_where_a_part_of_the_registry_is_not_well(
    filled: Harness, signed_in: Browser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filled.issue("pull", name="ends soon", seconds=86400)
    assert "Tokens : warn 1 end" in text_of(signed_in.get("/status").text)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=100, free=1))
    filled.push("acme/untested")
    monkeypatch.setattr(filled.app.state, "blobs", LocalBlobs(tmp_path))
    later = db.now() + timedelta(hours=1)
    monkeypatch.setattr(db, "now", lambda: later)
    page = text_of(signed_in.get("/status").text)
    assert re.search("Health ✕ (Disk|Workers)", page), "what fails comes first"
    assert "Disk : fail 1 B of 100 B are free" in page
    assert "jobs wait and no worker takes them" in page
    assert "Backup : warn There is none in the store" in page


@pytest.mark.security
def test_the_status_shows_no_work_of_others(filled: Harness, browser: Browser) -> None:
    claimed = filled.admin.claim(ClaimRequest(worker="their-worker"))
    assert claimed is not None
    browser.sign_in(filled.issue("pull", namespaces=["nothing"])[1])
    page = browser.get("/status").text
    assert "their-worker" not in page
    assert "0 jobs wait, 0 run" in page
    filled.give_back([claimed.job.id])


def test_the_proof_of_an_entry_verifies_and_names_the_command(filled: Harness, signed_in: Browser) -> None:
    page = signed_in.get("/audit/2").text
    blocks = [html.unescape(block) for block in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)]
    entry, command, proof = blocks
    assert command == "adapter audit prove 2"
    keys = [Verifier.parse(key) for key in filled.app.state.audit_log.describe_keys().keys]
    assert notes.verify_proof(proof, entry.encode(), *keys) is not None
    assert notes.verify_proof(proof, entry.replace("namespace", "namespase").encode(), *keys) is None
    assert 'href="/audit/2"' in signed_in.get("/audit").text + signed_in.get("/audit?before=20").text
    assert signed_in.get("/audit/999999").status_code == 404


@pytest.mark.security
def test_an_entry_of_others_looks_like_an_absent_one(filled: Harness, browser: Browser) -> None:
    events = send(filled, "GET", "/api/v1/events", filled.secret, params={"object": "acme/fleet"}).json()["items"]
    browser.sign_in(filled.issue("pull", namespaces=["library"])[1])
    private, absent = browser.get(f"/audit/{events[0]['seq']}"), browser.get("/audit/999999")
    assert private.status_code == absent.status_code == 404
    seq = f"event {events[0]['seq']},"
    assert private.text.partition("<main")[2].replace(seq, "") == absent.text.partition("<main")[2].replace(
        "event 999999,", ""
    )
