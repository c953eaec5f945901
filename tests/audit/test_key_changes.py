"""The key of the audit log changes: clients follow a rotation, and are told of a replacement; nothing else passes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from registry.api.audit.webhooks import WebhookCreate
from registry.client.audit import Audit
from registry.client.trusted_checkpoints import TrustedCheckpoints
from registry.errors import Corrupt, Invalid
from registry.events import EventType
from registry.server import webhooks
from registry.server.audit import keys, sequencer
from registry.server.database.models.owner_rules import WebhookRow
from registry.server.webhooks import dispatch
from registry.tlog import notes
from registry.tlog.notes import Signer
from tests.audit import logs
from tests.harness import Harness, rows

pytestmark = pytest.mark.security
ORIGIN = "registry.example.org/1"


@pytest.fixture(params=["sqlite", "postgres"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trusted(tmp_path: Path) -> TrustedCheckpoints:
    return TrustedCheckpoints(tmp_path / "trusted")


def current_note(harness: Harness) -> str:
    logs.append(harness, 1)
    harness.app.state.audit_log.step()
    return Audit(harness.admin).checkpoint()


def rotate(harness: Harness) -> Signer:
    signer = keys.rotate_key(harness.settings)
    harness.app.state.audit_log.reload_keys()
    return signer


def replace(harness: Harness, reason: str = "the disk is gone") -> Signer:
    signer = keys.replace_key(harness.settings, harness.app.state.audit_log.keys.signer.name)
    sequencer.record_replacement(harness.engine, signer.verifier.text, reason)
    harness.app.state.audit_log.reload_keys()
    return signer


def test_clients_follow_two_rotations_that_they_have_missed(harness: Harness, trusted: TrustedCheckpoints) -> None:
    trusted.check(harness.admin, current_note(harness))
    rotate(harness)
    current_note(harness)
    newest = rotate(harness)
    note = current_note(harness)
    trusted.check(harness.admin, note)
    remembered = trusted.find(harness.admin, note)
    assert remembered is not None
    assert remembered.keys[0] == newest.verifier.text
    rotated = Audit(harness.admin).events(action=[EventType.AUDIT_KEY_ROTATE])
    assert [event.detail["key"] for event in rotated][-1] == newest.verifier.text
    assert logs.replayed(harness).problems == []


def test_a_rotation_is_one_event_however_often_the_log_grows(harness: Harness) -> None:
    current_note(harness)
    rotate(harness)
    for _ in range(3):
        current_note(harness)
    assert len(list(Audit(harness.admin).events(action=[EventType.AUDIT_KEY_ROTATE]))) == 1


def test_a_webhook_keeps_its_secret_and_a_later_one_follows_from_no_older_key(harness: Harness) -> None:
    log = harness.app.state.audit_log
    older = log.keys
    harness.admin.create_namespace("acme")
    request = WebhookCreate(url="https://example.org/hook", namespace="acme")
    first = Audit(harness.admin).create_webhook(request)
    rotate(harness)
    second = Audit(harness.admin).create_webhook(request)
    with harness.session() as session:
        hooks = {row.id: row for row in rows(session, WebhookRow)}
    for created in (first, second):
        assert webhooks.secret_of(hooks[created.webhook.id], log.keys) == created.secret
    with pytest.raises(Invalid, match="lost the key of its secret"):
        webhooks.secret_of(hooks[second.webhook.id], older)
    hooks[first.webhook.id].key = ""  # as a server stored it that derived every secret from the oldest key
    assert webhooks.secret_of(hooks[first.webhook.id], log.keys) == first.secret


def test_a_webhook_whose_key_is_lost_is_called_with_no_other_secret(harness: Harness) -> None:
    created = Audit(harness.admin).create_webhook(WebhookCreate(url="https://192.0.32.8/hook"))
    replace(harness)
    log = harness.app.state.audit_log
    current_note(harness)
    assert dispatch.send_due(harness.engine, harness.settings, lambda: log.keys) > 0
    errors = {delivery.error for delivery in Audit(harness.admin).deliveries(created.webhook.id).items}
    assert errors == {"the key file has lost the key of its secret: create it again"}


@pytest.mark.security
def test_a_rotation_ends_what_an_older_key_can_forge(harness: Harness) -> None:
    log = harness.app.state.audit_log
    before = log.keys.derive_current_secret("links")
    rotate(harness)
    assert log.keys.derive_current_secret("links") != before


def test_a_replaced_key_is_explained_and_trusted_only_by_a_person(
    harness: Harness, trusted: TrustedCheckpoints
) -> None:
    trusted.check(harness.admin, current_note(harness))
    replaced = replace(harness)
    note = current_note(harness)
    with pytest.raises(Corrupt) as caught:
        trusted.check(harness.admin, note)
    assert caught.value.code == "LOG_KEY_REPLACED"
    assert "the disk is gone" in caught.value.detail
    assert "audit key --trust" in caught.value.next_step
    trusted.trust(harness.admin, tuple(harness.admin.log_keys().keys), note)
    trusted.check(harness.admin, current_note(harness))
    assert harness.admin.log_keys().replacements[0].key == replaced.verifier.text


def test_a_replacement_that_is_no_key_explains_nothing(
    harness: Harness, trusted: TrustedCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted.check(harness.admin, current_note(harness))
    replace(harness)
    note = current_note(harness)
    keys_of_log = harness.admin.log_keys()
    replacement = keys_of_log.replacements[0].model_copy(update={"key": "no key"})
    lying = keys_of_log.model_copy(update={"replacements": [replacement]})
    monkeypatch.setattr(harness.admin, "log_keys", lambda: lying)
    with pytest.raises(Corrupt) as caught:
        trusted.check(harness.admin, note)
    assert caught.value.code == "LOG_INCONSISTENT"


def test_a_key_that_the_log_does_not_record_stops_the_server(harness: Harness) -> None:
    current_note(harness)
    keys.replace_key(harness.settings, harness.app.state.audit_log.keys.signer.name)
    with pytest.raises(Invalid, match="none of its keys"):
        harness.app.state.audit_log.reload_keys()


def test_a_replacement_hides_no_rewritten_history(harness: Harness, trusted: TrustedCheckpoints) -> None:
    """A registry that forks its log and says that its key was lost is still told apart."""
    note = current_note(harness)
    trusted.check(harness.admin, note)
    replace(harness)
    forked = Signer.make(note.partition("\n")[0])
    remembered = trusted.find(harness.admin, note)
    assert remembered is not None
    other = notes.Checkpoint(forked.name, 500, b"x" * 32)
    trusted.trust(harness.admin, remembered.keys, notes.sign_note(other.text, *harness_signers(harness)))
    with pytest.raises(Corrupt) as caught:
        trusted.check(harness.admin, current_note(harness))
    assert caught.value.code == "LOG_INCONSISTENT"


def harness_signers(harness: Harness) -> tuple[Signer, ...]:
    """The key that the harness's log began with: it is kept beside the one that replaced it."""
    (path,) = keys.key_path(harness.settings).parent.glob("*.replaced-*")
    return tuple(Signer.parse(line) for line in path.read_text().splitlines())


def test_a_retired_key_neither_grows_the_log_nor_names_another_successor(
    harness: Harness, trusted: TrustedCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is rotated because it may be stolen: once a client has seen its successor, it is worth nothing."""
    retired = harness.app.state.audit_log.keys.signer
    trusted.check(harness.admin, current_note(harness))
    rotate(harness)
    trusted.check(harness.admin, current_note(harness))
    text = notes.open_note(current_note(harness), *harness.app.state.audit_log.keys.verifiers)
    assert text is not None
    thief = Signer.make(retired.name)
    keys_of_log = harness.admin.log_keys()
    stolen = [notes.endorse(retired, thief)]
    for successions in (stolen, [*stolen, *keys_of_log.successions]):
        lying = keys_of_log.model_copy(update={"successions": successions})
        monkeypatch.setattr(harness.admin, "log_keys", lambda lying=lying: lying)
        for signers in ((retired,), (thief,), (retired, thief)):
            with pytest.raises(Corrupt) as caught:
                trusted.check(harness.admin, notes.sign_note(text, *signers))
            assert caught.value.code == "LOG_INCONSISTENT"
    monkeypatch.undo()
    trusted.check(harness.admin, current_note(harness))


def test_an_older_checkpoint_by_the_key_of_its_time_is_still_read(
    harness: Harness, trusted: TrustedCheckpoints
) -> None:
    """A replica may respond with a checkpoint from before the rotation, and a client may see the new key first."""
    older = current_note(harness)
    rotate(harness)
    newer = current_note(harness)
    trusted.check(harness.admin, newer)
    assert trusted.check(harness.admin, older).size < trusted.check(harness.admin, newer).size


# ------------------------------------------------------------------ notes of succession
def test_a_chain_of_successions_is_followed_in_any_order() -> None:
    signers = [Signer.make(ORIGIN) for _ in range(4)]
    chain = [notes.endorse(old, new) for old, new in pairwise(signers)]
    for order in (chain, chain[::-1]):
        followed = notes.follow([signers[0].verifier], order)
        assert set(followed) == {signer.verifier for signer in signers}
    assert notes.follow([signers[1].verifier], chain)[0] == signers[3].verifier


@pytest.mark.parametrize("change", ["another signer", "another log", "only the old key", "another title", "two keys"])
def test_a_note_that_no_trusted_key_signed_names_no_successor(change: str) -> None:
    old, new, outsider = Signer.make(ORIGIN), Signer.make(ORIGIN), Signer.make(ORIGIN)
    text = f"{notes.TITLE}\n{ORIGIN}\n{new.verifier.text}\n"
    sign = notes.sign_note
    changed = {
        "another signer": sign(text, outsider, new),
        "another log": notes.endorse(old, Signer.make("registry.example.org/2")),
        "only the old key": sign(text, old),
        "another title": sign(text.replace("v1", "v2"), old, new),
        "two keys": sign(f"{text}{outsider.verifier.text}\n", old, new),
    }
    assert notes.successor(notes.endorse(old, new), old.verifier) == new.verifier
    assert notes.successor(changed[change], old.verifier) is None


def test_of_a_key_that_names_two_successors_none_is_followed() -> None:
    old, first, second = (Signer.make(ORIGIN) for _ in range(3))
    fork = [notes.endorse(old, first), notes.endorse(old, second)]
    assert notes.follow([old.verifier], fork) == (old.verifier,)
    retired_first = (first.verifier, old.verifier)
    assert notes.follow(retired_first, fork) == retired_first
    assert notes.follow(retired_first, [*fork, notes.endorse(first, old)]) == retired_first
