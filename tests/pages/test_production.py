"""Aliases on pages: what one lacks, what served at a moment, and moves by those who may, from what they have seen."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import quote

import httpx
import pytest

from registry.api.access import NamespaceSet
from registry.evaluation.gates import Gate
from registry.evaluation.verdicts import Check
from registry.findings import Finding
from tests.access.tenants import send
from tests.harness import URL, Harness
from tests.pages.conftest import Browser

PAGE = "/adapters/acme/shop/aliases/prod"


@pytest.fixture(scope="module", autouse=True)
def filled(registry: Harness) -> Harness:
    for _ in range(3):
        registry.push("acme/shop")
    for number in (1, 2):
        registry.validate(f"acme/shop@{number}")
    registry.admin.promote("acme/shop", "prod", "2", generation=0, reason="before")  # where a rollback would return
    registry.admin.promote("acme/shop", "prod", "1", generation=1, reason="first")
    return registry


def generation(harness: Harness) -> int:
    return harness.admin.alias("acme/shop", "prod").generation


def test_a_page_says_what_a_version_lacks_and_what_served_at_a_moment(filled: Harness, signed_in: Browser) -> None:
    filled.admin.set_gate("acme/shop", "prod", Gate(requires=(Check.COMPAT, Check.SMOKE)))
    closed = signed_in.get(f"{PAGE}?version=3").text
    assert "the gate is closed" in closed
    assert "gate.smoke_absent" in closed
    assert '<button class="quiet">Point prod at version 3</button>' in closed
    assert "Refused while the gate is closed." in closed
    assert "<button>Point prod at version 2</button>" in signed_in.get(f"{PAGE}?version=2").text
    assert "the gate is open" in signed_in.get(f"{PAGE}?version=2").text
    assert "It pointed at nothing at 2001-05-03 14:05:00 UTC" in signed_in.get(f"{PAGE}?at=2001-05-03T14:05").text
    assert "it pointed at" in signed_in.get(PAGE, params={"at": datetime.now(UTC).isoformat()}).text
    for wrong in ("yesterday", "0001-01-01T00:00+14:00"):
        assert "This is not a time" in signed_in.get(PAGE, params={"at": wrong}).text


def test_a_failed_check_that_the_gate_does_not_ask_for_is_said(registry: Harness, signed_in: Browser) -> None:
    registry.push("acme/failing")
    page = "/adapters/acme/failing/aliases/trial"
    assert "has failed" not in signed_in.get(page).text
    registry.validate("acme/failing@1", [Finding.of("error", "smoke.drift", "prompt 1", "is another answer")])
    text = signed_in.get(page).text
    assert "the gate is open" in text
    assert "Its check smoke has failed, though the gate does not ask for it." in text


def test_a_moment_is_shown_in_utc_and_the_future_is_not_stated(filled: Harness, signed_in: Browser) -> None:
    move = filled.admin.history("acme/shop", alias="prod").moves[0]
    east = timezone(timedelta(hours=5, minutes=30))
    shown = move.at.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    for at in (move.at, move.at.astimezone(east)):
        page = signed_in.get(PAGE, params={"at": at.isoformat()}).text
        assert f"At {shown} UTC it pointed at" in page
        assert f'value="{shown.replace(" ", "T")}"' in page, "the field holds what the sentence says"
    page = signed_in.get(f"{PAGE}?at=2999-01-01T00:00").text
    assert "2999-01-01 00:00:00 UTC is in the future." in page
    assert "it pointed at" not in page


def test_a_timeline_leads_to_what_served_in_each_span(filled: Harness, signed_in: Browser) -> None:
    moves = filled.admin.history("acme/shop", alias="prod").moves
    page = signed_in.get(PAGE).text
    links = re.findall(r'<li><a href="([^"]*/aliases/prod[^"]*)">version (\d+)', page)
    assert [int(number) for _, number in links] == [move.number for move in reversed(moves)]
    widths = [float(width) for width in re.findall(r'<rect x="[^"]*" y="8" width="([^"]*)"', page)]
    assert len(widths) == len(moves)
    assert 990 < sum(widths) < 1020, "to a true scale"
    first, second = (signed_in.get(html.unescape(path)).text for path, _ in links[:2])
    assert re.findall(r'aria-current="true">version (\d)', first + second) == ["2", "1"]
    assert re.findall(r"it pointed at <a[^>]*>version (\d)", first + second) == ["2", "1"]
    assert "timeline" not in signed_in.get("/adapters/acme/shop/aliases/absent").text


def test_an_adapter_says_what_the_checks_of_the_serving_version_come_to(signed_in: Browser) -> None:
    page = signed_in.get("/adapters/acme/shop").text
    serving = re.search(
        r'aliases/prod">prod</a> → <a[^>]*>version 1</a> <span class="badge conclusion \w+" title="([^"]*)"', page
    )
    assert serving is not None
    assert serving[1] in ("Ready", "Not smoke-tested")
    assert "/compare?first=acme%2Fshop%401&amp;second=acme%2Fshop%403" in page


def test_promote_and_rollback_move_the_alias_and_are_in_the_history_with_their_reasons(
    filled: Harness, signed_in: Browser
) -> None:
    response = signed_in.submit(f"{PAGE}?version=2", f"{PAGE}/promote", reason="<b>asked</b> for")
    assert (response.status_code, response.headers["location"]) == (303, PAGE)
    assert filled.admin.alias("acme/shop", "prod").number == 2
    assert "&lt;b&gt;asked&lt;/b&gt; for" in signed_in.get(PAGE).text
    assert "Roll back to version 1</button>" in signed_in.get(PAGE).text
    assert signed_in.submit(PAGE, f"{PAGE}/rollback", reason=" ").status_code == 400
    assert signed_in.submit(PAGE, f"{PAGE}/rollback", reason="back").status_code == 303
    assert filled.admin.alias("acme/shop", "prod").number == 1
    events = send(filled, "GET", "/api/v1/events", filled.secret, params={"object": "acme/shop:prod"}).json()["items"]
    event = events[-1]
    assert (event["actor"], event["detail"]["reason"]) == ("token:admin", "back")
    assert event["request_id"]


def test_a_closed_gate_and_an_old_page_move_nothing(filled: Harness, signed_in: Browser) -> None:
    before = generation(filled)
    closed = signed_in.submit(f"{PAGE}?version=3", f"{PAGE}/promote")
    assert closed.status_code == 422
    assert "gate.smoke_absent" not in alert_of(closed), "findings are shown with their words"
    assert "no verdict for the check" in alert_of(closed)
    old = signed_in.submit(f"{PAGE}?version=2", f"{PAGE}/promote", generation=str(before - 1))
    assert old.status_code == 412
    assert signed_in.submit(f"{PAGE}?version=2", f"{PAGE}/promote", generation="x").status_code == 400
    assert signed_in.submit(f"{PAGE}?version=2", f"{PAGE}/promote", reason="\x1b[31m").status_code in (400, 422)
    assert generation(filled) == before


@pytest.mark.security
def test_only_those_who_may_promote_move_an_alias_and_only_by_a_form_of_their_session(
    filled: Harness, browser: Browser
) -> None:
    before = generation(filled)
    browser.sign_in(filled.issue("pull", namespaces=["acme"])[1])
    page = browser.get(PAGE)
    assert page.status_code == 200
    assert "Promote</h2>" not in page.text
    for action in ("promote", "rollback", "delete"):
        token = browser.get("/").text.partition('name="form_token" value="')[2].partition('"')[0]
        fields = {"version": "2", "generation": str(before), "form_token": token}
        assert browser.post(f"{PAGE}/{action}", data=fields, headers={"Origin": URL}).status_code == 403
        with Browser(filled) as nobody:
            assert nobody.post(f"{PAGE}/{action}", data=fields, headers={"Origin": URL}).status_code == 403
            bearer = {"Authorization": f"Bearer {filled.secret}"}
            assert nobody.post(f"{PAGE}/{action}", data=fields, headers=bearer).status_code == 403
        with Browser(filled) as admin:
            admin.sign_in(filled.secret)
            for headers in (
                {"Origin": "https://evil.example"},
                {"Origin": "http://["},
                {"Sec-Fetch-Site": "cross-site"},
            ):
                response = admin.submit(f"{PAGE}?version=2", f"{PAGE}/{action}", headers=headers)
                assert response.status_code == 403
    assert generation(filled) == before


@pytest.mark.security
def test_a_rotated_secret_promotes_nothing(filled: Harness, browser: Browser) -> None:
    token_id, secret = filled.issue("promote", namespaces=["acme"])
    browser.sign_in(secret)
    assert "Promote</h2>" in browser.get(PAGE).text
    filled.admin.rotate_token(token_id, keep_seconds=3600)
    assert "Promote</h2>" not in browser.get(PAGE).text


def test_a_namespace_lists_its_aliases_and_one_without_adapters_says_so(filled: Harness, signed_in: Browser) -> None:
    assert 'aliases/prod">1</a>' in signed_in.get("/namespaces/acme").text
    empty = signed_in.get("/namespaces/library")
    assert (empty.status_code, "No adapters." in empty.text) == (200, True)
    assert "adapter push FOLDER library/NAME" in empty.text
    assert signed_in.get("/namespaces/acme?cursor=acme/zzz").status_code == 200
    assert signed_in.get("/namespaces/nowhere").status_code == 404
    with Browser(filled) as nobody:
        absent = nobody.get("/namespaces/nowhere")
        for name in ("acme", "library"):
            private = nobody.get(f"/namespaces/{name}")
            assert private.status_code == absent.status_code == 404
            assert private.text.replace(name, "X") == absent.text.replace("nowhere", "X").replace(name, "X")


def test_an_approval_opens_a_gate_and_is_shown_with_its_comment(filled: Harness, browser: Browser) -> None:
    page = "/adapters/acme/shop/aliases/approved"
    filled.admin.set_gate("acme/shop", "approved", Gate(approvals=1))
    browser.sign_in(filled.issue("promote", namespaces=["acme"], name="reviewer")[1])
    assert "the gate is closed" in browser.get(f"{page}?version=2").text
    response = browser.submit(f"{page}?version=2", f"{page}/approve", comment="<i>read</i> it")
    assert (response.status_code, response.headers["location"]) == (303, f"{page}?version=2")
    shown = browser.get(f"{page}?version=2").text
    assert "the gate is open" in shown
    assert "reviewer" in shown
    assert "&lt;i&gt;read&lt;/i&gt; it" in shown
    assert browser.submit(f"{page}?version=2", f"{page}/promote").status_code == 303
    assert filled.admin.alias("acme/shop", "approved").number == 2


@pytest.mark.security
def test_only_an_owner_with_a_token_again_and_a_reason_passes_a_closed_gate(
    filled: Harness, signed_in: Browser
) -> None:
    page, action = "/adapters/acme/shop/aliases/locked", "/adapters/acme/shop/aliases/locked/promote"
    filled.admin.set_gate("acme/shop", "locked", Gate(approvals=1))
    outsider = filled.issue("admin", name="outsider")[1]
    form = re.findall(rf'<form[^>]*action="{action}".*?</form>', signed_in.get(f"{page}?version=1").text, re.DOTALL)[1]
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form))
    for fields in (
        {"reason": "an outage", "token": ""},
        {"reason": "an outage", "token": "lra_x"},
        {"reason": "an outage", "token": outsider},
        {"reason": " ", "token": filled.secret},
    ):
        assert signed_in.post(action, data=hidden | fields, headers={"Origin": URL}).status_code in (400, 403)
    with Browser(filled) as promoter:
        secret = filled.issue("promote", namespaces=["acme"])[1]
        promoter.sign_in(secret)
        assert "closed gate</summary>" not in promoter.get(f"{page}?version=1").text
        response = promoter.submit(f"{page}?version=1", action, break_glass="yes", reason="mine", token=secret)
        assert response.status_code == 403
    assert all(view.alias != "locked" for view in filled.admin.aliases("acme/shop").items)
    fields = hidden | {"reason": "an outage", "token": filled.secret}
    assert signed_in.post(action, data=fields, headers={"Origin": URL}).status_code == 303
    assert filled.admin.alias("acme/shop", "locked").number == 1
    assert "through a closed gate" in signed_in.get(page).text


def test_a_version_is_yanked_and_quarantined_with_a_reason_and_back(filled: Harness, signed_in: Browser) -> None:
    filled.push("acme/pulled")
    page = "/adapters/acme/pulled/versions/1"
    for change, shown in (
        ("yank", "Yanked</b>"), ("unyank", "Yank</summary>"), ("quarantine", "In quarantine"),
        ("unquarantine", "Quarantine</summary>"),
    ):  # fmt: skip
        action = f"{page}/withdrawal/{change}"
        assert signed_in.submit(page, action, reason="").status_code == 400
        response = signed_in.submit(page, action, reason="<b>because</b>")
        assert (response.status_code, response.headers["location"]) == (303, page)
        assert shown in signed_in.get(page).text
    events = send(filled, "GET", "/api/v1/events", filled.secret, params={"object": "acme/pulled@1"}).json()["items"]
    withdrawals = [event["action"] for event in events if event["detail"].get("reason") == "<b>because</b>"]
    assert withdrawals == ["version.yank", "version.unyank", "version.quarantine", "version.unquarantine"]


@pytest.mark.security
def test_only_those_who_may_withdraw_or_approve_do_and_only_by_a_form_of_their_session(
    filled: Harness, browser: Browser
) -> None:
    version = "/adapters/acme/shop/versions/1"
    actions = [f"{version}/withdrawal/{change}" for change in ("yank", "quarantine", "unquarantine")]
    actions.append(f"{PAGE}/approve")
    browser.sign_in(filled.issue("pull", namespaces=["acme"])[1])
    assert "Withdraw</h2>" not in browser.get(version).text
    assert f"{PAGE}/approve" not in browser.get(PAGE).text
    token = browser.get("/").text.partition('name="form_token" value="')[2].partition('"')[0]
    for action in actions:
        fields = {"version": "1", "reason": "r", "form_token": token}
        assert browser.post(action, data=fields, headers={"Origin": URL}).status_code == 403
        with Browser(filled) as admin:
            admin.sign_in(filled.secret)
            own = admin.get("/").text.partition('name="form_token" value="')[2].partition('"')[0]
            assert admin.post(action, data=fields, headers={"Origin": URL}).status_code == 403, "another session's"
            evil = {"Origin": "https://evil.example"}
            assert admin.post(action, data=fields | {"form_token": own}, headers=evil).status_code == 403
    with Browser(filled) as promoter:
        promoter.sign_in(filled.issue("promote", namespaces=["acme"])[1])
        filled.push("acme/held")
        filled.admin.quarantine("acme/held@1", reason="r")
        path = "/adapters/acme/held/versions/1"
        assert "An owner of acme" in promoter.get(path).text
        token = promoter.get("/").text.partition('name="form_token" value="')[2].partition('"')[0]
        fields = {"reason": "r", "form_token": token}
        response = promoter.post(f"{path}/withdrawal/unquarantine", data=fields, headers={"Origin": URL})
        assert response.status_code == 403, "only an owner ends a quarantine"
    assert filled.admin.version("acme/shop@1").yanked_at is None


def test_an_alias_is_deleted_from_where_the_page_has_shown_it(filled: Harness, signed_in: Browser) -> None:
    old = str(generation(filled) - 1)
    assert signed_in.submit(PAGE, f"{PAGE}/delete", generation=old).status_code == 412
    assert signed_in.submit(PAGE, f"{PAGE}/delete", reason="not used").status_code == 303
    assert [view.alias for view in filled.admin.aliases("acme/shop").items if view.alias == "prod"] == []
    page = signed_in.get(PAGE).text
    assert ("points at nothing" in page, "not used" in page, f"{PAGE}/delete" in page) == (True, True, False)
    assert re.search(r"deleted at <time[^>]*>[0-9: -]*:\d\d</time> UTC by token:admin: “not used”", page)
    assert f'Deleted, with their history: <a href="{PAGE}">prod</a>' in signed_in.get("/adapters/acme/shop").text
    now = datetime.now(UTC).isoformat()
    assert "it pointed at nothing: it was deleted" in signed_in.get(PAGE, params={"at": now}).text
    assert signed_in.submit(f"{PAGE}?version=1", f"{PAGE}/promote").status_code == 303
    assert "Deleted, with" not in signed_in.get("/adapters/acme/shop").text


def test_a_namespace_says_what_the_newest_version_lacks_for_its_aliases(filled: Harness, signed_in: Browser) -> None:
    filled.push("acme/lacking")
    filled.push("acme/lacking")
    filled.admin.promote("acme/lacking", "trial", "1", generation=0)
    filled.admin.set_gate("acme", "signed-off", Gate(approvals=1))

    def row() -> str:
        page = re.sub(r"\s+", " ", signed_in.get("/namespaces/acme").text)
        return page.partition(">lacking</a>")[2].partition("</tr>")[0]

    path = "/adapters/acme/lacking/aliases"
    assert f'<a href="{path}/trial?version=2">trial</a>: its gate is open' in row()
    assert f'<a href="{path}/signed-off?version=2">signed-off</a> lacks: 0 of 1 approvals' in row()
    filled.actor("promote", namespaces=["acme"], name="second").approve("acme/lacking@2", "signed-off")
    assert "signed-off</a>: its gate is open" in row()
    filled.admin.promote("acme/lacking", "trial", "2", generation=1)
    assert "trial?version=2" not in row(), "it points at the newest"
    filled.admin.delete_gate("acme", "signed-off")
    filled.admin.change_namespace("acme", NamespaceSet(public=True))
    with Browser(filled) as nobody:
        page = nobody.get("/namespaces/acme").text
        assert ("lacking" in page, "may become" in page, "gate" in page) == (True, False, False)
    filled.admin.change_namespace("acme", NamespaceSet(public=False))


def alert_of(response: httpx.Response) -> str:
    """What the page says is wrong with a form."""
    match = re.search(r'role="alert">(.*?)</(?:div|span)>', response.text, re.DOTALL)
    return html.unescape(match[1]) if match else ""


def test_a_form_comes_back_filled_in_with_what_was_wrong(filled: Harness, signed_in: Browser) -> None:
    page = "/adapters/acme/shop/aliases/reviewed"
    filled.admin.set_gate("acme/shop", "reviewed", Gate(approvals=1))
    step = "Ask someone else who may promote to approve the version with the form"
    response = signed_in.submit(f"{page}?version=2", f"{page}/promote", reason='the "new" <one>')
    assert response.status_code == 422
    assert step in alert_of(response)
    assert 'value="the &#34;new&#34; &lt;one&gt;"' in response.text
    hidden = {"page_of_form": f"{page}?version=2", "generation": "0", "version": "2", "reason": "again"}
    hidden["form_token"] = response.text.partition('name="form_token" value="')[2].partition('"')[0]
    headers = {"Origin": URL, "Referer": f"{URL}{page}/promote"}
    again = signed_in.post(f"{page}/promote", data=hidden, headers=headers)
    assert (step in alert_of(again), 'value="again"' in again.text) == (True, True), "the address is that of the form"
    for wrong in ("https://evil.example/", "//evil.example/", "/nowhere"):
        fields = {"page_of_form": wrong, "form_token": hidden["form_token"], "name": "A B"}
        response = signed_in.post("/settings/namespaces", data=fields, headers=headers)
        assert (response.status_code, "evil" in response.text) == (422, False), wrong


def test_a_conflict_says_who_moved_the_alias_and_offers_the_move_anyway(filled: Harness, signed_in: Browser) -> None:
    page = "/adapters/acme/shop/aliases/contended"
    filled.admin.promote("acme/shop", "contended", "1", generation=0)
    filled.actor("promote", namespaces=["acme"], name="bob").promote("acme/shop", "contended", "2", generation=1)
    refused = signed_in.submit(f"{page}?version=1", f"{page}/promote", generation="1", reason="mine")
    assert refused.status_code == 412
    assert re.match(r"<b>Token:bob moved alias 'contended' of 'acme/shop' to version 2, \d+ s ago", alert_of(refused))
    assert "Point contended at version 1 anyway</button>" in refused.text
    assert 'name="generation" value="2"' in refused.text


def test_the_link_of_serve_is_told_how_to_pass_a_closed_gate(filled: Harness, browser: Browser) -> None:
    page = "/adapters/acme/shop/aliases/guarded"
    filled.admin.set_gate("acme/shop", "guarded", Gate(approvals=1))
    browser.get(f"/sign-in/{filled.app.state.sign_in_links.create()}")
    shown = browser.get(f"{page}?version=1").text
    assert "break_glass" not in shown
    assert f'<a href="/sign-in?next={quote(page, safe="")}%3Fversion%3D1">sign in with one</a>' in shown


def test_the_pages_of_adapter_and_version_lead_to_a_first_promotion(filled: Harness, signed_in: Browser) -> None:
    filled.push("acme/fresh")
    filled.push("acme/fresh")
    adapter, aliases = "/adapters/acme/fresh", "/adapters/acme/fresh/aliases"
    for page, number in ((adapter, "2"), (f"{adapter}/versions/1", "1")):
        form = re.findall(rf'<form action="{aliases}">.*?</form>', signed_in.get(page).text, re.DOTALL)[0]
        hidden = dict(re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', form))
        response = signed_in.get(aliases, params=hidden | {"alias": "stage"})
        assert (response.status_code, response.headers["location"]) == (303, f"{aliases}/stage?version={number}")
    assert signed_in.submit(response.headers["location"], f"{aliases}/stage/promote").status_code == 303
    assert filled.admin.alias("acme/fresh", "stage").number == 1
    for wrong in ({"alias": "../../../audit"}, {"alias": "//evil.example"}, {"alias": "prod", "version": "1&x=y"}):
        assert signed_in.get(aliases, params=wrong).status_code == 422, wrong
    with Browser(filled) as reader:
        reader.sign_in(filled.issue("pull", namespaces=["acme"])[1])
        assert reader.get("/adapters/library/secret/aliases?alias=prod").status_code == 404
        assert f'action="{aliases}"' not in reader.get(adapter).text + reader.get(f"{adapter}/versions/1").text
