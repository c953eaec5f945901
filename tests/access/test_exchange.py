"""Token exchange: who gets a token, what it may do, and that every rejection has the same text."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.api.access import PublisherAdd, RoleView, TokenCreate
from registry.errors import Denied, Invalid, NotFound, TooLarge, Unauthenticated, Unavailable
from registry.server.access import issuers, outgoing, token_exchange
from registry.server.access.issuers import LEEWAY_SECONDS, Issuers
from registry.server.access.token_exchange import matches_pattern
from registry.server.database import db
from registry.server.database.models import EventRow, TokenRow
from registry.server.database.models.sign_in import PublisherRow, UsedAssertionRow
from tests.access.identity import ISSUER, LOGIN_ISSUER, Provider, other_key, rsa_key
from tests.access.tenants import of_subject, send
from tests.harness import Harness, rows

RULE = PublisherAdd(issuer=ISSUER, claims={"repository": "acme/train", "ref": "refs/heads/*"})


@pytest.fixture
def provider(tmp_path: Path) -> Provider:
    folder = tmp_path / "provider"
    folder.mkdir()
    return Provider(folder)


@pytest.fixture
def people(tmp_path: Path, provider: Provider) -> Provider:
    """The provider by which people sign in; it is in the issuers file of the other one."""
    folder = tmp_path / "people"
    folder.mkdir()
    people = Provider(folder, LOGIN_ISSUER, login_claim="email", groups_claim="groups")
    provider.also_trust(people)
    return people


@pytest.fixture
def harness(database_url: str, provider: Provider, people: Provider) -> Iterator[Harness]:
    assert people.issuer != provider.issuer
    with Harness(database_url, issuers=provider.settings, failures_per_minute=0) as harness:
        harness.add_base()
        harness.admin.add_publisher("acme/support", RULE)
        yield harness


def exchange(harness: Harness, assertion: str, adapter: str = "acme/support") -> Any:
    return harness.client("").exchange_token(assertion, adapter=adapter)


def sign_in(harness: Harness, assertion: str) -> Any:
    return exchange(harness, assertion, "")


def test_a_job_that_matches_may_only_push_its_adapter_and_only_for_minutes(
    harness: Harness, provider: Provider
) -> None:
    exchanged = exchange(harness, provider.sign())
    assert (exchanged.token.scopes, exchanged.token.adapters) == (["push"], ["acme/support"])
    assert exchanged.token.expires_at - db.now() <= timedelta(minutes=15)
    ci = harness.client(exchanged.secret)
    assert harness.push("acme/support", by=ci).created
    assert (
        ci.whoami().actor == harness.admin.version("acme/support@1").created_by == f"publisher:{exchanged.token.name}"
    )
    with pytest.raises(NotFound):
        harness.push("acme/other", by=ci)
    with pytest.raises(Denied):
        ci.promote("acme/support", "canary", "1", generation=0)
    harness.admin.add_publisher("acme/support", RULE.model_copy(update={"aliases": ["canary"]}))
    ci = harness.client(exchange(harness, provider.sign()).secret)
    assert harness.push("acme/support", by=ci, alias="canary").version.aliases == ["canary", "main"]
    with pytest.raises(Denied):
        ci.promote("acme/support", "prod", "1", generation=0)


def test_a_token_lasts_no_longer_than_the_identity_token(harness: Harness, provider: Provider) -> None:
    ends = int(time.time()) + 600
    assert exchange(harness, provider.sign(exp=ends)).token.expires_at.timestamp() == ends


def test_a_person_gets_a_token_that_is_bound_by_the_roles_of_the_subject(harness: Harness, people: Provider) -> None:
    harness.push("acme/support")
    signed_in = sign_in(harness, people.sign(sub="u1", email="alice@example.org", email_verified=True))
    alice = harness.client(signed_in.secret)
    assert alice.whoami().subject == "alice@example.org"
    with pytest.raises(NotFound):
        alice.resolve("acme/support")
    harness.admin.grant_role("acme", "alice@example.org", "reader")
    assert alice.resolve("acme/support").number == 1


@pytest.mark.security
def test_a_token_without_groups_does_not_rotate_the_one_of_the_sign_in(harness: Harness, people: Provider) -> None:
    harness.admin.grant_role("*", "group:ml", "owner")
    person: dict[str, Any] = {"sub": "u1", "email": "alice@example.org", "email_verified": True}
    alice = harness.client(sign_in(harness, people.sign(groups=["ml"], **person)).secret)
    laptop = alice.create_token(TokenCreate(name="laptop", scopes=["admin"], namespaces=["*"]))
    roles = [RoleView(role="owner")]
    assert (alice.whoami().roles, harness.client(laptop.secret).whoami().roles) == ({"*": roles}, {})
    with pytest.raises(Denied, match="may revoke the token"):
        harness.client(laptop.secret).rotate_token(alice.whoami().token_id)
    assert alice.rotate_token(laptop.token.id).token.id == laptop.token.id


@pytest.mark.security
def test_groups_of_the_identity_provider_have_roles_while_their_members_are_signed_in(
    harness: Harness, people: Provider
) -> None:
    harness.push("acme/support")
    person: dict[str, Any] = {"sub": "u1", "email": "alice@example.org", "email_verified": True}
    alice = harness.client(sign_in(harness, people.sign(groups=["ml platform", "ml", 7, "ops"], **person)).secret)
    assert (alice.whoami().roles, alice.whoami().groups) == ({}, ["group:ml", "group:ops"])
    harness.admin.grant_role("acme", "group:ml", "reader")
    harness.admin.grant_role("acme", "group:ops", "promoter")
    alice.promote("acme/support", "canary", "1", generation=0)
    harness.admin.grant_role("acme", "alice@example.org", "pusher")
    assert [*map(str, alice.whoami().roles["acme"])] == ["promoter", "pusher", "reader"], "they add up"
    harness.admin.revoke_role("acme", "alice@example.org")
    harness.admin.revoke_role("acme", "group:ops")
    harness.admin.revoke_role("acme", "group:ml")
    with pytest.raises(NotFound):
        alice.resolve("acme/support")
    for groups in ("ml", {"ml": 1}, None):
        harness.admin.grant_role("acme", "group:ml", "reader")
        other = harness.client(sign_in(harness, people.sign(groups=groups, **person)).secret)
        assert other.whoami().roles == {}
    with pytest.raises(Unauthenticated, match="lists 201 groups"):
        sign_in(harness, people.sign(groups=[f"g{number}" for number in range(201)], **person))
    with pytest.raises(Unauthenticated):
        sign_in(harness, people.sign(sub="u2", email="group:ml", email_verified=True))


def b64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def unsigned(provider: Provider) -> str:
    return f"{b64({'alg': 'none', 'typ': 'JWT', 'kid': 'k1'})}.{b64(provider.claims())}."


def by_public_key_as_a_secret(provider: Provider) -> str:
    """The known attack: HMAC with the public key as the secret."""
    head = f"{b64({'alg': 'HS256', 'typ': 'JWT', 'kid': 'k1'})}.{b64(provider.claims())}"
    mac = hmac.new(json.dumps(provider.public).encode(), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


NOW = time.time
FORGED: dict[str, Callable[[Provider], str]] = {
    "signed by another key": lambda p: p.sign(key=other_key()),
    "unsigned": unsigned,
    "HMAC with the public key": by_public_key_as_a_secret,
    "an algorithm that is not listed": lambda p: p.sign(key=rsa_key(), algorithm="RS256"),
    "an unknown key id": lambda p: p.sign(kid="k2"),
    "for somebody else": lambda p: p.sign(aud="https://elsewhere.example.org"),
    "without an audience": lambda p: p.sign(aud=None),
    "of another issuer": lambda p: p.sign(iss="https://evil.example.org"),
    "of an issuer that looks alike": lambda p: p.sign(iss=ISSUER + "/"),
    "over": lambda p: p.sign(exp=int(NOW()) - LEEWAY_SECONDS - 5, iat=int(NOW()) - 400),
    "without an end": lambda p: p.sign(exp=None),
    "from the future": lambda p: p.sign(iat=int(NOW()) + 300, exp=int(NOW()) + 600),
    "not yet": lambda p: p.sign(nbf=int(NOW()) + 300),
    "good for a month": lambda p: p.sign(exp=int(NOW()) + 30 * 86400),
    "without a jti": lambda p: p.sign(jti=None),
    "with an empty jti": lambda p: p.sign(jti=""),
    "with a jti that is no text": lambda p: p.sign(jti=7),
    "with an endless jti": lambda p: p.sign(jti="x" * 1000),
    "of another repository": lambda p: p.sign(repository="globex/train"),
    "of another ref": lambda p: p.sign(ref="refs/tags/x"),
    "with a list where a text is asked for": lambda p: p.sign(repository=["acme/train"]),
    "of a person at an issuer of jobs": lambda p: p.sign(repository=None, email="a@example.org", email_verified=True),
    "changed afterwards": lambda p: p.sign()[:-6] + "AAAAAA",
    "no token at all": lambda _: "x.y.z",
    "one of ours": lambda _: "lra_" + "0" * 38,
}


FORGED_PEOPLE: dict[str, dict[str, Any]] = {
    "whose address nobody verified": {"email": "a@example.org"},
    "called everybody": {"email": "*", "email_verified": True},
    "called as the registry": {"email": "registry", "email_verified": True},
    "called as a token": {"email": "token:ci", "email_verified": True},
    "with a space": {"email": "a b@c", "email_verified": True},
    "without a login": {},
}


def test_every_forged_identity_token_gets_the_same_response_and_a_reason_in_the_log_alone(
    harness: Harness, provider: Provider, people: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    forged = {case: make(provider) for case, make in FORGED.items()}
    forged |= {case: people.sign(**claims) for case, claims in FORGED_PEOPLE.items()}
    responses = {
        case: send(harness, "POST", "/api/v1/tokens/exchange", json={"assertion": assertion, "adapter": "acme/support"})
        for case, assertion in forged.items()
    }
    nobodys = {"assertion": people.sign(email="a@example.org")}
    responses["a person who names no adapter"] = send(harness, "POST", "/api/v1/tokens/exchange", json=nobodys)
    assert {case: a.status_code for case, a in responses.items() if a.status_code != 401} == {}
    assert len({a.json()["detail"] for a in responses.values()}) == 1
    reasons = [text for text in caplog.messages if text.startswith("an identity token was refused: ")]
    assert len(reasons) >= len(FORGED)
    for words in (
        "Audience doesn't match", "Signature has expired", "iss 'https://evil.example.org'", "no such issuer",
        "has no key for it", "repository 'globex/train'", "is for people, and the request names the adapter",
    ):  # fmt: skip
        assert any(words in reason for reason in reasons), words
    harness.app.state.audit_log.batch.flush(harness.engine)
    with harness.session() as session:
        recorded = [row.detail.get("reason", "") for row in rows(session, EventRow) if row.action == "access.unknown"]
    assert any("Audience doesn't match" in text for text in recorded), "doctor and the audit log say so, too"
    with harness.session() as session:
        assert rows(session, UsedAssertionRow) == []
        assert [row.name for row in rows(session, TokenRow)] == ["admin"]


def test_rejected_identity_tokens_from_one_address_are_rate_limited(database_url: str, provider: Provider) -> None:
    with Harness(database_url, issuers=provider.settings, failures_per_minute=3) as harness:
        harness.admin.add_publisher("acme/support", RULE)
        forged = {"assertion": provider.sign(aud="https://elsewhere.example.org"), "adapter": "acme/support"}
        responses = [send(harness, "POST", "/api/v1/tokens/exchange", json=forged) for _ in range(5)]
        assert [response.status_code for response in responses] == [401, 401, 401, 429, 429]
        assert responses[-1].headers["retry-after"].isdigit()
        assert exchange(harness, provider.sign()).token.adapters == ["acme/support"], "a right one never waits"


def test_an_adapter_that_does_not_trust_the_job_looks_like_an_absent_one(harness: Harness, provider: Provider) -> None:
    harness.push("globex/secret")
    for adapter in ("globex/secret", "globex/nothing"):
        with pytest.raises(Unauthenticated):
            exchange(harness, provider.sign(), adapter)
    assert exchange(harness, provider.sign(), "acme/support").token.adapters == ["acme/support"]


@pytest.mark.security
def test_no_rule_of_an_owner_changes_what_a_person_gets(harness: Harness, people: Provider) -> None:
    harness.admin.create_namespace("evil", owner="mallory@example.org")
    mallory = harness.client(of_subject(harness, "mallory@example.org"))
    trap = PublisherAdd(issuer=LOGIN_ISSUER, claims={"email": "*@example.org"})
    with pytest.raises(Invalid, match="is for sign-in"):
        mallory.add_publisher("evil/trap", trap)
    with harness.session(write=True) as session:  # as a registry stored it whose issuer had no login then
        now = db.now()
        rule: dict[str, Any] = {"issuer": LOGIN_ISSUER, "claims": trap.claims, "created_at": now, "created_by": "m"}
        session.add(PublisherRow(id="pub_1", namespace="evil", name="trap", **rule))
    person = people.sign(email="alice@example.org", email_verified=True)
    token = sign_in(harness, person).token
    assert (token.subject, token.adapters) == ("alice@example.org", [])
    with pytest.raises(Unauthenticated):
        exchange(harness, people.sign(email="alice@example.org", email_verified=True), "evil/trap")


@pytest.mark.security
def test_no_rules_of_other_adapters_change_what_a_job_gets(harness: Harness, provider: Provider) -> None:
    with harness.session(write=True) as session:
        for n in range(101):
            rule: dict[str, Any] = {"issuer": ISSUER, "claims": {"repository": "*/train"}, "created_by": "m"}
            session.add(PublisherRow(id=f"pub_{n}", namespace="aaa", name=f"trap-{n}", created_at=db.now(), **rule))
    assert exchange(harness, provider.sign()).token.adapters == ["acme/support"]


@pytest.mark.security
def test_the_rules_of_a_namespace_are_limited(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_exchange, "RULES_LIMIT", 2)
    harness.admin.add_publisher("acme/other", RULE)
    with pytest.raises(TooLarge, match="the limit"):
        harness.admin.add_publisher("acme/third", RULE)


@pytest.mark.security
def test_a_failing_issuer_is_requested_once_and_blocks_no_other(
    monkeypatch: pytest.MonkeyPatch, provider: Provider
) -> None:
    """While its keys are fetched, and for a while after a failure, others get 503 at once; known keys are served."""
    config = {"issuer": ISSUER, "audience": "a", "jwks_url": "https://ci.example.org/keys", "algorithms": ["ES256"]}
    issuer = issuers.Issuer(config, Path())
    monkeypatch.setattr(issuers, "FETCH_WAIT_SECONDS", 0.01)
    fetches: list[str] = []
    requested, response = threading.Event(), threading.Event()

    def fail(_method: str, url: str, **_: Any) -> Any:
        fetches.append(url)
        requested.set()
        assert response.wait(60)
        raise ValueError("no response")

    monkeypatch.setattr(outgoing, "request_document", fail)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(issuer.key_of, provider.sign())
        assert requested.wait(60)
        with pytest.raises(Unavailable):  # at once, while the first one waits
            issuer.key_of(provider.sign())
        response.set()
        with pytest.raises(Unavailable):
            first.result(60)
    with pytest.raises(Unavailable):
        issuer.key_of(provider.sign())
    assert len(fetches) == 1
    cache = issuer._client.jwk_set_cache if issuer._client is not None else None
    assert cache is not None
    cache.put({"keys": [provider.public]})
    assert issuer.key_of(provider.sign()) is not None
    with pytest.raises(Unavailable):
        issuer.key_of(provider.sign(kid="k2"))
    assert len(fetches) == 1


@pytest.mark.security
@pytest.mark.parametrize("response", [{"keys": "good"}, {"keys": []}, "no keys", None])
def test_requests_with_unknown_keys_cause_one_download(
    monkeypatch: pytest.MonkeyPatch, provider: Provider, response: Any
) -> None:
    """An issuer that responds is asked again as seldom as one that does not, whatever it returns."""
    config = {"issuer": ISSUER, "audience": "a", "jwks_url": "https://ci.example.org/keys", "algorithms": ["ES256"]}
    issuer = issuers.Issuer(config, Path())
    is_good = response == {"keys": "good"}
    document = {"keys": [provider.public]} if is_good else response
    requests: list[str] = []

    def respond(_method: str, url: str, **_: Any) -> Any:
        requests.append(url)
        if document is None:
            raise ValueError("not JSON")
        return 200, document

    monkeypatch.setattr(outgoing, "request_document", respond)
    for number in range(20):
        with pytest.raises(Unauthenticated if is_good else Unavailable):
            issuer.key_of(provider.sign(kid=f"unknown-{number}"))
    assert len(requests) == 1
    if is_good:
        assert issuer.key_of(provider.sign()) is not None
    monkeypatch.setattr(issuers, "RETRY_FETCH_SECONDS", 0)
    issuer._fetch_again_at = 0.0
    document = {"keys": [provider.public | {"kid": "new"}]}
    assert issuer.key_of(provider.sign(kid="new")) is not None, "a new key is found once the pause is over"


@pytest.mark.security
def test_an_identity_token_ends_by_the_clock_that_forgets_it(
    harness: Harness, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose clock is late would accept a token whose use is forgotten by the database's clock."""
    assertion = provider.sign()
    exchange(harness, assertion)
    monkeypatch.setattr(db, "_skew", timedelta(minutes=10))
    with pytest.raises(Unauthenticated):
        exchange(harness, assertion)
    with pytest.raises(Unauthenticated):
        exchange(harness, provider.sign(exp=int(NOW()) + 400))


def test_an_identity_token_is_accepted_once_even_under_a_race(harness: Harness, provider: Provider) -> None:
    def ask(assertion: str) -> int:
        return send(
            harness, "POST", "/api/v1/tokens/exchange", json={"assertion": assertion, "adapter": "acme/support"}
        ).status_code

    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            assertion = provider.sign()
            assert sorted(pool.map(ask, [assertion, assertion])) == [201, 401]
    with harness.session() as session:
        assert len(rows(session, UsedAssertionRow)) == 10


def test_a_jti_is_stored_longer_than_its_token_is_valid(harness: Harness, provider: Provider) -> None:
    exchange(harness, provider.sign(exp=int(NOW()) - 1, iat=int(NOW()) - 60))
    with harness.session() as session:
        (row,) = rows(session, UsedAssertionRow)
    assert (row.expires_at - db.now()).total_seconds() > LEEWAY_SECONDS


def test_an_exchange_is_an_event_and_the_secret_is_in_no_row(harness: Harness, provider: Provider) -> None:
    assertion = provider.sign()
    exchanged = exchange(harness, assertion)
    with harness.session() as session:
        events = [e.model_dump_json() for e in rows(session, EventRow)]
        assert [e.action for e in rows(session, EventRow)].count("token.exchange") == 1
        stored = "".join(events + [row.model_dump_json() for row in rows(session, TokenRow)])
    assert exchanged.secret not in stored
    assert assertion not in stored


def test_a_transfer_or_a_removal_ends_a_trusted_publisher(harness: Harness, provider: Provider) -> None:
    harness.push("acme/support")
    token = harness.client(exchange(harness, provider.sign()).secret)
    harness.admin.rename("acme/support", "acme/helpdesk")
    with pytest.raises(Unauthenticated):
        exchange(harness, provider.sign())
    with pytest.raises(NotFound):
        harness.push("acme/helpdesk", by=token)
    rule = harness.admin.add_publisher("acme/helpdesk", RULE)
    assert exchange(harness, provider.sign(), "acme/helpdesk").token.adapters == ["acme/helpdesk"]
    harness.admin.delete_publisher("acme/helpdesk", rule.id)
    assert harness.admin.publishers("acme/helpdesk").items == []
    with pytest.raises(Unauthenticated):
        exchange(harness, provider.sign(), "acme/helpdesk")


@pytest.mark.parametrize(
    "claims", [{"repository": "*"}, {"a": "*", "b": "**"}, {"": "x"}, {"a": "x" * 600}, {"a": "*" * 9}]
)
def test_a_rule_that_would_trust_everybody_is_refused(harness: Harness, claims: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        harness.admin.add_publisher("acme/support", PublisherAdd(issuer=ISSUER, claims=claims))


@pytest.mark.parametrize(
    ("pattern", "value", "is_so"),
    [
        ("acme/train", "acme/train", True),
        ("acme/*", "acme/train", True),
        ("acme/*", "acmes/train", False),
        ("*/train", "acme/train", True),
        ("a*b*c", "aXbYc", True),
        ("a*b*c", "abc", True),
        ("a*b*c", "acb", False),
        ("ab*ba", "aba", False),
        ("true", True, True),
        ("7", 7, True),
        ("x", ["x"], False),
        ("x", None, False),
    ],
)
def test_a_pattern_must_match_the_whole_value(pattern: str, value: Any, is_so: bool) -> None:
    assert matches_pattern(pattern, value) is is_so


@pytest.mark.parametrize(
    "text",
    [
        "[[issuer]]\nissuer = 'x'",
        "[[issuer]]\nissuer = 'x'\naudience = 'y'",
        "[[issuer]]\nissuer = 'x'\naudience = 'y'\njwks_url = 'http://10.0.0.1/keys'",
        "[[issuer]]\nissuer = 'x'\naudience = 'y'\njwks_url = 'https://a'\njwks_file = 'b'",
        "[[issuer]]\nissuer = 'x'\naudience = 'y'\njwks_file = 'b'\nalgorithms = ['none']",
        "[[issuer]]\nissuer = 'x'\naudience = 'y'\njwks_file = 'b'\nalgorithms = ['HS256']",
        "[[issuer]]\nissuer = 'x'\naudience = 'y'\njwks_file = 'b'\nsecret = 's'",
        "other = 1",
        "not toml",
    ],
)
def test_an_invalid_issuers_file_prevents_the_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "issuers.toml"
    path.write_text(text)
    with pytest.raises(Invalid) as caught:
        Issuers.read(str(path))
    assert caught.value.code == "SETTING_INVALID"
